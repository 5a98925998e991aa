"""CRC-32C: the extension module's function if it was built, else that of the package crc32c, which gives the same values."""

from __future__ import annotations

try:
    from pmwal.native._native import crc32c
except ImportError:
    from crc32c import crc32c  # type: ignore[assignment]  # it takes no way

__all__ = ["crc32c"]
