"""Files that commands write beside the log.

Invariants
----------
- The old content stays until the whole output was made, and is on the medium: a command that fails or is interrupted leaves it.
- A new file takes the name (rename(2)) if it can be like the old one: owner, mode and extended attributes. Else, and where the old
  one has further names, its directory cannot be written to, or it is mounted, the old one is written in place. Space for that is
  allocated first, so a full disk leaves the old content; only a crash meanwhile can leave a part of both.
- No output replaces a pmwal log.
- A symbolic link is followed. A FIFO, a device or an open descriptor (/dev/stdout) is written to directly.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from pmwal.cli.streams import Descriptor
from pmwal.format.layout import MAGIC
from pmwal.storage.seam import SYSTEM

_FD_DIRECTORY = re.compile(r"/proc/(?:self|thread-self|(?P<pid>\d+))(?:/task/\d+)?/fd")
_LINKS_MAX = 40
_PIECE = 1 << 20
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EBUSY,
    errno.EXDEV,
    errno.EOPNOTSUPP,
)  # not here, or not with these owners
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """What the block writes becomes the content of the file when the block ends without an exception."""
    with contextlib.ExitStack() as stack:
        own = descriptor_named(path)
        if own is not None:
            sys.stdout.flush()  # it may be the same file
            yield stack.enter_context(_writing(own, path))
            return
        target = os.path.realpath(path)
        old = _open_old(target, path)
        if old is not None:
            stack.callback(os.close, old)
            if not stat.S_ISREG(os.fstat(old).st_mode):
                yield stack.enter_context(_writing(old, path))
                return
            _refuse_log(target, path)
        replacement = stack.enter_context(_replacement(target, path, old))
        if replacement is not None:
            with _writing(replacement.fd, path) as file:
                yield file
            if replacement.take_name():
                return
            source = replacement.fd
        else:
            source = stack.enter_context(_spool(os.path.dirname(target))).fileno()
            with _writing(source, path) as file:
                yield file
        assert old is not None
        _store_in_place(source, old, path)


def check_place(path: str) -> None:
    """``OSError`` now, if a file could not be written there at the end of a long command."""
    if descriptor_named(path) is not None:
        return
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if not os.access(target if os.path.exists(target) else directory, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    if os.path.isfile(target):
        _refuse_log(target, path)


def _refuse_log(target: str, path: str) -> None:
    """``FileExistsError`` for a pmwal log, which no output is to replace."""
    with contextlib.suppress(PermissionError), builtins.open(target, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise FileExistsError(errno.EEXIST, "a pmwal log has this name; choose another name, or remove the log first", path)


def check_directory(path: str, *, written: bool = True) -> None:
    """``OSError`` now, if a long command could not make files in this directory, or not even read it."""
    with os.scandir(path):
        pass
    if written and not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written to; name another directory", path)


def descriptor_named(path: str) -> int | None:
    """The number of a descriptor of this process that the path names, such as /dev/stdout; None if it names another file."""
    for _ in range(_LINKS_MAX):
        directory, name = os.path.split(os.path.abspath(path))
        directory = os.path.realpath(directory)
        match = _FD_DIRECTORY.fullmatch(directory)
        if match and name.isdecimal() and int(match["pid"] or os.getpid()) == os.getpid():
            return int(name)
        try:
            path = os.path.join(directory, os.readlink(os.path.join(directory, name)))
        except OSError:
            return None
    return None


@contextlib.contextmanager
def _writing(fd: int, path: str) -> Iterator[BinaryIO]:
    """A buffer over a descriptor. Its errors name the path, even if a library made errors of its own of them."""
    raw = Descriptor(fd, path)
    file = io.BufferedWriter(raw, _PIECE)
    try:
        yield file
        file.flush()
    except Exception:
        if raw.failure is not None:
            raise raw.failure from None
        raise
    finally:
        raw.drop()
        file.close()


def _open_old(target: str, path: str) -> int | None:
    """The file, open for writing; None if there is none. Whoever may not write to it may not replace it either."""
    try:
        return os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


class _Replacement:
    """A new file with a hidden name in the directory of the old one."""

    def __init__(self, fd: int, hidden: str, name: str, directory_fd: int, *, required: bool) -> None:
        self.fd = fd
        self.hidden: str | None = hidden
        self._name = name
        self._directory_fd = directory_fd
        self._required = required

    def take_name(self) -> bool:
        """Replace the old file; False if that is not allowed and the old one can be written in place."""
        assert self.hidden is not None
        SYSTEM.sync_file(self.fd)
        try:
            SYSTEM.replace(self.hidden, self._name, self._directory_fd)
        except OSError as error:
            if self._required or error.errno not in _REFUSED:
                raise
            return False
        self.hidden = None
        SYSTEM.sync_file(self._directory_fd)
        return True


@contextlib.contextmanager
def _replacement(target: str, path: str, old: int | None) -> Iterator[_Replacement | None]:
    """A file that can replace the old one; None if the old one must be written in place."""
    if old is not None and os.fstat(old).st_nlink > 1:
        yield None
        return
    directory, name = os.path.split(target)
    hidden = f".pmwal-{os.urandom(8).hex()}"
    with contextlib.ExitStack() as stack:
        replacement: _Replacement | None = None
        try:
            directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory_fd)
            fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory_fd)
            stack.callback(os.close, fd)
            replacement = _Replacement(fd, hidden, name, directory_fd, required=old is None)
            stack.callback(_remove, replacement, directory_fd)
            if old is not None:
                _make_alike(fd, old)
        except OSError as error:
            if old is None or error.errno not in _REFUSED:
                shown = path if error.filename == hidden else error.filename  # the user never chose the hidden name
                raise OSError(error.errno, error.strerror, shown or path) from None
            replacement = None
        yield replacement


def _remove(replacement: _Replacement, directory_fd: int) -> None:
    if replacement.hidden is not None:
        SYSTEM.unlink(replacement.hidden, directory_fd)


def _make_alike(fd: int, old: int) -> None:
    """Give a file the owner, mode and extended attributes (access lists too) of another one."""
    status, mine = os.fstat(old), os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)
    names, own = _attributes(old), _attributes(fd)
    for name in own - names:  # a default access list of the directory
        os.removexattr(fd, name)
    for name in names:
        value = os.getxattr(old, name)
        if name not in own or os.getxattr(fd, name) != value:
            os.setxattr(fd, name, value)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _attributes(fd: int) -> set[str]:
    try:
        return set(os.listxattr(fd))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return set()


def _spool(directory: str) -> BinaryIO:
    """A file without a name, in the directory if that is possible."""
    try:
        return tempfile.TemporaryFile(dir=directory)
    except OSError:
        return tempfile.TemporaryFile()


def _store_in_place(source: int, target: int, path: str) -> None:
    """Copy a whole file over another one; a signal waits until that is done."""
    size, before = os.fstat(source).st_size, os.fstat(target).st_size
    try:
        with _signals_wait(), builtins.open(target, "wb", buffering=0, closefd=False) as file:
            try:
                _allocate(target, size)
            except OSError:
                file.truncate(before)
                raise
            for offset in range(0, size, _PIECE):
                SYSTEM.write(target, os.pread(source, _PIECE, offset), offset)
            file.truncate(size)
            SYSTEM.sync_file(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Let the signals that usually end a command come after the block. (A mask would leave them to other threads.)"""
    came: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                handlers[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for replaced, handler in handlers.items():
            signal.signal(replaced, handler)
        if came:
            signal.raise_signal(came[0])


def _allocate(fd: int, size: int) -> None:
    if size:
        try:
            SYSTEM.allocate(fd, size)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
