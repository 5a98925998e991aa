"""A file that is shortened under its handle, at every place and before every call: an error with both engines, never a SIGBUS.

What would end the process runs in fresh interpreters.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.opening import open_log
from pmwal.storage.seam import Seam
from processes import run_script
from support import BarrierRecorder, Step

pytestmark = pytest.mark.both_engines

CALLS = """
import json, os, sys
import numpy, pmwal

PAGE = 4096

def stage(wal):
    with wal.batch() as batch:
        batch.append(b"x")

def fill(wal):
    with wal.reserve(5) as view:
        view[:] = b"hello"

READING = {
    "read": lambda log: list(log.read()),
    "iterate": lambda log: list(log),
    "begun": lambda log: list(begun),
    "index": lambda log: log[5],
    "read_array": lambda log: log.read_array("S1000", 1, 10),
    "follow": lambda log: list(log.follow(timeout=0.01)),
    "follow from the end": lambda log: list(log.follow(end, timeout=0.01)),
    "len": len,
    "first_seq": lambda log: log.first_seq,
    "committed_seq": lambda log: log.committed_seq,
    "stats": lambda log: log.stats().used,
    "recovery": lambda log: log.recovery.outcome,
    "repr": repr,
    "close": lambda log: log.close(),
}
WRITING = {
    "append": lambda wal: wal.append(b"x"),
    "append without commit": lambda wal: wal.append(b"x", commit=False),
    "large append": lambda wal: wal.append(bytes(40000)),
    "extend": lambda wal: wal.extend([b"x", bytearray(b"y")]),
    "extend_array": lambda wal: wal.extend_array(numpy.zeros((3, 100))),
    "batch": stage,
    "reserve": fill,
    "commit": lambda wal: wal.commit(),
    "wait_durable": lambda wal: wal.wait_durable(wal.next_seq - 1),
    "truncate": lambda wal: wal.truncate(wal.first_seq + 2),
    "truncate all": lambda wal: wal.truncate(wal.next_seq),
    "rollback": lambda wal: wal.rollback(wal.next_seq - 3),
    "exit": lambda wal: wal.__exit__(None, None, None),
}

def met(call, log):
    try:
        call(log)
    except pmwal.PmwalError:
        return "documented"
    except BaseException as error:
        return repr(error)
    return "returned"

def sizes(block):
    return [0, PAGE, 2 * PAGE, block.ring_offset, block.ring_offset + PAGE, block.file_size - 1]

LAST = 5  # the pages that an append needs are still there, and only a barrier by msync looks at the size

path, medium = sys.argv[1:]
wrong, returned = [], set()
for size in range(6):
    for kind in ("wal", "reader", "reader beside a writer"):
        for name, call in (READING | WRITING if kind == "wal" else READING).items():
            wal = pmwal.open(path, size="96KiB", medium=medium)
            wal.extend([bytes(1000)] * 20)
            end = wal.next_seq
            if kind == "reader":
                wal.close()
            log = wal if kind == "wal" else pmwal.open(path, "r")
            if kind == "wal":
                wal.append(b"pending", commit=False)
            begun = log.read()
            next(begun)
            os.truncate(path, sizes(wal._engine.block)[size])
            answer = met(call, log)
            noticed = medium == "file" or size < LAST
            if answer == "returned" and noticed:
                returned.add(name)
            after = met(lambda wal: wal.append(b"after"), wal)
            if answer not in ("documented", "returned") or (after != "documented" and noticed):
                wrong.append([size, kind, name, answer, after])
            begun = None
            met(lambda log: log.close(), log)
            met(lambda wal: wal.close(), wal)
            os.unlink(path)
    for mode in ("a", "r+", "r", "verify"):
        wal = pmwal.open(path, size="96KiB", medium=medium)
        wal.extend([bytes(1000)] * 20)
        wal.close()
        os.truncate(path, sizes(wal._engine.block)[size])
        answer = met(lambda _: pmwal.verify(path) if mode == "verify" else pmwal.open(path, mode), None)
        if answer != "documented":
            wrong.append([size, mode, answer])
        os.unlink(path)
