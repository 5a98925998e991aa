"""Arguments of append, extend and commit: each means the same to both engines, and a refusal has the same words."""

from __future__ import annotations

import array
import ctypes
import enum
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from engine_programs import refilled
from pmwal.native.choice import ENGINES
from pmwal.storage.seam import SYSTEM
from processes import run_script
from support import SMALL_CONTROL


class Colour(enum.IntEnum):
    """A kind that is a kind of int."""

    RED = 3


class Number:
    """Something that can be used as an index."""

    def __index__(self) -> int:
        return 5

    def __repr__(self) -> str:
        return "Number()"


class Bytes(bytes):
    """A kind of bytes."""


class Raising:
    """An iterable that raises."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"one"
        raise KeyError("two")


def mapped(data: bytes) -> mmap.mmap:
    """The data in an anonymous mapping."""
    area = mmap.mmap(-1, len(data))
    area[:] = data
    return area


def released() -> memoryview:
    """A view that is no longer one."""
    view = memoryview(b"x")
    view.release()
    return view


PAYLOADS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"data",
    "empty": lambda: b"",
    "kind of bytes": lambda: Bytes(b"data"),
    "bytearray": lambda: bytearray(b"data"),
    "empty bytearray": bytearray,
    "memoryview": lambda: memoryview(b"data"),
    "slice": lambda: memoryview(b"some data")[5:],
    "strided": lambda: memoryview(b"some data")[::2],
    "reversed": lambda: memoryview(b"some data")[::-1],
    "empty strided": lambda: memoryview(b"")[::2],
    "two dimensions": lambda: memoryview(bytes(6)).cast("B", (2, 3)),
    "cast": lambda: memoryview(bytes(8)).cast("d"),
    "released": released,
    "array": lambda: array.array("d", [1.5, 2.5]),
    "numpy": lambda: np.arange(5),
    "numpy strided": lambda: np.arange(10)[::2],
    "numpy transposed": lambda: np.arange(6).reshape(2, 3).T,
    "numpy fortran": lambda: np.asfortranarray(np.arange(6).reshape(2, 3)),
    "numpy scalar": lambda: np.float64(1.5),
    "numpy zero dimensions": lambda: np.array(7),
    "numpy read-only": lambda: np.broadcast_to(np.arange(3), (3,)),
    "numpy broadcast": lambda: np.broadcast_to(np.arange(3), (2, 3)),
    "numpy structured": lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "numpy dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "numpy objects": lambda: np.array([None]),
    "mmap": lambda: mapped(b"data"),
    "ctypes array": lambda: (ctypes.c_int * 3)(1, 2, 3),
    "ctypes structure": lambda: ctypes.c_double(2.5),
    "str": lambda: "text",
    "int": lambda: 5,
    "none": lambda: None,
    "list": lambda: [1, 2],
    "index": Number,
    "class": lambda: bytes,
    "too large": lambda: bytes(40000),
    "too large bytearray": lambda: bytearray(40000),
}


def within(wal: pmwal.Wal, call: Callable[[], Any]) -> Any:
    """A call while a batch of this thread is open."""
    with wal.batch() as batch:
        batch.append(b"staged")
        return call()


def exhausted(wal: pmwal.Wal) -> Any:
    """What an iterator says after its end."""
    wal.append(b"x")
    records = wal.read()
    return [next(records).data, next(records).data, next(records, None), wal.append(b"y"), next(records, None)]


CALLS: dict[str, Callable[[pmwal.Wal], Any]] = {
    **{f"append {name}": lambda wal, make=make: wal.append(make()) for name, make in PAYLOADS.items()},
    **{f"extend [{name}]": lambda wal, make=make: wal.extend([b"a", make(), b"b"]) for name, make in PAYLOADS.items()},
    **{f"extend generator {name}": lambda wal, make=make: wal.extend(make() for _ in range(2)) for name, make in PAYLOADS.items()},
    **{f"extend {name}": lambda wal, make=make: wal.extend(make()) for name, make in PAYLOADS.items()},
    **{
        f"append kind={kind!r}": lambda wal, kind=kind: wal.append(b"x", kind=kind)
        for kind in (0, 1, 65535, 65536, -1, 1 << 70, -(1 << 70), True, False, Colour.RED, 1.0, "1", None, np.int64(5))
    },
    **{
        f"extend kind={kind!r}": lambda wal, kind=kind: wal.extend([b"x"], kind=kind)
        for kind in (0, 65535, 65536, -1, 1 << 70, True, Colour.RED, 1.0, "1", None)
    },
    **{
        f"append commit={value!r}": lambda wal, value=value: wal.append(b"x", commit=value)
        for value in (None, True, False, 1, 0, "x", "", [], 0.5)
    },
    "append index kind": lambda wal: wal.append(b"x", kind=Number()),
    "append both": lambda wal: wal.append(b"x", kind=3, commit=False),
    "append both, turned": lambda wal: wal.append(b"x", commit=True, kind=3),
    "append both wrong": lambda wal: wal.append("x", kind=-1),
    "append data=": lambda wal: wal.append(data=b"x"),
    "append data= and kind": lambda wal: wal.append(data=b"x", kind=2),
    "append nothing": lambda wal: wal.append(),  # type: ignore[call-arg]
    "append two": lambda wal: wal.append(b"x", 3),  # type: ignore[misc]
    "append unknown": lambda wal: wal.append(b"x", sort=3),  # type: ignore[call-arg]
    "append kind and unknown": lambda wal: wal.append(b"x", kind=1, sort=3),  # type: ignore[call-arg]
    "append computed name": lambda wal: wal.append(b"x", **{"".join(["ki", "nd"]): 4}),
    "append twice data": lambda wal: wal.append(b"x", data=b"y"),  # type: ignore[misc]
    "extend items=": lambda wal: wal.extend(items=[b"x"]),
    "extend nothing": lambda wal: wal.extend(),  # type: ignore[call-arg]
    "extend two": lambda wal: wal.extend([b"x"], 3),  # type: ignore[misc]
    "extend commit": lambda wal: wal.extend([b"x"], commit=False),  # type: ignore[call-arg]
    "extend kind and commit": lambda wal: wal.extend([b"x"], kind=1, commit=False),  # type: ignore[call-arg]
    "extend commit and kind": lambda wal: wal.extend([b"x"], commit=False, kind=1),  # type: ignore[call-arg]
    "extend unknown": lambda wal: wal.extend([b"x"], sort=1),  # type: ignore[call-arg]
    "extend no items": lambda wal: wal.extend([]),
    "extend no items with kind": lambda wal: wal.extend([], kind=70000),
    "extend raising": lambda wal: wal.extend(Raising()),
    "extend refilled": lambda wal: wal.extend(refilled([b"one", b"two", b"three"])),
    "extend dict": lambda wal: wal.extend({b"a": 1, b"b": 2}),
    "extend rows": lambda wal: wal.extend(np.arange(6).reshape(2, 3)),
    "extend columns": lambda wal: wal.extend(np.arange(6).reshape(2, 3).T),
    "extend too many": lambda wal: wal.extend([bytes(1000)] * 100),
    "extend 65": lambda wal: wal.extend([b"x"] * 65),
    "extend appending": lambda wal: wal.extend(b"%d" % wal.append(b"inside") for _ in range(3)),
    "extend committing": lambda wal: wal.extend(b"%d" % wal.commit() for _ in range(3)),
    "extend closing": lambda wal: wal.extend(str(wal.close()).encode() for _ in range(2)),
    "commit argument": lambda wal: wal.commit(1),  # type: ignore[call-arg]
    "commit keyword": lambda wal: wal.commit(all=1),  # type: ignore[call-arg]
    "append closed": lambda wal: wal.close() or wal.append(b"x"),
    "append str closed": lambda wal: wal.close() or wal.append("x"),
    "extend closed": lambda wal: wal.close() or wal.extend([b"x"]),
    "extend int closed": lambda wal: wal.close() or wal.extend(5),  # type: ignore[arg-type]
    "extend raising closed": lambda wal: wal.close() or wal.extend(Raising()),
    "commit closed": lambda wal: wal.close() or wal.commit(),
    "append in a batch": lambda wal: within(wal, lambda: wal.append(b"x")),
    "extend in a batch": lambda wal: within(wal, lambda: wal.extend(Raising())),
    "commit in a batch": lambda wal: within(wal, wal.commit),
    "exhausted read": exhausted,
}


def outcome(call: Callable[[pmwal.Wal], Any], path: Path, engine: str) -> Any:
    """The result or exception of the call with this engine, and the records in the log afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PMWAL_ENGINE", engine)
        patch.setattr(SYSTEM, "control_size", SMALL_CONTROL)
        wal = pmwal.open(path, size="16KiB", medium="memory")
    wal.append(b"first")
    try:
        answer: Any = call(wal)
    except Exception as error:
        answer = type(error), str(error).replace("NativeWal", "Wal").replace(str(path), "PATH")
    wal.close()
    with pmwal.open(path, "r") as reader:
        held = [(record.seq, record.kind, record.data) for record in reader]
    path.unlink()
    return answer, held


