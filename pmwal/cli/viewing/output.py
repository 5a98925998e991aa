"""Where the text goes: standard output, or a pager in front of a terminal.

Invariants
----------
- A pager is started only if standard output is a terminal. That somebody leaves it early is no error, and ends the work.
- Messages on a terminal go to the pager, too, in their place: else they would be drawn over.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess

_PAGERS = (["pager"], ["less"], ["more"])  # as journalctl tries them
_LESS = "FRSXMK"  # quit if one screen is enough, colours, no wrapping, leave the text there, a long prompt, end on Ctrl-C


class Output(Protocol):
    """Takes text."""

    def write(self, text: str) -> None:
        """Pass it on, at once if it is much."""

    def flush(self) -> None:
        """Pass on everything."""


class StandardOutput:
    """Standard output."""

    def __init__(self) -> None:
        self._file = sys.stdout.buffer

    def write(self, text: str) -> None:
        """Pass it on."""
        self._file.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._file.flush()


class PagerLeft(Exception):
    """Nobody wants to see more."""


class Pager:
    """A program that shows text page by page."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def write(self, text: str) -> None:
        """Pass it on; ``PagerLeft`` if the pager has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode(errors="backslashreplace"))
        except BrokenPipeError:
            raise PagerLeft from None

    def flush(self) -> None:
        """Nothing is buffered."""

    def wait(self) -> None:
        """Let the person read to the end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # it is for the pager, which has the terminal
                self._process.wait()
                return


class _Messages(io.TextIOBase):
    """Standard error, into the pager."""

    def __init__(self, pager: Pager) -> None:
        self._pager = pager

    def write(self, text: str) -> int:
        self._pager.write(text)
        return len(text)


@contextlib.contextmanager
def paged(*, wanted: bool, to_end: bool) -> Iterator[Output]:
    """An output for the block; with ``to_end`` a pager begins at the end."""
    pager = _started(to_end=to_end) if wanted and sys.stdout.isatty() else None
    if pager is None:
        output = StandardOutput()
        yield output
        output.flush()
        return
    messages = contextlib.redirect_stderr(_Messages(pager)) if sys.stderr.isatty() else contextlib.nullcontext()
    try:
        with messages, contextlib.suppress(PagerLeft):
            yield pager
    finally:
        pager.wait()


def _commands() -> list[list[str]]:
    """What to try, in order; nothing if no pager is wanted."""
    import shlex  # noqa: PLC0415 - on a terminal only

    for name in ("PMWAL_PAGER", "PAGER"):
        value = os.environ.get(name)
        if value is not None:
            with contextlib.suppress(ValueError):  # a quote without an end
                words = shlex.split(value)
                return [] if not words or words == ["cat"] else [words, *_PAGERS]
    return list(_PAGERS)


def _started(*, to_end: bool) -> Pager | None:
    commands = _commands()
    if not commands:
        return None
    import subprocess  # noqa: PLC0415 - on a terminal only

    environment = dict(os.environ)
    environment.setdefault("LESS", _LESS)
    environment.setdefault("LESSCHARSET", "utf-8")
    if to_end:
        environment["LESS"] += " +G"
    sys.stdout.flush()
    for command in commands:
        with contextlib.suppress(OSError):
            return Pager(subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=environment))
    return None
