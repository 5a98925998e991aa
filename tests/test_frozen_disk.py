"""A thread in a store on a disk that does not answer: other threads run, and nothing that they begin meanwhile goes wrong.

The functions without ``test_`` in front run in fresh interpreters, over a preloaded library whose disk can be frozen
(tests/preload.py), or, as rigs, on an ext4 of their own that fsfreeze(8) freezes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import Call, until
from preload import run
from support import payloads

pytestmark = pytest.mark.both_engines

WARM_UP = 70
HELD = 0.06  # seconds after which no barrier keeps the interpreter because of what was before
LENGTHS = [100, 100_000, 1_500_000]
HELD_LENGTH = 1 << 20  # above that a durable append is more than one call in C


class Shim:
    """The disk of the preloaded library."""

    def __init__(self) -> None:
        ctypes.CDLL(None).shim_be_lazy()

    def freeze(self) -> None:
        """From now on it does not answer."""
        ctypes.CDLL(None).shim_freeze(1)

    def thaw(self) -> None:
        """It answers again."""
        ctypes.CDLL(None).shim_freeze(0)

    def blocked(self) -> bool:
        """Whether a thread waits for it."""
        return bool(ctypes.CDLL(None).shim_blocked())


class Frozen:
    """A real file system. A process that runs before it is frozen thaws it: this one may be unable to start another until then."""

    def __init__(self, path: str) -> None:
        self.path = os.path.dirname(path)
        self.guardian: subprocess.Popen[bytes] | None = None

    def freeze(self) -> None:
        """From now on it does not answer, for at most 30 seconds."""
        command = ["sh", "-c", 'timeout 30 cat; fsfreeze -u "$1"', "guardian", self.path]
        self.guardian = subprocess.Popen(command, stdin=subprocess.PIPE)
        subprocess.run(["fsfreeze", "-f", self.path], check=True)

    def thaw(self) -> None:
        """It answers again."""
        assert self.guardian is not None
        self.guardian.communicate()
        assert self.guardian.returncode == 0

    def blocked(self) -> bool:
        """Whether a thread waits for it: in a sleep that nothing interrupts."""
        states = (Path(f"/proc/self/task/{task}/stat").read_text() for task in os.listdir("/proc/self/task"))
        return any(state.rpartition(")")[2].split()[0] == "D" for state in states)


class Scene:
    """A log, and a thread that is in a store of this many bytes on the frozen disk when ``during`` is called."""

    def __init__(self, path: str, length: int, real: bool) -> None:
        self.path = path
        self.disk: Any = Frozen(path) if real else Shim()
        self.data = b"A" * length
        self.wal = pmwal.open(path, size="8MiB")
        self.first = 0

    def prepare(self) -> None:
        """What the thread does before the disk is frozen."""

    def store(self) -> int:
        """What the thread does."""
        return self.wal.append(self.data)

    def during(self, action: Callable[[], Any]) -> tuple[Call, Any]:
        """The thread's call, and what the action returned while the disk was frozen."""
        ready, go = threading.Event(), threading.Event()

        def body() -> int:
            for _ in range(WARM_UP):  # it commits alone
                self.wal.append(b"warm")
            time.sleep(HELD)
            self.prepare()
            ready.set()
            go.wait()
            return self.store()

        call = Call(body)
        ready.wait()
        self.first = self.wal.next_seq
        self.disk.freeze()
        try:
            go.set()
            until(self.disk.blocked)
            return call, action()
        finally:
            self.disk.thaw()

    def kept(self) -> list[bytes]:
        """What the log holds, without the warm-up, after a close and a recovery."""
        self.wal.close()
        assert pmwal.verify(self.path).case == "R1"
        with pmwal.open(self.path, "r") as reader:
            return payloads(reader)[WARM_UP:]


def still_waits(call: Call) -> Call:
    """A call that has begun and not ended."""
    time.sleep(0.02)
    assert call.is_alive()
    return call


