"""The extension module with the C engine, when the package was built with it."""

from __future__ import annotations

try:
    from pmwal import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

__all__ = ["native"]
