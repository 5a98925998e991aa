"""The disk rigs: the states they build are those that a power cut can leave, pmwal survives them, and each control is noticed."""

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

import pmwal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from crash import needs
from crash.disk import program, rig, writelog
from crash.disk.logdisk import SECTOR
from crash.disk.oracle import Found, Model, Note, critical_spans
from crash.disk.writelog import Cut, Entry
from pmwal.testing.stress.violation import Violation

pytestmark = pytest.mark.rigs

DISK = Path(__file__).resolve().parent.parent / "tools" / "crash" / "disk"
HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine
RIGS = {"filelog": ("root", "fuse", "cc"), "hostlog": ("root", "fuse", "loop", "mkfs.ext4", "mkfs.xfs", "ext4", "xfs", "cc")}
RULED_OUT = r"records \d+ to \d+ were acknowledged, and are missing|commit slots are lost|CorruptWal"
"""Findings that show a barrier without effect."""

FLUSHED = Entry(0, b"")


def run(name: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a rig, which keeps a wrong state below ``tmp_path``; skips the test if the machine lacks something."""
    needs.require(*RIGS[name])
    command = [sys.executable, str(DISK / f"{name}.py"), "--seed", "1", "--keep", str(tmp_path / "kept"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGING, check=False)


def written(*sectors: int, fill: int = 1) -> list[Entry]:
    """Writes of one sector each."""
    return [Entry(sector * SECTOR, bytes([fill]) * SECTOR) for sector in sectors]


def figures(said: str) -> dict[str, int]:
    """The counts in the first line of a summary, by the first word of their names."""
    return {word: int(count) for count, word in re.findall(r"(\d+) (?:calls that |of )?([a-z]+)", said.splitlines()[0])}


# -- pmwal on the rigs


@pytest.mark.parametrize("name", RIGS)
def test_every_state_of_a_cut_holds_what_was_acknowledged(name: str, tmp_path: Path) -> None:
    """200 states over both engines, both orderings and all file systems, with cuts in every stage."""
    done = run(name, tmp_path, "--states", "200")
    assert done.returncode == 0, done.stderr
    seen = figures(done.stdout)
    assert seen["states"] == 200
    assert 100 < seen["distinct"] == seen["opened"]
    assert seen["recovered"] > 10
    assert seen["commits"] > 100
    assert seen["power"] == 4  # cuts that the program itself recovered from, one in each recording
    stages = ("recovery", "commits of several") + (("creation", "use of a repaired") if name == "hostlog" else ())
    for stage in stages:
        assert re.search(rf"[1-9]\d* in (the )?{stage}", done.stdout), done.stdout


@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_large_ring_takes_the_ways_that_only_large_calls_take(engine: str, tmp_path: Path) -> None:
    """Slots after 1 MiB of commits; in the C engine, appends by pwritev2(2) and batches by several pwrite(2).

    On ext4: over FUSE such a write counts as no barrier, so there both engines use msync(2).
    """
    arguments = ("--states", "50", "--engine", engine, "--ordering", "pipelined", "--size", "4MiB")
    done = run("hostlog", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    seen = figures(done.stdout)
    assert seen["slots"] > 0
    assert (seen["stored"] > 10, seen["them"] > 0) == ((engine == "native",) * 2)


@pytest.mark.parametrize(("name", "engine"), [("filelog", "python"), ("filelog", "native"), ("hostlog", "native")])
@pytest.mark.parametrize("control", program.CONTROLS)
def test_a_control_is_noticed_and_its_state_kept(name: str, control: str, engine: str, tmp_path: Path) -> None:
    """Early acknowledgements, no syncs, and sync_file_range in place of syncs lose acknowledged records, also in the kept state."""
    done = run(name, tmp_path, "--states", "50", "--size", "64KiB", "--control", control, "--engine", engine)
    assert done.returncode == 1, done.stderr
    assert re.search(RULED_OUT, done.stderr)
    assert f"--control {control}" in done.stderr
    replayed = run(name, tmp_path, "--replay", str(tmp_path / "kept"))
    assert replayed.returncode == 1
    said = re.search(r"'?\): (.*?)(?:: /|\n)", done.stderr)
    assert said is not None
    assert said[1] in replayed.stderr


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """On SIGINT while everything is mounted, the rig ends, and its directory and its loop devices are gone."""
    needs.require(*RIGS["hostlog"])
    command = [sys.executable, str(DISK / "hostlog.py"), "--states", "5000", "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (ignored in a background job of a shell)
    )

    def backed() -> list[str]:
        files = Path("/sys/block").glob("loop*/loop/backing_file")
        return [name for name in map(_text, files) if f"pmwal-hostlog-{process.pid}-" in name]

    try:
        while not backed():
            assert process.poll() is None, "it ended before it had a loop device"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGING) != 0
    finally:
        process.kill()
    deadline = time.monotonic() + HANGING
    while backed() and time.monotonic() < deadline:  # the kernel releases a device a moment after its last user
        time.sleep(0.01)
    assert backed() == []
    assert list(Path("/dev/shm").glob(f"pmwal-hostlog-{process.pid}-*")) == []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the device was released meanwhile
        return ""


# -- the log of writes


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Writes and flushes, in order."""
    entries = [*written(3, 4), FLUSHED, Entry(0, bytes(range(256)) * 4)]
    writelog.save(entries, tmp_path / "log")
    assert writelog.parse(tmp_path / "log") == entries


@pytest.mark.parametrize("damage", ["empty", "magic", "cut", "flags"])
def test_a_log_that_is_not_whole_is_refused(damage: str, tmp_path: Path) -> None:
    """No state is built from a damaged log."""
    writelog.save([*written(1), FLUSHED], tmp_path / "log")
    log = bytearray((tmp_path / "log").read_bytes())
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
    """Every cut of a sample is between a flush and the next one."""
    entries = [*written(1, 2), FLUSHED, *written(3), FLUSHED, *written(4, 5, 6)]
    cuts = writelog.sample(entries, 100 * SECTOR, Random(1), 200)
    assert cuts == sorted(cuts)
    assert {cut.durable for cut in cuts} == {0, 3, 5}
    assert {cut.mode for cut in cuts} == set(writelog.MODES)
    for cut in cuts:
        assert not any(entry.is_flush for entry in entries[cut.durable : cut.time])
        survived = set(writelog.survivors(entries, cut, 100 * SECTOR, SECTOR))
        assert survived <= set(entries[cut.durable : cut.time])


def test_a_favoured_span_gets_its_share_of_the_cuts() -> None:
    """Recoveries and repairs are short, so cuts among them are favoured."""
    entries = [entry for number in range(500) for entry in (*written(number % 9), FLUSHED)]
    cuts = writelog.sample(entries, 100 * SECTOR, Random(1), 200, [(300, 310)])
    within = [cut for cut in cuts if 300 <= cut.time <= 310]
    assert len(within) >= 200 // writelog.FAVOURED_EVERY
    assert {cut.mode for cut in within} == set(writelog.MODES)
    for cut in cuts:
        assert not any(entry.is_flush for entry in entries[cut.durable : cut.time])
        assert cut.durable == 0 or entries[cut.durable - 1].is_flush


def test_a_torn_write_is_torn_at_every_sector() -> None:
    """Over many seeds, each sector is lost and kept, also alone, and never less than a sector."""
    entries = [Entry(SECTOR, b"\1" * SECTOR * 3)]
    seen = set()
    for seed in range(300):
        pieces = list(writelog.survivors(entries, Cut(1, 0, "torn", seed), 100 * SECTOR, SECTOR))
        assert all(len(data) == SECTOR for _, data in pieces)
        seen.add(tuple(offset // SECTOR for offset, _ in pieces))
    assert len(seen) == 8


def test_the_digest_tells_contents_apart_and_not_ways(tmp_path: Path) -> None:
    """The same bytes are the same state, however they came about; a write of unchanged bytes changes nothing."""
    (tmp_path / "initial").write_bytes(bytes(8 * SECTOR))
    disk = writelog.Disk(tmp_path / "initial", tmp_path / "durable", 8 * SECTOR)
    with (tmp_path / "state").open("w+b") as state:
        assert disk.digest([]) == disk.digest(written(1, fill=0))
        ahead = disk.digest(written(1, 2))
        assert ahead != disk.digest([])
        assert ahead != disk.digest(written(1))
        disk.advance(written(2), 1)
        assert ahead == disk.digest(written(1))
        disk.make(written(1), state.fileno())
        assert state.read() == bytes(SECTOR) + b"\1" * 2 * SECTOR + bytes(5 * SECTOR)
    disk.close()


@pytest.mark.parametrize("mode", writelog.MODES)
def test_a_disk_after_a_power_cut_holds_what_survived_and_the_notes_made_before_it(mode: str) -> None:
    """Its log ends with a flush and has nothing from after the cut."""
    area, limit = 100, 100 * SECTOR
    entries = [*written(1), FLUSHED, *written(2), *written(area), *written(3, 4), *written(area + 1)]
    cut = Cut(6, 2, mode, 5)
    joined = writelog.cut_off(entries, cut, limit, SECTOR)
    survived = list(writelog.survivors(entries, cut, limit, SECTOR))
    assert joined == [*entries[:2], *written(area), *survived, FLUSHED]


# -- the look at a state


def test_a_second_recovery_that_finds_something_else_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other engine recovers again, after a crash of the process that recovered first."""
    (tmp_path / "log").touch()
    recoveries = {"python": Found(1, [b"a", b"b"]), "native": Found(1, [b"a"])}
    monkeypatch.setattr(rig, "_recover", lambda path, engine: recoveries[engine])
    assert rig.look(tmp_path / "log", "python", twice=False) == recoveries["python"]
    with pytest.raises(Violation, match="python recovers records 1 to 2, and after it native recovers records 1 to 1"):
        rig.look(tmp_path / "log", "python", twice=True)


@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_look_recovers_and_leaves_a_log_that_is_not_closed(engine: str, tmp_path: Path) -> None:
    """So the next open has to recover."""
    path = tmp_path / "log"
    with pmwal.open(path, size="64KiB", medium="file") as wal:
        wal.append(b"a")
    assert rig.look(path, engine, twice=True) == Found(1, [b"a"])
    assert pmwal.verify(path).outcome == "recovered"


# -- the oracle


def model(*facts: dict[str, object]) -> Model:
    """The model after these notes."""
    notes = [Note(at + 1, {"note": at, **fact}) for at, fact in enumerate(facts)]
    made = Model(7, notes)
    made.advance(len(notes))
    return made


OPEN = {"event": "open", "life": 0}
OPENED = {"event": "opened", "first": 1, "next": 1, "overwrites": False, "kinds": []}
STORED = {"event": "store", "first": 1, "sizes": [5, 5, 5]}
DONE = {"event": "done", "first": 1, "through": 3}
RECORDS = [program.payload(7, 0, 1, index, 5) for index in range(3)]  # of STORED as the second note


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
    """Everything missing, changed or added is reported."""
    made = model(OPENED, STORED, DONE)
    assert made.problem(Found(1, RECORDS)) is None
    assert problem in (made.problem(found) or "")


def test_a_rollback_is_done_or_not_until_it_was_answered() -> None:
    """Afterwards, what it discarded must not come back."""
    rollback = {"event": "rollback", "after": 1}
    made = model(OPENED, STORED, DONE, rollback)
    for last in (1, 3):
        assert made.problem(Found(1, RECORDS[:last])) is None
    assert made.problem(Found(1, RECORDS[:2])) is not None
    made = model(OPENED, STORED, DONE, rollback, {"event": "done", "first": 1, "through": 1})
    assert made.problem(Found(1, RECORDS[:1])) is None
    assert made.problem(Found(1, RECORDS)) is not None


def test_a_kill_that_loses_something_is_a_violation() -> None:
    """The page cache survives the process."""
    with pytest.raises(Violation, match="records 1 to 3 were acknowledged"):
        model(OPENED, STORED, DONE, OPEN, OPENED)


CALLS = [OPENED, {"event": "crowd"}, {"event": "call", "sizes": [20, 20]}, {"event": "call", "sizes": [20]}]
"""Two threads make calls at once, one of them a batch of two."""
BATCH, SINGLE = ([program.payload(7, 0, note, index, 20) for index in range(count)] for note, count in ((2, 2), (3, 1)))


def test_calls_of_threads_may_stand_in_any_order_but_whole_and_once() -> None:
    """Until they return, their sequence numbers are unknown."""
    made = model(*CALLS)
    for records in ([], BATCH, SINGLE, [*BATCH, *SINGLE], [*SINGLE, *BATCH]):
        assert made.problem(Found(1, records)) is None
    for records in (BATCH[:1], BATCH[1:], [BATCH[0], *SINGLE, BATCH[1]], [*SINGLE, *SINGLE], [*BATCH, b"other"]):
        assert made.problem(Found(1, records)) is not None


def test_an_answer_to_one_thread_acknowledges_what_the_others_stored_before() -> None:
    """Record 3 is durable, so 1 and 2 are, whichever thread stored them; and no record appears twice."""
    made = model(*CALLS, {"event": "answered", "call": 3, "first": 3, "through": 3})
    assert made.problem(Found(1, [*BATCH, *SINGLE])) is None
    assert "records 3 to 3 were acknowledged" in (made.problem(Found(1, BATCH)) or "")
    assert "record 1 is not what was stored" in (made.problem(Found(1, [*SINGLE, *BATCH])) or "")


def test_a_call_that_was_stored_has_its_number_and_may_still_be_lost() -> None:
    """It was not committed."""
    made = model(*CALLS, {"event": "stored", "call": 3, "first": 1})
    for records in ([], SINGLE, [*SINGLE, *BATCH]):
        assert made.problem(Found(1, records)) is None
    assert made.problem(Found(1, BATCH)) is not None


def test_an_open_among_threads_tells_by_their_kinds_which_calls_are_there() -> None:
    """The others must not come back."""
    made = model(*CALLS, OPEN, {**OPENED, "next": 3, "kinds": [2, 2]})
    assert made.problem(Found(1, BATCH)) is None
    assert made.problem(Found(1, SINGLE)) is not None
    with pytest.raises(Violation, match="not the end of a call"):
        model(*CALLS, OPEN, {**OPENED, "next": 2, "kinds": [2]})


def test_recoveries_and_repairs_are_told_from_the_open_of_a_closed_log() -> None:
    """Cuts in these spans are favoured."""
    events = ["open", "opened", "closed", "open", "opened", "open", "open", "opened", "closed", "damage", "damaged", "repaired"]
    notes = [Note(time, {"event": event}) for time, event in enumerate(events)]
    assert critical_spans(notes) == [(0, 1), (6, 7), (9, 11)]


def test_a_cut_is_counted_where_the_program_was() -> None:
    """An open is a creation, a recovery, or the open of a log that was closed."""
    close = [{"event": "close"}, {"event": "closed"}]
    damage, damaged, repaired = {"event": "damage", "seq": 1}, {"event": "damaged"}, {"event": "repaired"}
    for facts, stage in (
        ([OPEN], "creation"),
        ([OPEN, OPENED], ""),
        ([OPEN, *CALLS], "threads"),
        ([OPEN, OPENED, OPEN], "recovery"),
        ([OPEN, OPENED, *close, OPEN], "open"),
        ([OPEN, OPENED, STORED | {"sizes": [5]}, DONE | {"through": 1}, *close, damage, damaged], "repair"),
        ([OPEN, OPENED, STORED | {"sizes": [5]}, DONE | {"through": 1}, *close, damage, damaged, repaired], "repaired"),
    ):
        assert model(*facts).stage == stage
