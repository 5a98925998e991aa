"""The public interface: its names, its errors, the invariants of its numbers, and every argument of open and verify."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import inspect
import os
import pickle
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
import pmwal.aio
import pmwal.integrations.loguru
import pmwal.integrations.structlog
from callers import bounds
from conftest import Place
from pmwal.format.layout import HEADER
from pmwal.logs.options import SinkOptions
from pmwal.opening.options import Keywords, Options
from support import SMALL_RING, BarrierRecorder, contents, file_offset, flip, kill, open_small, payloads
from support import superblock as superblock_of
from surgery import rewrite_superblocks

ERRORS = [
    pmwal.WalClosed, pmwal.ReentrantCall, pmwal.WalFull, pmwal.WalLocked, pmwal.RecordTooLarge, pmwal.CorruptWal,
    pmwal.FormatError, pmwal.ShortenedWal, pmwal.PersistError, pmwal.WalUnlinked, pmwal.ForkedWal, pmwal.Overrun,
    pmwal.UnsupportedMedium, pmwal.ConsumerHeld, pmwal.PositionError,
]  # fmt: skip

WAL_NAMES = (
    "append extend batch reserve commit wait_durable truncate rollback read first_seq next_seq "
    "committed_seq recovery stats path capacity free closed close __iter__ __getitem__ __len__ __enter__ __exit__"
)
READER_NAMES = "read first_seq committed_seq stats close __iter__ __getitem__ __len__ __enter__ __exit__"
REPORT_NAMES = (
    "outcome case epoch first_seq last_seq records kept_past_pointer dropped_records dropped_bytes maybe_acknowledged "
    "slots_lost reason bytes_scanned seconds"
)
STATS_NAMES = (
    "engine medium durability filesystem flush ordering capacity used appends bytes commits barriers overwritten waits errors"
)


# -- names


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (pmwal.Wal, WAL_NAMES),
        (pmwal.Reader, READER_NAMES),
        (pmwal.RecoveryReport, REPORT_NAMES),
        (pmwal.WalStats, STATS_NAMES),
        (pmwal.Record, "seq kind time_ns data"),
        (pmwal.Batch, "append first last"),
        (pmwal.Reservation, "seq"),
    ],
)
def test_every_promised_name_exists(kind: type, names: str) -> None:
    """Programs rely on these names, so none may be missing or renamed."""
    assert [name for name in names.split() if not hasattr(kind, name)] == []


def test_package_exports_what_it_promises() -> None:
    """Everything in __all__ exists, and it includes all errors, handles and functions."""
    assert [name for name in pmwal.__all__ if not hasattr(pmwal, name)] == []
    promised = {"open", "verify", "Wal", "Reader", "Record", "RecoveryReport", "WalStats", "PmwalError", "__version__"}
    assert promised | {error.__name__ for error in ERRORS} <= set(pmwal.__all__)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_one_root(error: type[Exception]) -> None:
    """``except PmwalError`` catches every error that pmwal raises itself."""
    assert issubclass(error, pmwal.PmwalError)


def test_errors_are_also_what_python_calls_them() -> None:
    """A record too large is a ValueError, and a failed persist an OSError."""
    assert issubclass(pmwal.RecordTooLarge, ValueError)
    assert issubclass(pmwal.PersistError, OSError)


@pytest.mark.parametrize(
    "error",
    [
        pmwal.WalLocked("locked", 17),
        pmwal.Overrun("gone", 3),
        pmwal.PersistError(errno.EIO, "failed", committed_seq=41),
        pmwal.CorruptWal("damaged", first_seq=1, last_seq=2, start=3, end=4, reason="checksum"),
        pmwal.ShortenedWal("shortened", start=3, end=4, reason="shortened"),
    ],
)
def test_errors_keep_their_fields_on_the_way_to_another_process(error: Exception) -> None:
    """A worker's exception arrives with all its fields."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), vars(error)) == (type(again), str(again), vars(again))


def test_record_is_a_value() -> None:
    """Records compare and hash by value and cannot be changed."""
    record = pmwal.Record(1, 2, 3, b"x")
    assert record == pmwal.Record(1, 2, 3, b"x")
    assert record != pmwal.Record(1, 2, 3, b"y")
    assert len({record, pmwal.Record(1, 2, 3, b"x")}) == 1
    with pytest.raises(AttributeError):
        record.seq = 2  # type: ignore[misc]


# -- invariants of the sequence numbers


