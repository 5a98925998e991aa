"""The demo: kills of a real writer process, and proof that the demo itself can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.cli import main
from pmwal.cli.demo import cycle
from pmwal.cli.demo.check import Claims, Finding, Ledger, Run, check
from pmwal.cli.demo.cycle import Demo
from pmwal.cli.demo.input import read_input
from pmwal.cli.demo.protocol import EVENT, parse_events
from pmwal.records import Record
from support import file_offset, flip, look, payloads

LINES = [b"a", b"b", b"c"]
SHORT = ("--cycles", "2", "--seconds", "0.15")

DemoRun = Callable[..., tuple[int, Any]]


@pytest.fixture
def demo(capsys: pytest.CaptureFixture[str]) -> DemoRun:
    """Run ``pmwal demo --json`` in this process, for two short cycles unless told otherwise."""

    def run(*arguments: object) -> tuple[int, Any]:
        status = main(["demo", *SHORT, "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else err

    return run


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    """A few lines of different lengths, one of them empty and one long."""
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"%d " % number * number + b"\n" for number in range(50)) + b"\n" + b"x" * 5000 + b"\nlast")
    return path


# -- what is compared


def records(first: int, last: int, kind: int = 1, line: int = 0, first_seq: int = 1) -> Iterator[Record]:
    """The records of a writer that began at ``first_seq`` with this line."""
    for seq in range(first, last + 1):
        yield Record(seq, kind, 0, LINES[(line + seq - first_seq) % len(LINES)])


def ledger(*runs: Run) -> Ledger:
    """A ledger over ``LINES``; one run from number 1 unless told otherwise."""
    made = Ledger(LINES)
    for run in runs or (Run(1, 0, 1),):
        made.begin(run)
    return made


SOUND = Claims(last_seq=10, truncated=1, truncating=1)


def test_exactly_what_was_acknowledged_is_sound() -> None:
    """A log is sound if it has every acknowledged line in order, and at most one more."""
    assert check(records(1, 10), SOUND, ledger(), 1, 11) == Finding(compared=10)
    assert check(records(1, 11), SOUND, ledger(), 1, 12) == Finding(compared=11, extra=1)


@pytest.mark.parametrize(
    ("found", "claims", "first_seq", "next_seq", "expected"),
    [
        (records(1, 9), SOUND, 1, 10, {"lost": 1}),
        (records(1, 12), SOUND, 1, 13, {"foreign": 1}),
        (records(1, 10, line=1), SOUND, 1, 11, {"changed": 10}),
        (records(1, 10, kind=2), SOUND, 1, 11, {"foreign": 10}),
        (records(2, 11, first_seq=2), SOUND, 1, 11, {"foreign": 10}),
        (records(1, 8), SOUND, 1, 11, {"lost": 2}),
        (records(3, 10), SOUND, 3, 11, {"lost": 2}),
        (records(3, 10), Claims(10, truncated=5, truncating=5), 3, 11, {"foreign": 2}),
        (records(6, 10), Claims(10, truncated=1, truncating=5), 6, 11, {"lost": 1}),
    ],
    ids=[
        "last-one-missing",
        "two-past-the-last-acknowledgement",
        "other-lines",
        "records-of-another-writer",
        "shifted-by-one",
        "fewer-than-the-log-says",
        "front-gone-without-a-truncate",
        "back-after-a-truncate",
        "more-gone-than-truncated",
    ],
)
def test_each_kind_of_wrong_log_is_found(
    found: Iterator[Record], claims: Claims, first_seq: int, next_seq: int, expected: dict[str, int]
) -> None:
    """Lost, changed and foreign records are counted and reported; none passes."""
    finding = check(found, claims, ledger(), first_seq, next_seq)
    assert not finding.sound
    assert finding.problems
    assert {name: getattr(finding, name) for name in ("lost", "changed", "foreign") if getattr(finding, name)} == expected


@pytest.mark.parametrize("first_seq", [1, 3, 5])
def test_truncate_in_flight_may_have_happened_or_not(first_seq: int) -> None:
    """The first record may be any from the last finished truncation to the one begun."""
    assert check(records(first_seq, 10), Claims(10, truncated=1, truncating=5), ledger(), first_seq, 11).sound


def test_record_of_an_earlier_writer_is_not_taken_for_the_later_ones() -> None:
    """A number issued again after a drop must have the later line."""
    book = ledger(Run(1, 0, 1), Run(6, 3, 2))
    right = [*records(1, 5), *records(6, 8, kind=2, line=3, first_seq=6)]
    assert check(right, Claims(8, 1, 1), book, 1, 9).sound
    ghost = [*right[:6], Record(7, 1, 0, right[6].data), right[7]]
    assert check(ghost, Claims(8, 1, 1), book, 1, 9).foreign == 1


def test_events_are_parsed_as_they_were_sent() -> None:
    """Whole events are parsed; a partial one at the end, which a pipe cannot produce, is ignored."""
    events = parse_events(EVENT.pack(2, 7, 1500) + EVENT.pack(3, 2**63, 0) + b"\x02")
    assert [event.tolist() for event in events] == [(2, 7, 1500), (3, 2**63, 0)]


# -- the whole thing


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_two_kills_on_tmpfs_lose_nothing(demo: DemoRun, shm_dir: Path, lines_file: Path, ordering: str) -> None:
    """No acknowledged line is lost, the ring wraps, latencies are reported, and no file is left."""
    status, value = demo("--path", shm_dir, "--input", lines_file, "--seed", 1, "--ordering", ordering, "--size", "64KiB")
    assert (status, value["sound"], value["error"]) == (0, True, "")
    assert (value["lost"], value["changed"], value["foreign"]) == (0, 0, 0)
    assert [cycle["sound"] for cycle in value["cycles"]] == [True, True]
    assert value["acknowledged"] == sum(cycle["acknowledged"] for cycle in value["cycles"]) > 0
    assert 0 <= value["kept_extra"] <= 2
    assert value["wraps"] >= 1
    assert (value["medium"], value["durability"], value["ordering"]) == ("memory", "process", ordering)
    assert value["lines"] == 53 + (5000 - 1) // 4096  # the long line in pieces of a sixteenth of the ring
    latency = value["latency_us"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert os.listdir(shm_dir) == []


def test_two_kills_on_disk_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], lines_file: Path) -> None:
    """The same holds on a disk, with output for people; ``--keep`` leaves a readable log."""
    path = tmp_path / "kept.wal"
    status = main(["demo", *SHORT, "--path", str(path), "--input", str(lines_file), "--keep"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert any(line.startswith("   1 ") and " ok (" in line for line in lines)
    assert any(line.startswith("   2 ") and " ok (" in line for line in lines)
    assert any(line.startswith("from append to acknowledgement") for line in lines)
    assert any(line.startswith("PROVED: 2 kills") for line in lines)
    assert lines[-1] == f"the log is kept: {path}"
    first = next(int(line.split()[3]) for line in lines if line.startswith("  kept "))
    assert ("  older ones were truncated, by the writer or after a kill" in lines) == (first > 1)
    issued = {piece for line in lines_file.read_bytes().split(b"\n") for piece in [line]}
    with pmwal.open(path, "r") as reader:
        assert set(payloads(reader)) <= issued


def test_writer_that_acknowledges_early_is_caught(demo: DemoRun, shm_dir: Path, lines_file: Path) -> None:
    """Negative control: acknowledging before appending has status 1, and the log is kept."""
    status, value = demo("--path", shm_dir, "--input", lines_file, "--sabotage", "early-ack", "--seed", 1)
    assert (status, value["sound"]) == (1, False)
    assert value["lost"] > 0
    assert "acknowledged and lost" in value["cycles"][-1]["problems"][0]
    assert Path(value["kept"]).stat().st_size > 0


@pytest.mark.parametrize("harm", ["lose-the-last", "flip-a-bit", "roll-back-and-write"])
def test_log_that_breaks_the_promise_is_caught(
    demo: DemoRun, shm_dir: Path, lines_file: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """A log that loses, changes or replaces records between kill and recovery has status 1."""
    recover = Demo._recover

    def harmed(self: Demo, *arguments: Any) -> Any:
        if harm == "flip-a-bit":
            found = look(self.path)
            flip(self.path, file_offset(found.identity.block, found.tail.position) + 8)
        else:
            with pmwal.open(self.path, "r+") as wal:
                last = wal.next_seq - 1
                kept = wal[last]
                wal.rollback(after=last - 2)
                if harm == "roll-back-and-write":
                    wal.append(b"not a line of the input", kind=kept.kind)
                    wal.append(kept.data, kind=kept.kind)
        return recover(self, *arguments)

    monkeypatch.setattr(Demo, "_recover", harmed)
    status, value = demo("--path", shm_dir, "--input", lines_file, "--size", "64KiB")
    assert (status, value["sound"]) == (1, False)
    problem = value["cycles"][-1]["problems"][0]
    assert {"lose-the-last": "lost", "flip-a-bit": "corrupt", "roll-back-and-write": "differs"}[harm] in problem


def test_writer_that_exits_on_its_own_proves_nothing(
    shm_dir: Path, lines_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A writer that exits before its kill proves nothing: status 1, with its last message."""
    monkeypatch.setattr(cycle, "_python_path", lambda: "/nowhere")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    status = main(["demo", *SHORT, "--path", str(shm_dir), "--input", str(lines_file)])
    assert status == 1
    assert "NOTHING PROVED: the writer exited on its own with status 1" in capsys.readouterr().out


