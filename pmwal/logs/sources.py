"""Which logs belong to a set, and a reader for each.

Invariants
----------
- A log is in a set once, by its uuid: under several names, or when it is renamed in its directory, it is the same log. Of copies
  the first is read; the others are problems.
- A path that comes to lead to another file is another log. The old one stays until its records were read.
- Archives and the ring of the same log are one log (``pmwal/logs/archives/reader.py``).
- Nothing is left out silently: what is found and cannot be read is in ``problems``, with a warning. What the caller has named and
  is not there is an error.
- Where pyarrow is not installed, archives are problems, with one warning together, and the rings are read.
- Descriptors stay free for the work on the logs that are open. Logs for which there are none have one warning together, and are
  tried again, because others are closed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pmwal.errors import CorruptWal, PmwalError
from pmwal.logs.archives.file import ArchiveFile, other_than_file
from pmwal.logs.archives.modules import needed
from pmwal.logs.archives.reader import ArchivedReader, ring_of
from pmwal.logs.paths import archives_at, check_place, is_archive, logs_at
from pmwal.logs.reports import warn
from pmwal.opening import open_with
from pmwal.opening.options import Options
from pmwal.reading.internals import deliver_as, is_elsewhere, is_written, same_file
from pmwal.reading.reader import Reader
from pmwal.records import record_type_of
from pmwal.storage.descriptors import kept_free

_LOOK_SECONDS = 1.0  # between two looks at files and patterns; a directory is looked at each time
_FREE = 16  # descriptors that are left: for directories, a second look at a log, cursors, output, a pager
_READ = Options("r")

Place = str | os.PathLike[str]


@dataclass(eq=False)
class Log:
    """One log of a set. ``inode``: as its directory said; ``gone``: its path leads to it no more; ``moved``: it leads to a new file
    of this log. There may be archives only."""

    path: str
    reader: Reader
    uuid: str
    inode: int | None
    gone: bool = False
    moved: bool = False


class Sources:
    """The logs of these directories, files and patterns, which ``refresh`` looks for."""

    def __init__(self, places: Place | Iterable[Place]) -> None:
        """``FileNotFoundError`` for a place that is not there; a pattern may match nothing yet."""
        several = [places] if isinstance(places, str | bytes | os.PathLike) else list(places)
        self.places = [os.fsdecode(place) for place in several]
        self.logs: dict[str, Log] = {}  # by uuid, in the order in which they were found
        self.problems: dict[str, Exception] = {}
        self._inodes: dict[str, int | None] = {}  # what was found at each path
        self._left_out: list[str] = []  # for want of descriptors
        self._looked_at: float | None = None
        self._files: dict[str, ArchiveFile] = {}  # archives, by path
        self._unreadable: set[str] = set()  # archives that are left out for want of pyarrow
        for place in self.places:
            check_place(place)

    def refresh(self) -> None:
        """Open what is new, and note what is gone."""
        now = time.monotonic()
        slow = self._looked_at is None or now - self._looked_at >= _LOOK_SECONDS
        if slow:
            self._looked_at = now
        found = dict(self._found(slow=slow))
        for log in self.logs.values():
            if not log.gone and found.get(log.path) != log.inode:
                ring = ring_of(log.reader)
                log.gone = ring is not None and is_elsewhere(ring)
        waiting = set(self._left_out)
        new = [
            (path, inode)
            for path, inode in sorted(found.items())
            if path in waiting or path not in self._inodes or self._inodes[path] != inode
        ]
        if new or waiting:
            self._open_all(new)
        if slow:
            self._take_archives()
        for path in [path for path in self._inodes if slow and path not in found]:
            del self._inodes[path]
            self.problems.pop(path, None)

    def _take_archives(self) -> None:
        """Have the archives that are there by now, each beside the ring of its log if that is in the set, too."""
        paths = {path for place in self.places for path in archives_at(place)}
        if paths == self._files.keys() | self._unreadable:
            return
        for path in self._unreadable - paths:
            self.problems.pop(path, None)
        self._unreadable = set()
        try:
            for module in ("pyarrow", "pyarrow.parquet") if paths else ():
                needed(module)
        except ImportError as error:
            self._leave_out_archives(sorted(paths), error)
            paths = set()
        self._files = {path: self._files.get(path) or ArchiveFile(path) for path in sorted(paths)}
        by_log: dict[str, list[ArchiveFile]] = {}
        for path, file in self._files.items():
            other = other_than_file(path)
            if other is not None:  # it stands for no records, and replaces none
                self.note(path, other)
                continue
            try:
                by_log.setdefault(file.claim.uuid, []).append(file)
            except (OSError, CorruptWal) as error:
                self.note(path, error)
        for uuid, files in by_log.items():
            log = self.logs.get(uuid)
            if log is not None and isinstance(log.reader, ArchivedReader):
                log.reader.have(files)
                continue
            claim = files[-1].claim
            path = os.path.join(os.path.dirname(files[-1].path), f"{claim.log}-{uuid[:8]}") if log is None else log.path
            ring = None if log is None else log.reader
            reader = ArchivedReader(path, uuid, files, ring, on_damage=self.note, look_again=self._take_archives)
            reader.deliver_as(record_type_of(path, uuid))
            if log is None:
                self.logs[uuid] = Log(path, reader, uuid, None)
            else:
                log.reader = reader
        for uuid, log in self.logs.items():
            if uuid not in by_log and isinstance(log.reader, ArchivedReader):
                log.reader.have(())

    def _leave_out_archives(self, paths: list[str], error: ImportError) -> None:
        """No archive can be read here."""
        if not any(isinstance(self.problems.get(path), ImportError) for path in paths):
            what = paths[0] if len(paths) == 1 else f"{len(paths)} archives, {paths[0]} the first"
            warn(f"{what}: left out, only the logs are read: {error}")
        self.problems |= dict.fromkeys(paths, error)
        self._unreadable = set(paths)

    def _found(self, *, slow: bool) -> Iterator[tuple[str, int | None]]:
        """The paths that belong to the set, each with its inode, None where it was not looked up."""
        for place in self.places:
            if slow or os.path.isdir(place):
                yield from (found for found in logs_at(place) if not is_archive(found[0]))
            else:
                yield from ((path, inode) for path, inode in self._inodes.items())

    def _open_all(self, new: list[tuple[str, int | None]]) -> None:
        said, self._left_out = bool(self._left_out), []
        with kept_free(_FREE):
            for number, (path, inode) in enumerate(new):
                self._inodes[path] = inode
                try:
                    self._open(path, inode)
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
                    self._left_out = [path for path, _ in new[number:]]
                    self._inodes |= new[number:]
                    break
        for path in self._left_out:
            self.problems[path] = OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        if self._left_out and not said:
            count, first = len(self._left_out), self._left_out[0]
            warn(
                f"{count} of {count + len(self.logs)} logs are left out, {first} the first: this process may have no more files "
                "open; raise its limit with ulimit -n"
            )

    def _open(self, path: str, inode: int | None) -> None:
        self.problems.pop(path, None)
        try:
            reader = open_with(path, _READ)
        except FileNotFoundError:  # removed meanwhile
            self._inodes.pop(path, None)
            return
        except (OSError, PmwalError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise
            self.note(path, error)
            return
        assert isinstance(reader, Reader)
        known = self.logs.get(reader.uuid)
        if known is None:
            self.logs[reader.uuid] = known = Log(path, reader, reader.uuid, inode)
        elif isinstance(known.reader, ArchivedReader) and known.reader.ring is None:
            known.path, known.inode = path, inode
            known.reader.attach(path, reader)
        else:
            ring = ring_of(known.reader)
            assert ring is not None
            same = same_file(ring, reader)
            reader.close()
            if known.gone and not same:  # as after a repair: once the old one was read, its records continue here
                del self._inodes[path]
                known.moved = known.path == path
                return
            if not same:
                self.note(path, ValueError(f"{path} is a copy of {known.path}, which is in the set; it is left out"))
                return
            if not known.gone:  # another name of it
                return
            known.path, known.inode, known.gone, known.moved = path, inode, False, False
        if isinstance(known.reader, ArchivedReader):
            known.reader.deliver_as(record_type_of(path, known.uuid))
        else:
            deliver_as(known.reader, record_type_of(path, known.uuid))

    def note(self, path: str, error: Exception) -> None:
        """A log of the set cannot be read, or not further. What was said before is not said again."""
        text, known = str(error), self.problems.get(path)
        self.problems[path] = error
        if known is None or str(known) != text:
            text = (isinstance(error, OSError) and error.strerror) or text  # without "[Errno 13]"
            warn(text if path in text else f"{path}: {text}")

    def turn(self) -> None:
        """As ``refresh``, and have the new file of each log that was moved into one, whether or not the old one was read."""
        self.refresh()
        moved = [log for log in self.logs.values() if log.moved and not is_written(ring_of(log.reader))]
        for log in moved:
            self.drop(log)
        if moved:
            self.refresh()

    def drop(self, log: Log) -> None:
        """A log that is gone was read to its end. Its archives stay."""
        if isinstance(log.reader, ArchivedReader):
            log.reader.detach()
            log.gone = log.moved = False
            return
        log.reader.close()
        self.logs.pop(log.uuid, None)

    def close(self) -> None:
        """Close all readers. Idempotent."""
        for log in self.logs.values():
            log.reader.close()
