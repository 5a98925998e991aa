"""Verdicts while writers open, overwrite, close and die: a change during a verdict is never called damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.ring import Load
from pmwal.reading.reader import Reader
from pmwal.recovery import snapshot
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity
from pmwal.storage.mapping import Mapping
from processes import child
from support import file_offset, flip, kill, open_small, overwrite, payloads, place_of, superblock, whole_records

pytestmark = pytest.mark.both_engines


def beside(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call ``act`` once, after the first verdict without a writer has read the commit slots and before it reads records."""
    done: list[bool] = []

    def racing(load: Load, identity: Identity, *rest: Any, **options: Any) -> Judgement:
        def slow(offset: int, length: int) -> bytes:
            data = load(offset, length)
            if not done and identity.block.control_offset <= offset < identity.block.ring_offset:
                done.append(True)
                act()
            return data

        return judge(slow, identity, *rest, **options)

    monkeypatch.setattr(snapshot, "judge", racing)


def before_ring_loads(monkeypatch: pytest.MonkeyPatch, wal: pmwal.Wal, act: Callable[[int], None]) -> list[int]:
    """Call ``act`` with a count before each load from the ring that a reader makes; the list has the offsets of these loads."""
    own, load, loads = wal._engine.mapping, Mapping.load, list[int]()
    ring_offset = wal._engine.block.ring_offset

    def overtaken(self: Mapping, offset: int, length: int) -> bytes:
        if self is not own and offset >= ring_offset:
            loads.append(offset)
            act(len(loads))
        return load(self, offset, length)

    monkeypatch.setattr(Mapping, "load", overtaken)
    return loads


def flight_recorder(path: Path) -> pmwal.Wal:
    """A small ring that is overwritten."""
    wal = pmwal.open(path, size="64KiB", on_full="overwrite")
    wal.extend([bytes(1000)] * 40)
    return wal


def lap(wal: pmwal.Wal) -> None:
    """Overwrite every record, three times."""
    for _ in range(200):
        wal.append(bytes(1000))


def test_writer_that_starts_during_a_readers_verdict_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a stress run: slots from before the writer's epoch and records from after it looked like an older log's."""
    pmwal.open(path, size="64KiB").close()
    writers: list[pmwal.Wal] = []

    def start() -> None:
        writers.append(pmwal.open(path))
        writers[0].append(b"first of a new epoch")

    beside(monkeypatch, start)
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == [b"first of a new epoch"]
    writers[0].close()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_writer_that_ends_during_a_verdict_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Found by a stress run: the writer wrapped the ring and closed between the reads of slots and records."""
    wal = flight_recorder(path)

    def act(count: int) -> None:
        if count == 1:
            lap(wal)
            if end == "close":
                wal.close()
            else:
                kill(wal)

    loads = before_ring_loads(monkeypatch, wal, act)
    report = pmwal.verify(path)
    assert (report.case, report.live) == ("R1" if end == "close" else "R2", False)
    assert loads


def test_next_writer_during_a_verdict_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writer closes and another one laps the ring: the pass beside the first is begun again beside the second."""
    writers = [flight_recorder(path)]

    def act(count: int) -> None:
        if count == 1:
            lap(writers[0])
            writers[0].close()
            writers.append(pmwal.open(path, on_full="overwrite"))
            lap(writers[1])

    before_ring_loads(monkeypatch, writers[0], act)
    report = pmwal.verify(path)
    assert (report.outcome, report.live, report.last_seq) == ("recovered", True, writers[1].committed_seq)
    writers[1].close()


def test_writers_that_come_and_go_all_the_time_are_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is begun again a bounded number of times, and then says what it has seen."""
    writers, load = [flight_recorder(path)], Mapping.load
    ring_offset = writers[0]._engine.block.ring_offset

    def overtaken(self: Mapping, offset: int, length: int) -> bytes:
        reads = self._map is None and offset >= ring_offset
        if reads:
            lap(writers[0])
            writers.pop().close()
            writers.append(pmwal.open(path, on_full="overwrite"))
        return load(self, offset, length)

    monkeypatch.setattr(Mapping, "load", overtaken)
    report = pmwal.verify(path)
    assert (report.outcome, report.damage, report.live) == ("recovered", None, True)
    assert "came and went" in report.reason
    monkeypatch.undo()
    writers[0].close()


