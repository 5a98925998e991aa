"""A log that is resized, replaced, rolled back or overwritten at each single load of those who read it.

Whoever continues as it is told gets each record once and in order, knows which are gone, and nothing that was rolled back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

import pmwal
from acting_writers import Judge, Plan, Scene, Way, problems_of
from archived import rules
from pmwal.cli.archiving.archiver import Archiver, Written, _Log
from pmwal.cursor import parse_cursor
from pmwal.errors import Overrun
from pmwal.format.frame import unpack
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.archives.reader import ArchivedReader
from pmwal.logs.merge import Member
from pmwal.logs.sources import Sources
from pmwal.reading.internals import epoch_first_seq, is_elsewhere
from pmwal.reading.place import Place
from pmwal.reading.walk import Walker
from pmwal.ship.source import ShippedLog
from pmwal.storage.seam import SYSTEM

pytestmark = pytest.mark.both_engines

ASKED = 20
ROUNDS = 150

Item = tuple[int, bytes]


@contextlib.contextmanager
def watched(scene: Scene) -> Iterator[None]:
    scene.watching = True
    try:
        yield
    finally:
        scene.watching = False


def rounds(judge: Judge) -> Iterator[None]:
    """Until the log has no later record, but not for ever."""
    for _ in range(ROUNDS):
        if not judge.behind:
            return
        yield
    raise AssertionError(f"it does not get past {judge.at}")


# -- one log


def _follow(scene: Scene) -> None:
    """It turns to the new file by itself."""
    judge = Judge(scene.history, ASKED)
    with pmwal.open(scene.path, "r") as reader, watched(scene):
        for _ in rounds(judge):
            judge.begin()
            try:
                for record in reader.follow(judge.at, timeout=0):
                    judge.came(record.seq, record.data)
            except Overrun as error:
                judge.overrun(error)
    judge.end()


def _mixed(scene: Scene) -> None:
    """Some of a follow, then a frame, then a look-up: of one reader, which turns to the new file in between."""
    judge = Judge(scene.history, ASKED)
    with pmwal.open(scene.path, "r") as reader, watched(scene):
        for number in rounds(judge):
            del number
            for read in (_some_followed, _framed, _looked_up):
                judge.begin()
                try:
                    for seq, data in read(reader, judge.at):
                        judge.came(seq, data)
                except Overrun as error:
                    judge.overrun(error)
    judge.end()


def _some_followed(reader: pmwal.Reader, at: int) -> Iterator[Item]:
    return ((record.seq, record.data) for record in islice(reader.follow(at, timeout=0), 3))


def _framed(reader: pmwal.Reader, at: int | str) -> Iterator[Item]:
    frame = reader.frame(at, size_max=5000)
    if frame is not None:
        yield from ((seq, data) for seq, (_, _, data) in enumerate(unpack(frame.body), frame.first))


def _looked_up(reader: pmwal.Reader, at: int) -> Iterator[Item]:
    try:
        yield at, reader[at].data
    except IndexError:
        first = reader.first_seq
        if at < first:
            raise Overrun("", first - at) from None


def reopening(cursors: bool) -> Way:
    """Read frames; when the log has another file, and the old one no more records, open that and continue after the cursor."""

    def way(scene: Scene) -> None:
        judge, start, cursor = Judge(scene.history, ASKED), None, ""
        reader = pmwal.open(scene.path, "r")
        try:
            with watched(scene):
                for _ in rounds(judge):
                    judge.begin(unsure=start is not None)
                    try:
                        frame = reader.frame(judge.at if start is None else start, size_max=9000)
                    except Overrun as error:
                        judge.overrun(error)
                        start = None
                        continue
                    if frame is None:
                        if is_elsewhere(reader):
                            reader.close()
                            reader = pmwal.open(scene.path, "r")
                            start = cursor if judge.begun else None
                        continue
                    for seq, (_, _, data) in enumerate(unpack(frame.body), frame.first):
                        judge.came(seq, data)
                    cursor = frame.cursor
                    start = cursor if cursors else None
            judge.end()
        finally:
            reader.close()

    return way


def _consumer(scene: Scene) -> None:
    """It acknowledges each third record, ends now and then, and continues where it has acknowledged."""
    judge = Judge(scene.history, 1)
    with pmwal.open(scene.path, "r") as reader, reader.consumer("mail") as consumer, watched(scene):
        for _ in rounds(judge):
            judge.repeat(consumer.position + 1)
            judge.begin()
            try:
                for record in islice(consumer.follow(timeout=0), 40):
                    judge.came(record.seq, record.data)
                    if record.seq % 3 == 0:
                        consumer.ack(record.seq)
                if not judge.behind:
                    break
            except Overrun as error:
                judge.overrun(error)
                _seek(consumer, judge)
            except ValueError as error:  # it was rolled back before it was acknowledged
                if "there is no record" not in str(error):
                    raise
    judge.end()


def _seek(consumer: pmwal.Consumer, judge: Judge) -> None:
    while True:
        judge.begin()
        try:
            consumer.seek(judge.at)
            return
        except Overrun as error:
            judge.overrun(error)


def _shipped(scene: Scene) -> None:
    """As a shipper: it takes frames, and opens the new file once it has the old one's last record."""
    judge, start = Judge(scene.history, 1), ""
    log = ShippedLog(pmwal.open(scene.path, "r"), "ship")
    try:
        with watched(scene):
            for _ in rounds(judge):
                judge.begin(unsure=bool(start))
                try:
                    taken = log.take(judge.at, 9000)
                    if taken.frame is not None:
                        for seq, (_, _, data) in enumerate(unpack(taken.frame.body), judge.at):
                            judge.came(seq, data)
                        start = ""
                        cursor = taken.frame.cursor
                    elif taken.missed:
                        judge.missed(taken.missed)
                    elif log.gone:
                        log.close()
                        log = ShippedLog(pmwal.open(scene.path, "r"), "ship")
                        start = cursor
                        if not log.has(start):
                            judge.overrun(Overrun("the cursor"))
                except Overrun as error:
                    judge.overrun(error)
        judge.end()
    finally:
        log.close()


