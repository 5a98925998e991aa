"""Readers while another process writes, after its end, across rollbacks, and on copies (scenarios 34, 35 and 38)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import until
from conftest import Place
from marks import first_fast
from pmwal.format.layout import HEADER, PAGE
from pmwal.opening import open_log
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound
from processes import PATIENCE, Child, child, elsewhere, make_read_only, on_tmpfs
from support import BarrierRecorder, contents, file_offset, flip, open_small, payloads, whole_records
from support import superblock as superblock_of

pytestmark = pytest.mark.both_engines

NOBODY = 65534


class Writer:
    """A log written by another process, one call at a time."""

    def __init__(self, process: Child) -> None:
        self.process = process
        process.hear()

    def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method, or get an attribute, of the other process's handle; its exception is raised here."""
        self.process.say((name, args, options))
        answer = self.process.hear()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    wal = open_small(path, **options)
    pipe.send("open")
    while True:
        name, args, arguments = pipe.recv()
        try:
            thing = getattr(wal, name)
            pipe.send(thing(*args, **arguments) if callable(thing) else thing)
        except Exception as error:
            pipe.send(error)


@contextlib.contextmanager
def writer(path: Path, **options: Any) -> Iterator[Writer]:
    """A writer in another process, killed when the block ends unless it was told to close."""
    with child(_serve, path, options) as process:
        yield Writer(process)


# -- what readers see


def test_reader_shows_what_is_durable_and_nothing_else(place: Place) -> None:
    """Uncommitted records of a living writer are invisible to iteration, indexing, length and bounds."""
    with writer(place.path, **place.options) as log, pmwal.open(place.path, "r") as reader:
        assert (payloads(reader), len(reader), reader.first_seq, reader.committed_seq) == ([], 0, 1, 0)
        log("append", b"1")
        log("append", b"2", commit=False)
        assert log("next_seq") == 3
        assert (payloads(reader), len(reader), reader.committed_seq) == ([b"1"], 1, 1)
        with pytest.raises(IndexError, match="no record 2; the log holds 1 to 1"):
            _ = reader[2]
        with pmwal.open(place.path, "r") as late:
            assert contents(late) == [(1, b"1")]
        log("commit")
        assert (payloads(reader), len(reader), reader.committed_seq) == ([b"1", b"2"], 2, 2)
        assert reader[2].data == b"2"
        log("truncate", before=2)
        assert (payloads(reader), len(reader), reader.first_seq) == ([b"2"], 1, 2)
        log("rollback", after=1)
        assert (payloads(reader), len(reader), reader.first_seq, reader.committed_seq) == ([], 0, 2, 1)


def test_reader_shows_after_a_kill_what_recovery_keeps(place: Place) -> None:
    """Once the writer is dead, an open reader, a new reader, verify and the next open agree on every record."""
    with writer(place.path, **place.options) as log, pmwal.open(place.path, "r") as reader:
        log("extend", [b"1", b"2"])
        log("append", b"3", commit=False)
        assert payloads(reader) == [b"1", b"2"]
        log.process.kill()
        shown = contents(reader)
        assert shown == [(1, b"1"), (2, b"2"), (3, b"3")]
        assert reader.committed_seq == 3
        with pmwal.open(place.path, "r") as late:
            assert contents(late) == shown
        assert pmwal.verify(place.path).records == len(shown)
        with open_small(place.path, **place.options) as wal:
            assert contents(wal) == shown
            assert contents(reader) == shown


def test_reader_never_shows_less_after_a_kill_than_before(place: Place) -> None:
    """Reading ``recovery`` while the writer is alive does not hide what it acknowledges later."""
    with writer(place.path, **place.options) as log, pmwal.open(place.path, "r") as reader:
        log("append", b"1")
        assert reader.recovery.records == 1
        log("append", b"2")
        assert contents(reader) == [(1, b"1"), (2, b"2")]
        log.process.kill()
        assert contents(reader) == [(1, b"1"), (2, b"2")]
        assert reader.recovery.records == 2


@pytest.mark.parametrize("ends", ["kill", "close"])
def test_reader_continues_across_writers(place: Place, ends: str) -> None:
    """One reader follows five writers in turn and misses nothing."""
    open_small(place.path, **place.options).close()
    seen: list[tuple[int, bytes]] = []
    with pmwal.open(place.path, "r") as reader:
        for number in range(5):
            with writer(place.path, **place.options) as log:
                for part in range(3):
                    log("append", b"%d-%d" % (number, part))
                    seen += [(record.seq, record.data) for record in reader.read(start=len(seen) + 1)]
                if ends == "close":
                    log("close")
            seen += [(record.seq, record.data) for record in reader.read(start=len(seen) + 1)]
    expected = [b"%d-%d" % (number, part) for number in range(5) for part in range(3)]
    assert seen == list(enumerate(expected, start=1))


