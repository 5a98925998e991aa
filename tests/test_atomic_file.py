"""Output files of commands: what they replace, follow, keep and leave alone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import Cli, make_log
from pmwal.cli import atomic_file
from pmwal.cli.atomic_file import replacing
from pmwal.storage.seam import SYSTEM
from processes import elsewhere, on_tmpfs

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and drops rights")


def put(path: Path | str, data: bytes = b"new") -> None:
    """Replace a file's content in two steps; until the end the old content stays."""
    real = Path(os.path.realpath(path))
    before = real.read_bytes() if real.exists() else None
    with replacing(str(path)) as file:
        file.write(data[:1])
        file.flush()
        assert (real.read_bytes() if real.exists() else None) == before
        file.write(data[1:])
    assert real.read_bytes() == data


@pytest.mark.parametrize("command", [("export",), ("bench", "DIR")])
def test_log_is_never_replaced_by_an_output(shm_dir: Path, cli: Cli, command: tuple[str, ...]) -> None:
    """A mistyped name would cost all records of another log; it is refused before the work, also through a link."""
    make_log(shm_dir / "a.wal")
    make_log(shm_dir / "b.wal")
    (shm_dir / "b").symlink_to("b.wal")
    before = (shm_dir / "b.wal").read_bytes()
    for name in ("b.wal", "b"):
        if command == ("export",):
            ran = cli("export", "--format", "jsonl", shm_dir / "a.wal", "-o", shm_dir / name)
        else:
            ran = cli("bench", shm_dir, "--json", shm_dir / name)
        said = f"pmwal: {shm_dir / name}: a pmwal log has this name; choose another name, or remove the log first\n"
        assert (ran.status, ran.out, ran.err) == (3, b"", said)
    assert (shm_dir / "b.wal").read_bytes() == before
    assert sorted(os.listdir(shm_dir)) == ["a.wal", "b", "b.wal"]


@pytest.fixture
def old(shm_dir: Path) -> Path:
    """A file with content, longer than the new one."""
    path = shm_dir / "file"
    path.write_bytes(b"old content")
    return path


def test_new_file_has_the_mode_that_the_umask_leaves(shm_dir: Path) -> None:
    """As of a file that a shell redirects to."""
    mask = os.umask(0o027)
    try:
        put(shm_dir / "file")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((shm_dir / "file").stat().st_mode) == 0o640
    assert os.listdir(shm_dir) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755, 0o2640])
def test_mode_stays(old: Path, mode: int) -> None:
    """A private file does not become readable, nor a shared one private."""
    old.chmod(mode)
    inode = old.stat().st_ino
    put(old)
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert old.stat().st_ino != inode
    assert os.listdir(old.parent) == ["file"]


@as_root
def test_owner_stays(old: Path) -> None:
    """Root does not take a file away from its user."""
    os.chown(old, 1234, 2345)
    put(old)
    assert (old.stat().st_uid, old.stat().st_gid) == (1234, 2345)


def test_extended_attributes_stay(tmp_path: Path) -> None:
    """With them access control lists, which are attributes."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    put(path)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)}["user.note"] == b"kept"


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """The value of a ``system.posix_acl`` attribute: tag, rights and id of each entry (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, rights, who & 0xFFFFFFFF) for tag, rights, who in entries)


def test_access_control_lists_are_those_of_the_old_file(tmp_path: Path) -> None:
    """Neither lost, nor taken from the directory's default."""
    listed, plain = tmp_path / "listed", tmp_path / "plain"
    own = access_list((1, 6, -1), (2, 4, 1234), (4, 4, -1), (0x10, 6, -1), (0x20, 0, -1))
    for path in (listed, plain):
        path.write_bytes(b"old")
        path.chmod(0o640)
    try:
        os.setxattr(listed, "system.posix_acl_access", own)
        default = access_list((1, 7, -1), (2, 7, 4321), (4, 7, -1), (0x10, 7, -1), (0x20, 7, -1))
        os.setxattr(tmp_path, "system.posix_acl_default", default)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    inodes = listed.stat().st_ino, plain.stat().st_ino
    with listed.open("rb"), plain.open("rb"):  # or the second file could get the first one's inode number
        put(listed)
        put(plain)
    assert os.getxattr(listed, "system.posix_acl_access") == own
    assert "system.posix_acl_access" not in os.listxattr(plain)
    assert stat.S_IMODE(plain.stat().st_mode) == 0o640
    assert not set(inodes) & {listed.stat().st_ino, plain.stat().st_ino}