# -- sets


class Judges:
    """One judge for each log that was at the path."""

    def __init__(self, scene: Scene, **how: Any) -> None:
        self._scene, self._how, self.all = scene, how, dict[str, Judge]()

    def of(self, uuid: str) -> Judge:
        return self.all.setdefault(uuid, Judge(self._scene.histories[uuid], None, **self._how))

    @property
    def behind(self) -> bool:
        """Whether there is more of the log that is at the path now, or of an earlier one that was met there."""
        self.of(self._scene.wal.uuid)
        return any(judge.behind for uuid, judge in self.all.items() if judge.begun or uuid == self._scene.wal.uuid)

    def end(self) -> None:
        self.of(self._scene.wal.uuid)
        for uuid, judge in self.all.items():
            if judge.begun or uuid == self._scene.wal.uuid:
                judge.end()

    def begin(self) -> None:
        for uuid in self._scene.histories:
            self.of(uuid).begin(unsure=True)

    @property
    def counts(self) -> set[int]:
        """How many records the set may count as missed."""
        return {sum(each) for each in product(*(judge.counts for judge in self.all.values()))}


def sets(how: str) -> Way:
    def way(scene: Scene) -> None:
        judges, counts = Judges(scene, silent=True), True
        with pmwal.LogSet(scene.path.parent) as logs, contextlib.ExitStack() as stack:
            consumer = stack.enter_context(logs.consumer("mail")) if how == "consumer" else None
            stack.enter_context(watched(scene))
            for _ in range(ROUNDS):
                judges.begin()
                try:
                    if consumer is not None:
                        records = consumer.follow(timeout=0)
                    elif how == "read":
                        records = logs.read(logs.cursor)
                    else:
                        records = logs.follow(logs.cursor, timeout=0)
                    for record in records:
                        judges.of(record.uuid).came(record.seq, record.data)
                        if consumer is not None:
                            consumer.ack()
                except Overrun as error:  # the record of the cursor was rolled back
                    counts = False
                    if error.missed:
                        raise
                    for judge in judges.all.values():
                        if judge.discarded:
                            judge.overrun(error)
                            judge.begin_again()
                        elif consumer is not None:  # which is sent back to the oldest record
                            judge.begin_again()
                    if consumer is not None:
                        consumer.seek("oldest")
                        continue
                    with contextlib.suppress(Overrun):
                        logs.read({})
                if not judges.behind:
                    break
        judges.end()
        assert not counts or logs.missed in judges.counts, f"{logs.missed} are said to be missed, and {judges.counts} were"

    return way