def batch_and_reserve(path: str, length: int, real: bool) -> None:
    """They wait, and get numbers after that of the store."""
    scene = Scene(path, length, real)

    def batch() -> tuple[int, int]:
        with scene.wal.batch() as batch:
            told = batch.append(b"B")
        return told, batch.first

    def reserve() -> int:
        reservation = scene.wal.reserve(1)
        with reservation as view:
            view[:] = b"R"
        return reservation.seq

    store, (batching, reserving) = scene.during(lambda: (still_waits(Call(batch)), still_waits(Call(reserve))))
    assert store.result() == scene.first
    told, first = batching.result()
    assert told == first
    assert {told, reserving.result()} == {scene.first + 1, scene.first + 2}
    assert scene.wal[told].data == b"B"
    assert sorted(scene.kept()) == sorted([scene.data, b"B", b"R"])


def store_beside(path: str, length: int, real: bool) -> None:
    """A thread that had to wait for its turn stores beside the barrier of another one."""

    class Commit(Scene):
        def prepare(self) -> None:
            self.wal.append(b"committed", commit=False)

        def store(self) -> int:
            return self.wal.commit()

    scene = Commit(path, length, real)

    def queue() -> Call:
        with scene.wal._engine.writing:
            return still_waits(Call(lambda: scene.wal.append(scene.data, commit=False)))

    commit, waiting = scene.during(queue)
    assert commit.result() == scene.first - 1
    assert waiting.result() == scene.first
    assert scene.kept() == [b"committed", scene.data]


def close(path: str, length: int, real: bool) -> None:
    """It waits for the store, which ends as if there had been no close."""
    scene = Scene(path, length, real)
    store, closing = scene.during(lambda: still_waits(Call(scene.wal.close)))
    assert store.result() == scene.first
    closing.result()
    assert scene.kept() == [scene.data]


def fork(path: str, length: int, real: bool) -> None:
    """The child is refused, logs and exits, and waits for no lock that a thread of its parent holds."""
    scene = Scene(path, length, real)
    handler = pmwal.LogHandler(f"{path}.logged", size="64KiB")
    logger = logging.getLogger("frozen")
    logger.addHandler(handler)
    batch = scene.wal.batch()

    def in_child() -> int:
        child = os.fork()
        if child:
            return child
        signal.alarm(20)
        logging.raiseExceptions = False
        refused = 0
        calls: list[Callable[[], Any]] = [
            lambda: scene.wal.append(b"child"),
            lambda: scene.wal.append(b"child" * 20_000),
            lambda: scene.wal.extend([b"child"]),
            scene.wal.commit,
            batch.__enter__,
            lambda: scene.wal.truncate(2),
        ]
        for call in calls:
            try:
                call()
            except pmwal.ForkedWal:
                refused += 1
        logger.error("in the child")
        logging.shutdown()
        scene.wal.close()
        os._exit(refused)

    store, child = scene.during(lambda: os.waitstatus_to_exitcode(os.waitpid(in_child(), 0)[1]))
    assert (store.result(), child) == (scene.first, 6)
    logger.error("in the parent")
    handler.close()
    with pmwal.open(f"{path}.logged", "r") as reader:
        assert [b"parent" in data for data in payloads(reader)] == [True]
    assert scene.kept() == [scene.data]


def signals(path: str, length: int, real: bool) -> None:
    """A signal arrives during the store of the main thread; its handler appends afterwards, or is refused inside Python."""
    scene = Scene(path, length, real)
    for _ in range(WARM_UP):
        scene.wal.append(b"warm")
    seen: list[int] = []
    refused: list[bool] = []

    def handle(*_: object) -> None:
        try:
            seen.append(scene.wal.append(b"H"))
        except pmwal.ReentrantCall:
            refused.append(scene.wal.stats().engine == "python" or length > HELD_LENGTH)

    signal.signal(signal.SIGUSR1, handle)
    time.sleep(HELD)
    scene.disk.freeze()

    def send() -> None:
        try:
            until(scene.disk.blocked)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.02)
        finally:
            scene.disk.thaw()

    sending = Call(send)
    assert scene.store() == WARM_UP + 1
    sending.result()
    until(lambda: bool(seen or refused))
    assert all(refused)
    if refused:
        seen.append(scene.wal.append(b"H"))
    assert seen == [WARM_UP + 2]
    assert scene.kept() == [scene.data, b"H"]


