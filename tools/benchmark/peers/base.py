"""What a peer is: a name, how it is opened for each workload, and why it cannot be used here.

The workloads, and what a call must have done when it returns:

- ``durable append``: one record, on stable storage (a disk).
- ``process append``: one record, in the kernel or in shared memory, so that it outlives this process (tmpfs).
- ``durable extend``: 1,000 records with one commit, on stable storage.
- ``read``: all records in order, as Python objects.

A peer gets its best settings that keep this promise; ``settings`` says which.
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
"""Bytes that a record may take besides its payload."""

DURABLE = (DURABLE_APPEND, DURABLE_EXTEND)

PAYLOAD = b'"' + b"x" * 125 + b'"\n'
"""128 bytes that are a line of JSON as well: what a peer that takes JSON only stores as it is."""


def payload_of(size: int) -> bytes:
    """A payload of this size, a line of JSON where there is room for one."""
    return bytes(size) if size < 3 else b'"' + b"x" * (size - 3) + b'"\n'


class Session(Protocol):
    """One open log of a peer."""

    def append(self, data: bytes, /) -> object:
        """Store one record as the workload promises."""

    def extend(self, items: list[bytes], /) -> object:
        """Store these with one commit."""

    def read(self) -> Iterator[object]:
        """All records in order, by the peer's most direct iterator."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True)
class Peer:
    """``open(directory, workload, size)``: ``size`` bytes are stored at most, ``FRAME`` for each record among them.

    ``module`` or ``library`` is what it needs.
    """

    name: str
    open: Callable[[Path, str, int], Session]
    settings: Mapping[str, str]
    module: str | None = None
    library: str | None = None
    ours: bool = False
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why it cannot be measured here; None when it can."""
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
    """A file of zeros that is written and synced: the writes that are timed then change no metadata.

    It leaves the page cache: large writes make large folios, and an msync of one line would write all of such a folio.
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