# -- archives


def _archive(scene: Scene) -> None:
    """What the files say, one after another."""
    judges, to = Judges(scene), scene.path.parent / "archives"
    with contextlib.closing(Archiver([str(scene.path.parent)], str(to), rules("jsonl.zst", size=20_000), SYSTEM)) as archiver:
        for _ in range(ROUNDS):
            with watched(scene):
                judges.begin()
                written = [each for each in archiver.look(flush=True) if isinstance(each, Written)]
            for each in written:
                _judge_file(judges.of(each.summary.uuid), each)
            if not judges.behind:
                assert archiver.problems == {}  # one whose file was replaced during a look is opened again at the next one
                break
    judges.end()


def _judge_file(judge: Judge, written: Written) -> None:
    summary = written.summary
    if summary.rollback is not None:
        judge.go_back(summary.rollback + 1)
    if summary.gap is not None:
        first, last = summary.gap
        assert first == judge.at
        judge.missed(last - first + 1)
    with contextlib.closing(ArchiveFile(written.path)) as file:
        reader = ArchivedReader("archived", summary.uuid, [file])
        for record in reader.read(summary.first):
            judge.came(record.seq, record.data)


WAYS: dict[str, Way] = {
    "follow": _follow,
    "mixed": _mixed,
    "frames": reopening(cursors=False),
    "frames after cursors": reopening(cursors=True),
    "consumer": _consumer,
    "shipper": _shipped,
    "set read": sets("read"),
    "set follow": sets("follow"),
    "set consumer": sets("consumer"),
    "archive": _archive,
}
PLANS: dict[str, Plan] = {
    "grown": ((0, "grow"),),
    "overwritten and grown": ((0, "overwrite"), (2, "overwrite"), (6, "grow"), (9, "free")),
    "grown and freed": ((0, "grow"), (3, "free"), (9, "free")),
    "grown while closed": ((0, "grow closed"), (4, "overwrite"), (8, "grow closed")),
    "shrunk": ((0, "shrink"), (3, "overwrite"), (5, "roll back")),
    "rolled back": ((0, "roll back"), (1, "open again"), (4, "roll back"), (5, "roll back")),
    "rolled back and grown": ((0, "roll back"), (1, "grow"), (6, "roll back"), (7, "free")),
    "freed and rolled back": ((0, "overwrite"), (2, "roll back"), (5, "overwrite"), (6, "grow closed")),
}
REPLACED: Plan = ((0, "replace"), (3, "overwrite"), (6, "roll back"), (9, "replace"))
REPLACEABLE = ["set read", "set follow", "archive"]


EVERY = {
    "follow": 13,
    "mixed": 127,
    "frames": 13,
    "frames after cursors": 13,
    "consumer": 59,
    "shipper": 33,
    "set read": 9,
    "set follow": 13,
    "set consumer": 401,
    "archive": 249,
}
"""Loads from one run to the next, so that each way is tried at some."""


