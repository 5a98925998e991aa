"""A log that gets a new file, by a resize or a repair, keeps its epochs: all who saw records that were rolled back are told."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import pmwal
from archived import archive, rules
from pmwal.errors import Overrun
from pmwal.format.control import first_seqs, read_slots
from pmwal.format.layout import slot_index, slot_offset
from pmwal.reading import succession
from pmwal.repair import repair
from support import BarrierRecorder, Crash, Step, contents, flip, kill, look, open_small

pytestmark = pytest.mark.both_engines


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follow looks for a new file with each poll that finds no writer, and not once a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 0.0)


def reopened(wal: pmwal.Wal, path: Path) -> pmwal.Wal:
    wal.close()
    return pmwal.open(path)


def closed(wal: pmwal.Wal, path: Path, size: str = "128KiB") -> pmwal.Wal:
    wal.close()
    pmwal.resize(path, size)
    return pmwal.open(path)


def killed(wal: pmwal.Wal, path: Path, size: str = "128KiB") -> pmwal.Wal:
    kill(wal)
    pmwal.resize(path, size)
    return pmwal.open(path)


def opened(wal: pmwal.Wal, path: Path, size: str = "128KiB") -> pmwal.Wal:
    del path
    wal.resize(size)
    return wal


def repaired(wal: pmwal.Wal, path: Path) -> pmwal.Wal:
    """Of its slots one was lost, which names none of the epochs alone."""
    wal.close()
    judgement = look(path)
    newest = judgement.control.newest
    assert newest is not None
    flip(path, slot_offset(slot_index(newest.generation, judgement.identity.block.control_pages)))
    assert "write all commit slots again, in a new epoch" in repair(path).actions
    return pmwal.open(path)


def rebuilt(wal: pmwal.Wal, path: Path) -> pmwal.Wal:
    """A record of it was damaged, so the one after it is lost, too."""
    wal.close()
    judgement = look(path)
    with pmwal.open(path) as again:
        again.append(b"damaged")
        again.append(b"after it")
    block = judgement.identity.block
    flip(path, block.ring_offset + judgement.end.position % block.capacity)
    assert repair(path).before.outcome == "corrupt"
    return pmwal.open(path)


CHANGES: dict[str, tuple[Callable[..., pmwal.Wal], ...]] = {
    "none": (),
    "closed": (closed,),
    "closed twice": (closed, lambda wal, path: closed(wal, path, "64KiB")),
    "killed": (killed,),
    "open": (opened,),
    "open twice": (opened, lambda wal, path: opened(wal, path, "64KiB")),
    "reopened, open": (reopened, opened),
    "open, reopened": (opened, reopened),
    "closed, open, killed": (closed, lambda wal, path: opened(wal, path, "64KiB"), killed),
    "repaired": (repaired,),
    "rebuilt": (rebuilt,),
    "repaired, closed": (repaired, closed),
}
"""What a log may go through; none of it may change what anybody is told."""


def rolled_back(path: Path, through: str, between: Callable[[], object]) -> pmwal.Wal:
    """A log of which records 51 to 100 were rolled back, after ``between``, and 100 are gone, with others in their place."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"OLD"] * 100)
    between()
    wal.rollback(after=50)
    wal.extend([b"NEW"] * 60)
    wal.truncate(before=101)
    for change in CHANGES[through]:
        wal = change(wal, path)
        wal.append(b"NEW")
    return wal


@pytest.mark.parametrize("through", CHANGES)
def test_consumer_whose_records_were_rolled_back_is_told(path: Path, through: str) -> None:
    """Whatever happened to the file since; and what it has not had is not freed."""

    def acknowledge() -> None:
        for name, seq in (("late", 100), ("early", 50)):
            with pmwal.open(path, "r") as reader, reader.consumer(name) as consumer:
                consumer.ack(seq, durable=True)

    with rolled_back(path, through, acknowledge) as wal:
        assert wal.truncate(consumed=True) == 101
        with pmwal.open(path, "r") as reader:
            with reader.consumer("late") as late, pytest.raises(Overrun, match="was rolled back"):
                next(late.follow(timeout=0))
            with reader.consumer("early") as early, pytest.raises(Overrun, match="is gone"):
                next(early.follow(timeout=0))


@pytest.mark.parametrize("through", CHANGES)
def test_archive_takes_no_discarded_record_for_one_of_the_log(path: Path, tmp_path: Path, through: str) -> None:
    """Archives say how much is missing, and have nothing of what was rolled back."""
    to = tmp_path / "to"
    with rolled_back(path, through, lambda: archive(path, to=to, how=rules())) as wal:
        gone = wal.first_seq - 51
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pmwal.LogSet([to, path]) as logs:
                    assert max(record.seq for record in logs if record.data == b"OLD") == 50
                    assert logs.missed == gone
                with suppress(Overrun):
                    archive(path, to=to, how=rules())


@pytest.mark.parametrize("through", CHANGES)
def test_slots_name_the_epochs_that_they_named(path: Path, through: str) -> None:
    """All of them, each with its first number."""
    wal = rolled_back(path, "none", lambda: None)
    before = epochs_of(path)
    for change in CHANGES[through]:
        wal = change(wal, path)
    wal.close()
    assert before.items() <= epochs_of(path).items()


