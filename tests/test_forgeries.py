"""A number at its extreme, under a right checksum, in any field of any structure: documented errors and verdicts everywhere."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from commands import Cli
from forgery import Original, sample
from marks import first_fast
from pmwal.cli import entry
from pmwal.cli.commands import stat
from pmwal.repair import repair
from support import open_small

pytestmark = pytest.mark.both_engines

PARTS = 48
DOCUMENTED = (pmwal.PmwalError, OSError)
COMMANDS = (["info"], ["info", "--json"], ["stat"], ["stat", "--json"], ["verify"], ["cat"], ["cat", "--salvage"], ["tail"])


def use_reader(path: Path, recover: str) -> None:
    """Every call of a reader."""
    with pmwal.open(path, "r", recover=recover) as reader:
        assert len(reader) >= 0
        first, last = reader.first_seq, reader.committed_seq
        records = list(reader)
        assert all(1 <= record.seq < 1 << 64 for record in records)
        for seq in {0, 1, first, last, last + 1, (1 << 63) - 1, (1 << 64) - 2, 1 << 64}:
            with contextlib.suppress(IndexError):
                assert reader[seq].seq == seq
        for record in records[:1]:
            list(reader.read(start=record.seq, stop=record.seq + 1))
        assert reader.stats().used >= 0
        reader.recovery.as_dict()


def use_writer(path: Path) -> None:
    """Open for writing, store and close."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wal = open_small(path, "r+", medium="file")
    with wal:
        assert len(wal) >= 0
        list(wal.read())
        with contextlib.suppress(pmwal.WalFull):
            wal.append(b"next")
            wal.rollback(after=wal.next_seq - 2)
            wal.truncate(before=wal.next_seq)


def check_repaired(path: Path) -> None:
    """A repair that says that it is done leaves a clean log that takes records, or says that its numbers are used up."""
    report = repair(path)
    assert report.kept_records >= 0
    assert report.lost_records >= 0
    if len(report.actions) > 1:
        assert pmwal.verify(path).outcome == "clean"
        assert repair(path).actions == ("nothing: the log needs no repair",)
        use_writer(path)


USES: dict[str, Callable[[Path], object]] = {
    "verify": pmwal.verify,
    "read": lambda path: use_reader(path, "strict"),
    "salvage": lambda path: use_reader(path, "salvage"),
    "dry run": lambda path: repair(path, dry_run=True),
    "repair": check_repaired,
    "open": use_writer,
}


@pytest.fixture
def undocumented(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors that ended a command and are not documented."""
    seen: list[Exception] = []
    explain = entry._explain

    def watch(error: Exception, path: str | None) -> int:
        if not isinstance(error, DOCUMENTED):
            seen.append(error)
        return explain(error, path)

    monkeypatch.setattr(entry, "_explain", watch)
    monkeypatch.setattr(stat, "_BETWEEN", 0)
    return seen


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("part", first_fast(range(PARTS)))
def test_no_number_leads_to_an_undocumented_error(
    part: int, end: str, cli: Cli, undocumented: list[Exception], shm_dir: Path
) -> None:
    """Each field of slots, records, superblocks and the live page, through every way to use a log."""
    path = shm_dir / "test.wal"
    sample(path, end=end)
    original = Original(path)
    failures = []
    for number, forgery in enumerate(original.forgeries()):
        if number % PARTS != part:
            continue
        for name, use in USES.items():
            for file in shm_dir.iterdir():
                file.unlink()
            path.write_bytes(original.raw)
            forgery.apply(path)
            try:
                use(path)
            except DOCUMENTED:
                pass
            except Exception as error:
                failures.append(f"{forgery.name}: {name}: {error!r}")
        path.write_bytes(original.raw)
        forgery.apply(path)
        for command in COMMANDS:
            cli(*command, path)
            failures += [f"{forgery.name}: pmwal {' '.join(command)}: {error!r}" for error in undocumented]
            undocumented.clear()
    assert failures == []


def test_every_forgery_changes_the_file(shm_dir: Path) -> None:
    """The rig's control: hardly any forgery leaves the log as it was, and there are hundreds."""
    path = shm_dir / "test.wal"
    sample(path, end="closed")
    original, same, count = Original(path), 0, 0
    for forgery in original.forgeries():
        forgery.apply(path)
        same += path.read_bytes() == original.raw
        count += 1
        os.truncate(path, len(original.raw))
    assert count > 500
    assert same < count / 20
