"""Which engine a log is opened with (the native one if it was built, else the one in Python), and how it stores on DAX.

``PMWAL_ENGINE=python`` or ``native`` selects one. With ``PMWAL_REQUIRE_NATIVE=1`` a missing native engine is an error instead of a
warning. ``PMWAL_STORES=stream`` or ``write-back`` selects how the native engine makes cache lines durable.
"""

from __future__ import annotations

import os
import warnings
from functools import cache

from pmwal.native import native, problem

ENGINES = ("native", "python")
STREAM = "stream"  # store past the cache
STORES = (STREAM, "write-back")
_HOW = "install a C compiler (gcc or clang) and the Python headers, then reinstall pmwal"


def chosen_engine() -> str:
    """The name of the engine. ``ImportError`` if the native one is required and missing, ``ValueError`` for an unknown name."""
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


def chosen_stores() -> str:
    """The value of PMWAL_STORES, or "". ``ValueError`` for one that is unknown, or that this processor cannot do."""
    name = os.environ.get("PMWAL_STORES", "")
    if name not in ("", *STORES):
        raise ValueError(f"PMWAL_STORES must be one of {', '.join(STORES)}, not {name!r}")
    if name == STREAM and native is not None and not native.can_stream:
        raise ValueError("PMWAL_STORES=stream: this processor has no stores past the cache; set it to write-back, or unset it")
    return name


@cache
def _warn_once() -> None:
    warnings.warn(
        f"pmwal's native engine is missing ({problem}), so the slower one in Python is used: {_HOW}, or set PMWAL_ENGINE=python",
        RuntimeWarning,
        stacklevel=5,  # the caller of pmwal.open
    )