def test_readers_see_the_log_whole_while_writers_take_over(path: Path) -> None:
    """A recovery that runs at the same time never looks like damage to a reader."""
    expected = [b"a", b"b" * 3000, b"c"]
    with open_small(path) as wal:
        wal.extend(expected)

    def take_over(pipe: Connection) -> None:
        pipe.send("started")
        while not pipe.poll():
            open_small(path, medium="file").close()

    with child(take_over) as process, pmwal.open(path, "r") as reader:
        process.hear()
        deadline = time.monotonic() + 0.5
        looks = 0
        while time.monotonic() < deadline or looks <= 5:
            assert payloads(reader) == expected
            with pmwal.open(path, "r") as late:
                assert payloads(late) == expected
            report = pmwal.verify(path)
            assert (report.outcome in ("clean", "recovered"), report.records) == (True, 3)
            looks += 1
        process.say("stop")
        assert process.wait() == 0
    assert looks > 5


def test_readers_of_one_log_do_not_disturb_one_another(path: Path) -> None:
    """Interleaved iterations, of one reader or several, each return every record once."""
    with open_small(path, size="1MiB") as wal:
        wal.extend([number.to_bytes(2) * 400 for number in range(1, 1001)])
        with pmwal.open(path, "r") as one, pmwal.open(path, "r") as two:
            iterations = [one.read(), one.read(start=500), two.read(), one.read(start=3, stop=900)]
            seen = [[record.seq for record in records] for records in zip(*iterations, strict=False)]
            assert seen[0] == [1, 500, 1, 3]
            assert seen[-1] == [501, 1000, 501, 503]
            assert [one[seq].seq for seq in (1000, 1, 500)] == [1000, 1, 500]


# -- overrun (scenario 34)


def test_overrun_counts_what_is_missing(path: Path) -> None:
    """A reader that falls behind a flight recorder is told how many records it missed, by a new read and by a running one."""
    with writer(path, on_full="overwrite", size="1MiB") as log, pmwal.open(path, "r") as reader:
        log("extend", [bytes(1000)] * 500)
        running = reader.read()
        assert next(running).seq == 1
        for _ in range(5):
            log("extend", [bytes(1000)] * 500)
        first = log("first_seq")
        assert first > 1500
        with pytest.raises(pmwal.Overrun, match=f"record 2 is gone: the log now begins at {first}") as caught:
            reader.read(start=2)
        assert caught.value.missed == first - 2
        seen = [1]
        with pytest.raises(pmwal.Overrun, match=f"the log now begins at {first}") as caught:
            seen += (record.seq for record in running)
        assert seen[-1] < 501
        assert caught.value.missed == first - seen[-1] - 1
        assert [record.seq for record in reader.read(start=first)] == list(range(first, 3001))


def checked(seq: int) -> bytes:
    """A payload in which every byte depends on the sequence number."""
    return struct.pack("<Q", seq) * (1 + seq * 7919 % 97)


