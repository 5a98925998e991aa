"""What commands print besides their output proper: messages on standard error, JSON values, a progress bar."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from pmwal.cli.streams import StreamError

if TYPE_CHECKING:
    from pmwal.records import Progress

_BAR_DELAY = 1.0  # seconds; shorter work shows no bar


def say(message: str) -> None:
    """Print a message to standard error, after all output so far."""
    with contextlib.suppress(StreamError):  # it is kept, and reported at the end
        sys.stdout.flush()
    print(f"pmwal: {message}", file=sys.stderr)


def columns() -> int:
    """The width of the terminal, or what ``COLUMNS`` says, else 80. ``shutil.get_terminal_size`` would load compressors."""
    with contextlib.suppress(KeyError, ValueError):
        if (wanted := int(os.environ["COLUMNS"])) > 0:
            return wanted
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


def print_json(value: Any) -> None:
    """Print a JSON value on one line."""
    import json  # noqa: PLC0415 - most runs print text

    print(json.dumps(value, ensure_ascii=False))


@contextlib.contextmanager
def progress_bar(what: str, unit: str = "B") -> Iterator[Progress | None]:
    """A callback that draws a bar if standard error is a terminal and the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra: everything works without it
    except ImportError:
        yield _hint(what)
        return
    divisor = 1024 if unit == "B" else 1000
    with tqdm(desc=what, unit=unit, unit_scale=True, unit_divisor=divisor, delay=_BAR_DELAY, leave=False, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            if 0 <= done - bar.n < total >> 8:
                return
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _hint(what: str) -> Progress:
    """A callback that says once, if the work is long, how to get a progress bar."""
    hint_after: float | None = monotonic() + _BAR_DELAY

    def progress(done: int, total: int) -> None:
        nonlocal hint_after
        if hint_after is not None and monotonic() > hint_after:
            hint_after = None
            say(f"{what}: this takes a while; for a progress bar: pip install 'pmwal[cli]'")

    return progress