@pytest.mark.parametrize("plan", ["overwritten and grown", "rolled back and grown"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_beside_each_writer(path: Path, way: str, plan: str) -> None:
    """At some loads of each."""
    assert problems_of(path, WAYS[way], PLANS[plan], every=EVERY[way]) == []


@pytest.mark.parametrize("way", REPLACEABLE)
def test_log_that_another_one_replaces_is_read_to_its_end(path: Path, way: str) -> None:
    """And so is the other one."""
    assert problems_of(path, WAYS[way], REPLACED, every=2 * EVERY[way]) == []


@pytest.mark.nightly
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_beside_each_writer_at_each_load(path: Path, way: str, plan: str) -> None:
    """All of it."""
    assert problems_of(path, WAYS[way], PLANS[plan]) == []


@pytest.mark.nightly
@pytest.mark.parametrize("way", REPLACEABLE)
def test_log_that_is_replaced_at_each_load(path: Path, way: str) -> None:
    """All of it."""
    assert problems_of(path, WAYS[way], REPLACED) == []


# -- the rig notices mistakes


def _search_once(patch: pytest.MonkeyPatch) -> None:
    """Count what is missed from where the search began."""
    patch.setattr(Walker, "locate", lambda self, view, near, seq, passed=None: self._locate(view, near, seq, passed or []))


def _check_nothing(patch: pytest.MonkeyPatch) -> None:
    """Take it that what was read before is still there."""
    patch.setattr(Place, "check", lambda *_: None)


def _compare_nothing(patch: pytest.MonkeyPatch) -> None:
    """Continue after the number of a cursor, or of the last record of the old file, whatever record has it."""
    patch.setattr("pmwal.reading.reader.resume", lambda cursor, view, read: parse_cursor(cursor).seq + 1)


def _compare_no_position(patch: pytest.MonkeyPatch) -> None:
    """Continue after a position, whatever record is there."""
    patch.setattr("pmwal.reading.consumer.problem_of", lambda *_: None)
    patch.setattr(Place, "check", lambda *_: None)


def _go_back_to_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """Go back to where the newest epoch began, as if there were no other new one."""
    patch.setattr(Member, "_discarded_from", lambda self: min(self.next, epoch_first_seq(self.log.reader)))


def _stay(patch: pytest.MonkeyPatch) -> None:
    """Read the old file as long as it is open."""
    patch.setattr(Sources, "turn", Sources.refresh)


def _count_one_more(patch: pytest.MonkeyPatch) -> None:
    """Count one more each time that some are gone."""
    miss = Member._miss
    patch.setattr(Member, "_miss", lambda self, first, count: (miss(self, first, count), setattr(self, "missed", self.missed + 1)))


def _archive_no_gap(patch: pytest.MonkeyPatch) -> None:
    """Say of no record that it was gone before it was archived."""
    patch.setattr(_Log, "_continue_after", lambda self, archived, following: setattr(self, "_next", following))


MISTAKES: list[tuple[str, str, Callable[[pytest.MonkeyPatch], None], str]] = [
    ("frames", "overwritten and grown", _search_once, "are said to be gone"),
    ("follow", "rolled back and grown", _check_nothing, "was rolled back before it was stored|came twice|never|neither"),
    ("mixed", "rolled back", _check_nothing, "was rolled back before it was stored"),
    ("frames after cursors", "rolled back and grown", _compare_nothing, "was rolled back before it was stored"),
    ("follow", "rolled back and grown", _compare_nothing, "was rolled back before it was stored"),
    ("consumer", "rolled back", _compare_no_position, "was rolled back before it was stored"),
    ("shipper", "rolled back", _check_nothing, "was rolled back before it was stored"),
    ("set follow", "rolled back", _go_back_to_the_epoch, "instead of|are said to be gone"),
    ("set read", "grown", _stay, "ended at"),
    ("set follow", "overwritten and grown", _count_one_more, "are said to be missed"),
    ("set consumer", "overwritten and grown", _count_one_more, "are said to be missed"),
    ("archive", "overwritten and grown", _archive_no_gap, "instead of"),
]


@pytest.mark.native_engine
@pytest.mark.parametrize(("way", "plan", "plant", "said"), MISTAKES)
def test_rig_notices(
    path: Path, way: str, plan: str, plant: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in what each way relies on."""
    plant(monkeypatch)
    found = problems_of(path, WAYS[way], PLANS[plan], every=max(1, EVERY[way] // 20), one=True)
    assert found
    assert re.search(said, found[0])
