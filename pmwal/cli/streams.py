"""Standard input, output and error: one object each, for text and for bytes, whatever the command was started with.

Invariants
----------
- Output arrives complete, or the command ends with a non-zero status and names the stream: the first error of a stream is kept, so
  a command that ignores it fails too.
- The streams are opened here, over the descriptors. So it does not matter whether the interpreter is unbuffered, or a descriptor is
  non-blocking: a short write is continued, and where a descriptor is not ready the command waits.
- A missing descriptor is occupied first: no file of the command becomes standard output by accident.
- An error on standard error never ends the work: its messages are lost, which the status says.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

from pmwal.cli.exit_status import BROKEN_PIPE, INTERRUPTED, STREAM

_STDIN, _STDOUT, _STDERR = range(3)
_BUFFER = 64 * 1024
_UNENCODABLE = "backslashreplace"  # so that no label or path can end the command
_T = TypeVar("_T")


class StreamError(OSError):
    """A standard stream failed; ``filename`` is its name."""


class Descriptor(io.RawIOBase):
    """An open descriptor, which somebody may have made non-blocking. It is never closed here.

    ``failure`` is the first error; it names the stream or file. That call raises it, and so does every later one until ``drop``
    was called. A stream for ``messages`` raises nothing: it loses what cannot be written.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        error: type[OSError] = OSError,
        *,
        is_input: bool = False,
        messages: bool = False,
        missing: bool = False,
    ) -> None:
        self.name = name
        self.failure: OSError | None = None
        self._error = error
        self._is_input = is_input
        self.missing = missing
        self.used = False
        self._fd = fd
        self._dropped = False
        self._messages = messages

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return not self.missing and os.isatty(self._fd)

    def readable(self) -> bool:
        """Whether it is for reading; the operating system decides when it is read."""
        return self._is_input

    def writable(self) -> bool:
        """Whether it is for writing, likewise."""
        return not self._is_input

    def seekable(self) -> bool:
        """Whether the input is a file."""
        try:
            return self.readable() and os.lseek(self._fd, 0, os.SEEK_CUR) >= 0
        except OSError:
            return False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another position of the input."""
        return os.lseek(self._fd, offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Read what is there; wait if nothing is there yet."""
        return self._do(lambda: os.readv(self._fd, [buffer]), select.POLLIN)

    def write(self, data: Any) -> int:
        """Write as much as the descriptor takes; wait if it takes nothing yet. The buffer above continues after a short write."""
        if self._dropped:
            return len(data)
        self.used = True
        try:
            return self._do(lambda: os.write(self._fd, data), select.POLLOUT)
        except self._error:
            if not self._messages:
                raise
            self.drop()
            return len(data)

    def drop(self) -> None:
        """Discard all further output, so that a buffer can be closed after an error."""
        self._dropped = True

    def check_close(self) -> None:
        """Ask for errors that some file systems report only when a descriptor is closed: close(2) names quotas and NFS."""
        if self.used and not self._dropped:
            try:
                copy = os.dup(self._fd)
            except OSError:  # no descriptor is free; that is no fault of the output
                return
            self._do(lambda: os.close(copy), select.POLLOUT)

    def _do(self, step: Callable[[], _T], ready: int) -> _T:
        try:
            if self.failure is not None:
                raise self.failure
            if self.missing:
                raise OSError(errno.EBADF, "it is missing: the descriptor is closed")
            while True:
                try:
                    return step()
                except BlockingIOError:
                    wait_for(self._fd, ready)
        except OSError as error:
            self.failure = self.failure or self._error(error.errno, error.strerror, self.name)
            raise self.failure from None


def wait_for(fd: int, ready: int) -> None:
    """Wait until a descriptor is ready, or has an error that the next call reports."""
    poll = select.poll()
    poll.register(fd, ready)
    poll.poll()


