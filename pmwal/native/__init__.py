"""The extension module with the C engine, if the package was built with it."""

from __future__ import annotations

problem: ImportError | None = None  # why ``native`` is None
try:
    import pmwal.native._native as native  # the other form calls a missing module a circular import
except ImportError as error:
    native, problem = None, error  # type: ignore[assignment]

__all__ = ["native", "problem"]
