"""Patterns of clients.

Invariants
----------
- A pattern costs time in proportion to the text that it is matched against: RE2, never a backtracking engine. Patterns, and the
  memory that one may use, are limited.
"""

from __future__ import annotations

from typing import Any

PATTERN_MAX = 500
"""Characters of a pattern."""

_MEMORY = 1 << 21  # bytes of a compiled pattern and its automata


def compile_pattern(text: str) -> Any:
    """A pattern of RE2; upper and lower case differ only if it has a capital. ``ValueError`` if it is none, or too large."""
    import re2  # noqa: PLC0415 - of the extra "web"

    if len(text) > PATTERN_MAX:
        raise ValueError(f"a pattern has at most {PATTERN_MAX} characters")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    options.case_sensitive = text != text.lower()
    try:
        return re2.compile(text, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"that is no pattern: {said} (RE2 syntax: no look-around, no back references)") from None