@pytest.mark.parametrize("chain", [1, 3])
@pytest.mark.parametrize("exists", [False, True])
def test_symbolic_link_is_followed(shm_dir: Path, chain: int, exists: bool) -> None:
    """The link stays one; the file that it leads to is replaced, or made."""
    (shm_dir / "there").mkdir()
    real = shm_dir / "there" / "file"
    if exists:
        real.write_bytes(b"old")
    target = real
    for number in range(chain):
        link = shm_dir / f"link{number}"
        link.symlink_to(os.path.relpath(target, shm_dir))
        target = link
    put(target)
    assert target.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(real.parent) == ["file"]


def test_file_with_two_names_is_written_in_place(old: Path) -> None:
    """Both names lead to the new content, and the inode is the same."""
    other = old.parent / "other"
    os.link(old, other)
    inode = old.stat().st_ino
    put(old)
    assert other.read_bytes() == b"new"
    assert (old.stat().st_ino, old.stat().st_nlink) == (inode, 2)
    assert sorted(os.listdir(old.parent)) == ["file", "other"]


def _as_nobody(function: Callable[..., None], *args: Any) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    function(*args)


@as_root
@pytest.mark.parametrize("directory_mode", [0o555, 0o111, 0o1777])
def test_file_in_a_directory_that_is_not_writable_is_written_in_place(old: Path, directory_mode: int) -> None:
    """Nor is it moved where only its owner may (a sticky directory), or where the new file could not have its owner."""
    old.chmod(0o666)
    old.parent.chmod(directory_mode)
    inode = old.stat().st_ino
    elsewhere(_as_nobody, put, old)
    assert (old.read_bytes(), old.stat().st_ino, old.stat().st_uid) == (b"new", inode, 0)


@as_root
def test_file_that_may_not_be_written_is_refused(old: Path) -> None:
    """Not replaced by way of its directory; the path is named, and nothing was written."""
    old.chmod(0o444)
    old.parent.chmod(0o777)
    with pytest.raises(PermissionError, match=str(old)):
        elsewhere(_as_nobody, put, old)
    assert (old.read_bytes(), os.listdir(old.parent)) == (b"old content", ["file"])


@pytest.mark.parametrize("refusal", [errno.EBUSY, errno.EPERM, errno.EACCES, errno.EXDEV])
def test_file_that_cannot_be_renamed_over_is_written_in_place(old: Path, monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    """A file that is mounted on its own (a container's) keeps its inode."""

    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    inode = old.stat().st_ino
    monkeypatch.setattr(type(SYSTEM), "replace", refuse)
    put(old)
    assert (old.read_bytes(), old.stat().st_ino, os.listdir(old.parent)) == (b"new", inode, ["file"])


class Broken(Exception):
    """What a test's block ends with."""


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("links", [1, 2])
def test_block_that_fails_leaves_the_old_content(old: Path, error: type[BaseException], links: int) -> None:
    """Also if the file would be written in place; no other file is left."""
    if links == 2:
        os.link(old, old.parent / "other")

    def fail() -> None:
        with replacing(str(old)) as file:
            file.write(b"x" * 3_000_000)
            raise error

    with pytest.raises(error):
        fail()
    assert old.read_bytes() == b"old content"
    assert len(os.listdir(old.parent)) == links


def _fill_up(directory: Path, links: int) -> tuple[str, bytes, int]:
    path = directory / "file"
    path.write_bytes(b"old content")
    if links == 2:
        os.link(path, directory / "other")
    before = atomic_file._spool
    if links == 2:  # the spool elsewhere, so that it is the copy that finds no space
        atomic_file._spool = lambda _: before("/dev/shm")
    said = ""
    try:
        put(path, b"x" * 3_000_000)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}"
    return said.replace(str(directory), "D"), path.read_bytes(), len(os.listdir(directory))


@pytest.mark.parametrize("links", [1, 2])
def test_full_disk_leaves_the_old_content(tmp_path: Path, links: int) -> None:
    """In place, too: the space is allocated before the first byte is overwritten. The error names the file."""
    assert on_tmpfs(tmp_path, "size=1m", _fill_up, tmp_path, links) == ("D/file: No space left on device", b"old content", links)


