"""The disk rigs: the states they make are the ones a power cut can leave, pmwal survives them, and each control is noticed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from crash import needs, program, writelog
from crash.logdisk import ENTRY, FLUSH, MAGIC, SECTOR, SUPER, VERSION
from crash.oracle import Found, Model, Note, Violation
from crash.writelog import Cut, Entry

pytestmark = pytest.mark.rigs

TOOLS = Path(__file__).resolve().parent.parent / "tools"
RIGS = {"filelog": ("root", "fuse", "cc"), "hostlog": ("root", "fuse", "loop", "mkfs.ext4", "mkfs.xfs", "ext4", "xfs", "cc")}
RULED_OUT = r"records \d+ to \d+ were acknowledged, and are missing|commit slots are lost"
"""What a log says of which a barrier was none."""

FLUSHED = Entry(0, b"")


def run(rig: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of a rig, which keeps what is wrong below ``tmp_path``; the test is skipped where the machine cannot."""
    needs.require(*RIGS[rig])
    command = [sys.executable, str(TOOLS / "crash" / f"{rig}.py"), "--seed", "1", "--keep", str(tmp_path / "kept"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def written(*sectors: int, fill: int = 1) -> list[Entry]:
    """Writes of one sector each."""
    return [Entry(sector * SECTOR, bytes([fill]) * SECTOR) for sector in sectors]


def log_of(entries: list[Entry]) -> bytes:
    """A log with these entries."""
    log = SUPER.pack(MAGIC, VERSION, len(entries), SECTOR).ljust(SECTOR, b"\0")
    for offset, data in entries:
        flags = 0 if data else FLUSH
        log += ENTRY.pack(offset // SECTOR, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0") + data
    return log


# -- pmwal on the rigs


@pytest.mark.parametrize("rig", RIGS)
def test_every_state_of_a_cut_holds_what_was_acknowledged(rig: str, tmp_path: Path) -> None:
    """200 states over both engines, both orderings and all file systems."""
    done = run(rig, tmp_path, "--states", "200")
    assert done.returncode == 0, done.stderr
    states, distinct, commits = map(int, re.findall(r"(\d+) (?:states|distinct|commits)", done.stdout))
    assert states == 200
    assert distinct > 100
    assert commits > 100


@pytest.mark.parametrize(("rig", "engine"), [("filelog", "python"), ("filelog", "native"), ("hostlog", "native")])
@pytest.mark.parametrize("control", program.CONTROLS)
def test_a_control_is_noticed_and_its_state_kept(rig: str, control: str, engine: str, tmp_path: Path) -> None:
    """An early acknowledgement, no sync, and sync_file_range for a sync lose what was acknowledged; so does the kept state."""
    done = run(rig, tmp_path, "--states", "50", "--control", control, "--engine", engine)
    assert done.returncode == 1, done.stderr
    assert re.search(RULED_OUT, done.stderr)
    assert f"--control {control}" in done.stderr
    replayed = run(rig, tmp_path, "--replay", str(tmp_path / "kept"))
    assert replayed.returncode == 1
    said = re.search(r"'?\): (.*?)(?:: /|\n)", done.stderr)
    assert said is not None
    assert said[1] in replayed.stderr


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """On SIGINT, in the midst of a run with everything mounted, the rig ends, and its directory and its loop devices go."""
    needs.require(*RIGS["hostlog"])
    command = [sys.executable, str(TOOLS / "crash" / "hostlog.py"), "--states", "5000", "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)

    def backed() -> list[str]:
        files = Path("/sys/block").glob("loop*/loop/backing_file")
        return [name for name in map(_text, files) if f"pmwal-hostlog-{process.pid}-" in name]

    deadline = time.monotonic() + 20
    while not backed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backed()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    deadline = time.monotonic() + 5
    while backed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backed() == []
    assert list(Path("/dev/shm").glob(f"pmwal-hostlog-{process.pid}-*")) == []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the device was let go meanwhile
        return ""


# -- the log of writes


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Writes and flushes, in their order."""
    entries = [*written(3, 4), FLUSHED, Entry(0, bytes(range(256)) * 4)]
    (tmp_path / "log").write_bytes(log_of(entries))
    assert writelog.parse(tmp_path / "log") == entries


@pytest.mark.parametrize("damage", ["empty", "magic", "cut", "flags"])
def test_a_log_that_is_not_whole_is_refused(damage: str, tmp_path: Path) -> None:
    """No state is made from what cannot be trusted."""
    log = bytearray(log_of([*written(1), FLUSHED]))
    match damage:
        case "empty":
            log.clear()
        case "magic":
            log[0] ^= 1
        case "cut":
            del log[-SECTOR:]
        case "flags":
            log[SECTOR + 16] = 4  # a discard
    (tmp_path / "log").write_bytes(log)
    with pytest.raises(ValueError, match="log"):
        writelog.parse(tmp_path / "log")


def test_a_cut_keeps_all_before_the_last_flush_and_nothing_of_the_future() -> None:
    """Every cut of a sample lies between a flush and the next one."""
    entries = [*written(1, 2), FLUSHED, *written(3), FLUSHED, *written(4, 5, 6)]
    cuts = writelog.sample(entries, 100 * SECTOR, Random(1), 200)
    assert cuts == sorted(cuts)
    assert {cut.durable for cut in cuts} == {0, 3, 5}
    assert {cut.mode for cut in cuts} == set(writelog.MODES)
    for cut in cuts:
        assert not any(entry.is_flush for entry in entries[cut.durable : cut.time])
        survived = set(writelog.survivors(entries, cut, 100 * SECTOR, SECTOR))
        assert survived <= set(entries[cut.durable : cut.time])


def test_a_torn_write_is_torn_at_every_sector() -> None:
    """Over many seeds each of its sectors is lost and kept, by itself too, and never less than a sector."""
    entries = [Entry(SECTOR, b"\1" * SECTOR * 3)]
    seen = set()
    for seed in range(300):
        pieces = list(writelog.survivors(entries, Cut(1, 0, "torn", seed), 100 * SECTOR, SECTOR))
        assert all(len(data) == SECTOR for _, data in pieces)
        seen.add(tuple(offset // SECTOR for offset, _ in pieces))
    assert len(seen) == 8


def test_the_digest_tells_contents_apart_and_not_ways(tmp_path: Path) -> None:
    """Another way to the same bytes is the same state; a write of what stands there changes nothing."""
    (tmp_path / "initial").write_bytes(bytes(8 * SECTOR))
    disk = writelog.Disk(tmp_path / "initial", tmp_path / "durable", 8 * SECTOR)
    with (tmp_path / "state").open("w+b") as state:
        nothing = disk.state([], state.fileno())
        assert nothing == disk.state(written(1, fill=0), state.fileno())
        ahead = disk.state(written(1, 2), state.fileno())
        assert ahead != nothing
        assert ahead != disk.state(written(1), state.fileno())
        disk.advance(written(2), 1)
        assert ahead == disk.state(written(1), state.fileno())
        assert state.read() == bytes(SECTOR) + b"\1" * 2 * SECTOR + bytes(5 * SECTOR)
    disk.close()


# -- the oracle


def model(*facts: dict[str, object]) -> Model:
    """The model after these notes."""
    notes = [Note(at + 1, {"note": at, **fact}) for at, fact in enumerate(facts)]
    made = Model(7, notes)
    made.advance(len(notes))
    return made


OPENED = {"event": "opened", "first": 1, "next": 1, "overwrites": False}
STORED = {"event": "store", "first": 1, "sizes": [5, 5, 5]}
DONE = {"event": "done", "first": 1, "through": 3}
RECORDS = [program.payload(7, 1, index, 5) for index in range(3)]  # of STORED as the second note


def test_what_was_not_acknowledged_may_be_there_or_not_but_whole() -> None:
    """A batch of three: none or all."""
    made = model(OPENED, STORED)
    assert made.problem(Found(1, [])) is None
    assert made.problem(Found(1, RECORDS)) is None
    assert "not the end of a call" in (made.problem(Found(1, RECORDS[:2])) or "")


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (Found(1, []), "records 1 to 3 were acknowledged, and are missing"),
        (Found(1, RECORDS[:2]), "records 3 to 3 were acknowledged, and are missing"),
        (Found(1, [*RECORDS[:2], b"other"]), "record 3 is not what was stored"),
        (Found(1, [*RECORDS, b"more"]), "it ends with 4"),
        (Found(2, RECORDS[1:]), "it begins with 2 instead of 1"),
        (Found(1, [], missing=True), "there is no file"),
        (Found(1, [], corrupt="CorruptWal: R4"), "CorruptWal: R4"),
    ],
)
def test_what_was_acknowledged_must_be_there(found: Found, problem: str) -> None:
    """Whatever is missing, changed or added is told."""
    made = model(OPENED, STORED, DONE)
    assert made.problem(Found(1, RECORDS)) is None
    assert problem in (made.problem(found) or "")


def test_a_rollback_is_done_or_not_until_it_was_answered() -> None:
    """Then what it discarded must not come back."""
    rollback = {"event": "rollback", "after": 1}
    made = model(OPENED, STORED, DONE, rollback)
    for last in (1, 3):
        assert made.problem(Found(1, RECORDS[:last])) is None
    assert made.problem(Found(1, RECORDS[:2])) is not None
    made = model(OPENED, STORED, DONE, rollback, {"event": "done", "first": 1, "through": 1})
    assert made.problem(Found(1, RECORDS[:1])) is None
    assert made.problem(Found(1, RECORDS)) is not None


def test_a_kill_that_loses_something_is_a_violation() -> None:
    """The page cache outlives the process."""
    with pytest.raises(Violation, match="records 1 to 3 were acknowledged"):
        model(OPENED, STORED, DONE, {"event": "open"}, OPENED)