def test_new_log_is_empty(place: Place) -> None:
    """An empty log: first_seq == next_seq == committed_seq + 1."""
    with open_small(place.path, **place.options) as wal:
        assert bounds(wal) == (1, 1, 0)
        assert len(wal) == 0
        assert list(wal) == []
        assert wal.free == wal.capacity == SMALL_RING


def test_truncated_to_nothing_keeps_counting(place: Place) -> None:
    """A log emptied by truncate continues with the next number, also after a reopen."""
    with open_small(place.path, **place.options) as wal:
        wal.extend([b"a", b"b", b"c"])
        assert wal.truncate(before=4) == 4
        assert bounds(wal) == (4, 4, 3)
        assert len(wal) == 0
        assert wal.free == wal.capacity
    with open_small(place.path, **place.options) as wal:
        assert bounds(wal) == (4, 4, 3)
        assert wal.rollback(after=3) == 4
        assert wal.append(b"d") == 4
        assert contents(wal) == [(4, b"d")]


def test_rolled_back_to_nothing_counts_again(place: Place) -> None:
    """A log emptied by rollback assigns the discarded numbers again."""
    with open_small(place.path, **place.options) as wal:
        wal.extend([b"a", b"b", b"c"])
        assert wal.rollback(after=0) == 1
        assert bounds(wal) == (1, 1, 0)
    with open_small(place.path, **place.options) as wal:
        assert bounds(wal) == (1, 1, 0)
        assert wal.append(b"A") == 1


def test_numbers_follow_one_another(place: Place) -> None:
    """Every way to append takes the next number, and the record is durable on return."""
    with open_small(place.path, **place.options) as wal:
        assert (wal.append(b"1"), wal.committed_seq) == (1, 1)
        assert (wal.extend([b"2", b"3"]), wal.committed_seq) == ((2, 3), 3)
        with wal.batch() as batch:
            assert (batch.append(b"4"), batch.append(b"5"), wal.committed_seq) == (4, 5, 3)
        assert wal.committed_seq == 5
        reservation = wal.reserve(1)
        with reservation as view:
            view[0] = ord("6")
        assert reservation.seq == 6
        assert bounds(wal) == (1, 7, 6)
        assert payloads(wal) == [b"1", b"2", b"3", b"4", b"5", b"6"]
        kill(wal)
    with open_small(place.path, **place.options) as wal:
        assert payloads(wal) == [b"1", b"2", b"3", b"4", b"5", b"6"]


# -- opening


def test_modes_create_open_and_refuse(path: Path) -> None:
    """ "r" and "r+" need a log, "x" needs that there is none, "a" takes both."""
    for call in (lambda: pmwal.open(path, "r"), lambda: pmwal.open(path, "r+"), lambda: pmwal.verify(path)):
        with pytest.raises(FileNotFoundError):
            call()
    assert not path.exists()
    with open_small(path, "x") as wal:
        wal.append(b"1")
        assert wal.recovery.outcome == "created"
    with pytest.raises(FileExistsError):
        open_small(path, "x")
    with open_small(path, "r+") as wal:
        wal.append(b"2")
    with open_small(path, "a") as wal:
        wal.append(b"3")
    with pmwal.open(path, "r") as reader:
        assert isinstance(reader, pmwal.Reader)
        assert payloads(reader) == [b"1", b"2", b"3"]
    path.unlink()
    with open_small(path, "a") as wal:
        assert wal.recovery.outcome == "created"


@pytest.mark.parametrize("name", ["text", "bytes", "path"])
def test_path_is_str_bytes_or_pathlike(path: Path, name: str) -> None:
    """str, bytes and PathLike name the same log."""
    given: Any = {"text": str(path), "bytes": os.fsencode(path), "path": path}[name]
    with pmwal.open(given, size="64KiB") as wal:
        wal.append(b"x")
        assert wal.path == str(path)
    assert pmwal.verify(given).records == 1