print(json.dumps([wrong, sorted(returned)]))
"""

HARMLESS = {"append", "append without commit", "begun", "close", "committed_seq", "extend", "first_seq", "follow",
            "follow from the end", "index", "iterate", "len", "read", "read_array", "recovery", "repr", "stats"}  # fmt: skip
"""Calls that may return: they need nothing of the missing part, or nothing of the file."""

DURABLE = {"append", "extend"}
"""Those of them that acknowledge: none may return."""


@pytest.mark.slow
@pytest.mark.parametrize("medium", ["memory", "file", "emulated-dax"])
def test_every_public_call_raises_a_documented_error(shm_dir: Path, medium: str) -> None:
    """Wal and Reader, at six sizes: a ``PmwalError`` or an answer that needs nothing of the missing part, and no append."""
    done = run_script(CALLS, shm_dir / "log", medium)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    wrong, returned = json.loads(done.stdout)
    assert wrong == []
    assert set(returned) <= HARMLESS - DURABLE


class Shortener(BarrierRecorder):
    """Shortens the file before one step of a call."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__()
        self._path = path
        self._size = size
        self.left = -1
        self.before = self._step

    def _step(self, _: Step) -> None:
        self.left -= 1
        if self.left == 0:
            os.truncate(self._path, self._size)


OPERATIONS: dict[str, Any] = {
    "append": lambda wal: wal.append(b"x" * 300),
    "extend": lambda wal: wal.extend([b"x" * 300] * 3),
    "commit": lambda wal: wal.append(b"x", commit=False) and wal.commit(),
    "truncate": lambda wal: wal.truncate(before=wal.next_seq - 2),
    "rollback": lambda wal: wal.rollback(after=wal.next_seq - 3),
    "close": lambda wal: wal.close(),
}


@pytest.mark.parametrize("size", [0, 4096, 8192, 16384])
@pytest.mark.parametrize("medium", ["memory", "file", "emulated-dax"])
def test_file_that_is_shortened_inside_a_call(shm_dir: Path, medium: str, size: int) -> None:
    """Before each step of each operation, and of the open: the call raises PersistError or FormatError, or has ended before."""
    path = shm_dir / "log"
    for name, operation in OPERATIONS.items():
        step, met = 0, True
        while met:
            step += 1
            seam = Shortener(path, size)
            with open_log(path, seam=seam, size="16KiB", medium=medium) as wal:
                wal.extend([bytes(100)] * 10)
                seam.left = step
                found = None
                try:
                    operation(wal)
                except pmwal.PersistError as error:
                    found = error.errno
                assert found in (None, errno.EIO), f"{name}, step {step}"
                met = seam.left <= 0
                seam.left = -1
                if met and not wal.closed:
                    with pytest.raises(pmwal.PersistError):
                        wal.append(b"after")
            path.unlink()
        assert step > 1, name


@pytest.mark.parametrize("size", [0, 4096, 8192, 16384])
def test_file_that_is_shortened_inside_an_open(shm_dir: Path, size: int) -> None:
    """Before each step of a recovery: a documented error, and no step stores into what is gone or extends the file."""
    path = shm_dir / "log"
    with open_log(path, seam=BarrierRecorder(), size="16KiB", medium="file") as wal:
        wal.extend([bytes(100)] * 10)
    image, step, met = path.read_bytes(), 0, True
    while met:
        step += 1
        path.write_bytes(image)
        seam = Shortener(path, size)
        seam.left = step
        try:
            open_log(path, seam=seam, size="16KiB", medium="file").close()
            met = False
        except (pmwal.PersistError, pmwal.FormatError):
            assert path.stat().st_size == size
    assert step > 5


class ShortensAtSync(Seam):
    """Shortens the file between the look at its size and the mapping."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def sync_file(self, fd: int) -> None:
        os.truncate(self._path, self._size)
        super().sync_file(fd)


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 20000])
def test_file_that_is_shortened_between_look_and_mapping(shm_dir: Path, size: int) -> None:
    """mmap looks at the size again, and its ValueError is none for the caller of open."""
    path = shm_dir / "log"
    pmwal.open(path, size="16KiB").close()
    with pytest.raises((pmwal.PersistError, pmwal.FormatError), match="shortened"):
        open_log(path, seam=ShortensAtSync(path, size))
    assert path.stat().st_size == size


def test_fault_between_the_look_and_the_access_is_an_error(shm_dir: Path, engine: str) -> None:
    """With the size check blinded every load and store faults: open, calls and close raise, and the interpreter lives."""
    done = run_script(
        """
