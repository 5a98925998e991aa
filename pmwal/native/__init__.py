"""The extension module with the C engine, when the package was built with it."""

from __future__ import annotations

problem: ImportError | None = None  # why there is none
try:
    from pmwal.native import _native as native
except ImportError as error:
    native, problem = None, error  # type: ignore[assignment]

__all__ = ["native", "problem"]