def write_fast(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    """Append self-checking records as fast as possible until told to stop."""
    with open_small(path, **options) as wal:
        pipe.send(wal.next_seq)
        seq = wal.next_seq
        while not pipe.poll():
            for _ in range(50):
                assert wal.append(checked(seq)) == seq
                seq += 1


def _begins_at(reader: pmwal.Reader, seq: int) -> bool:
    return reader.first_seq >= seq


@pytest.mark.parametrize("options", [{"medium": "memory"}, {"medium": "file"}], ids=["memory", "file"])
def test_slow_reader_never_gets_torn_bytes(path: Path, options: dict[str, Any]) -> None:
    """With a fast flight recorder each read returns a whole record or raises Overrun with a count, never torn bytes."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    options = options | {"on_full": "overwrite", "size": "128KiB"}
    shown: list[pmwal.Record] = []
    missed: list[int] = []
    with child(write_fast, path, options) as process:
        start = process.hear()
        with pmwal.open(path, "r") as reader:
            begun = time.monotonic()
            while time.monotonic() - begun < (1.0 if len(shown) > 500 and len(missed) > 5 else PATIENCE):
                try:
                    for record in reader.read(start):
                        assert record.seq == start, f"seed {seed}"
                        shown.append(record)
                        start += 1
                        if chance.random() < 0.003:
                            until(partial(_begins_at, reader, start))  # slow enough to be overtaken
                except pmwal.Overrun as error:
                    missed.append(error.missed)
                    start += error.missed
                    assert start <= reader.first_seq, f"seed {seed}: records that are there would be left out"
                first = reader.first_seq  # read once, because the writer keeps moving it
                if start > first:
                    with contextlib.suppress(pmwal.Overrun, IndexError):
                        shown.append(reader[chance.randrange(first, start)])
        process.say("stop")
        assert process.wait() == 0
    assert [record.seq for record in shown if record.data != checked(record.seq)] == [], f"seed {seed}"
    assert len(shown) > 500
    assert sum(missed) > 5


def test_record_is_handed_out_from_the_bytes_that_were_checked(path: Path) -> None:
    """Bytes that change between two loads are never delivered, in any part of the ring."""
    expected = [bytes([number]) * 900 for number in range(1, 18)]
    with open_small(path) as wal:
        wal.extend(expected)
    raw, block, seen = path.read_bytes(), superblock_of(path), set[int]()

    def load(offset: int, length: int) -> bytes:
        offsets = range(offset, offset + length)
        data = bytes(raw[at] ^ (0xFF if at in seen else 0) for at in offsets)
        seen.update(offsets)
        return data

    shown: list[pmwal.Record] = []
    start = whole_records(path)[3]
    with contextlib.suppress(pmwal.Overrun):
        at = Bound(start.position, 3)
        view = View(at, Bound(2**62, len(expected) + 1), 1, 1)
        walker = Walker(block, load, lambda missing, _: pmwal.Overrun(str(missing)))
        shown += walker.walk(view, at, len(expected) + 1)
    assert [record.data for record in shown] == expected[2 : 2 + len(shown)]
    assert len(shown) >= 6


def test_verify_beside_a_flight_recorder_is_no_false_alarm(path: Path) -> None:
    """A log that is overwritten while it is judged is not called corrupt by verify, by a reader, or in its report."""
    with child(write_fast, path, {"on_full": "overwrite", "size": "128KiB"}) as process:
        process.hear()
        with pmwal.open(path, "r") as reader:
            until(partial(_begins_at, reader, 2))
            outcomes = {pmwal.verify(path).outcome for _ in range(5)} | {reader.recovery.outcome for _ in range(2)}
        process.say("stop")
        assert process.wait() == 0
    assert "corrupt" not in outcomes


def test_reader_of_many_laps_keeps_a_bounded_index(path: Path) -> None:
    """A reader's index of record starts does not grow with the number of bytes read."""
    with open_small(path, size="128KiB", on_full="overwrite") as wal, pmwal.open(path, "r") as reader:
        for _ in range(40):
            first, last = wal.extend([bytes(10_000)] * 10)
            assert [record.seq for record in reader.read(start=first)] == list(range(first, last + 1))
        assert len(reader._index._entries) <= 8


# -- rollback under a reader


def test_rollback_of_what_was_handed_out_is_an_overrun(path: Path) -> None:
    """A reader that has passed the discarded records is told, even if others of the same size and number replaced them."""
    with writer(path) as log, pmwal.open(path, "r") as reader:
        log("extend", [b"old-%d" % number for number in range(1, 7)])
        assert len(list(reader)) == 6
        log("rollback", after=3)
        log("extend", [b"new-%d" % number for number in range(4, 9)])
        with pytest.raises(pmwal.Overrun, match="record 6, read before, was rolled back; read again"):
            reader.read(start=7)
        assert payloads(reader)[2:5] == [b"old-3", b"new-4", b"new-5"]
        assert [record.seq for record in reader.read(start=8)] == [8]


def test_rollback_past_a_reader_does_not_concern_it(path: Path) -> None:
    """Records that the reader has not seen yet may change; it reads the new ones."""
    with writer(path) as log, pmwal.open(path, "r") as reader:
        log("extend", [b"old-%d" % number for number in range(1, 7)])
        assert [record.seq for record in reader.read(stop=4)] == [1, 2, 3]
        log("rollback", after=3)
        log("extend", [b"new-4", b"new-5"])
        assert [record.data for record in reader.read(start=4)] == [b"new-4", b"new-5"]


def test_rollback_to_where_the_log_ends_before_the_reader_is_an_overrun(path: Path) -> None:
    """A reader past the end of a log that was rolled back is told, even if nothing replaced the discarded records."""
    with writer(path) as log, pmwal.open(path, "r") as reader:
        log("extend", [b"1", b"2", b"3"])
        assert len(list(reader)) == 3
        log("rollback", after=1)
        with pytest.raises(pmwal.Overrun, match="record 3, read before, was rolled back"):
            reader.read(start=4)
        assert payloads(reader) == [b"1"]
        with pytest.raises(IndexError):
            _ = reader[2]


@pytest.mark.parametrize("length", [900, 1024 - HEADER])
def test_rollback_in_the_middle_of_an_iteration_is_an_overrun(path: Path, length: int) -> None:
    """An iteration never continues from discarded records into their replacements, of any size."""
    old, new = b"o" * length, b"n" * length
    with writer(path, size="1MiB") as log, pmwal.open(path, "r") as reader:
        log("extend", [old] * 1000)
        running = reader.read()
        assert next(running).seq == 1
        log("rollback", after=10)
        log("extend", [new] * 990)
        seen: list[bytes] = []
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            seen += (record.data for record in running)
        assert set(seen) == {old}
        assert len(seen) < 990


# -- nothing is stored (scenario 35)


def leave_killed(path: Path) -> None:
    """A log whose writer was killed with one record uncommitted."""
    with writer(path, medium="file") as log:
        log("extend", [b"a", b"b", b"c"])
        log("append", b"d", commit=False)


def leave_corrupt(path: Path) -> None:
    """A closed log with a damaged record."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
    flip(path, file_offset(superblock_of(path), 56) + HEADER)


def leave_clean(path: Path) -> None:
    """A closed log."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])


@pytest.mark.parametrize("leave", [leave_clean, leave_killed, leave_corrupt])
def test_reading_stores_nothing(path: Path, leave: Callable[[Path], None]) -> None:
    """Mode "r", salvage and verify change no byte and no timestamp of the file, and take no step through the seam."""
    leave(path)
    before, status = path.read_bytes(), path.stat()
    seam = BarrierRecorder()
    with contextlib.suppress(pmwal.CorruptWal), open_log(path, "r", seam=seam) as reader:
        assert len(list(reader)) >= 3
    with open_log(path, "r", recover="salvage", seam=seam) as reader:
        assert len(list(reader)) >= 2
    pmwal.verify(path)
    after = path.stat()
    assert seam.events == []
    assert path.read_bytes() == before
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_blocks) == (status.st_mtime_ns, status.st_ctime_ns, status.st_blocks)