class Streams:
    """The three streams of one command. One that a program replaced before it called ``main`` is left as it is."""

    def __init__(self) -> None:
        self._descriptors: dict[int, Descriptor] = {}
        self._missing = [_occupied(fd) for fd in (_STDIN, _STDOUT, _STDERR)]  # in this order: see there
        self.input = self._open(_STDIN, sys.stdin, "standard input")
        self.output = self._open(_STDOUT, sys.stdout, "standard output")
        self.error = self._open(_STDERR, sys.stderr, "standard error")

    def _open(self, fd: int, given: TextIO | None, name: str) -> TextIO:
        if given is not None and not _is_over(given, fd):
            if isinstance(given, io.TextIOWrapper) and fd != _STDIN:
                given.reconfigure(errors=_UNENCODABLE)
            return given
        missing = self._missing[fd] or given is None
        descriptor = Descriptor(fd, name, StreamError, is_input=fd == _STDIN, messages=fd == _STDERR, missing=missing)
        self._descriptors[fd] = descriptor
        encoding = "utf-8" if given is None else given.encoding
        if fd == _STDIN:
            return io.TextIOWrapper(io.BufferedReader(descriptor, _BUFFER), encoding)
        if given is not None:
            with contextlib.suppress(OSError):  # the descriptor will tell us too
                given.flush()  # what the program that calls main has printed comes first
        buffer = io.BufferedWriter(descriptor, _BUFFER)
        by_lines = fd == _STDERR or descriptor.isatty()
        return io.TextIOWrapper(buffer, encoding, _UNENCODABLE, line_buffering=by_lines, write_through=True)

    def finish(self, status: int) -> int:
        """Write what is buffered, report the first error of input and output, and return the exit status."""
        status = self._flushed(_STDOUT, self.output, status)
        for fd in (_STDIN, _STDOUT):
            failure = self._descriptors[fd].failure if fd in self._descriptors else None
            if failure is not None and failure.errno == errno.EPIPE:
                status = status or BROKEN_PIPE  # silent, like a program that SIGPIPE ends
            elif failure is not None:
                print(f"pmwal: {failure.filename}: {failure.strerror}", file=self.error)
                status = status or STREAM
        status = self._flushed(_STDERR, self.error, status)
        error = self._descriptors.get(_STDERR)
        if error is not None and error.failure is not None and not error.missing:
            status = status or STREAM
        return status

    def _flushed(self, fd: int, stream: TextIO, status: int) -> int:
        try:
            with contextlib.suppress(StreamError):  # it is kept
                stream.flush()
                if fd in self._descriptors:
                    self._descriptors[fd].check_close()
        except BrokenPipeError:  # of a stream that a program replaced
            status = status or BROKEN_PIPE
        except KeyboardInterrupt:  # while the reader of the output waits
            status = INTERRUPTED
        if fd in self._descriptors:
            self._descriptors[fd].drop()
            stream.flush()
        return status


def _is_over(stream: TextIO, fd: int) -> bool:
    """Whether a stream writes to a descriptor: not one in memory, nor a file that output was redirected to."""
    try:
        return stream.fileno() == fd
    except (OSError, ValueError):
        return False


def _occupied(fd: int) -> bool:
    """Whether a descriptor was missing; then something takes its place that fails if used. Those with lower numbers are open."""
    try:
        os.fstat(fd)
    except OSError:
        pass
    else:
        return False
    nothing = os.open(os.devnull, os.O_WRONLY if fd == _STDIN else os.O_RDONLY)  # the lowest free number, and so this one
    os.set_inheritable(nothing, True)
    return True


@contextlib.contextmanager
def standard_streams() -> Iterator[Streams]:
    """``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` are these streams within the block."""
    before = sys.stdin, sys.stdout, sys.stderr
    streams = Streams()
    sys.stdin, sys.stdout, sys.stderr = streams.input, streams.output, streams.error
    try:
        yield streams
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def output_is_missing() -> bool:
    """Whether there is no standard output, so that the exit status is all that the caller will see."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Descriptor) and raw.missing


def refuse_closed_output() -> None:
    """Raise if the reader of the output is gone: without anything to write no write would reveal it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