def test_interrupt_leaves_no_writer_and_no_file(
    shm_dir: Path, lines_file: Path, monkeypatch: pytest.MonkeyPatch, demo: DemoRun
) -> None:
    """Ctrl-C while a writer runs has status 130, kills the writer and removes the log."""
    writers: list[Any] = []
    start = subprocess.Popen

    def remembered(*arguments: Any, **options: Any) -> Any:
        writers.append(start(*arguments, **options))
        return writers[-1]

    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembered)
    monkeypatch.setattr(cycle, "_receive", interrupt)
    status, _ = demo("--path", shm_dir, "--input", lines_file)
    assert status == 130
    assert [writer.returncode for writer in writers] == [-9]
    assert os.listdir(shm_dir) == []


def test_existing_file_is_never_used(demo: DemoRun, shm_dir: Path, lines_file: Path) -> None:
    """The demo refuses a file that exists, and leaves it alone."""
    path = shm_dir / "mine.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"mine")
    before = path.read_bytes()
    status, error = demo("--path", path, "--input", lines_file)
    assert status == 3
    assert str(path) in error
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["missing", "missing/", "missing.d", "missing/demo.wal"])
def test_directory_that_is_not_there_is_taken_for_no_file(demo: DemoRun, shm_dir: Path, lines_file: Path, name: str) -> None:
    """A misspelt mount point would become a file, and the demo would prove something about another medium."""
    status, error = demo("--path", f"{shm_dir}/{name}", "--input", lines_file)
    assert status == 3
    assert ("no such directory; create it first" if not name.endswith(".wal") else "No such file or directory") in error
    assert os.listdir(shm_dir) == []


