"""What shipping needs beside the library."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(name: str) -> Any:
    """A module of nats-py; ``ImportError`` that says what to install."""
    try:
        return import_module(name)
    except ImportError:
        raise ImportError("shipping requires nats-py, which is not installed: pip install 'pmwal[nats]'") from None
