"""One archive file, to be read."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pmwal.errors import CorruptWal
from pmwal.logs.archives.lines import LinesFile
from pmwal.logs.archives.names import name_for
from pmwal.logs.archives.parquet import ParquetFile
from pmwal.logs.archives.summary import Group, Rows, Summary
from pmwal.logs.paths import ArchiveName, parse_name
from pmwal.storage.descriptors import open_descriptor

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OTHERS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_than_file(path: str) -> OSError | None:
    """What is wrong if something else than a regular file has this name. It is not opened: a FIFO would wait for a writer."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None  # whoever opens it finds out
    return _other(path, mode)


def _other(path: str, mode: int) -> OSError | None:
    what = next((what for matches, what in _OTHERS if matches(mode)), None)
    if what is None:
        return None
    return OSError(
        errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
        f"{what} with the name of an archive; it is neither read nor removed, and nothing in it counts; move it away",
        path,
    )


def _open(path: str) -> BinaryIO:
    other = other_than_file(path)
    if other is not None:
        raise other
    fd = open_descriptor(path, _FLAGS)
    other = _other(path, os.fstat(fd).st_mode)  # what takes the name meanwhile is opened without waiting, and noticed
    if other is not None:
        os.close(fd)
        raise other
    return io.BufferedReader(io.FileIO(fd, closefd=True))


class ArchiveFile:
    """Opened when it is read, and closed with ``close``. All that is wrong with it is a ``CorruptWal`` that names it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = parse_name(os.path.basename(path))
        self._summary: Summary | None = None
        self._opened: tuple[BinaryIO, ParquetFile | LinesFile] | None = None

    @property
    def summary(self) -> Summary:
        """What it says of itself."""
        if self._summary is None:
            content = self._content()
            with self._damage():
                found = content.summary
                if self.name is not None and self.name[1:5] != (found.uuid, found.first, found.last, found.branch):
                    raise ValueError(f"it has the records {found.first} to {found.last} of log {found.uuid}, unlike its name")
                for before, group in zip(found.groups, found.groups[1:], strict=False):
                    if before.stop != group.first:
                        raise ValueError("its groups do not follow each other")
            self._summary = found
        return self._summary

    @property
    def claim(self) -> ArchiveName:
        """Log, uuid, numbers and branch: of its name if it has kept that, so that most files are not opened."""
        if self.name is not None:
            return self.name
        try:
            found = self.summary
        finally:
            self.close()
        return ArchiveName(name_for(found.log), found.uuid, found.first, found.last, found.branch, "")

    def rows(self, index: int) -> Rows:
        """The records of a group."""
        group, content = self.summary.groups[index], self._content()
        with self._damage(group):
            rows = content.rows(index, group)
            if list(rows.seqs) != list(range(group.first, group.stop)) or rows.check != group.check:
                raise ValueError("the checksum is wrong")
        return rows

    def check(self) -> None:
        """Read all of it, one group at a time, with what only other programs read."""
        summary, content = self.summary, self._content()
        with self._damage():
            content.check(summary.groups)
        for index, group in enumerate(summary.groups):
            rows = self.rows(index)
            with self._damage(group):
                if rows.group(group.epoch) != group._replace(offset=0, size=0, raw=0):
                    raise ValueError("its times or kinds are not those in its summary")

    def _content(self) -> ParquetFile | LinesFile:
        if self._opened is None:
            stream = _open(self.path)
            try:
                with self._damage():
                    self._opened = stream, (ParquetFile if self.path.endswith(".parquet") else LinesFile)(stream)
            except BaseException:
                stream.close()
                raise
        return self._opened[1]

    @contextmanager
    def _damage(self, group: Group | None = None) -> Iterator[None]:
        try:
            yield
        except ImportError:
            raise
        except Exception as error:  # whatever the libraries make of damaged bytes
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror, self.path) from None
            which = "" if group is None else f" at records {group.first} to {group.stop - 1}"
            what = str(error).strip().partition("\n")[0] or type(error).__name__
            first, last = (None, None) if group is None else (group.first, group.stop - 1)
            raise CorruptWal(
                f"{self.path}: this archive is damaged{which}: {what}; its records are missing, and other archives are read; "
                "restore it from a copy",
                first_seq=first,
                last_seq=last,
                reason=what,
            ) from None

    def close(self) -> None:
        """Close it; it can be read again. Idempotent."""
        if self._opened is not None:
            stream, _ = self._opened
            self._opened = None
            stream.close()
