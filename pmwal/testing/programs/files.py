"""The files that a program keeps beside its log: what it wrote, what it synced, and what a power cut may leave of them.

A file holds what an fsync of it found, or what is written now, or nothing, or the first half of that; a power cut may take each of
these for a file that was written since its last fsync. The names of the directory are those of its last fsync, or those of now.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

Files = dict[str, bytes]
"""Contents by name."""

CALLS = ("fsync", "fdatasync", "replace", "rename", "link", "unlink", "remove", "truncate", "ftruncate")
"""The functions of ``os`` around which a crash is looked at. Of the others, what they have written is seen at the next step."""


class NotAFile(Exception):
    """Something else than a file is beside the log."""


@dataclass(frozen=True)
class Beside:
    """The files beside the log at one moment, by inode, and what of them was synced."""

    names: dict[str, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    synced_names: dict[str, int] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)

    def now(self) -> Files:
        """What a kill leaves: everything that was written."""
        return {name: self.contents[inode] for name, inode in self.names.items()}

    def after_a_cut(self) -> Files:
        """What a power cut leaves at its worst: what was synced."""
        return {name: self.synced.get(inode, b"") for name, inode in self.synced_names.items()}

    def alternatives(self) -> list[Files]:
        """What a power cut may leave: nothing that was not synced comes first, all that was written last."""
        found = [self.after_a_cut()]
        for names in (self.synced_names, self.names):
            newest = {name: self.contents[inode] for name, inode in names.items()}
            oldest = {name: self.synced.get(inode, b"") for name, inode in names.items()}
            found.append(oldest)
            for name, inode in names.items():
                if newest[name] != oldest[name]:
                    half = newest[name][: len(newest[name]) // 2]
                    found += [{**newest, name: self.synced.get(inode, b"")}, {**newest, name: b""}, {**newest, name: half}]
                    found.append({**oldest, name: newest[name]})
            found.append(newest)
        return [files for place, files in enumerate(found) if files not in found[:place]]


class Observer:
    """Follows the files of a directory, and which of them are synced."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.state = Beside()

    def look(self) -> Beside:
        """The files as they are; ``NotAFile`` for anything else."""
        before, names, contents = self.state, dict[str, int](), dict(self.state.contents)
        with os.scandir(self._log.parent) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name == self._log.name:
                    continue
                if not entry.is_file(follow_symlinks=False):
                    raise NotAFile(entry.name)
                names[entry.name] = entry.inode()
                contents[entry.inode()] = Path(entry.path).read_bytes()
        if names != before.names or contents != before.contents:
            known = {*before.names.values(), *before.synced_names.values()}
            synced = {inode: data for inode, data in before.synced.items() if inode in known}  # else its inode was used again
            self.state = Beside(names, contents, before.synced_names, synced)
        return self.state

    def synced(self, fd: int) -> None:
        """An fsync of this descriptor has returned."""
        state, found = self.look(), os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            if found.st_ino == self._log.parent.stat().st_ino:
                self.state = Beside(state.names, state.contents, state.names, state.synced)
        elif found.st_ino in state.names.values():
            synced = {**state.synced, found.st_ino: state.contents[found.st_ino]}
            self.state = Beside(state.names, state.contents, state.synced_names, synced)


@contextlib.contextmanager
def watched(note: Callable[[str], None], synced: Callable[[int], None], is_of_log: Callable[[FrameType], bool]) -> Iterator[None]:
    """``note`` is told of each call of ``CALLS`` before it is made, ``synced`` of each fsync after it.

    ``is_of_log`` says of a caller whether its call is one on the log, of which neither is told.
    """
    originals = {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if is_of_log(sys._getframe(1)):
                return original(*args, **more)
            note(name)
            result = original(*args, **more)
            if name in CALLS[:2]:
                fd = args[0] if args else more["fd"]
                synced(fd if isinstance(fd, int) else fd.fileno())
            return result

        return call

    for name, original in originals.items():
        setattr(os, name, wrapped(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
