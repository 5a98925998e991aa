"""Where the text goes: standard output, or a pager in front of a terminal.

Invariants
----------
- A pager is started only if standard output is a terminal. That somebody leaves it early is no error, and ends the work.
- A pager that fails before it has read anything hides nothing: it is reported, and the text is printed from its beginning. The pipe
  itself tells, because it keeps what was not read.
- Messages on a terminal go to the pager, too, in their place: else they would be drawn over.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

from pmwal.cli.terminal import say

if TYPE_CHECKING:
    import subprocess

_PAGERS = (["pager"], ["less"], ["more"])  # as journalctl tries them
_LESS = "FRSXMK"  # quit if one screen is enough, colours, no wrapping, leave the text there, a long prompt, end on Ctrl-C


class Output(Protocol):
    """Takes text."""

    failed: bool
    """Whether the pager has failed."""

    def write(self, text: str) -> None:
        """Pass it on, at once if it is much."""

    def flush(self) -> None:
        """Pass on everything."""


class StandardOutput:
    """Standard output."""

    failed = False

    def __init__(self) -> None:
        self._file = sys.stdout.buffer

    def write(self, text: str) -> None:
        """Pass it on."""
        self.write_bytes(_encoded(text))

    def write_bytes(self, data: bytes) -> None:
        """Pass on what is encoded."""
        self._file.write(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._file.flush()


class PagerLeft(Exception):
    """Nobody wants to see more."""


class Pager:
    """A program that shows text page by page, started with the first text; where none can be, the terminal itself."""

    def __init__(self, *, to_end: bool) -> None:
        self._to_end = to_end
        self._process: subprocess.Popen[bytes] | None = None
        self._instead: StandardOutput | None = None
        self._command: list[str] = []
        self._written = 0  # bytes
        self.failed = False

    @property
    def runs(self) -> bool:
        """Whether there is such a program; it is started now."""
        if self._process is None and self._instead is None:
            self._process, self._command = _started(to_end=self._to_end)
            if self._process is None:
                self._instead = StandardOutput()
        return self._process is not None

    def write(self, text: str) -> None:
        """Pass it on; ``PagerLeft`` if the pager has ended."""
        if not self.runs:
            assert self._instead is not None
            self._instead.write(text)
            return
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.returncode is not None:
            raise PagerLeft
        data = _encoded(text)
        try:
            while data:
                count = self._process.stdin.write(data)
                self._written += count
                data = data[count:]
        except BrokenPipeError:
            self.wait()
            if self._instead is None:
                raise PagerLeft from None
            self._instead.write_bytes(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        if self._instead is not None:
            self._instead.flush()

    def wait(self) -> None:
        """Let the person read to the end. If the pager fails without reading, print what it was given."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        with contextlib.ExitStack() as stack:
            unread = None
            with contextlib.suppress(OSError):  # without /proc
                unread = stack.enter_context(open(f"/proc/self/fd/{process.stdin.fileno()}", "rb"))
            process.stdin.close()
            while process.returncode is None:
                with contextlib.suppress(KeyboardInterrupt):  # it is for the pager, which has the terminal
                    process.wait()
            if process.returncode != 0 and unread is not None:
                left = unread.read()
                if len(left) == self._written:
                    self._print_instead(process.returncode, left)

    def _print_instead(self, status: int, text: bytes) -> None:
        import shlex  # noqa: PLC0415 - on a terminal only

        self.failed, self._instead, self._process = True, StandardOutput(), None
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        say(f"the pager {shlex.join(self._command)} failed ({how}); see PMWAL_PAGER and PAGER, or use --no-pager")
        self._instead.write_bytes(text)


class _Messages(io.TextIOBase):
    """Standard error: into the pager if one runs."""

    def __init__(self, pager: Pager, instead: TextIO) -> None:
        self._pager = pager
        self._instead = instead

    def write(self, text: str) -> int:
        if self._pager.runs:
            self._pager.write(text)
        else:
            self._instead.write(text)
        return len(text)


@contextlib.contextmanager
def paged(*, wanted: bool, to_end: bool) -> Iterator[Output]:
    """An output for the block; with ``to_end`` a pager begins at the end."""
    if not (wanted and sys.stdout.isatty() and _commands()):
        output = StandardOutput()
        yield output
        output.flush()
        return
    pager = Pager(to_end=to_end)
    with contextlib.ExitStack() as stack:
        stack.callback(pager.wait)
        stack.enter_context(contextlib.suppress(PagerLeft))
        if sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(_Messages(pager, sys.stderr)))
        yield pager
        pager.flush()


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


def _started(*, to_end: bool) -> tuple[subprocess.Popen[bytes] | None, list[str]]:
    import subprocess  # noqa: PLC0415 - on a terminal only

    environment = dict(os.environ)
    environment.setdefault("LESS", _LESS)
    environment.setdefault("LESSCHARSET", "utf-8")
    if to_end:
        environment["LESS"] += " +G"
    sys.stdout.flush()
    for command in _commands():
        with contextlib.suppress(OSError):
            return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, env=environment), command
    return None, []


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
