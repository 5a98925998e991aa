"""Random programs of calls, played with both engines: the answers and the files are compared.

The functions named play_... run in a fresh interpreter with tests/preload.c preloaded, which stops the clock.
"""

from __future__ import annotations

import array
import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pmwal
from pmwal.native.choice import ENGINES, STORES
from pmwal.opening import open_log
from pmwal.storage.seam import SYSTEM
from preload import set_clock
from support import SMALL_CONTROL, BarrierRecorder, image, kill

NOON = 1_700_000_000_000_000_000

# -- programs


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
        "stores": st.sampled_from(STORES),
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
        self.path, self.options, self.engine, self.seam = path, dict(options), engine, seam
        self.stores = self.options.pop("stores", "")
        self.answers: list[Any] = []
        self.note("open", self.open)

    def open(self) -> dict[str, Any]:
        """Open the log with the engine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PMWAL_ENGINE", self.engine)
            patch.setenv("PMWAL_STORES", self.stores)
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
        """A sequence number in or near the range in the log."""
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

# -- what runs beside the preloaded library


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
