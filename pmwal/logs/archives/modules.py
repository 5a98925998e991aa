"""What archives need beside the library."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(name: str) -> Any:
    """A module of pyarrow; ``ImportError`` that says what to install."""
    try:
        return import_module(name)
    except ImportError:
        raise ImportError("archives require pyarrow, which is not installed: pip install 'pmwal[archive]'") from None
