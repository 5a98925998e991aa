"""Two engines, one log: given the same calls, both leave the same bytes and give the same answers. And how an engine is chosen.

The random programs run twice: through a recording seam, which the C code calls for every step, and straight into the mapping
as it ships, with the clock of the process standing still (tests/preload.py). PMWAL_TEST_EXAMPLES=1000 runs more of them.
"""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import enum
import gc
import importlib.util
import inspect
import mmap
import os
import pickle
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pmwal
from callers import Call
from pmwal.format import layout
from pmwal.native import _native
from pmwal.native.choice import ENGINES
from pmwal.opening import open_log
from pmwal.records import _PlainRecord
from pmwal.storage.seam import SYSTEM
from preload import build, run, set_clock
from processes import run_script
from support import SMALL_CONTROL, BarrierRecorder, image, kill, superblock

ROOT = Path(pmwal.__file__).parents[1]
EXAMPLES = int(os.environ.get("PMWAL_TEST_EXAMPLES", "60"))
NOON = 1_700_000_000_000_000_000
needs_checkout = pytest.mark.skipif(not (ROOT / "tools").exists(), reason="needs the sources")

# -- random programs

SIZES = st.one_of(
    st.integers(0, 200), st.sampled_from([1, 8, 15, 16, 17, 4000, 4096, 8000]), st.integers(0, 20000), st.integers(32000, 33000),
    st.integers(50000, 70000),
)  # fmt: skip
KINDS = st.sampled_from([0, 0, 0, 1, 7, 65535, 65536, -1, True, "x", None, 1.0])
FORMS = ["bytes", "bytearray", "memoryview", "slice", "numpy", "strided", "str", "none", "array"]
FRACTIONS = st.floats(-0.1, 1.1)
STEPS = st.one_of(
    st.tuples(st.just("append"), SIZES, st.sampled_from(FORMS), KINDS, st.sampled_from([None, True, False, 1, 0])),
    st.tuples(st.just("append"), st.integers(0, 200), st.just("bytes"), st.just(0), st.sampled_from([None, True, False])),
    st.tuples(st.just("extend"), st.lists(SIZES, max_size=5), st.sampled_from(FORMS),
              st.sampled_from(["list", "tuple", "generator", "reused", "iterator"]), KINDS),
    st.tuples(st.just("extend"), st.lists(st.integers(0, 64), min_size=60, max_size=80), st.just("bytes"), st.just("list"),
              st.just(3)),
    st.tuples(st.just("batch"), st.lists(st.tuples(SIZES, KINDS), max_size=4), st.booleans()),
    st.tuples(st.just("reserve"), SIZES, KINDS),
    st.tuples(st.just("commit")),
    st.tuples(st.just("wait_durable"), FRACTIONS),
    st.tuples(st.just("truncate"), FRACTIONS),
    st.tuples(st.just("rollback"), FRACTIONS),
    st.tuples(st.just("read"), FRACTIONS, FRACTIONS),
    st.tuples(st.just("look")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("kill")),
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {
        "medium": st.sampled_from(["file", "memory", "emulated-dax"]),
        "ordering": st.sampled_from(["strict", "pipelined"]),
        "align": st.sampled_from([8, 64, 512]),
        "size": st.sampled_from([4096, 16384, 131072, 262144]),
        "commit": st.sampled_from(["each", "each", "manual"]),
        "on_full": st.sampled_from(["raise", "overwrite", "wait"]),
    }
)
PROGRAMS = st.lists(STEPS, min_size=1, max_size=25)