@pytest.mark.parametrize("name", CALLS)
def test_argument_means_the_same_to_both_engines(shm_dir: Path, name: str) -> None:
    """Result or exception, its words, and what is stored do not depend on the engine."""
    answers = [outcome(CALLS[name], shm_dir / "log", engine) for engine in ENGINES]
    (native, held), (python, expected) = answers
    assert held == expected
    if isinstance(native, tuple) and isinstance(python, tuple) and native[:1] == python[:1] == (TypeError,):
        native, python = (words(native[1]), words(python[1]))
    assert native == python


def words(message: str) -> str:
    """A message without the name of the class; the words for a commit with arguments are Python's own."""
    return "arguments" if "commit() " in message else message.replace("Wal.", "")


def test_extend_with_a_keyword_too_many_is_refused(shm_dir: Path) -> None:
    """``commit`` is no argument of extend, also after others, and whether or not there is room or anything to store."""
    done = run_script(
        """
        import sys, pmwal
        wal = pmwal.open(sys.argv[1], size="64KiB")
        for items in ([], [b"x"], [bytes(30000)] * 3, ["x"]):
            try:
                print(wal.extend(items, kind=1, commit=True))
            except TypeError as error:
                print("TypeError")
        """,
        shm_dir / "log",
    )
    assert done.stdout.split() == ["TypeError"] * 4, (done.returncode, done.stderr)
