"""What logging says about itself: on stderr, or as a warning."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings

_SHOWN = 200  # characters of a message in a report


def say(text: str) -> None:
    """Print a line about logging itself on stderr, unless logging.raiseExceptions is false. Raises nothing, at any time."""
    with contextlib.suppress(Exception):  # there is no other place to say it
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"--- Logging error --- {text}\n".encode("utf-8", "backslashreplace").decode())


def shown(message: object) -> str:
    """A message for such a line, shortened."""
    try:
        text = message.decode("utf-8", "backslashreplace") if isinstance(message, bytes) else message
        shown = repr(text)
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    except Exception as error:
        return f"<{type(error).__name__} in repr()>"


def warn(text: str) -> None:
    """A ``RuntimeWarning`` at the line of the program that called pmwal."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pmwal."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)