import contextlib, os, sys
import pmwal
from pmwal.storage.mapping import Mapping
path, = sys.argv[1:]
Mapping.check_size = lambda self: None
seen = []
def met(call):
    try:
        return call()
    except pmwal.PersistError as error:
        seen.append(error.errno)
calls = (
    lambda wal: list(wal.read()),
    lambda wal: wal.truncate(wal.next_seq),
    lambda wal: wal.rollback(2),
    lambda wal: wal.append(b"x"),
    lambda wal: wal.commit(),
    lambda wal: wal.read_array("S1", 1, 3),
    lambda wal: wal.close(),
)
for size in (0, 4096, 8192, 16384):
    for call in calls:
        wal = pmwal.open(path, size="64KiB", medium="memory")
        wal.extend([b"x"] * 5)
        wal.append(b"x", commit=False)
        os.truncate(path, size)
        met(lambda: call(wal))
        met(wal.close)
        os.unlink(path)
    pmwal.open(path, size="64KiB", medium="memory").close()
    before = Mapping.__init__
    def shorten(self, *args, **options):
        before(self, *args, **options)
        os.truncate(path, size)
    Mapping.__init__ = shorten
    met(lambda: pmwal.open(path, medium="memory"))
    Mapping.__init__ = before
    os.unlink(path)
print(len(seen), set(seen))
""",
        shm_dir / "log",
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    count, numbers = done.stdout.split(maxsplit=1)
    assert int(count) >= 20
    assert numbers.strip() == "{5}"


@pytest.mark.native_engine
def test_without_guarded_copies_the_same_ends_the_process(shm_dir: Path) -> None:
    """Negative control of the test above, and what docs/durability.md says of the engine in Python without the extension."""
    done = run_script(
        """
import os, sys
import pmwal
from pmwal.storage import mapping, seam
path, = sys.argv[1:]
mapping.native = seam.native = None
mapping.Mapping.check_size = lambda self: None
os.environ["PMWAL_ENGINE"] = "python"
wal = pmwal.open(path, size="64KiB", medium="memory")
os.truncate(path, 0)
wal.append(b"x")
""",
        shm_dir / "log",
    )
    assert done.returncode == -signal.SIGBUS


FULL = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
truncate -s 200M "$1/image"
mkfs.btrfs -q -f "$1/image" >/dev/null 2>&1
mkdir "$1/mnt"
mount -o loop "$1/image" "$1/mnt"
trap 'umount "$1/mnt"' EXIT
"$2" -P - "$1/mnt" "$3" <<'PY'
import os, sys
import pmwal
where, when = sys.argv[1:]
path = where + "/log"

def fill(name, size, sync):
    try:
        with open(where + name, "wb", buffering=0) as file:
            while True:
                file.write(bytes(size))
                if sync:
                    os.fsync(file.fileno())
    except OSError:
        pass

def fill_up():
    fill("/large", 1 << 16, False)
    fill("/small", 4096, True)

pmwal.open(path, size="8MiB").close()
try:
    if when == "open":
        fill_up()
    wal = pmwal.open(path)
    if when == "close":
        fill_up()
    for _ in range(3000):
        wal.extend([b"x" * 500] * 2)
except pmwal.PersistError as error:
    print("PersistError")
if when == "close":
    try:
        wal.close()
    except pmwal.PersistError:
        pass
print("alive")
PY
"""


@pytest.mark.rigs
@pytest.mark.parametrize("when", ["open", "close"])
def test_full_copy_on_write_file_system(tmp_path: Path, when: str) -> None:
    """A store into a page that btrfs has no block for is a PersistError, in open and before close."""
    if os.getuid() or subprocess.run(["sh", "-c", "command -v mkfs.btrfs"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and mkfs.btrfs")
    command = ["unshare", "-m", "bash", "-c", textwrap.dedent(FULL), "bash", str(tmp_path), sys.executable, when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["PersistError", "alive"], (done.returncode, done.stderr[-2000:])