def test_relative_path_is_relative_to_the_working_directory_at_open(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is created in the working directory, and a later change of directory does not affect the handle."""
    monkeypatch.chdir(shm_dir)
    with pmwal.open("bare.wal", size="64KiB") as wal:
        monkeypatch.chdir("/")
        wal.append(b"x")
    assert pmwal.verify(shm_dir / "bare.wal").records == 1


def test_empty_path_is_refused_at_once(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is created for an empty name."""
    monkeypatch.chdir(shm_dir)
    seam = BarrierRecorder()
    with pytest.raises(OSError):
        open_small("", seam=seam)
    assert seam.events == []
    assert list(shm_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "w"}, "mode must be one of 'a', 'x', 'r\\+', 'r', not 'w'; \"a\" creates a log or continues it, \"x\""),
        ({"mode": "64MiB"}, "not '64MiB'; give a size as size='64MiB'$"),
        ({"mode": 65536}, "not 65536; give a size as size=65536$"),
        ({"mode": "rb"}, "not 'rb'$"),
        ({"medium": "disk"}, "medium must be one of 'auto', 'dax', 'file', 'memory', 'emulated-dax', not 'disk'"),
        ({"ordering": "lazy"}, "ordering must be one of 'auto', 'strict', 'pipelined', not 'lazy'$"),
        ({"on_full": "overwite"}, "not 'overwite'; did you mean 'overwrite'\\?$"),
        ({"medium": "Emulated_DAX"}, "not 'Emulated_DAX'; did you mean 'emulated-dax'\\?$"),
        ({"ordering": "pipeline"}, "not 'pipeline'; did you mean 'pipelined'\\?$"),
        ({"commit": "manuel"}, "not 'manuel'; did you mean 'manual'\\?$"),
        ({"on_unlinked": "rise"}, "not 'rise'; did you mean 'raise'\\?$"),
        ({"commit": "never"}, "commit must be"),
        ({"on_full": "drop"}, "on_full must be one of 'raise', 'wait', 'overwrite', 'consumed', not 'drop'"),
        ({"consumers": ["a/b"]}, "'a/b' cannot be the name of a consumer"),
        ({"recover": "all"}, "recover must be one of 'strict', 'salvage', not 'all'"),
        ({"recover": "salvage"}, 'needs mode="r"'),
        ({"timeout": -1}, "timeout must be None or a number of seconds from 0, not -1"),
        ({"size": 0}, "size must be positive"),
        ({"size": -4096}, "size must be positive"),
        ({"size": "many"}, "cannot read the size 'many'; write bytes, or a number with KiB"),
        ({"size": 1 << 50}, "size must be from 4096 to"),
        ({"align": 3}, "align must be a power of two from 8 to 4096, or None, not 3"),
        ({"align": 4}, "align must be a power of two from 8 to 4096, or None, not 4"),
        ({"align": 24}, "align must be a power of two from 8 to 4096, or None, not 24"),
        ({"align": 8192}, "align must be a power of two from 8 to 4096, or None, not 8192"),
        ({"align": 4096, "size": 4096}, "alignment of 4096 bytes"),
        ({"label": ""}, "label must be text of 1 to 64 bytes in UTF-8, without NUL; '' has 0"),
        ({"label": "ü" * 33}, "has 66$"),
        ({"label": "a\0"}, "without NUL"),
        ({"label": "\udcff"}, "label must be text that UTF-8 can encode, not '.udcff'"),
    ],
    ids=str,
)
def test_impossible_argument_is_refused_and_nothing_created(path: Path, options: dict[str, Any], message: str) -> None:
    """A wrong argument is a ValueError that names what is allowed, and leaves no file."""
    with pytest.raises(ValueError, match=message):
        pmwal.open(path, **{"size": "64KiB"} | options)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"size": True}, {"size": 4096.0}, {"size": b"64KiB"}, {"timeout": "1"}, {"align": "64"}, {"label": b"a"}], ids=str
)
def test_argument_of_a_wrong_type_is_refused(path: Path, options: dict[str, Any]) -> None:
    """It is a TypeError, and no file is created."""
    with pytest.raises(TypeError):
        pmwal.open(path, **options)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "capacity"),
    [(4096, 4096), (1, 4096), (4097, 8192), ("64KiB", 65536), ("64K", 65536), ("0.5 MiB", 524288), ("20kB", 20480)],
)
def test_size_is_bytes_or_text_and_rounded_up_to_pages(path: Path, size: int | str, capacity: int) -> None:
    """The ring has at least the size asked for, and reopening with the same size is no mismatch."""
    with pmwal.open(path, size=size) as wal:
        assert wal.capacity == capacity
    with pmwal.open(path, size=size) as wal:
        assert wal.capacity == capacity


def test_size_is_64_mib_when_nothing_is_said(path: Path) -> None:
    """64 MiB is the default capacity."""
    with pmwal.open(path) as wal:
        assert wal.capacity == 64 << 20


