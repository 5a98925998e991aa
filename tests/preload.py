"""A preloaded library: an msync(2) that records what the disk has, is slow and fails on command, and a clock that can be stopped.

``run(library, module, function, *args)`` calls a function of a test module in a fresh interpreter with the library preloaded.
There, ``Shim(wal)`` and ``set_clock`` control the library.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pmwal
from processes import run_script

SOURCE = Path(__file__).with_suffix(".c")
PATIENCE = 300
"""Seconds after which a child that still runs prints its stacks and exits."""

_CHILD = """
import faulthandler, importlib, json, sys
where, patience, module, function, arguments = sys.argv[1:]
faulthandler.dump_traceback_later(int(patience), exit=True)
sys.path.insert(0, where)
print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))
"""


def build(directory: Path) -> Path:
    """Compile the library; without a C compiler the test is skipped."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = directory / "preload.so"
    subprocess.run([compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, SOURCE, "-pthread"], check=True)
    return library


def run(library: Path, module: str, function: str, *args: Any, patience: int = PATIENCE) -> Any:
    """The value that the function returned, passed as JSON."""
    old = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library) if old is None else f"{library}:{old}"
    try:
        done = run_script(_CHILD, SOURCE.parent, patience, module, function, json.dumps(args), timeout=patience + 10)
    finally:
        if old is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = old
    assert done.returncode == 0, f"{function} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def set_clock(time_ns: int) -> None:
    """Stop the wall clock at this time, in C and in Python; 0 releases it."""
    ctypes.CDLL(None).shim_clock(ctypes.c_longlong(time_ns))


class Shim:
    """Control over the preloaded library. From now on its image of the disk follows this log's mapping, through msync only."""

    def __init__(self, wal: pmwal.Wal, delay: float = 0.0, fail_at: int = 0, interrupt_at: int = 0) -> None:
        """``delay``: seconds that each msync takes; ``fail_at``: the number, from 1, of the msync that fails."""
        self._library = ctypes.CDLL(None)
        self.size = wal._engine.block.file_size
        start = ctypes.c_char.from_buffer(wal._engine.mapping.map)
        self._library.shim_watch(ctypes.byref(start), ctypes.c_size_t(self.size))
        del start
        self.behave(delay, fail_at, interrupt_at)

    def behave(self, delay: float = 0.0, fail_at: int = 0, interrupt_at: int = 0) -> None:
        """Change the behaviour of later msyncs."""
        self._library.shim_behave(ctypes.c_uint(int(delay * 1e6)), ctypes.c_long(fail_at), ctypes.c_long(interrupt_at))

    def holds(self, offset: int, length: int) -> bool:
        """Whether the disk has the bytes that memory has there."""
        return bool(self._library.shim_holds(ctypes.c_size_t(offset), ctypes.c_size_t(length)))

    def power_cut(self, path: str | os.PathLike[str]) -> None:
        """Write the present contents of the disk to a file."""
        copy = ctypes.create_string_buffer(self.size)
        self._library.shim_copy(copy)
        Path(path).write_bytes(copy.raw)

    @property
    def calls(self) -> int:
        """The number of msyncs so far."""
        return int(self._library.shim_calls())

    @property
    def in_flight(self) -> int:
        """The number of msyncs under way."""
        return int(self._library.shim_in_flight())

    @property
    def overlaps(self) -> int:
        """The number of msyncs that began while another was under way."""
        return int(self._library.shim_overlaps())
