"""Which engine a log is opened with: the native one where it is there, or what the environment says.

``PMWAL_ENGINE=python`` or ``native`` forces one. ``PMWAL_REQUIRE_NATIVE=1`` makes a missing native engine an error instead of a
warning.
"""

from __future__ import annotations

import os
import warnings
from functools import cache

from pmwal.native import native, problem

ENGINES = ("native", "python")
_HOW = "install a C compiler (gcc or clang) and the headers of Python, and then pmwal again"


def chosen_engine() -> str:
    """ "native" or "python". ``ImportError`` when the native engine is demanded and missing, ``ValueError`` for another name."""
    name = os.environ.get("PMWAL_ENGINE", "")
    if name not in ("", *ENGINES):
        raise ValueError(f"PMWAL_ENGINE must be one of {', '.join(ENGINES)}, not {name!r}")
    if name == "python":
        return name
    if native is not None:
        return "native"
    if name == "native" or os.environ.get("PMWAL_REQUIRE_NATIVE") == "1":
        raise ImportError(f"pmwal's native engine is missing ({problem}): {_HOW}") from problem
    _warn_once()
    return "python"


@cache
def _warn_once() -> None:
    warnings.warn(
        f"pmwal's native engine is missing ({problem}), so the slower one in Python is used: {_HOW}, or set PMWAL_ENGINE=python",
        RuntimeWarning,
        stacklevel=5,  # the caller of pmwal.open
    )
