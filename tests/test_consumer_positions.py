"""The positions of consumers: their bytes, what a power cut leaves of them, who may store them, and what a failed sync leaves."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from pmwal.errors import ConsumerHeld, PersistError
from pmwal.format.layout import GENERATION_MAX, PAGE, POSITION_MAX, SECTOR, SEQ_MAX
from pmwal.format.position import (
    HOLDER_OFFSET,
    POSITION,
    SIZE,
    Position,
    check_name,
    decode_holder,
    decode_position,
    encode_file,
    encode_position,
    is_name,
    newest_position,
)
from pmwal.storage.positions import Look, PositionFile, names_in, remove_position
from pmwal.storage.seam import SYSTEM, Seam
from processes import run_script
from support import few_descriptors

UUID = bytes(range(16))
FIRST = Position(3, 1, UUID, 7, 0x0BADCAFE, 5, 192, 256, 6, 1_700_000_000_000_000_000, b"app".ljust(64, b"\0"))
GOLDEN = bytes.fromhex(
    "c7f0010f030000000100000000000000000102030405060708090a0b0c0d0e0f0700000000000000fecaad0b000000000500000000000000"
    "c0000000000000000001000000000000060000000000000000002a36fe9c9717617070000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000"
)
"""The slot of ``FIRST`` in page 0, as version 0.2 stores it."""


# -- the bytes


def test_slot_is_the_golden_one() -> None:
    """Positions that users have are read for ever."""
    assert encode_position(FIRST, 0) == GOLDEN
    assert decode_position(GOLDEN, 0) == FIRST
    assert FIRST.cursor == "7-0badcafe"


@pytest.mark.parametrize("page", [0, 1])
def test_slot_decodes_to_what_was_encoded(page: int) -> None:
    """Also at the limits of the format."""
    most = FIRST._replace(generation=GENERATION_MAX, seq=SEQ_MAX, start=POSITION_MAX, end=POSITION_MAX, released=SEQ_MAX)
    for position in (FIRST, most):
        assert decode_position(encode_position(position, page), page) == position


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_uniform_bytes_are_no_position(fill: bytes) -> None:
    """A hole, or an erased block, is damage."""
    assert newest_position(fill * SIZE) is None


def test_flipped_bit_is_noticed() -> None:
    """Each bit of a slot is covered."""
    for bit in range(8 * len(GOLDEN)):
        damaged = bytearray(GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_position(bytes(damaged), 0) is None


@pytest.mark.parametrize(
    "position",
    [
        FIRST._replace(generation=0),
        FIRST._replace(released=8),
        FIRST._replace(end=191),
        FIRST._replace(seq=SEQ_MAX + 1),
        FIRST._replace(end=POSITION_MAX + 1),
    ],
)
def test_impossible_position_is_no_position(position: Position) -> None:
    """A right checksum is not enough."""
    assert decode_position(encode_position(position, 0), 0) is None


def test_slot_of_another_page_or_of_another_log_does_not_validate() -> None:
    """The checksum is seeded with both."""
    assert decode_position(GOLDEN, 1) is None
    start = POSITION.offsets["uuid"]
    assert decode_position(GOLDEN[:start] + bytes(16) + GOLDEN[start + 16 :], 0) is None


def test_newer_slot_counts_and_torn_one_gives_the_other() -> None:
    """Whatever part of the newer slot has reached the medium, one of the two counts, and it is plain which."""
    older, newer = FIRST, FIRST._replace(generation=2, seq=8, released=8, check=1)
    before = encode_position(FIRST._replace(generation=0), 1)
    after = encode_position(newer, 1)
    chooser = Random(1)
    mixes = [after[:cut] + before[cut:] for cut in range(0, len(after) + 1, 8)]
    mixes += [before[:cut] + after[cut:] for cut in range(0, len(after) + 1, 8)]
    for _ in range(500):
        words = [chooser.choice((before, after))[at : at + 8] for at in range(0, len(after), 8)]
        mixes.append(b"".join(words))
    for mix in mixes:
        stored = newest_position(encode_file(older)[:PAGE] + mix)
        assert stored is not None
        assert stored.position == (newer if mix == after else older)


@pytest.mark.parametrize("name", ["nats", "A_b-c.1", "_", "x" * 64])
def test_name_of_a_consumer(name: str) -> None:
    """It is the name of its file."""
    assert check_name(name) == name
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "x" * 65, "ä", "a\n"])
def test_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    """Hidden names are those of files that are being made."""
    with pytest.raises(ValueError, match="cannot be the name of a consumer"):
        check_name(name)
    assert not is_name(name)


# -- power cuts


class Medium(Seam):
    """A seam that knows what the file may hold after a power cut: of each page any version since the last sync.

    With ``tears`` a page that was written since may also be a mix of two of its versions, word by word; without, a sector is whole.
    """

    def __init__(self, *, tears: bool = False) -> None:
        self.tears = tears
        self.cache = bytearray(SIZE)
        self.versions: tuple[list[bytes], list[bytes]] = ([bytes(PAGE)], [bytes(PAGE)])
        self.fails = False

    def write(self, fd: int, data: bytes, offset: int) -> None:
        super().write(fd, data, offset)
        self.cache[offset : offset + len(data)] = data
        for page, versions in enumerate(self.versions):
            now = bytes(self.cache[page * PAGE : (page + 1) * PAGE])
            if now != versions[-1]:
                versions.append(now)

    def sync_file(self, fd: int) -> None:
        self.sync_data(fd)

    def sync_data(self, fd: int) -> None:
        del fd
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        for versions in self.versions:
            del versions[:-1]

    def images(self, chooser: Random) -> Iterator[bytes]:
        """What the file may hold."""
        for pair in itertools.product(*map(self._contents, self.versions, (chooser, chooser))):
            yield b"".join(pair)

    def _contents(self, versions: list[bytes], chooser: Random) -> list[bytes]:
        found = list(versions)
        for old, new in itertools.pairwise(versions) if self.tears else ():
            for cut in (8, 40, 80, 136):
                found += [new[:cut] + old[cut:], old[:cut] + new[cut:]]
            words = [chooser.choice((old, new))[at : at + 8] for at in range(0, SECTOR, 8)]
            found.append(b"".join(words) + new[SECTOR:])
        return found


def moved(position: Position, seq: int) -> Position:
    return position._replace(seq=seq, released=seq, check=seq, start=64 * seq, end=64 * seq + 64)


def run(path: Path, medium: Medium, plan: list[str], chooser: Random) -> list[str]:
    """Acknowledge as the plan says, and look at every power cut after each step; what was wrong."""
    wrong: list[str] = []
    file = PositionFile(str(path), "nats", medium, 0o600, lambda: FIRST)
    durable = seq = FIRST.seq
    for step, what in enumerate(plan):
        if what == "reopen":
            file.close()
            file = PositionFile(str(path), "nats", medium, 0o600, lambda: FIRST)
            assert file.position is not None
            file.store(file.position, durable=True)
            durable = seq
        elif what == "another syncs":
            medium.sync_data(-1)
            durable = durable if medium.tears else seq  # a tear may take what only somebody else knows to be durable
        else:
            seq += 1
            file.store(moved(FIRST, seq), durable=what == "durable")
            durable = seq if what == "durable" else durable
        for image in medium.images(chooser):
            stored = newest_position(image)
            if stored is None or not durable <= stored.position.seq <= seq:
                wrong.append(f"step {step}, {what}: {stored} is not from {durable} to {seq}")
    file.close()
    return wrong


@pytest.mark.parametrize("tears", [False, True], ids=["whole sectors", "torn pages"])
def test_power_cut_leaves_a_position_from_the_durable_one_to_the_last_acknowledged(shm_dir: Path, tears: bool) -> None:
    """All plans of four steps, and some long ones; the last position that was made durable is never lost."""
    chooser, steps = Random(2), ["ack", "durable", "reopen", "another syncs"]
    plans = [list(plan) for plan in itertools.product(steps, repeat=3)]
    plans += [chooser.choices(steps, [6, 2, 1, 1], k=12) for _ in range(20)]
    for number, plan in enumerate(plans):
        assert run(shm_dir / str(number), Medium(tears=tears), plan, chooser) == []


def test_model_notices_pages_that_alternate(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: two acknowledgements that were not synced, one in each page, may both be torn."""

    def store(file: PositionFile, position: Position, *, durable: bool) -> None:
        page, file._durable = file._stored, file._stored  # as if whatever was stored last were durable
        assert page is not None
        original(file, position, durable=durable)

    original = PositionFile.store
    monkeypatch.setattr(PositionFile, "store", store)
    assert run(shm_dir, Medium(tears=True), ["durable", "ack", "ack"], Random(3))


