"""Compiles and runs ``trace.c``, and reads the events of the program that it single-steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import IO, NamedTuple

from pmwal.format.layout import LINE

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "trace.c"
CLOCK = HERE / "clock.c"

_TUNABLES = "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000"
"""Makes glibc copy by vectors: a string instruction is one step for each byte, and most copies do not concern the log."""
REFUSED = 101  # the tracer's exit status where ptrace(2) is not allowed


class CannotRun(Exception):
    """This machine lacks or forbids something that the rig needs."""


class Lost(Exception):
    """The rig itself failed: a build failed, or the traced program did something that cannot be traced."""


class What(IntEnum):
    """Kinds of events, in the order of ``enum what``."""

    CALL_BEGINS = 0
    CALL_RETURNS = 1
    STORED = 2
    STREAMED = 3
    WRITTEN_BACK = 4
    FENCED = 5


class TraceEvent(NamedTuple):
    """The effect of one instruction on one line of the file; see ``struct event``."""

    what: What
    unordered: bool
    step: int
    rip: int
    offset: int
    mask: int
    data: int


_EVENT = struct.Struct(f"<IIQQQ{LINE}s{LINE}s")
_WHAT = tuple(What)


def compiled(directory: Path) -> Path:
    """Compile the tracer into this directory; its path."""
    return _compiled(SOURCE, directory / "trace")


def environment(directory: Path, package: Path, stores: str) -> dict[str, str]:
    """The environment of the traced program, which imports pmwal from ``package``. Compiles its clock into ``directory``.

    ``stores``: how its engine is to store on memory media, as in ``pmwal.native.choice.STORES``.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(package),
        "PYTHONHASHSEED": "0",
        "PMWAL_ENGINE": "native",
        "PMWAL_STORES": stores,
        "OPENBLAS_NUM_THREADS": "1",  # numpy's BLAS starts threads when it is loaded
        "GLIBC_TUNABLES": _TUNABLES,
        "LD_PRELOAD": str(_compiled(CLOCK, directory / "clock.so", "-shared", "-fPIC")),
    }


def _compiled(source: Path, program: Path, *options: str) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", *options, str(source), "-o", str(program)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotRun(f"{compiler} is missing: apt-get install gcc") from error
    if made.returncode:
        raise Lost(f"{' '.join(command)}\n{made.stderr}")
    return program


@contextlib.contextmanager
def traced(tracer: Path, file: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Iterator[TraceEvent]]:
    """The events of a program that maps ``file``, as they happen. The end of the block kills the program."""
    process = subprocess.Popen(
        [str(tracer), str(file), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        bufsize=1 << 20,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield _events(process.stdout, process)
    finally:
        process.kill()
        process.communicate()


def _events(stream: IO[bytes], process: subprocess.Popen[bytes]) -> Iterator[TraceEvent]:
    while len(raw := stream.read(_EVENT.size)) == _EVENT.size:
        what, unordered, step, rip, offset, mask, data = _EVENT.unpack(raw)
        line = int.from_bytes(mask, "little"), int.from_bytes(data, "little")
        yield TraceEvent(_WHAT[what], bool(unordered), step, rip, offset, *line)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip()
    if process.wait() == REFUSED:
        raise CannotRun(said)
    if process.returncode:
        raise Lost(f"the traced program ended with status {process.returncode}: {said}")