def payload(size: int, salt: int, form: str) -> Any:
    """A payload of about this size: always the same bytes for the same salt."""
    data = random.Random(salt).randbytes(size)
    if form == "slice":
        return memoryview(b"x" + data + b"x")[1:-1]
    if form == "numpy":
        return np.frombuffer(data[: size // 8 * 8], np.int32).reshape(2, -1)
    if form == "strided":
        return np.frombuffer(data, np.uint8)[::2]
    if form == "array":
        return array.array("H", data[: size // 2 * 2])
    return {"bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data), "str": "text", "none": None}[form]


def collection(items: list[Any], form: str) -> Any:
    """The items as something that an extend takes."""
    if form == "reused":
        return refilled(items)
    return {"list": list, "tuple": tuple, "iterator": iter, "generator": lambda items: (item for item in items)}[form](items)


def refilled(items: list[Any]) -> Iterator[Any]:
    """The items, each in the same buffer: as a loop over ``readinto`` yields them."""
    buffer = bytearray()
    for item in items:
        with contextlib.suppress(TypeError, ValueError):
            buffer[:] = bytes(item)
        yield buffer


class Player:
    """Runs a program on a log and writes down every answer."""

    def __init__(self, path: Path, options: dict[str, Any], engine: str, seam: Any) -> None:
        self.path, self.options, self.engine, self.seam = path, options, engine, seam
        self.answers: list[Any] = []
        self.note("open", self.open)

    def open(self) -> dict[str, Any]:
        """Open the log with the engine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PMWAL_ENGINE", self.engine)
            wal = open_log(self.path, seam=self.seam, timeout=0.0, **self.options)
        assert isinstance(wal, pmwal.Wal)
        self.wal = wal
        assert wal.stats().engine == self.engine
        return wal.recovery.as_dict() | {"seconds": 0}

    def note(self, what: Any, call: Callable[[], Any]) -> None:
        """Write down what the call returns or raises."""
        try:
            self.answers.append((what, call()))
        except Exception as error:
            self.answers.append((what, type(error), str(error).replace(str(self.path), "PATH")))

    def number(self, fraction: float) -> int:
        """A sequence number around those that the log holds."""
        return self.wal.first_seq + round(fraction * (len(self.wal) + 1))

    def play(self, program: list[tuple[Any, ...]], before_step: Callable[[int], None]) -> None:
        """All steps, and a clean close in the end."""
        for salt, step in enumerate(program):
            before_step(salt)
            self.note(step, lambda step=step, salt=salt: getattr(self, step[0])(salt, *step[1:]))
            self.note("numbers", lambda: (self.wal.first_seq, self.wal.next_seq, self.wal.committed_seq, self.wal.free))
        self.note("stats", self.stats)
        self.note("close", self.wal.close)

    def stats(self) -> dict[str, Any]:
        """The counters that do not depend on the engine."""
        stats = self.wal.stats().as_dict()
        stats["recovery"] |= {"seconds": 0}
        return {key: value for key, value in stats.items() if key not in ("engine", "flush", "commit_latency")}

    def append(self, salt: int, size: int, form: str, kind: Any, commit: Any) -> Any:
        return self.wal.append(payload(size, salt, form), kind=kind, commit=commit)

    def extend(self, salt: int, sizes: list[int], form: str, container: str, kind: Any) -> Any:
        items = [payload(size, salt * 1000 + place, form) for place, size in enumerate(sizes)]
        return self.wal.extend(collection(items, container), kind=kind)

    def batch(self, salt: int, records: list[tuple[int, Any]], fails: bool) -> Any:
        with self.wal.batch() as batch:
            for place, (size, kind) in enumerate(records):
                batch.append(payload(size, salt * 1000 + place, "bytes"), kind=kind)
            if fails:
                raise KeyError(salt)
        return batch.first, batch.last

    def reserve(self, salt: int, size: int, kind: Any) -> Any:
        reservation = self.wal.reserve(size, kind=kind)
        with reservation as view:
            view[: size // 2] = payload(size // 2, salt, "bytes")
        return reservation.seq

    def commit(self, salt: int) -> Any:
        return self.wal.commit()

    def wait_durable(self, salt: int, fraction: float) -> Any:
        return self.wal.wait_durable(self.number(fraction), timeout=0)

    def truncate(self, salt: int, fraction: float) -> Any:
        return self.wal.truncate(self.number(fraction))

    def rollback(self, salt: int, fraction: float) -> Any:
        return self.wal.rollback(self.number(fraction) - 1)

    def read(self, salt: int, start: float, stop: float) -> Any:
        return [repr(record) for record in self.wal.read(self.number(start), self.number(stop))]

    def look(self, salt: int) -> Any:
        return self.stats(), [(record.seq, record.kind, record.time_ns, hash(record.data)) for record in self.wal]

    def reopen(self, salt: int) -> Any:
        self.wal.close()
        return self.open()

    def kill(self, salt: int) -> Any:
        kill(self.wal)
        return self.open()


def images(directory: Path, options: dict[str, Any], program: list[tuple[Any, ...]], make_seam: Callable[[], Any]) -> None:
    """Play the program with each engine and compare everything, the file after each step too."""
    results = []
    for engine in ENGINES:
        path = directory / "log"
        files: list[bytes] = []

        def before_step(number: int, path: Path = path, files: list[bytes] = files) -> None:
            set_clock(NOON + number)
            files.append(image(path))

        set_clock(NOON - 1)
        player = Player(path, options, engine, make_seam())
        player.play(program, before_step)
        files.append(image(path))
        path.unlink()
        results.append((player.answers, files))
    (answers, files), (expected, expected_files) = results
    for (what, *answer), (_, *other) in zip(answers, expected, strict=True):
        assert answer == other, f"{what}: {answer} and not {other}"
    for number, (file, expected_file) in enumerate(zip(files, expected_files, strict=True)):
        if file != expected_file:
            where = [offset for offset in range(len(file)) if file[offset] != expected_file[offset]]
            raise AssertionError(f"before step {number} of {len(program)} the files differ at {where[:20]}, {len(where)} bytes")


SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None, phases=[Phase.generate])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library."""
    return build(tmp_path_factory.mktemp("preload"))


def play_recorded(examples: int) -> str:
    """Random programs through the recording seam."""

    @settings(SETTINGS, max_examples=examples)
    @given(OPTIONS, PROGRAMS)
    def same(options: dict[str, Any], program: list[tuple[Any, ...]]) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            images(Path(directory), options, program, BarrierRecorder)

    same()
    return "same"


def play_directly(examples: int, where: str) -> str:
    """Random programs without a seam, as it ships: only the uuid and the size of the control region are fixed."""

    @settings(SETTINGS, max_examples=examples)
    @given(OPTIONS, PROGRAMS)
    def same(options: dict[str, Any], program: list[tuple[Any, ...]]) -> None:
        options = options | ({} if where == "/dev/shm" else {"medium": "file"})
        with tempfile.TemporaryDirectory(dir=where) as directory:
            images(Path(directory), options, program, lambda: SYSTEM)

    SYSTEM.new_uuid = lambda: bytes(range(16))  # type: ignore[method-assign]
    SYSTEM.control_size = SMALL_CONTROL  # type: ignore[misc]
    same()
    return "same"


def test_both_engines_leave_the_same_file_through_a_seam(library: Path) -> None:
    """Random programs give the same answers and, after every step, the same bytes, each step being one call of the seam."""
    assert run(library, __name__, "play_recorded", EXAMPLES // 2, patience=60 + EXAMPLES) == "same"


def test_both_engines_leave_the_same_file_directly(library: Path) -> None:
    """Random programs give the same answers and, after every step, the same bytes, straight into the mapping."""
    assert run(library, __name__, "play_directly", EXAMPLES, "/dev/shm", patience=60 + EXAMPLES) == "same"


def test_both_engines_leave_the_same_file_on_a_disk(library: Path, tmp_path: Path) -> None:
    """The same where the file lies on a disk, with prefetching and real barriers."""
    assert run(library, __name__, "play_directly", EXAMPLES // 6, str(tmp_path), patience=60 + EXAMPLES) == "same"


@pytest.mark.parametrize("medium", ["file", "emulated-dax"])
def test_comparison_of_the_engines_finds_one_changed_bit(library: Path, medium: str) -> None:
    """The check above can fail: one payload that differs by a bit is seen."""
    with pytest.raises(AssertionError, match="the files differ at"):
        run(library, __name__, "play_with_a_difference", medium)


def play_with_a_difference(medium: str) -> None:
    """A program whose payloads the native engine gets with one bit changed."""
    original = Player.append

    def changed(self: Player, salt: int, *args: Any) -> Any:
        return original(self, salt + (self.engine == "native"), *args)

    Player.append = changed  # type: ignore[method-assign]
    options = {"medium": medium, "size": 16384, "align": 64, "ordering": "strict"}
    SYSTEM.new_uuid = lambda: bytes(range(16))  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        images(Path(directory), options, [("append", 10, "bytes", 0, None)], lambda: SYSTEM)


# -- arguments of the fast path


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
    """What the call returns or raises with this engine, and what the log holds then."""
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
    """``commit`` is no argument of extend, whatever stands before it, and whether or not there is room or anything to store."""
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


# -- code that runs in the middle of a call


@pytest.fixture
def wal(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pmwal.Wal]:
    """A log with the native engine."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    with pmwal.open(shm_dir / "log", size="1MiB", medium="memory") as wal:
        yield wal


@contextlib.contextmanager
def eager_collector(action: Callable[[], Any]) -> Iterator[None]:
    """Run the action at every collection, and collect at every chance."""

    def callback(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            action()

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


@pytest.mark.parametrize("what", ["append", "extend", "large extend", "in another thread"])
def test_append_from_the_garbage_collector_is_a_record_like_others(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A finalizer that logs while an append is under way gets a number and a place of its own, or an exception."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    stored: list[tuple[int, bytes]] = []
    calls: list[Call] = []

    def inner() -> None:
        if what == "in another thread":
            calls.append(Call(lambda: stored.append((wal.append(b"inner"), b"inner"))))
            calls[-1].join(0.02)  # it may have to wait for the call that is under way
        else:
            with contextlib.suppress(pmwal.ReentrantCall):
                stored.append((wal.append(b"inner"), b"inner"))

    with pmwal.open(shm_dir / "log", size="8MiB", medium="memory") as wal:
        with eager_collector(inner):
            for number in range(20):
                items = [b"%d" % number * 5000] * (20 if what == "large extend" else 1)
                first = wal.extend(items)[0] if "extend" in what else wal.append(items[0])
                stored += zip(range(first, first + len(items)), items, strict=True)
        for call in calls:
            call.result()
        assert [(record.seq, record.data) for record in wal] == sorted(stored)
    assert max(item for item in stored if item[1] == b"inner") > (0, b"inner")


def test_buffer_whose_release_runs_code_is_harmless(wal: pmwal.Wal) -> None:
    """A buffer that closes the log, or appends to it, when it goes: the append returns its number, and nothing breaks."""

    class Last(np.ndarray):
        action: Any = None

        def __del__(self) -> None:
            if self.action is not None:
                self.action()

    def view(action: Callable[[], Any]) -> Any:
        base = np.frombuffer(b"data" * 100, np.uint8).view(Last)
        base.action = action
        return memoryview(base)

    numbers: list[int] = []
    for _ in range(10):
        numbers.append(wal.append(view(lambda: numbers.append(wal.append(b"from the end of the buffer")))))
        wal.extend([view(lambda: numbers.append(wal.append(b"more"))), view(lambda: None)])
    assert sorted(set(numbers)) == sorted(numbers)
    wal.append(view(wal.close))
    assert wal.closed


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with 3.12")
@pytest.mark.parametrize("moment", ["__buffer__", "__release_buffer__"])
@pytest.mark.parametrize("call", ["append", "extend", "generator"])
@pytest.mark.parametrize("action", ["close", "append", "truncate", "raise"])
def test_buffer_whose_export_runs_code_is_harmless(wal: pmwal.Wal, moment: str, call: str, action: str) -> None:
    """A buffer that closes the log, appends or raises while it is exported or released leaves a whole log."""
    actions: dict[str, Callable[[], Any]] = {
        "close": wal.close,
        "append": lambda: wal.append(b"inner"),
        "truncate": lambda: wal.truncate(wal.next_seq),
        "raise": lambda: 1 // 0,
    }

    class Exporter:
        def __buffer__(self, flags: int) -> memoryview:
            if moment == "__buffer__":
                actions[action]()
            return memoryview(bytearray(b"outer"))

        def __release_buffer__(self, view: memoryview) -> None:
            if moment == "__release_buffer__":
                actions[action]()

    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: wal.append(Exporter()),
        "extend": lambda: wal.extend([b"a", Exporter()]),
        "generator": lambda: wal.extend(Exporter() for _ in range(2)),
    }
    for _ in range(3):
        with contextlib.suppress(pmwal.WalClosed, ZeroDivisionError):
            calls[call]()
    if not wal.closed:
        assert [record.seq for record in wal] == list(range(wal.first_seq, wal.next_seq))
        assert {record.data for record in wal} <= {b"inner", b"outer", b"a"}


@pytest.mark.parametrize("name", ENGINES)
def test_interrupted_rollback_leaves_no_note_of_where_its_records_were(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An interrupt right after a rollback has taken effect: records stored later are found where they are, and none is damaged.

    Found by a check of the C engine: notes of discarded records stayed in the index, and reads by number began there.
    """
    monkeypatch.setenv("PMWAL_ENGINE", name)
    with pmwal.open(shm_dir / "log", size="1MiB") as wal:
        wal.extend([bytes(2000)] * 60)
        engine = type(wal._engine)
        become = engine._become

        def interrupted(self: Any, state: Any) -> None:
            become(self, state)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_become", interrupted)
            with pytest.raises(KeyboardInterrupt):
                wal.rollback(after=3)
        payloads = [bytes(7 * number) for number in range(100)]
        wal.extend(payloads)
        assert [wal[seq].data for seq in range(4, 104)] == payloads


def test_close_in_another_thread_meets_the_appends_of_all(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that append while one closes get a number or WalClosed, and the log holds exactly what got a number."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    for attempt in range(10):
        path = shm_dir / f"{attempt}"
        wal = pmwal.open(path, size="4MiB", medium=("memory", "file", "emulated-dax")[attempt % 3])
        barrier = threading.Barrier(4)

        def append(wal: pmwal.Wal = wal, barrier: threading.Barrier = barrier) -> list[int]:
            numbers: list[int] = []
            barrier.wait()
            with contextlib.suppress(pmwal.WalClosed):
                while len(numbers) < 20000:
                    numbers.append(wal.append(b"x"))
            return numbers

        calls = [Call(append) for _ in range(3)]
        barrier.wait()
        wal.close()
        numbers = sorted(number for call in calls for number in call.result())
        with pmwal.open(path, "r") as reader:
            assert [record.seq for record in reader] == numbers


# -- limits that the fast path has to leave to the other one


@pytest.mark.parametrize("limit", ["generation", "seq", "position", "epoch"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_end_of_the_numbers_is_the_same_full_log(shm_dir: Path, limit: str, ordering: str) -> None:
    """Near the last generation, number, position or epoch both engines take the same calls and raise the same WalFull."""
    answers = []
    for engine in ENGINES:
        path = shm_dir / engine
        fast_forward(path, limit, ordering)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PMWAL_ENGINE", engine)
            wal = pmwal.open(path, medium="file", ordering=ordering)
        try:
            answers.append(to_the_end(wal))
        finally:
            kill(wal)
    assert answers[0] == answers[1]
    assert any("WalFull" in answer for answer in answers[1][0])


def to_the_end(wal: pmwal.Wal) -> tuple[list[str], list[tuple[int, bytes]]]:
    """What calls answer until the numbers are used up, and what is there then."""
    steps: list[Callable[[], Any]] = [
        *[lambda: wal.append(b"x" * 900)] * 8,
        lambda: wal.extend([b"y"] * 3),
        wal.commit,
        lambda: wal.append(b"z"),
        lambda: wal.truncate(wal.next_seq),
        *[lambda: wal.append(b"x" * 900)] * 8,
        *[lambda: wal.rollback(wal.next_seq - 2)] * 3,
    ]
    noted = []
    for step in steps:
        try:
            noted.append(str(step()))
        except (pmwal.PmwalError, OverflowError, ValueError) as error:
            noted.append(repr(error).replace(wal.path, "PATH"))
    return noted, [(record.seq, record.data) for record in wal]


def fast_forward(path: Path, limit: str, ordering: str) -> None:
    """A log that has nearly used up one of its numbers."""
    pmwal.open(path, size="16KiB", medium="file", ordering=ordering).close()
    block = superblock(path)
    generation, epoch, seq, position = 5000, 5, 10, 0
    if limit == "generation":
        generation = layout.GENERATION_MAX - 10
    if limit == "epoch":
        epoch = layout.EPOCH_MAX - 2
    if limit == "seq":
        seq = layout.SEQ_MAX - 6
    if limit == "position":
        position = (layout.POSITION_MAX - 5000) // 8 * 8
    with path.open("r+b") as file:
        for number in range(generation - block.turn + 1, generation + 1):
            index = layout.slot_index(number, block.control_pages)
            file.seek(layout.slot_offset(index))
            slot = layout.Slot(epoch, number, seq + 1, position, seq, position, seq + 1, layout.SLOT_CLEAN)
            file.write(layout.encode_slot(slot, block.uuid, index))


# -- which engine


HIDDEN = """
import importlib.abc, sys, warnings
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pmwal.native._native":
            raise ImportError("hidden")
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_environment_chooses_the_engine_at_each_open(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """PMWAL_ENGINE is looked at by every open, and stats() says what came of it; unset and empty mean the native one."""
    monkeypatch.setenv("PMWAL_ENGINE", engine)
    with pmwal.open(shm_dir / "log", size="64KiB") as wal:
        assert wal.stats().engine == engine
    monkeypatch.setenv("PMWAL_ENGINE", "")
    with pmwal.open(shm_dir / "log") as wal:
        assert wal.stats().engine == "native"
    monkeypatch.delenv("PMWAL_ENGINE")
    with pmwal.open(shm_dir / "log") as wal:
        assert wal.stats().engine == "native"


@pytest.mark.parametrize("mode", ["a", "r"])
def test_unknown_engine_is_refused(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Another value of PMWAL_ENGINE is a ValueError that names both, and nothing is created or locked by it."""
    pmwal.open(shm_dir / "log", size="64KiB").close()
    monkeypatch.setenv("PMWAL_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="PMWAL_ENGINE must be one of native, python, not 'nonsense'"):
        pmwal.open(shm_dir / "log", mode)
    with pytest.raises(ValueError, match="PMWAL_ENGINE"):
        pmwal.open(shm_dir / "other", size="64KiB")
    assert not (shm_dir / "other").exists()
    monkeypatch.delenv("PMWAL_ENGINE")
    pmwal.open(shm_dir / "log").close()


@pytest.mark.parametrize("variables", [{"PMWAL_REQUIRE_NATIVE": "1"}, {"PMWAL_ENGINE": "native"}])
def test_missing_engine_that_is_demanded_is_an_error(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Without the extension an open raises ImportError that says what to do, and creates nothing."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = run_script(
        HIDDEN
        + """
import pmwal
try:
    pmwal.open(sys.argv[1], size="64KiB")
except ImportError as error:
    print(error)
""",
        shm_dir / "log",
    )
    assert "native engine is missing" in done.stdout, done.stderr
    assert "compiler" in done.stdout
    assert "install" in done.stdout
    assert not (shm_dir / "log").exists()


def test_missing_engine_says_why(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that is there and cannot be loaded is not called missing: the reason is told."""
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    hidden = HIDDEN.replace("hidden", "undefined symbol: strange")
    done = run_script(hidden + "import pmwal; pmwal.open(sys.argv[1])", shm_dir / "log")
    assert "ImportError" in done.stderr
    assert "undefined symbol: strange" in done.stderr


def test_missing_engine_is_one_warning(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension the Python engine works after one RuntimeWarning, shown by default and for the caller's line."""
    monkeypatch.delenv("PMWAL_REQUIRE_NATIVE", raising=False)
    done = run_script(
        HIDDEN
        + """
import pmwal
for number in range(3):
    with pmwal.open(sys.argv[1], size="64KiB") as wal:
        wal.append(b"x")
    with pmwal.open(sys.argv[1], "r") as reader:
        records = list(reader)
def elsewhere():
    pmwal.open(sys.argv[1]).close()
elsewhere()
print(wal.stats().engine, len(records), records[0].data)
""",
        shm_dir / "log",
    )
    assert done.stdout == "python 3 b'x'\n", done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "PMWAL_ENGINE=python" in done.stderr


def test_chosen_python_engine_needs_no_extension_and_no_warning(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PMWAL_ENGINE=python is silent without the extension, also when the native one is required by default."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    done = run_script(
        HIDDEN
        + """
import pmwal
with pmwal.open(sys.argv[1], size="64KiB") as wal:
    print(wal.append(b"x"), wal.stats().engine)
""",
        shm_dir / "log",
    )
    assert (done.stdout, done.stderr) == ("1 python\n", "")


def test_methods_of_the_native_handle_explain_themselves(wal: pmwal.Wal) -> None:
    """help() and inspect.signature() say of the fast methods what they say of the others."""
    for name in ("append", "extend", "commit"):
        assert getattr(wal, name).__doc__, name
        assert str(inspect.signature(getattr(wal, name))), name


# -- records


class PythonRecord(_PlainRecord):
    """What Record is without the extension."""

    __slots__ = ()
    __match_args__ = ("seq", "kind", "time_ns", "data")


PythonRecord.__name__ = PythonRecord.__qualname__ = "Record"
RECORDS = {"native": pmwal.Record, "python": PythonRecord}


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_a_value(name: str) -> None:
    """Equal, hashed, shown, matched and copied by value, and it cannot be changed."""
    make: Any = RECORDS[name]
    record = make(seq=1, kind=2, time_ns=-3, data=b"four")
    same = make(1, 2, -3, b"four")
    assert record == same
    assert hash(record) == hash(same) == hash((1, 2, -3, b"four"))
    assert record == same
    for other in ((2, 2, -3, b"four"), (1, 3, -3, b"four"), (1, 2, 3, b"four"), (1, 2, -3, b"five")):
        assert record != make(*other)
    assert record != (1, 2, -3, b"four")
    assert record != "x"
    with pytest.raises(TypeError):
        assert record < same
    assert repr(record) == "Record(seq=1, kind=2, time_ns=-3, data=b'four')"
    match record:
        case make(seq, kind, time_ns, data):
            assert (seq, kind, time_ns, data) == (1, 2, -3, b"four")
        case _:
            pytest.fail("no match")
    assert copy.copy(record) == copy.deepcopy(record) == record
    assert {record: 1}[same] == 1
    for change in (lambda: setattr(record, "seq", 2), lambda: setattr(record, "new", 2), lambda: delattr(record, "data")):
        with pytest.raises((AttributeError, TypeError)):
            change()
    assert not hasattr(record, "__dict__")


def test_record_goes_through_pickle() -> None:
    """Every protocol gives back an equal record of the same class."""
    record = pmwal.Record(seq=2**64 - 1, kind=65535, time_ns=-(2**63), data=bytes(range(256)))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(record, protocol))
        assert type(again) is pmwal.Record
        assert again == record


@pytest.mark.parametrize(
    "values",
    [(-1, 0, 0, b""), (2**64, 0, 0, b""), (1, -1, 0, b""), (1, 65536, 0, b""), (1, 2**40, 0, b""), (1, 0, 2**63, b""),
     ("1", 0, 0, b""), (1, "0", 0, b""), (1, 0, 0.5, b""), (1, 0, 0, "text"), (1, 0, 0, None), (1, 0, 0)],
)  # fmt: skip
def test_impossible_record_is_refused(values: tuple[Any, ...]) -> None:
    """A number that no record can have is an ordinary exception."""
    with pytest.raises((ValueError, TypeError, OverflowError)):
        pmwal.Record(*values)


def test_subclass_of_record_compares_with_its_own() -> None:
    """A user's subclass keeps its class through a copy, and is equal to its own kind only, as with a dataclass."""

    class Mine(pmwal.Record):
        """A user's record."""

    assert Mine(1, 2, 3, b"x") == Mine(1, 2, 3, b"x")
    assert Mine(1, 2, 3, b"x") != pmwal.Record(1, 2, 3, b"x")
    assert type(copy.copy(Mine(1, 2, 3, b"x"))) is Mine


# -- the C sources


@pytest.fixture
def tool() -> Any:
    """tools/make_format_header.py as a module."""
    spec = importlib.util.spec_from_file_location("make_format_header", ROOT / "tools" / "make_format_header.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_checkout
def test_header_of_the_format_is_up_to_date(tool: Any) -> None:
    """pmwal/native/format.h is what pmwal/format/layout.py makes."""
    assert tool.main(["--check"]) == 0


@needs_checkout
@pytest.mark.parametrize("what", ["constant", "field", "order"])
def test_check_of_the_header_sees_a_changed_layout(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """The check above can fail, and says what to run."""
    if what == "constant":
        monkeypatch.setattr(tool, "CONSTANTS", [(name, value + (name == "POINTER_LAG_MAX")) for name, value in tool.CONSTANTS])
    else:
        fields = list(layout.SLOT.fields)
        fields = fields[1::-1] + fields[2:] if what == "order" else [*fields[:-1], layout.Field("reserved", "Q", "zero")]
        monkeypatch.setattr(tool, "STRUCTS", (("slot", layout.Structure("commit slot", *fields)), *tool.STRUCTS[1:]))
    assert tool.main(["--check"]) == 1
    assert "make_format_header.py" in capsys.readouterr().err


@needs_checkout
@pytest.mark.parametrize(("compiler", "flag"), [("gcc", "-O2"), ("gcc", "-DPMWAL_CHECKS"), ("clang", "-O2"), ("clang", "-DNDEBUG")])
def test_sources_compile_without_a_warning(compiler: str, flag: str) -> None:
    """-Wall -Wextra -Werror is silent with each compiler that is here, with and without assertions and checks."""
    include = Path(sysconfig.get_path("include"))
    if shutil.which(compiler) is None or not (include / "Python.h").exists():
        pytest.skip(f"no {compiler}, or no Python.h")
    sources = sorted((ROOT / "pmwal" / "native").glob("*.c"))
    assert len(sources) > 5
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", flag, f"-I{include}", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_checkout
@pytest.mark.parametrize(("flags", "builds"), [("-Werror -DNDEBUG -O0", True), ("-DPyInit__native=(", False)])
def test_flags_for_the_compiler_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, builds: bool) -> None:
    """PMWAL_CFLAGS goes to the compiler, and with PMWAL_REQUIRE_NATIVE=1 an extension that cannot be built is an error."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no Python.h")
    monkeypatch.setenv("PMWAL_CFLAGS", flags)
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    shutil.copytree(ROOT / "pmwal", tmp_path / "pmwal", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "built"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == builds, done.stderr
    assert bool(list(tmp_path.glob("built/pmwal/native/_native*.so"))) == builds


def test_checksum_is_crc32c() -> None:
    """The hardware's way, the table's way and the crc32c package agree over lengths, alignments and starts."""
    rng = random.Random(5)
    data = rng.randbytes(1 << 16)
    lengths = [*range(70), *range(120, 136), *range(376, 400), 1023, 1024, 3071, 3072, 3073, 4096, 9999, 1 << 15]
    assert _native.crc32c(b"123456789") == 0xE3069283
    for length in lengths + [rng.randrange(1 << 15) for _ in range(50)]:
        for start in (0, 1, 7, rng.randrange(64)):
            piece, seed = memoryview(data)[start : start + length], rng.choice((0, 1, 0xFFFFFFFF, rng.getrandbits(32)))
            expected = crc32c.crc32c(piece, seed)
            assert _native.crc32c(piece, seed) == expected, (length, start)
            assert _native.crc32c(piece, seed, True) == expected, (length, start)
            cut = rng.randrange(length + 1)
            assert _native.crc32c(piece[cut:], _native.crc32c(piece[:cut], seed)) == expected
