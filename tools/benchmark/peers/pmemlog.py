"""libpmemlog of PMDK, through ctypes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from benchmark.peers.base import (
    DURABLE_APPEND,
    DURABLE_EXTEND,
    PROCESS_APPEND,
    READ,
    Peer,
    find_library,
    initialise,
)

_POOL_MIN = 2 << 20


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Pool:
    """A pool in a preallocated file of zeros."""

    def __init__(self, path: Path, size: int) -> None:
        name = find_library("pmemlog")
        assert name is not None
        self._lib = ctypes.CDLL(name, use_errno=True)
        self._lib.pmemlog_create.restype = ctypes.c_void_p
        self._lib.pmemlog_append.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
        self._lib.pmemlog_appendv.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        self._lib.pmemlog_close.argtypes = (ctypes.c_void_p,)
        initialise(path, (size + 2 * _POOL_MIN) // 4096 * 4096)
        self._pool = self._lib.pmemlog_create(os.fsencode(path), ctypes.c_size_t(0), 0o600)
        if not self._pool:
            raise OSError(ctypes.get_errno(), "pmemlog_create")
        self._append = self._lib.pmemlog_append
        self._record = 1

    def append(self, data: bytes) -> None:
        """One append."""
        if self._append(self._pool, data, len(data)):
            raise OSError(ctypes.get_errno(), "pmemlog_append")

    def extend(self, items: list[bytes]) -> None:
        """One append of a vector: all or nothing."""
        self._record = len(items[0])
        vectors = (_Vector * len(items))(*[_Vector(item, len(item)) for item in items])
        if self._lib.pmemlog_appendv(self._pool, vectors, len(items)):
            raise OSError(ctypes.get_errno(), "pmemlog_appendv")

    def read(self) -> Iterator[bytes]:
        """The whole log at once, cut into pieces of the known size: it has no record boundaries."""
        found: list[bytes] = []

        def take(data: int, length: int, argument: int) -> int:
            found.append(ctypes.string_at(data, length))
            return 0

        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)(take)
        self._lib.pmemlog_walk(ctypes.c_void_p(self._pool), ctypes.c_size_t(0), callback, None)
        for data in found:
            for start in range(0, len(data), self._record):
                yield data[start : start + self._record]

    def close(self) -> None:
        """Close the pool."""
        self._lib.pmemlog_close(self._pool)


def _open(directory: Path, workload: str, size: int) -> _Pool:
    return _Pool(directory / "pool", size)


_FORCED = {"PMEM_IS_PMEM_FORCE": "1"}  # cache line flushes instead of msync, as on a file system with DAX
PEERS = (
    Peer(
        "libpmemlog",
        _open,
        {
            DURABLE_APPEND: "pmemlog_append by ctypes, file written beforehand; no checksum",
            PROCESS_APPEND: "pmemlog_append by ctypes, PMEM_IS_PMEM_FORCE=1; no checksum",
            DURABLE_EXTEND: "pmemlog_appendv by ctypes; no checksum",
            READ: "pmemlog_walk, cut in Python; no checksum",
        },
        library="pmemlog",
        environment={PROCESS_APPEND: _FORCED, READ: _FORCED},
    ),
)
