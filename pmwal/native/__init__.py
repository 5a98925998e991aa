"""The extension module with the C engine, if the package was built with it."""

from __future__ import annotations

problem: ImportError | None = None  # why ``native`` is None
try:
    from pmwal.native import _native as native
except ImportError as error:
    native, problem = None, error  # type: ignore[assignment]

__all__ = ["native", "problem"]