@pytest.mark.parametrize("mode", ["a", "r+", "r"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8192}, "exists with a size of 16384 bytes, not 8192; leave size out, or change it with pmwal resize$"),
        ({"align": 64}, "alignment of 8, not 64; leave align out"),
        ({"label": "b"}, "exists and has no label, not 'b', and keeps it; leave label out"),
    ],
    ids=str,
)
def test_other_geometry_than_the_log_has_is_refused(path: Path, mode: str, options: dict[str, Any], message: str) -> None:
    """A different size, alignment or label is a ValueError in every mode, and changes nothing."""
    open_small(path).close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        pmwal.open(path, mode, **options)
    assert path.read_bytes() == before
    with pmwal.open(path, mode, size=SMALL_RING, align=8):
        pass


@pytest.mark.parametrize("label", ["orders", "größe 3", "ü" * 32, "x"])
def test_label_is_kept_with_the_log(path: Path, label: str) -> None:
    """It is stored when the log is created, in the field that 0.1 has for it; who names another one has opened the wrong log."""
    with pmwal.open(path, size="64KiB", label=label) as wal:
        assert wal.label == label
    assert path.read_bytes()[88:152] == label.encode().ljust(64, b"\0")
    with pmwal.open(path, label=label) as wal, pmwal.open(path, "r", label=label) as reader:
        assert wal.label == reader.label == label
    for mode in ("a", "r"):
        with pytest.raises(ValueError, match=f"has the label '{label}', not 'other', and keeps it; leave label out"):
            pmwal.open(path, mode, label="other")


def test_log_without_a_label_has_none(path: Path) -> None:
    """Nor has one whose bytes are another application's, and no text."""
    with pmwal.open(path, size="64KiB") as wal:
        assert wal.label is None
    rewrite_superblocks(path, replace(superblock_of(path), application=b"\xff" * 64))
    with pmwal.open(path) as wal, pmwal.open(path, "r") as reader:
        assert wal.label is reader.label is None