def epochs_of(path: Path) -> dict[int, int]:
    block = look(path).identity.block
    raw = path.read_bytes()
    return first_seqs(read_slots(lambda at, size: raw[at : at + size], block, None))


def test_copy_names_no_epoch_of_its_source(path: Path) -> None:
    """It is another log, of which nobody has seen a record."""
    rolled_back(path, "none", lambda: None).close()
    pmwal.copy(path, path.with_name("copy.wal"))
    assert len(epochs_of(path)) > 1
    assert len(epochs_of(path.with_name("copy.wal"))) == 1


@pytest.mark.parametrize("tail", [95, 101])
def test_follow_that_missed_a_rollback_in_the_new_file_is_told(path: Path, tail: int) -> None:
    """It stands at the end when the log is resized, and the new file has other records by the time it gets there."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"OLD"] * 100)
    with pmwal.open(path, "r") as reader:
        records = reader.follow(timeout=0)
        assert sum(1 for _ in records) == 100
        records = reader.follow(start=reader[100].cursor, timeout=60)
        wal.append(b"last")
        assert next(records).seq == 101
        wal.resize("128KiB")
        wal.rollback(after=50)
        wal.extend([b"NEW"] * 80)
        wal.truncate(before=tail + 1)
        with pytest.raises(Overrun, match="rolled back"):
            next(records)
    wal.close()


@pytest.mark.parametrize("ends", ["closed", "killed", "open"])
def test_crash_at_any_step_keeps_the_epochs(path: Path, ends: str) -> None:
    """Of the old file or the new one, and of each that the next resize makes."""
    count, finished = 0, False
    while not finished:
        left: int | None = None

        def before(step: Step) -> None:
            nonlocal left
            del step
            if left == 0:
                raise Crash
            left = None if left is None else left - 1

        for name in path.parent.iterdir():
            name.unlink()
        wal = open_small(path, medium="file", seam=BarrierRecorder(before))
        wal.extend([b"OLD"] * 9)
        wal.rollback(after=4)
        wal.extend([b"NEW"] * 9)
        wal.truncate(before=10)
        if ends != "open":
            (pmwal.Wal.close if ends == "closed" else kill)(wal)
        begun = epochs_of(path)
        left = count
        try:
            wal.resize("64KiB") if ends == "open" else pmwal.resize(path, "64KiB", seam=BarrierRecorder(before))
            finished = True
        except Crash:
            left = None
        if ends == "open":
            left = None
            kill(wal)
        assert begun.items() <= epochs_of(path).items()
        pmwal.resize(path, "32KiB")
        assert begun.items() <= epochs_of(path).items()
        count += 1
    assert count > 8


class Watched:
    """A log, and consumers that have seen records of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wal = pmwal.open(path, size="64KiB")
        self.names: list[str] = []

    def acknowledge(self, seq: int) -> None:
        """A new consumer, which has had the records up to this one."""
        self.names.append(f"c{len(self.names)}")
        with pmwal.open(self.path, "r") as reader, reader.consumer(self.names[-1]) as consumer:
            consumer.ack(seq)

    def verdicts(self) -> list[object]:
        """What each consumer gets now."""
        found: list[object] = []
        with pmwal.open(self.path, "r") as reader:
            for name in self.names:
                with reader.consumer(name) as consumer:
                    found.append(told(consumer))
        return found


def told(consumer: pmwal.Consumer) -> object:
    """The records that a consumer gets, or why it gets none."""
    try:
        return [(record.seq, record.data) for record in consumer.follow(timeout=0)]
    except Overrun as error:
        return str(error)


@pytest.mark.parametrize("seed", range(6))
def test_random_resizes_change_no_verdict(shm_dir: Path, seed: int) -> None:
    """Two logs have one history, but one of them is resized again and again: every consumer is told the same of both."""
    rng = random.Random(seed)
    plain, other = Watched(shm_dir / "plain.wal"), Watched(shm_dir / "resized.wal")
    overruns = 0
    for _ in range(40):
        first, after = plain.wal.first_seq, plain.wal.next_seq
        assert (first, after) == (other.wal.first_seq, other.wal.next_seq)
        action, number = rng.choice(["append", "append", "acknowledge", "roll back", "truncate", "reopen"]), rng.randrange(1 << 30)
        seq = rng.randrange(first - 1, after)
        for log in (plain, other):
            if action == "append":
                log.wal.extend([b"%d" % number] * (1 + number % 20))
            elif action == "acknowledge":
                log.acknowledge(seq)
            elif action == "roll back":
                log.wal.rollback(after=seq)
            elif action == "truncate":
                log.wal.truncate(before=seq + 1)
            else:
                log.wal = reopened(log.wal, log.path)
        if rng.random() < 0.4:
            change = rng.choice([opened, closed, killed])
            other.wal = change(other.wal, other.path, rng.choice(["64KiB", "96KiB", "128KiB"]))
        assert contents(plain.wal) == contents(other.wal)
        expected = plain.verdicts()
        assert expected == other.verdicts()
        overruns += sum(isinstance(verdict, str) for verdict in expected)
    assert overruns, "no consumer was ever refused"
    plain.wal.close()
    other.wal.close()