def interrupt(path: str, length: int, real: bool) -> None:
    """KeyboardInterrupt comes after the store, which is whole, and no lock stays taken.

    In the engine in Python it may come between the store and the step that makes the record part of the log.
    """
    scene = Scene(path, length, real)
    for _ in range(WARM_UP):
        scene.wal.append(b"warm")
    time.sleep(HELD)
    scene.disk.freeze()

    def send() -> None:
        try:
            until(scene.disk.blocked)
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            scene.disk.thaw()

    interrupted, sending = False, Call(send)
    try:
        scene.store()
        sending.result()
        time.sleep(0.1)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    seq = Call(lambda: scene.wal.append(b"next")).result()
    stored = [] if seq == WARM_UP + 1 and scene.wal.stats().engine == "python" else [scene.data]
    assert seq == WARM_UP + 1 + len(stored)
    assert scene.kept() == [*stored, b"next"]


def failure(path: str, length: int, real: bool) -> None:
    """The disk fails when it is thawed: the store raises, and so does what waited for it."""
    scene = Scene(path, length, real)

    def batch() -> None:
        with scene.wal.batch() as batch:
            batch.append(b"B")

    def wait_and_fail() -> Call:
        waiting = still_waits(Call(batch))
        ctypes.CDLL(None).shim_fail(ctypes.c_int(errno.EIO))
        return waiting

    for call in scene.during(wait_and_fail):
        with pytest.raises(pmwal.PersistError) as caught:
            call.result()
        assert (caught.value.errno, caught.value.committed_seq) == (errno.EIO, WARM_UP)
    scene.wal.close()


SCENES = {function.__name__: function for function in (batch_and_reserve, close, fork, signals, interrupt)}
NO_FREEZE = {function.__name__: function for function in (failure, store_beside)}
"""What freezing a file system cannot bring about: it writes all records first, and then nothing fails."""


def scene(name: str, path: str, length: int, real: bool) -> None:
    """One of them, in an interpreter of its own."""
    sys.setswitchinterval(0.005)
    {**SCENES, **NO_FREEZE}[name](path, length, real)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", [*SCENES, *NO_FREEZE])
def test_others_run_while_a_thread_stores(library: Path, tmp_path: Path, name: str, length: int) -> None:
    """Whether the store is one call, or many, or through the mapping."""
    run(library, __name__, "scene", name, str(tmp_path / "log"), length, False)


def late_returns(path: str, computed_ns: int) -> list[bool]:
    """Whether the interpreter is held after each of three commits whose returns are late, while the process computed so long."""
    library = ctypes.CDLL(None)
    with pmwal.open(path, size="64KiB") as wal:
        for _ in range(WARM_UP):
            wal.append(b"warm")
        held = []
        library.shim_step(ctypes.c_longlong(1_500_000), ctypes.c_longlong(computed_ns))
        for _ in range(3):
            wal.append(b"late")
            held.append(wal._engine.core.hold_until_ns > 0)  # type: ignore[attr-defined]
        library.shim_step(ctypes.c_longlong(0), ctypes.c_longlong(0))
        return held


@pytest.mark.native_engine
def test_interpreter_is_held_only_after_returns_that_a_computing_thread_delayed(library: Path, tmp_path: Path) -> None:
    """Two of them; on a busy machine any return may be late."""
    assert run(library, __name__, "late_returns", str(tmp_path / "busy"), 0) == [False, False, False]
    assert run(library, __name__, "late_returns", str(tmp_path / "beside"), 2_000_000) == [False, True, True]


def held_until(path: str, computed_ns: int, own_seconds: float) -> list[int]:
    """Until when the interpreter is held after each of 100 commits, 1.5 ms or more after one another.

    The process computes so long between two of them; this thread really does, for its share of that.
    """
    library = ctypes.CDLL(None)
    with pmwal.open(path, size="64KiB") as wal:
        for _ in range(WARM_UP):
            wal.append(b"warm")
        library.shim_step(ctypes.c_longlong(1_500_000), ctypes.c_longlong(2_000_000))
        for _ in range(2):
            wal.append(b"late")
        assert wal._engine.core.hold_until_ns > 0  # type: ignore[attr-defined]
        library.shim_step(ctypes.c_longlong(1_500_000), ctypes.c_longlong(computed_ns))
        ends = []
        for _ in range(100):
            end = time.thread_time() + own_seconds
            while time.thread_time() < end:
                pass
            wal.append(b"kept")
            ends.append(wal._engine.core.hold_until_ns)  # type: ignore[attr-defined]
        library.shim_step(ctypes.c_longlong(0), ctypes.c_longlong(0))
        return ends