# -- the file


@pytest.fixture
def directory(shm_dir: Path) -> str:
    """Where the positions of a log are; it is not there yet."""
    return str(shm_dir / "app.wal.consumers")


def hold(directory: str, seam: Seam = SYSTEM, position: Position = FIRST) -> PositionFile:
    return PositionFile(directory, "nats", seam, 0o640, lambda: position)


def stored_seq(directory: str) -> int:
    with Look(directory, "nats") as look:
        assert look.position is not None
        return look.position.seq


def test_file_is_made_whole_with_the_rights_of_the_log(directory: str) -> None:
    """A group that may read the log may read the positions."""
    hold(directory).close()
    assert Path(directory, "nats").read_bytes() == encode_file(FIRST)
    assert os.stat(directory).st_mode & 0o777 == 0o750
    assert os.stat(Path(directory, "nats")).st_mode & 0o777 == 0o640


def test_creation_that_fails_leaves_no_file(directory: str) -> None:
    """No name before the position is durable."""
    medium = Medium()
    medium.fails = True
    with pytest.raises(OSError, match="Input/output"):
        hold(directory, medium)
    assert names_in(directory) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_says_what_to_do(directory: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """When a position is made, and when one is stored."""

    def full(fd: int, data: bytes, offset: int) -> None:
        raise OSError(number, os.strerror(number))

    seam = Seam()
    with monkeypatch.context() as patched:
        patched.setattr(seam, "write", full)
        with pytest.raises(OSError, match="no room for the position of consumer 'mail'; make room, and begin") as caught:
            PositionFile(directory, "mail", seam, 0o600, lambda: FIRST)
        assert (caught.value.errno, caught.value.filename) == (number, os.path.join(directory, "mail"))
    file = PositionFile(directory, "mail", seam, 0o600, lambda: FIRST)
    with contextlib.closing(file), monkeypatch.context() as patched:
        patched.setattr(seam, "write", full)
        with pytest.raises(PersistError, match="make room, then close this consumer"):
            file.store(FIRST, durable=False)


def test_second_holder_is_refused_and_told_who_has_it(directory: str) -> None:
    """In this process and in another one."""
    file = hold(directory)
    with pytest.raises(ConsumerHeld, match="this process has consumer 'nats'") as caught:
        hold(directory)
    assert caught.value.pid == os.getpid()
    script = """
        import sys
        from pmwal.errors import ConsumerHeld
        from pmwal.storage.positions import PositionFile
        from pmwal.storage.seam import SYSTEM
        try:
            PositionFile(sys.argv[1], "nats", SYSTEM, 0o600, None)
        except ConsumerHeld as error:
            print(error.pid, error)
        """
    assert run_script(script, directory).stdout.startswith(
        f"{os.getpid()} {directory}/nats: process {os.getpid()} has consumer 'nats'"
    )
    file.close()
    hold(directory).close()


def test_holder_is_seen_without_a_lock(directory: str) -> None:
    """A look never refuses a consumer that begins."""
    file = hold(directory)
    with Look(directory, "nats") as look:
        assert look.holder == os.getpid()
    file.close()
    with Look(directory, "nats") as look:
        assert look.holder is None
        assert decode_holder(look.raw) == 0


def test_forked_child_holds_nothing(directory: str) -> None:
    """Its copy of the descriptor is closed, so that the consumer is free when the parent dies."""
    file = hold(directory)
    child = os.fork()
    if not child:
        try:
            file.close()
            with Look(directory, "nats") as look:
                os._exit(0 if look.holder == os.getppid() and not file._lock.usable else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file._lock.usable
    file.close()


def test_failed_sync_takes_back_what_is_not_durable(directory: str) -> None:
    """The kernel may call the page clean, so nobody may rely on the position in it; the holder stores nothing more."""
    medium = Medium()
    file = hold(directory, medium)
    file.store(moved(FIRST, 8), durable=True)
    file.store(moved(FIRST, 9), durable=False)
    medium.fails = True
    for _ in range(2):
        with pytest.raises(PersistError, match="close this consumer, and begin it again"):
            file.sync()
    with pytest.raises(PersistError):
        file.store(moved(FIRST, 10), durable=False)
    assert stored_seq(directory) == 8
    file.close()


def test_closed_descriptor_is_not_stored_to(directory: str, shm_dir: Path) -> None:
    """A daemon closes all descriptors, and the number may be that of another file by then."""
    file = hold(directory)
    other = shm_dir / "other"
    other.write_bytes(b"other")
    fd = os.open(other, os.O_RDWR)
    os.dup2(fd, file._lock.fd)
    with pytest.raises(PersistError, match="Bad file descriptor"):
        file.store(moved(FIRST, 8), durable=True)
    file.close()
    assert other.read_bytes() == b"other"
    assert stored_seq(directory) == 7
    os.close(fd)
    os.close(file._lock.fd)


def test_damaged_file_has_no_position_until_one_is_stored(directory: str) -> None:
    """A damaged slot leaves the other; with both damaged nothing counts."""
    file = hold(directory)
    file.store(moved(FIRST, 8), durable=True)
    file.close()
    path = Path(directory, "nats")
    raw = bytearray(path.read_bytes())
    raw[PAGE + 40] ^= 1
    path.write_bytes(raw)
    assert stored_seq(directory) == 7
    raw[40] ^= 1
    path.write_bytes(raw)
    file = hold(directory)
    assert file.position is None
    file.store(moved(FIRST, 9), durable=True)
    file.close()
    assert stored_seq(directory) == 9


def test_no_descriptor_is_left_when_files_run_out(directory: str) -> None:
    """Whatever step fails for want of one."""
    hold(directory).close()
    taken = sorted(os.listdir("/proc/self/fd"))
    with few_descriptors(0), pytest.raises(OSError, match="Too many open files"):
        hold(directory)
    for free in range(1, 4):
        with few_descriptors(free), contextlib.suppress(OSError):
            hold(directory).close()
    assert sorted(os.listdir("/proc/self/fd")) == taken


def test_removed_position_is_gone_and_a_held_one_stays(directory: str) -> None:
    """It is removed under its lock."""
    file = hold(directory)
    with pytest.raises(ConsumerHeld):
        remove_position(directory, "nats", SYSTEM)
    file.close()
    remove_position(directory, "nats", SYSTEM)
    assert names_in(directory) == []
    with pytest.raises(FileNotFoundError):
        remove_position(directory, "nats", SYSTEM)


def test_hidden_files_are_no_consumers(directory: str) -> None:
    """What a crashed creation leaves where files cannot be without a name."""
    hold(directory).close()
    Path(directory, ".pmwal-new-1").touch()
    assert names_in(directory) == ["nats"]
    assert names_in(directory + "-elsewhere") == []


def test_holder_line_lies_outside_the_slots() -> None:
    """It is stored without a sync, and so in a sector of its own."""
    assert POSITION.size <= HOLDER_OFFSET == SECTOR


def make_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "words"), [(Path.mkdir, "a directory is"), (os.mkfifo, "no regular file is"), (make_file, "this is no directory")]
)
def test_something_else_in_the_place_of_a_position_is_named(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    """With what to do, and it is left alone."""
    place = tmp_path / "a.wal.consumers" / "nats"
    place.parent.mkdir()
    make(place)
    with pytest.raises(OSError, match=f"{words}.*; move it away") as caught:
        PositionFile(str(place.parent), "nats", SYSTEM, 0o600, lambda: FIRST)
    assert caught.value.filename == str(place.parent if make is make_file else place)
    assert os.path.lexists(caught.value.filename)
