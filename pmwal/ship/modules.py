"""What shipping needs beside the library."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(name: str) -> Any:
    """A module of nats-py, or what it needs; ``ImportError`` that says what to install."""
    try:
        return import_module(name)
    except ImportError:
        package = "nats-py" if name.startswith("nats") else name
        raise ImportError(f"shipping requires {package}, which is not installed: pip install 'pmwal[nats]'") from None
