"""The lines that the demo appends: the user's, or else those of this machine's logs and texts."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BYTES_MAX = 32 << 20  # read of an input at most; the demo repeats it anyway
_OWN_BYTES = 4 << 20
_LINES_ENOUGH = 1000
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Input:
    """Lines, and a description of where they come from."""

    lines: list[bytes]
    source: str


def read_input(name: str | None, longest: int) -> Input:
    """The lines of a file, of standard input ("-"), or (None) of this machine, in pieces of at most ``longest`` bytes."""
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
    """Logs and texts that Linux machines have; if they are few, the source of the Python library too."""
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
        raise ValueError("found no text on this machine; provide some with --input FILE")
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
    """Lines of about ``size`` bytes in all, and whether any were left over."""
    taken: list[bytes] = []
    left = size
    for line in lines:
        if left <= 0:
            return taken, True
        taken.append(line)
        left -= len(line) + 1
    return taken, False