def test_signal_waits_until_the_copy_in_place_is_done(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of it would leave a part of both contents, also if another thread gets the signal."""
    os.link(old, old.parent / "other")
    write, done = SYSTEM.write, threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()

    def interrupted(fd: int, data: bytes, offset: int) -> None:
        if offset == 0:
            assert other.ident is not None
            signal.pthread_kill(other.ident, signal.SIGINT)
            status = Path(f"/proc/self/task/{other.native_id}/status")
            while "SigPnd:\t0000000000000000" not in status.read_text():
                time.sleep(0.001)
        write(fd, data, offset)

    monkeypatch.setattr(SYSTEM, "write", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            put(old, b"n" * (1 << 21))
    finally:
        done.set()
        other.join()
    assert old.read_bytes() == b"n" * (1 << 21)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fifo_gets_the_output_and_stays_one(shm_dir: Path) -> None:
    """Bytes pass through it as they are written."""
    fifo = shm_dir / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    with replacing(str(fifo)) as file:
        file.write(b"new")
    reader.join()
    assert (got, fifo.is_fifo(), os.listdir(shm_dir)) == ([b"new"], True, ["fifo"])


def test_device_is_written_to_and_its_error_names_it() -> None:
    """``/dev/full`` is the device that shows it."""
    with replacing("/dev/null") as file:
        file.write(b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), replacing("/dev/full") as file:
        file.write(b"new")


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_standard_output_as_a_file_continues_it(cli: Cli, shm_dir: Path, name: str) -> None:
    """A file that a shell opened is not replaced or cut, and the report does not end up in the data."""
    log, out = make_log(shm_dir / "a.wal"), shm_dir / "out"
    (shm_dir / "link").symlink_to("/dev/stdout")
    with out.open("wb") as file:
        file.write(b"head\n")
        file.flush()
        command = [sys.executable, "-m", "pmwal", "export", log, "-o", name if name != "link" else shm_dir / name]
        subprocess.run(command, stdout=file, check=True)
        file.seek(0, os.SEEK_END)
        file.write(b"foot\n")
    assert out.read_bytes() == b"head\n" + cli("export", log).out + b"foot\n"


def test_other_descriptor_as_a_file_continues_it(shm_dir: Path) -> None:
    """``-o /dev/fd/3`` writes where descriptor 3 is, and the report goes to standard output."""
    log, out = make_log(shm_dir / "a.wal"), shm_dir / "out"
    line = f'exec 3>"$2"; echo head >&3; "{sys.executable}" -m pmwal export "$1" -o /dev/fd/3; echo foot >&3'
    ran = subprocess.run(["bash", "-c", line, "-", log, out], capture_output=True, check=True)
    assert ran.stdout == f"{log}: exported 10 records, 1 to 10\n".encode()
    lines = out.read_bytes().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (12, b"head", b"foot")


def test_cursor_file_keeps_its_second_name_and_its_mode(cli: Cli, shm_dir: Path) -> None:
    """``tail`` writes its cursor by the same rules."""
    log, cursor, other = make_log(shm_dir / "a.wal"), shm_dir / "cursor", shm_dir / "other"
    cursor.touch(0o640)
    cursor.chmod(0o640)
    os.link(cursor, other)
    assert cli("tail", log, "--cursor-file", cursor).status == 0
    assert other.read_bytes() == cursor.read_bytes() != b""
    assert stat.S_IMODE(cursor.stat().st_mode) == 0o640


def test_name_may_be_as_long_as_names_can_be(shm_dir: Path) -> None:
    """The hidden name does not depend on it; bytes that are not UTF-8 are names, too."""
    for name in ("n" * 255, os.fsdecode(b"\xff" * 255)):
        put(shm_dir / name)
        put(shm_dir / name)
    assert len(os.listdir(shm_dir)) == 2


def test_directory_that_is_missing_is_named(shm_dir: Path) -> None:
    """And nothing is made."""
    with contextlib.suppress(FileNotFoundError):
        put(shm_dir / "missing" / "file")
    assert os.listdir(shm_dir) == []
    with pytest.raises(IsADirectoryError, match=str(shm_dir)):
        put(shm_dir)