def test_verdict_that_never_settles_has_nothing_past_the_pointer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer stored and did not commit may be a new one's: no recovery has kept it."""
    pmwal.open(path, size="64KiB").close()
    durable, load = dict[int, int](), Mapping.load
    ring_offset = superblock(path).ring_offset

    def overtaken(self: Mapping, offset: int, length: int) -> bytes:
        if self._map is None and offset >= ring_offset:
            wal = pmwal.open(path, commit="manual")
            durable[wal._engine.state.epoch] = wal.append(b"not committed") - 1
            kill(wal)
        return load(self, offset, length)

    monkeypatch.setattr(Mapping, "load", overtaken)
    report = pmwal.verify(path)
    assert "came and went" in report.reason
    assert (report.last_seq, report.records, report.kept_past_pointer) == (durable[report.epoch],) * 2 + (0,)
    monkeypatch.undo()
    assert pmwal.verify(path).last_seq == max(durable.values()) + 1


def test_follow_that_a_whole_writer_overtakes_has_its_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is killed; the next one opens, appends and closes between the follower's view and its look for a clean end."""
    wal = pmwal.open(path, size="64KiB")
    wal.append(b"one")
    with pmwal.open(path, "r") as reader:
        following, ended = reader.follow(timeout=60), Reader._ended_before
        assert next(following).data == b"one"
        kill(wal)

        def overtaken(self: Reader, seq: int) -> bool:
            monkeypatch.undo()
            with pmwal.open(path) as wal:
                wal.append(b"two")
            return ended(self, seq)

        monkeypatch.setattr(Reader, "_ended_before", overtaken)
        assert [record.data for record in following] == [b"two"]


@pytest.mark.parametrize("laps", ["each load", "the first"])
def test_writer_that_comes_round_during_the_pass_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch, laps: str) -> None:
    """Found by the stress runs: in a small ring the writer laps the reader, at worst before each of its loads. One pass ends."""
    wal = flight_recorder(path)
    end = wal.committed_seq
    loads = before_ring_loads(monkeypatch, wal, lambda count: lap(wal) if laps == "each load" or count == 1 else None)
    report = pmwal.verify(path)
    assert (report.outcome, report.live, report.records) == ("recovered", True, 0)
    assert report.first_seq > end
    assert len(loads) <= 4
    monkeypatch.undo()
    kill(wal)


def test_tail_that_moves_during_the_pass_leaves_the_rest_judged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has the range that was in the log all the time, in numbers and in positions."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"%d" % number * 300 for number in range(1, 61)])
    state = wal._engine.state

    def act(count: int) -> None:
        if count == 1:
            wal.truncate(before=41)
            wal.extend([b"new" * 400] * 40)  # they wrap into what was freed

    before_ring_loads(monkeypatch, wal, act)
    report = pmwal.verify(path)
    assert (report.outcome, report.case, report.first_seq, report.last_seq) == ("recovered", "R2", 41, 60)
    assert report.judged == (wal._engine.state.tail.position, state.durable.position)
    monkeypatch.undo()
    wal.close()


def test_rollback_during_the_pass_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the records that the rollback keeps, all are judged; the others are not there any more."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"%d" % number * 30 for number in range(1, 61)])

    def act(count: int) -> None:
        if count == 1:
            wal.rollback(after=20)
            wal.extend([b"other" * 40] * 50)

    before_ring_loads(monkeypatch, wal, act)
    report = pmwal.verify(path)
    assert (report.outcome, report.first_seq, report.last_seq) == ("recovered", 1, 20)
    monkeypatch.undo()
    assert pmwal.verify(path).last_seq == 70
    wal.close()


