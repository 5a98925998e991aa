"""The interface of peers: a name, how to open it for each workload, and whether it is installed.

The workloads, and what a call has done when it returns:

- ``durable append``: one record, on stable storage (a disk).
- ``process append``: one record, in the kernel or in shared memory, so that it survives the process (tmpfs).
- ``durable extend``: 1,000 records with one commit, on stable storage.
- ``read``: all records in order, as Python objects.

Each peer gets its best settings that keep this promise; ``settings`` names them.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

DURABLE_APPEND, PROCESS_APPEND, DURABLE_EXTEND, READ = "durable append", "process append", "durable extend", "read"
WORKLOADS = (DURABLE_APPEND, PROCESS_APPEND, DURABLE_EXTEND, READ)
FRAME = 64
"""Bytes of a record beyond its payload, at most."""

DURABLE = (DURABLE_APPEND, DURABLE_EXTEND)

PAYLOAD = b'"' + b"x" * 125 + b'"\n'
"""128 bytes that are also a line of JSON, which a peer that accepts only JSON stores unchanged."""


def payload_of(size: int) -> bytes:
    """A payload of this size, a line of JSON if the size allows."""
    return bytes(size) if size < 3 else b'"' + b"x" * (size - 3) + b'"\n'


class Session(Protocol):
    """One open log of a peer."""

    def append(self, data: bytes, /) -> object:
        """Store one record as the workload promises."""

    def extend(self, items: list[bytes], /) -> object:
        """Store these records with one commit."""

    def read(self) -> Iterator[object]:
        """Read all records in order, with the peer's most direct iterator."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True)
class Peer:
    """A peer. ``open(directory, workload, size)``: at most ``size`` bytes are stored, including ``FRAME`` for each record.

    ``module`` and ``library`` are what it needs.
    """

    name: str
    open: Callable[[Path, str, int], Session]
    settings: Mapping[str, str]
    module: str | None = None
    library: str | None = None
    ours: bool = False
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"{self.name}: skipped, the Python module {self.module} is not installed"
        if self.library is not None and not find_library(self.library):
            return f"{self.name}: skipped, the library {self.library} is not installed"
        return None


def find_library(name: str) -> str | None:
    """The file name of a C library, with or without its development files."""
    found = ctypes.util.find_library(name)
    if found:
        return found
    for candidate in (f"lib{name}.so.1", f"lib{name}.so"):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return candidate
    return None


def initialise(path: Path, size: int, head: bytes = b"") -> None:
    """Create a file of zeros, written and synced, so that timed writes change no metadata.

    Its pages are dropped from the cache: large writes make large folios, and an msync of one line would write a whole folio.
    """
    with path.open("wb") as file:
        file.write(head)
        piece = bytes(1 << 20)
        left = size - len(head)
        while left > 0:
            left -= file.write(piece[:left])
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Keys:
    """Keys of a store that has no order of its own: the numbers of the records."""

    def __init__(self) -> None:
        self.next = 0

    def take(self) -> bytes:
        """The next key: eight bytes, big-endian, so that their order is the order of the numbers."""
        self.next += 1
        return self.next.to_bytes(8, "big")


def load(module: str) -> Any:
    """A module that may be missing."""
    return importlib.import_module(module)