@pytest.mark.parametrize("verbose", [False, True])
def test_words_of_the_format_are_for_those_who_ask(
    shm_dir: Path, lines_file: Path, capsys: pytest.CaptureFixture[str], verbose: bool
) -> None:
    """Commit pointer, durable marks and epochs are explained in no line of the demo, so only --verbose prints them."""
    arguments = ["demo", *SHORT, "--path", str(shm_dir), "--input", str(lines_file), *(["--verbose"] if verbose else [])]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "\n  kept " in text
    assert [word in text for word in ("commit pointer", "durable mark", "epoch")] == [verbose] * 3


def test_empty_input_is_an_error_and_leaves_nothing(demo: DemoRun, shm_dir: Path, tmp_path: Path) -> None:
    """An input without lines is an error, and no file is left."""
    (tmp_path / "empty").touch()
    status, error = demo("--path", shm_dir, "--input", tmp_path / "empty")
    assert status == 1
    assert "no line to append" in error
    assert os.listdir(shm_dir) == []


def test_default_input_is_text_of_this_machine() -> None:
    """Without ``--input`` the lines come from this machine's texts, and their source is named."""
    found = read_input(None, 4096)
    assert len(found.lines) >= 1000
    assert max(map(len, found.lines)) <= 4096
    assert os.path.exists(found.source.split(",")[0].split(" and ")[0])


def test_long_lines_are_cut_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    """A long line becomes several lines, which together are the input."""
    text = b"x" * 10 + b"\n" + b"y" * 7 + b"\n\n" + b"z" * 4 + b"\nend"
    (tmp_path / "lines").write_bytes(text)
    assert read_input(str(tmp_path / "lines"), 4).lines == [
        b"xxxx", b"xxxx", b"xx", b"yyyy", b"yyy", b"", b"zzzz", b"end",
    ]  # fmt: skip