def test_reader_that_is_lapped_gets_overrun_and_never_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, salvage and follow beside a writer that laps each load."""
    wal = flight_recorder(path)
    with pmwal.open(path, "r") as reader, pmwal.open(path, "r", recover="salvage") as salvaging:
        before_ring_loads(monkeypatch, wal, lambda _: lap(wal))
        with pytest.raises(pmwal.Overrun):
            list(reader)
        with pytest.raises(pmwal.Overrun):
            list(reader.follow(timeout=0))
        assert list(salvaging) == []
        monkeypatch.undo()
    kill(wal)


def test_salvage_continues_where_a_truncated_log_begins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the end that it had at the call."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"%d" % number * 300 for number in range(1, 61)])
    with pmwal.open(path, "r", recover="salvage") as salvaging:

        def act(count: int) -> None:
            if count == 1:
                wal.truncate(before=41)
                wal.extend([b"new" * 400] * 40)  # they wrap into what was freed

        before_ring_loads(monkeypatch, wal, act)
        assert [record.seq for record in salvaging] == list(range(41, 61))
        monkeypatch.undo()
    wal.close()


# -- what is damage all the same


def test_damage_beside_a_living_writer_is_found(path: Path) -> None:
    """Negative control: a durable record that is damaged while the writer lives is R4, for verify and for readers."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"%d" % number * 100 for number in range(9)])
        offset = file_offset(wal._engine.block, whole_records(path)[5].position)
        flip(path, offset + 60)
        report = pmwal.verify(path)
        assert (report.outcome, report.case, report.live) == ("corrupt", "R4", True)
        assert (report.first_seq, report.last_seq, report.lost_first_seq, report.lost_last_seq) == (1, 4, 5, 5)
        assert report.damage is not None
        assert report.damage[0] == offset
        with pmwal.open(path, "r") as reader, pytest.raises(pmwal.CorruptWal, match="record 5"):
            list(reader)
        with pmwal.open(path, "r", recover="salvage") as reader:
            assert [record.seq for record in reader] == [1, 2, 3, 4, 6, 7, 8, 9]
        flip(path, offset + 60)
        assert pmwal.verify(path).outcome == "recovered"


def test_lost_slots_beside_a_living_writer_are_counted_and_no_verdict(path: Path) -> None:
    """R9b, and what lies past the durable end, are for the next recovery to judge: a writer changes both all the time."""
    wal = open_small(path, ordering="strict")
    for number in range(9):
        wal.append(b"%d" % number)
    generation = wal._engine.generation
    for ago in (3, 4):
        overwrite(path, place_of(path, generation - ago), bytes(64))
    report = pmwal.verify(path)
    assert (report.outcome, report.case, report.slots_lost, report.records) == ("recovered", "R7", 2, 9)
    kill(wal)
    assert pmwal.verify(path).case == "R9b"


def test_slots_that_are_all_lost_are_damage_beside_a_living_writer_too(path: Path) -> None:
    """R9: a writer stores one slot at a time."""
    wal = open_small(path)
    wal.append(b"x")
    block = superblock(path)
    slots = path.read_bytes()[block.control_offset : block.copy_offset]
    overwrite(path, block.control_offset, bytes(block.control_size))
    report = pmwal.verify(path)
    assert (report.outcome, report.case, report.live) == ("corrupt", "R9", True)
    overwrite(path, block.control_offset, slots)
    wal.close()


def test_damage_beside_no_writer_stays_damage(path: Path) -> None:
    """Negative control: a verdict is repeated only if a writer may have caused it."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"%d" % number * 100 for number in range(9)])
    flip(path, file_offset(superblock(path), whole_records(path)[5].position) + 60)
    assert pmwal.verify(path).outcome == "corrupt"
    with pytest.raises(pmwal.CorruptWal):
        pmwal.open(path, "r")


def test_damage_of_a_log_that_is_opened_again_and_again_stays_damage(path: Path) -> None:
    """A writer that refuses the log stores nothing, so it does not make the verdict uncertain."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"%d" % number * 100 for number in range(9)])
    flip(path, file_offset(superblock(path), whole_records(path)[5].position) + 60)
    before = path.read_bytes()

    def insist(pipe: Any) -> None:
        pipe.send("started")
        while not pipe.poll():
            with pytest.raises(pmwal.CorruptWal):
                pmwal.open(path)

    with child(insist) as process:
        process.hear()
        for _ in range(20):
            report = pmwal.verify(path)
            assert (report.case, report.live) == ("R4", False)
        process.say("stop")
        assert process.wait() == 0
    assert path.read_bytes() == before
