"""The demo's input: real lines, from the user or from this machine's own logs and texts."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BYTES_MAX = 32 << 20  # what is read of an input; it is repeated all the same
_OWN_BYTES = 4 << 20
_LINES_ENOUGH = 1000
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Input:
    """Lines, and in words where they come from."""

    lines: list[bytes]
    source: str


def read_input(name: str | None, longest: int) -> Input:
    """The lines of a file, of standard input ("-"), or of this machine; longer ones are cut into pieces of ``longest``."""
    if name is None:
        return _own_texts(longest)
    if name == "-":
        return _described(_pieces(sys.stdin.buffer, longest), "standard input")
    with Path(name).open("rb") as stream:
        return _described(_pieces(stream, longest), name)


def _described(pieces: Iterator[bytes], source: str) -> Input:
    lines, cut = _up_to(pieces, _BYTES_MAX)
    if not lines:
        raise ValueError(f"{source}: no line to append")
    return Input(lines, source + (f" (its first {_BYTES_MAX >> 20} MiB)" if cut else ""))


def _own_texts(longest: int) -> Input:
    """Logs and texts that every Linux machine has; the Python library's own source when they are few."""
    lines: list[bytes] = []
    names: list[str] = []
    size = 0
    for path in _candidates():
        if size >= _OWN_BYTES or (len(lines) >= _LINES_ENOUGH and path.suffix == ".py"):
            break
        with contextlib.suppress(OSError), path.open("rb") as stream:
            new, _ = _up_to(_pieces(stream, longest), _OWN_BYTES - size)
            if new:
                lines += new
                names.append(str(path))
                size += sum(map(len, new))
    if not lines:
        raise ValueError("this machine has no text to read; give some with --input FILE")
    more = f" and {len(names) - _NAMES_SHOWN} more files" if len(names) > _NAMES_SHOWN else ""
    return Input(lines, ", ".join(names[:_NAMES_SHOWN]) + more)


def _candidates() -> Iterator[Path]:
    for directory, pattern in (
        ("/var/log", "*.log"),
        ("/usr/share/common-licenses", "*"),
        ("/etc", "services"),
        (os.path.dirname(os.__file__), "*.py"),
    ):
        yield from sorted(path for path in Path(directory).glob(pattern) if path.is_file() and not path.is_symlink())


def _pieces(stream: BinaryIO, longest: int) -> Iterator[bytes]:
    """Lines without their newlines, long ones in pieces."""
    rest = b""
    while read := stream.readline(longest + 1 - len(rest)):
        line = rest + read
        rest = b""
        if line.endswith(b"\n"):
            yield line[:-1]
        else:
            yield line[:longest]
            rest = line[longest:]
    if rest:
        yield rest


def _up_to(lines: Iterable[bytes], size: int) -> tuple[list[bytes], bool]:
    """Lines of about this many bytes in all, and whether any were left."""
    taken: list[bytes] = []
    left = size
    for line in lines:
        if left <= 0:
            return taken, True
        taken.append(line)
        left -= len(line) + 1
    return taken, False