def drop_rights() -> None:
    """Become nobody, so that permissions apply."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.mark.parametrize("leave", [leave_clean, leave_killed])
def test_log_without_write_permission_can_be_read(path: Path, leave: Callable[[Path], None]) -> None:
    """Another user can read and verify a file that it may not write; opening it for writing is a PermissionError."""
    leave(path)
    path.parent.chmod(0o755)
    path.chmod(0o444)

    def body() -> tuple[list[bytes], str]:
        drop_rights()
        for mode in ("a", "r+"):
            with pytest.raises(PermissionError):
                pmwal.open(path, mode)
        with pmwal.open(path, "r") as reader:
            return payloads(reader), pmwal.verify(path).outcome

    records, outcome = elsewhere(body)
    assert records[:3] == [b"a", b"b", b"c"]
    assert outcome in ("clean", "recovered")


def test_log_of_another_user_can_be_read_beside_its_writer(path: Path) -> None:
    """A reader that may not signal the writer still knows that it is alive, and hides what is not durable."""
    path.parent.chmod(0o755)
    with open_small(path) as wal:
        path.chmod(0o444)
        wal.append(b"1")
        wal.append(b"2", commit=False)

        def body() -> list[bytes]:
            drop_rights()
            with pmwal.open(path, "r") as reader:
                return payloads(reader)

        assert elsewhere(body) == [b"1"]


def test_log_without_any_permission_is_an_error(path: Path) -> None:
    """Without read permission, opening is a PermissionError."""
    leave_clean(path)
    path.parent.chmod(0o755)
    path.chmod(0)

    def body() -> None:
        drop_rights()
        for look in (lambda: pmwal.open(path, "r"), lambda: pmwal.verify(path)):
            with pytest.raises(PermissionError):
                look()

    elsewhere(body)


def test_log_on_a_read_only_mount_can_be_read(path: Path) -> None:
    """Reading and verifying work on a read-only mount; opening for writing fails with EROFS."""

    def body() -> tuple[list[bytes], str, list[int | None]]:
        leave_clean(path)
        make_read_only(path.parent)
        errors: list[int | None] = []
        for mode in ("a", "r+", "x"):
            try:
                pmwal.open(path, mode)
            except OSError as error:
                errors.append(error.errno)
        with pmwal.open(path, "r") as reader:
            return payloads(reader), pmwal.verify(path).outcome, errors

    records, outcome, errors = on_tmpfs(path.parent, "size=1m", body)
    assert (records, outcome) == ([b"a", b"b", b"c"], "clean")
    assert errors[:2] == [30, 30]
    assert errors[2] in (17, 30)


# -- copies (scenario 38)


def copy_forward(source: Path, target: Path) -> None:
    """Copy from the first page to the last, as cp does."""
    shutil.copyfile(source, target)


def copy_backward(source: Path, target: Path) -> None:
    """Copy from the last page to the first: pointers are copied after the records they name."""
    size = source.stat().st_size
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        for offset in reversed(range(0, size, PAGE)):
            old.seek(offset)
            new.seek(offset)
            new.write(old.read(PAGE))


def copy_slowly(source: Path, target: Path) -> None:
    """Copy in large pieces with pauses: the writer is far ahead when the last piece is copied."""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while piece := old.read(16 * 1024):
            new.write(piece)
            time.sleep(0.001)


def fill(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    """Append self-checking records until the log is full, then wait. Without the pauses it may be full before the first copy."""
    wal = open_small(path, **options)
    pipe.send("open")
    with contextlib.suppress(pmwal.WalFull):
        while True:
            wal.append(checked(wal.next_seq))
            if wal.next_seq % 4 == 0:
                time.sleep(0.0005)
    pipe.recv()


def look_at_copy(copy: Path, mode: str, durable: int) -> list[int] | None:
    """The sequence numbers in a copy, None if it is refused; consecutive, with the right data, and at least up to ``durable``."""
    try:
        with pmwal.open(copy, mode) as log:
            shown = contents(log)
    except (pmwal.CorruptWal, pmwal.FormatError):
        return None
    numbers = [seq for seq, _ in shown]
    assert [seq for seq, data in shown if data != checked(seq)] == []
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else durable == 0
    assert (numbers or [0])[-1] >= durable
    return numbers


@pytest.mark.parametrize("copying", first_fast([copy_forward, copy_backward, copy_slowly]))
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_copy_made_beside_the_writer_is_a_prefix_or_refused(
    path: Path, ordering: str, copying: Callable[[Path, Path], None]
) -> None:
    """A copy holds the first record and all that was durable before it was made, or opening it is refused."""
    opened = copies = progressed = 0
    options = {"medium": "file", "ordering": ordering, "size": "128KiB"}
    for turn in range(100):
        if turn >= 3 and progressed >= 2:
            break
        log, copy = path.with_name(f"{turn}.wal"), path.with_name(f"{turn}.copy")
        with child(fill, log, options) as process:
            process.hear()
            with pmwal.open(log, "r") as original:
                durable = -1
                while durable < original.committed_seq:
                    durable = original.committed_seq
                    copying(log, copy)
                    copies += 1
                    progressed += durable < original.committed_seq
                    for mode in ("r", "a"):
                        numbers = look_at_copy(copy, mode, durable)
                        assert numbers is None or numbers[:1] in ([], [1])
                        opened += numbers is not None
    assert copies > 4
    assert progressed >= 2, "no copy was made while the writer appended"
    assert opened > 0 or copying is not copy_forward


@pytest.mark.parametrize("copying", [copy_forward, copy_backward, copy_slowly])
def test_copy_of_a_flight_recorder_is_whole_or_refused(path: Path, copying: Callable[[Path, Path], None]) -> None:
    """Also while old records are overwritten: a copy holds consecutive records, up to the moment of copying, or is refused."""
    copy = path.with_name("copy.wal")
    with child(write_fast, path, {"medium": "file", "on_full": "overwrite", "size": "128KiB"}) as process:
        process.hear()
        with pmwal.open(path, "r") as original:
            until(partial(_begins_at, original, 2))
            for mode in ("r", "a") * 6:
                durable = original.committed_seq
                copying(path, copy)
                look_at_copy(copy, mode, durable)
        process.say("stop")
        assert process.wait() == 0


def test_reader_forgets_positions_from_before_a_writer_came(path: Path) -> None:
    """Positions learned without a writer may have been rolled back since: no false alarm, and the new records are read."""
    with open_small(path, size="256KiB") as wal:
        wal.extend([b"old" * 300] * 200)
    with pmwal.open(path, "r") as reader:
        assert next(reader.read(start=1)).seq == 1
        with open_small(path) as wal:
            wal.rollback(after=10)
            wal.extend([b"new %d" % number * 20 for number in range(11, 201)])
            assert [record.data for record in reader.read(start=150)] == [b"new %d" % n * 20 for n in range(150, 201)]