@pytest.mark.parametrize("align", [8, 16, 64, 512, 4096])
def test_records_start_at_multiples_of_the_alignment(path: Path, align: int) -> None:
    """Records come back with any alignment, and space is counted by it."""
    with open_small(path, align=align) as wal:
        wal.extend([b"a", b"b"])
        assert wal.capacity - wal.free == 2 * -(-(HEADER + 1) // align) * align
        assert wal.stats().alignment == align
        assert payloads(wal) == [b"a", b"b"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_file_is_private_to_its_owner(path: Path, umask: int) -> None:
    """A log has mode 0600 with any umask, because it contains data."""
    old = os.umask(umask)
    try:
        open_small(path).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ordering_follows_the_medium(path: Path, tmp_path: Path) -> None:
    """auto is strict where a barrier is a fence and pipelined where it is a device flush."""
    with open_small(path) as wal:
        assert wal.stats().ordering == "strict"
    with open_small(path, medium="file") as wal:
        assert wal.stats().ordering == "pipelined"
    with open_small(path, medium="file", ordering="strict") as wal:
        assert wal.stats().ordering == "strict"


@pytest.mark.parametrize("outcome", ["locked", "mismatch", "format", "corrupt", "missing", "exists", "medium"])
@pytest.mark.parametrize("mode", ["a", "r+", "x", "r"])
def test_failed_open_leaks_nothing(path: Path, mode: str, outcome: str) -> None:
    """An open that raises leaves no descriptor and no lock: once the cause is gone, it works."""
    causes: dict[str, dict[str, Any]] = {
        "mismatch": {"size": 8192}, "medium": {"medium": "dax"}, "missing": {"size": SMALL_RING}
    }  # fmt: skip
    options = causes.get(outcome, {})
    if outcome != "missing":
        open_small(path).close()
    whole = path.read_bytes() if path.exists() else b""
    if outcome == "format":
        path.write_bytes(bytes(5000))
    elif outcome == "corrupt":
        path.write_bytes(whole[:8192] + bytes(8192) + whole[16384:])
    owner = os.open(path, os.O_RDONLY) if outcome == "locked" else None
    if owner is not None:
        fcntl.flock(owner, fcntl.LOCK_EX)
    before = sorted(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(pmwal.PmwalError, OSError, ValueError):
            pmwal.open(path, mode, **options).close()
        gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    if owner is not None:
        os.close(owner)
    if whole:
        path.write_bytes(whole)
    with open_small(path):
        pass


@pytest.mark.parametrize("mode", ["r", "a"])
def test_refused_open_closes_each_descriptor_once(path: Path, mode: str) -> None:
    """A descriptor number that was reused meanwhile is not closed when the exception is released."""
    open_small(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + bytes(8192) + whole[16384:])
    others: list[int] = []
    try:
        pmwal.open(path, mode)
    except pmwal.CorruptWal:
        others = [os.open(path, os.O_RDONLY) for _ in range(8)]
    gc.collect()
    try:
        for fd in others:
            assert os.fstat(fd).st_size == len(whole)
    finally:
        for fd in others:
            os.close(fd)
    assert len(others) == 8


def test_verify_beside_a_writer_changes_nothing(path: Path) -> None:
    """verify needs no lock; while a writer is running it reports what recovery would keep."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        before = path.read_bytes()
        report = pmwal.verify(path)
        assert (report.outcome, report.first_seq, report.last_seq, report.records) == ("recovered", 1, 2, 2)
        assert path.read_bytes() == before
    assert pmwal.verify(path).outcome == "clean"


def test_verify_reads_each_byte_a_few_times_at_most(path: Path) -> None:
    """The cost of a recovery grows with the log, not with the number of records times the size of a read."""
    with open_small(path, size="1MiB") as wal:
        wal.extend([bytes(100)] * 6000)
    assert pmwal.verify(path).bytes_scanned < 4 * (1 << 20)


def test_verify_does_not_raise_for_damage(path: Path) -> None:
    """A damaged log gives a report with the outcome "corrupt" and the lost numbers."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
    flip(path, file_offset(superblock_of(path), 56) + HEADER)
    report = pmwal.verify(path)
    assert (report.outcome, report.case, report.lost_first_seq, report.lost_last_seq) == ("corrupt", "R4", 2, 2)
    assert "number 2 is not whole" in report.reason


@pytest.mark.parametrize("mode", ["a", "r+", "r"])
def test_corrupt_log_is_refused_with_the_way_out(path: Path, mode: str) -> None:
    """CorruptWal says what is lost, where, why, and what to run; the file is not changed."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
    place = file_offset(superblock_of(path), 56)
    flip(path, place + HEADER)
    before = path.read_bytes()
    with pytest.raises(pmwal.CorruptWal, match=r"Nothing was changed.*recover=\"salvage\".*pmwal repair") as caught:
        pmwal.open(path, mode)
    error = caught.value
    assert (error.first_seq, error.last_seq, error.start) == (2, 2, place)
    assert error.end is not None
    assert error.end > place
    assert "not whole" in error.reason
    assert path.read_bytes() == before
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == [(1, b"a"), (3, b"c")]


# -- the options


def keywords_of(function: Any) -> dict[str, Any]:
    """The keyword-only parameters of a function, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_signature_of_open_has_every_option_with_its_default() -> None:
    """help(pmwal.open) lists the fields of Options in their order, and so does the type of the keywords."""
    assert inspect.signature(pmwal.open).parameters["mode"].default == Options().mode
    expected = {name: value for name, value in vars(Options()).items() if name != "mode"}
    assert list(expected.items()) == list(keywords_of(pmwal.open).items())
    assert list(expected) == list(Keywords.__annotations__)


def test_signature_of_an_event_loops_open_has_the_options_that_it_takes() -> None:
    """It has all options but those that make no sense there, with the same defaults."""
    expected = {name: value for name, value in keywords_of(pmwal.open).items() if name not in ("commit", "recover")}
    assert expected == keywords_of(pmwal.aio.open)


@pytest.mark.parametrize("function", [pmwal.LogHandler, pmwal.integrations.structlog.LoggerFactory, pmwal.integrations.loguru.Sink])
def test_signatures_for_logging_libraries_share_their_defaults(function: Any) -> None:
    """A program opens the log alike with any logging library."""
    keywords = keywords_of(function)
    names = {"size", "commit", "sync_level", "on_full", "on_corrupt", "medium", "max_files", "keep", "max_total", "file_mode"}
    names |= {"consumers"}
    structured = {"structured", "fmt", "rename_fields", "static_fields", "defaults"}
    assert {"directory", "level", *structured} >= keywords.keys() - names
    assert {name: getattr(SinkOptions(), name) for name in names} == {name: keywords[name] for name in names}


@pytest.mark.parametrize("options", [{"medium": "disk"}, {"size": 0}, {"timeout": -1}, {"align": 3}, {"mode": "w"}], ids=str)
def test_event_loops_open_refuses_what_open_refuses(path: Path, options: dict[str, Any]) -> None:
    """Where it is awaited, with the same words."""

    async def opened() -> None:
        await pmwal.aio.open(path, **options)

    with pytest.raises(ValueError) as refused:
        pmwal.open(path, **options)
    with pytest.raises(ValueError) as again:
        asyncio.run(opened())
    assert str(refused.value) == str(again.value)
