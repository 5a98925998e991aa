"""Hostile surroundings: files that are not logs, files cut while mapped, clocks, later versions (scenarios 29, 30, 36, 37)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import (
    CONTROL_OFFSET,
    LIVE_OFFSET,
    MAGIC,
    PAGE,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    Superblock,
    decode_superblock,
    encode_superblock,
)
from pmwal.storage.mapping import Mapping
from processes import elsewhere
from support import SMALL_CONTROL, SMALL_RING, BarrierRecorder, contents, kill, open_small, overwrite, payloads
from support import superblock as superblock_of

pytestmark = pytest.mark.both_engines

FILE_SIZE = CONTROL_OFFSET + SMALL_CONTROL + PAGE + SMALL_RING

LOOKS: dict[str, Callable[[Any], Any]] = {
    "a": lambda path: pmwal.open(path, "a").close(),
    "r+": lambda path: pmwal.open(path, "r+").close(),
    "r": lambda path: pmwal.open(path, "r").close(),
    "salvage": lambda path: pmwal.open(path, "r", recover="salvage").close(),
    "verify": pmwal.verify,
}


@pytest.fixture
def log(path: Path) -> Path:
    """A closed log with three records."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
    return path


@pytest.fixture
def no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that is not a log is ever mapped: a mapping could fault."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a wrong file was mapped")

    monkeypatch.setattr(Mapping, "__init__", refuse)