@pytest.mark.native_engine
def test_interpreter_is_held_longer_after_each_turn_of_a_computing_thread(library: Path, tmp_path: Path) -> None:
    """Nothing is released to find out whether it still computes. A pause in which no other thread did shows nothing."""
    beside = run(library, __name__, "held_until", str(tmp_path / "beside"), 2_000_000, 0.0)
    assert len(set(beside)) == 100
    assert all(beside)
    pauses = run(library, __name__, "held_until", str(tmp_path / "pauses"), 0, 0.0)
    assert len(set(pauses)) == 2, "one end, and then it is released"
    assert pauses[32:] == [0] * 68
    own = run(library, __name__, "held_until", str(tmp_path / "own"), 2_000_000, 0.003)
    assert len(set(own)) < 34, "only a late return shows that another thread computes"


@pytest.fixture
def frozen_path(tmp_path: Path) -> Iterator[Path]:
    """A path on an ext4 of its own."""
    if os.geteuid() or not all(map(shutil.which, ("mkfs.ext4", "fsfreeze", "mount"))):
        pytest.skip("needs root, e2fsprogs and util-linux")
    image, where = tmp_path / "image", tmp_path / "mounted"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, where], check=False).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        yield where / "log"
    finally:
        subprocess.run(["fsfreeze", "-u", where], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", where], check=True)


@pytest.mark.rigs
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", SCENES)
def test_others_run_while_a_thread_stores_on_a_frozen_file_system(frozen_path: Path, library: Path, name: str, length: int) -> None:
    """A file system lets also the first store into a page wait."""
    if name == "fork" and os.environ.get("PMWAL_ENGINE") == "python":
        pytest.skip("fork(2) waits for a page fault of another thread, and the engine in Python stores through the mapping")
    run(library, __name__, "scene", name, str(frozen_path), length, True)


@pytest.mark.rigs
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("commit", [True, False])
def test_others_run_while_a_thread_stores_into_a_page(frozen_path: Path, commit: bool, waits: bool) -> None:
    """Where threads commit together, or nothing is committed, a record is stored through the mapping.

    So it is by a thread that had to wait for its turn.
    """
    with pmwal.open(frozen_path, size="4MiB") as wal:
        for _ in range(3):
            wal.append(b"warm")
        time.sleep(HELD)
        disk = Frozen(str(frozen_path))
        disk.freeze()
        try:
            with wal._engine.writing if waits else contextlib.nullcontext():
                call = Call(lambda: wal.append(b"mapped", commit=commit))
                if waits:
                    still_waits(call)
            until(disk.blocked)
            still_waits(call)
        finally:
            disk.thaw()
        assert call.result() == 4


@pytest.mark.rigs
@pytest.mark.parametrize("name", ["rollback", "truncate", "close"])
def test_memory_is_mapped_while_a_thread_stores_a_slot(frozen_path: Path, name: str) -> None:
    """A new thread needs a stack of its own, for which the kernel locks the address space."""
    wal = pmwal.open(frozen_path, size="8MiB")
    for _ in range(20):
        wal.append(b"record")
    wal.close()
    wal = pmwal.open(frozen_path)  # its mapping is new, and no page of it was used
    wal.append(b"last")
    call: Callable[[], object] = {
        "rollback": lambda: wal.rollback(after=18),
        "truncate": lambda: wal.truncate(before=18),
        "close": wal.close,
    }[name]
    disk = Frozen(str(frozen_path))
    disk.freeze()
    try:
        changing = Call(call)
        until(disk.blocked)
        others = [threading.Thread(target=mmap.mmap, args=(-1, 1 << 20)) for _ in range(3)]
        for other in others:
            other.start()
        for other in others:
            other.join()
        still_waits(changing)
    finally:
        disk.thaw()
    changing.result()
    wal.close()
    assert pmwal.verify(frozen_path).case == "R1"