# -- files that are not logs (scenario 29)


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are less than a superblock"),
    "one-byte": (b"\x89", "1 bytes are less than a superblock"),
    "magic-only": (MAGIC, "8 bytes are less than a superblock"),
    "text": (b"someone else's file\n" * 5000, "no magic in the first bytes"),
    "zeros": (bytes(FILE_SIZE), "no magic"),
    "ones": (b"\xff" * FILE_SIZE, "no magic"),
    "magic-and-zeros": (MAGIC + bytes(FILE_SIZE), "both superblocks are damaged. Restore the file from a copy"),
    "elf": (b"\x7fELF" + bytes(range(256)) * 64, "no magic"),
    "sqlite": (b"SQLite format 3\0" + bytes(8176), "no magic"),
}


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", CONTENTS)
def test_file_that_is_no_log_is_a_format_error(path: Path, name: str, look: str) -> None:
    """A file that is not a log is refused with the reason, never mapped, and never changed."""
    content, reason = CONTENTS[name]
    path.write_bytes(content)
    with pytest.raises(pmwal.FormatError, match=reason) as caught:
        LOOKS[look](path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


INTERESTING_LENGTHS = sorted(
    {
        at + step
        for at in (LIVE_OFFSET, CONTROL_OFFSET, CONTROL_OFFSET + PAGE, CONTROL_OFFSET + SMALL_CONTROL)
        for step in (-1, 0, 1)
    }
    | {1, 8, 512, FILE_SIZE - SMALL_RING - 1, FILE_SIZE - SMALL_RING, FILE_SIZE - PAGE, FILE_SIZE - 1}
)


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("length", INTERESTING_LENGTHS)
def test_shortened_log_is_a_format_error(path: Path, length: int, log_bytes: bytes) -> None:
    """A file shorter than its superblock says is refused before it is mapped, at every length, but by salvage."""
    path.write_bytes(log_bytes[:length])
    for name in LOOKS.keys() - ({"salvage"} if length >= PAGE else set()):
        with pytest.raises(pmwal.FormatError, match=r"less than a superblock|shortened.*Restore it from a copy"):
            LOOKS[name](path)
    assert path.read_bytes() == log_bytes[:length]


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("length", [length for length in INTERESTING_LENGTHS if length > PAGE])
def test_shortened_log_with_one_superblock_is_a_format_error(path: Path, length: int, log_bytes: bytes) -> None:
    """The same if only the second superblock is left to give the file's size."""
    content = bytes(PAGE) + log_bytes[PAGE:length]
    path.write_bytes(content)
    for name in LOOKS.keys() - {"salvage"}:
        with pytest.raises(pmwal.FormatError):
            LOOKS[name](path)
    assert path.read_bytes() == content


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
def test_directory_is_no_log(shm_dir: Path, look: str) -> None:
    """A directory is a FormatError for reading and the system's IsADirectoryError for writing."""
    with pytest.raises((pmwal.FormatError, IsADirectoryError), match="directory"):
        LOOKS[look](shm_dir)
    assert list(shm_dir.iterdir()) == []


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
def test_fifo_is_no_log_and_does_not_hang(path: Path, look: str) -> None:
    """Opening a FIFO never waits for the other end."""
    os.mkfifo(path)
    with pytest.raises(pmwal.FormatError, match="not a regular file"):
        elsewhere(LOOKS[look], path)


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/full"])
def test_device_is_no_log(device: str, look: str) -> None:
    """A device is refused by its type, before it is read."""
    with pytest.raises((pmwal.FormatError, PermissionError), match=r"not a regular file|ermission"):
        LOOKS[look](device)


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
def test_socket_is_no_log(path: Path, look: str) -> None:
    """A socket gives the system's own error."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(OSError) as caught:
            LOOKS[look](path)
        assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize("look", ["a", "r+", "r", "verify"])
def test_symlink_to_a_log_is_that_log(log: Path, look: str) -> None:
    """Links are followed for reading and writing, and stay links."""
    link = log.with_name("link")
    link.symlink_to(log.name)
    LOOKS[look](link)
    assert link.is_symlink()
    with pmwal.open(link, "r") as reader:
        assert payloads(reader) == [b"a", b"b", b"c"]


def test_dangling_symlink_creates_what_it_names(path: Path) -> None:
    """Mode "a" creates the target as open(2) does; "x" and the other modes fail and change nothing."""
    link = path.with_name("link")
    link.symlink_to("test.wal")
    for mode in ("r+", "r"):
        with pytest.raises(FileNotFoundError):
            pmwal.open(link, mode)
    with pytest.raises(FileNotFoundError):
        pmwal.verify(link)
    with pytest.raises(FileExistsError):
        open_small(link, "x", size=SMALL_RING)
    assert sorted(os.listdir(path.parent)) == ["link"]
    with open_small(link, size=SMALL_RING) as wal:
        wal.append(b"x")
    assert link.is_symlink()
    assert sorted(os.listdir(path.parent)) == ["link", "test.wal"]
    assert pmwal.verify(path).records == 1


def test_dangling_symlink_into_nowhere_is_an_error(path: Path) -> None:
    """A link whose directory does not exist is FileNotFoundError."""
    link = path.with_name("link")
    link.symlink_to("missing/test.wal")
    with pytest.raises(FileNotFoundError):
        open_small(link, size=SMALL_RING)
    assert sorted(os.listdir(path.parent)) == ["link"]


@pytest.mark.parametrize("look", LOOKS)
def test_symlink_loop_is_an_error(path: Path, look: str) -> None:
    """A loop is the system's ELOOP in every mode."""
    path.symlink_to(path.name)
    with pytest.raises(OSError) as caught:
        LOOKS[look](path)
    assert caught.value.errno == errno.ELOOP
    assert sorted(os.listdir(path.parent)) == [path.name]


def test_name_that_cannot_be_is_an_error(path: Path) -> None:
    """A zero byte and a name that is too long give the system's errors, and nothing is created."""
    with pytest.raises(ValueError, match="null"):
        pmwal.open(f"{path}\0x")
    with pytest.raises(OSError) as caught:
        pmwal.open(path.with_name("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(path.parent.iterdir()) == []


# -- files cut while mapped (scenario 30)


def what_it_says(path: Path, length: int, calls: list[Callable[[pmwal.Wal], Any]]) -> list[tuple[int | None, int | None]]:
    """Truncate the file of a writer with two durable records; collect errno and committed_seq from each call."""
    wal = open_small(path)
    wal.extend([b"a" * 100, b"b" * 100])
    os.truncate(path, length)
    said = []
    for call in calls:
        with pytest.raises(pmwal.PersistError, match="shortened") as caught:
            call(wal)
        said.append((caught.value.errno, caught.value.committed_seq))
    with contextlib.suppress(pmwal.PersistError):
        wal.close()
    assert (wal.closed, path.stat().st_size) == (True, length)
    return said


def append_and_commit(wal: pmwal.Wal) -> None:
    """Append, and commit in a second call."""
    wal.append(b"x", commit=False)
    wal.commit()


@pytest.mark.parametrize("length", [0, PAGE, CONTROL_OFFSET, CONTROL_OFFSET + PAGE, FILE_SIZE - SMALL_RING, FILE_SIZE - 1])
@pytest.mark.parametrize("store", [lambda wal: wal.append(b"x"), append_and_commit], ids=["append", "commit"])
def test_writer_whose_file_is_cut_gets_an_error(path: Path, store: Callable[[pmwal.Wal], Any], length: int) -> None:
    """PersistError has errno and the last durable number, later calls raise the same, and the interpreter survives."""
    said = elsewhere(what_it_says, path, length, [store, lambda wal: wal.append(b"later"), pmwal.Wal.commit])
    assert said == [(errno.EIO, 2)] * 3


@pytest.mark.parametrize(
    "look",
    [list, lambda wal: wal[1], lambda wal: wal.truncate(before=2), lambda wal: wal.rollback(after=1)],
    ids=["iterate", "index", "truncate", "rollback"],
)
def test_call_that_reads_a_cut_log_says_what_is_durable(path: Path, look: Callable[[pmwal.Wal], Any]) -> None:
    """A failed load gives the last durable number, and makes the handle unusable, like any other failure."""
    said = elsewhere(what_it_says, path, PAGE, [look, lambda wal: wal.append(b"later")])
    assert said == [(errno.EIO, 2)] * 2


@pytest.mark.parametrize("length", [0, PAGE, FILE_SIZE - SMALL_RING, FILE_SIZE - 1])
def test_reader_whose_file_is_cut_gets_an_error(log: Path, length: int) -> None:
    """A reader and its iterations raise, and the interpreter survives."""

    def body() -> list[int | None]:
        errors = []
        with pmwal.open(log, "r") as reader:
            running = reader.read()
            os.truncate(log, length)
            for call in (lambda: next(running), lambda: reader[1], lambda: len(reader), lambda: reader.first_seq):
                with pytest.raises(pmwal.PersistError) as caught:
                    call()
                errors.append(caught.value.errno)
        return errors

    assert elsewhere(body) == [errno.EIO] * 4


def test_close_of_a_cut_log_lets_go(path: Path) -> None:
    """close reports the failure once; then the handle is closed and the lock released."""
    wal = open_small(path)
    wal.append(b"x", commit=False)
    os.truncate(path, PAGE)
    with pytest.raises(pmwal.PersistError, match="shortened"):
        wal.close()
    assert wal.closed
    wal.close()
    path.unlink()
    open_small(path).close()


def test_log_cut_and_grown_again_does_not_end_the_interpreter(path: Path) -> None:
    """A file that was cut and restored to its size holds zeros: that is damage, and is reported as such."""

    def body() -> str:
        with open_small(path) as wal:
            wal.extend([b"a", b"b"])
            os.truncate(path, 0)
            os.truncate(path, FILE_SIZE)
            try:
                list(wal)
            except pmwal.CorruptWal as error:
                return error.reason
            return "nothing said"

    assert "wrong" in elsewhere(body)
    with pytest.raises((pmwal.FormatError, pmwal.CorruptWal)):
        pmwal.open(path)


def test_log_that_was_removed_stays_usable_for_its_writer(log: Path) -> None:
    """Removing the name takes nothing from an open handle, which says so at its close, or before if a second passes."""

    def use() -> None:
        with open_small(log) as wal:
            log.unlink()
            assert wal.append(b"d") == 4
            assert payloads(wal) == [b"a", b"b", b"c", b"d"]
            with open_small(log) as other:
                assert payloads(other) == []

    with pytest.warns(pmwal.UnlinkedWarning, match=f"{log}: the file was removed"):
        use()


# -- the clock (scenario 36)

DAY = 86_400 * 10**9
CLOCKS = [0, -1, -(1 << 63), 1, 253_402_300_799 * 10**9, (1 << 63) - 2, 1 << 63, 1 << 70, 1_500_000_000 * 10**9]


def test_order_does_not_care_about_the_clock(path: Path) -> None:
    """However the clock jumps between appends and opens, the records stay in order and survive."""
    seam = BarrierRecorder()
    expected: list[tuple[int, bytes]] = []
    for number, now in enumerate(CLOCKS):
        seam.time_ns = now
        wal = open_small(path, seam=seam)
        assert contents(wal) == expected
        for step in (0, -DAY, 2 * DAY):
            seam.time_ns = now + step
            seq = wal.append(b"%d-%d" % (number, step))
            expected.append((seq, b"%d-%d" % (number, step)))
        with pmwal.open(path, "r") as reader:
            assert contents(reader) == expected
        if number % 2:
            kill(wal)
        else:
            wal.close()
    assert [seq for seq, _ in expected] == list(range(1, 3 * len(CLOCKS) + 1))


def test_time_of_a_record_is_what_the_clock_said(path: Path) -> None:
    """The clock's value is stored unchanged, or clamped to the format's range."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        for now, stored in ((41, 42), (-43, -42), (1 << 70, (1 << 63) - 1), (-(1 << 70), -(1 << 63))):
            seam.time_ns = now
            assert wal[wal.append(b"")].time_ns == stored


@pytest.mark.parametrize("now", CLOCKS)
def test_log_can_be_created_at_any_time(path: Path, now: int) -> None:
    """The creation time is information only, so no clock can make creation fail."""
    seam = BarrierRecorder()
    seam.time_ns = now
    with open_small(path, seam=seam) as wal:
        assert wal.append(b"x") == 1
    assert superblock_of(path).created_ns in (now + 1, (1 << 63) - 1, -(1 << 63))


def test_newest_slot_is_found_whatever_the_clock_said(path: Path) -> None:
    """A writer with a slower clock than its predecessor's still counts as newer."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        wal.extend([b"a", b"b"])
    seam.time_ns = 0
    with open_small(path, seam=seam) as wal:
        wal.rollback(after=1)
        wal.append(b"B")
    assert pmwal.verify(path).outcome == "clean"
    with open_small(path) as wal:
        assert payloads(wal) == [b"a", b"B"]


# -- later versions (scenario 37)


def rewrite_superblocks(path: Path, **changes: Any) -> Superblock:
    """Rewrite both superblocks as a later version would have written them."""
    block = decode_superblock(path.read_bytes()[:PAGE], 0)
    assert block is not None
    block = replace(block, **changes)
    overwrite(path, SUPERBLOCK_OFFSET, encode_superblock(block, 0))
    overwrite(path, block.copy_offset, encode_superblock(block, 1))
    return block


@pytest.mark.usefixtures("no_mapping")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    "changes",
    [{"version_major": 2}, {"version_major": 65535}, {"incompatible": 1 << 63}, {"incompatible": 6, "compatible": 1}],
    ids=str,
)
def test_log_of_an_incompatible_version_is_refused(path: Path, log_bytes: bytes, changes: dict[str, int], look: str) -> None:
    """FormatError says to upgrade; the file is neither mapped nor changed."""
    path.write_bytes(log_bytes)
    rewrite_superblocks(path, **changes)
    before = path.read_bytes()
    with pytest.raises(pmwal.FormatError, match=r"written by a newer pmwal.*Upgrade pmwal"):
        LOOKS[look](path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("compatible", [1, 1 << 63, (1 << 64) - 1])
def test_log_with_unknown_compatible_flags_opens_read_only(log: Path, compatible: int) -> None:
    """It can be read and verified; opening it for writing says to use mode "r", and changes nothing."""
    rewrite_superblocks(log, compatible=compatible)
    before = log.read_bytes()
    for mode in ("a", "r+"):
        with pytest.raises(pmwal.FormatError, match=r'newer pmwal.*open it with mode="r", or upgrade pmwal'):
            pmwal.open(log, mode)
    with pmwal.open(log, "r") as reader:
        assert payloads(reader) == [b"a", b"b", b"c"]
    assert pmwal.verify(log).outcome == "clean"
    assert log.read_bytes() == before


def test_log_of_a_later_minor_version_is_written_and_keeps_its_superblock(log: Path) -> None:
    """A later minor version reads and writes the same, and its superblock is not changed."""
    rewrite_superblocks(log, version_minor=7, application=b"for somebody else".ljust(64, b"."))
    before = log.read_bytes()
    with open_small(log) as wal:
        assert wal.append(b"d") == 4
    after = log.read_bytes()
    copy = superblock_of(log).copy_offset
    assert after[:PAGE] == before[:PAGE]
    assert after[copy : copy + PAGE] == before[copy : copy + PAGE]
    assert pmwal.verify(log).records == 4


@pytest.mark.parametrize("damaged", [0, 1])
def test_newer_version_is_refused_also_when_one_superblock_is_damaged(log: Path, damaged: int) -> None:
    """The copy that is left still shows that this version must not touch the file."""
    block = rewrite_superblocks(log, incompatible=4)
    overwrite(log, block.copy_offset if damaged else SUPERBLOCK_OFFSET, bytes(PAGE))
    before = log.read_bytes()
    for look in LOOKS.values():
        with pytest.raises(pmwal.FormatError, match="Upgrade pmwal"):
            look(log)
    assert log.read_bytes() == before


def test_newer_version_with_another_superblock_says_so(log: Path) -> None:
    """Even if a later format keeps only magic and version, the message tells a newer file from a damaged one."""
    block = superblock_of(log)
    page = bytearray(b"\xaa" * PAGE)
    page[: len(MAGIC)] = MAGIC
    offset = SUPERBLOCK.offsets["version_major"]
    page[offset : offset + 2] = (2).to_bytes(2, "little")
    overwrite(log, SUPERBLOCK_OFFSET, bytes(page))
    overwrite(log, block.copy_offset, bytes(page))
    for look in LOOKS.values():
        with pytest.raises(pmwal.FormatError, match="written by a newer pmwal"):
            look(log)


# -- the file around the log


@pytest.mark.parametrize("extra", [1, PAGE, 1 << 20])
def test_bytes_after_the_log_are_left_alone_with_a_warning(log: Path, extra: int) -> None:
    """A file longer than its geometry is accepted; the warning points at the caller and gives the number of extra bytes."""
    with log.open("ab") as file:
        file.write(b"\xaa" * extra)
    with pytest.warns(RuntimeWarning, match=f"{extra} bytes follow the log; they are left alone") as caught:
        wal = pmwal.open(log, "r+")
    with wal:
        wal.append(b"d")
    assert caught[0].filename == __file__
    with pmwal.open(log, "r") as reader:
        assert payloads(reader) == [b"a", b"b", b"c", b"d"]
    assert log.read_bytes().endswith(b"\xaa" * extra)
    assert log.stat().st_size == FILE_SIZE + extra


def test_sparse_copy_is_filled_before_it_is_written(tmp_path: Path, log_bytes: bytes) -> None:
    """A log copied with holes gets its blocks at open, so that a store never meets a full disk."""
    path = tmp_path / "test.wal"
    with path.open("wb") as file:
        file.truncate(FILE_SIZE)
        for offset in range(0, FILE_SIZE, PAGE):
            if any(log_bytes[offset : offset + PAGE]):
                file.seek(offset)
                file.write(log_bytes[offset : offset + PAGE])
    assert path.stat().st_blocks * 512 < FILE_SIZE
    with open_small(path) as wal:
        assert path.stat().st_blocks * 512 >= FILE_SIZE
        assert payloads(wal) == [b"a", b"b", b"c"]
