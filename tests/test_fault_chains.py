"""The handler of SIGBUS beside handlers of others, as a C program: pmwal/native/fault.c knows nothing of Python."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pmwal
from processes import run_script

NATIVE = Path(pmwal.__file__).parent / "native"
PROGRAM = Path(__file__).with_name("fault_chains.c")
GCC = shutil.which("gcc")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-DPMWAL_CHECKS", f"-I{NATIVE}", "-pthread"]

pytestmark = pytest.mark.skipif(GCC is None or not (NATIVE / "fault.c").exists(), reason="needs gcc and the sources")


def compiled(target: Path, *arguments: object) -> Path:
    """What gcc makes of fault.c with these flags and sources."""
    assert GCC is not None
    subprocess.run([GCC, *FLAGS, *map(str, arguments), str(NATIVE / "fault.c"), "-o", str(target)], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program."""
    return compiled(tmp_path_factory.mktemp("chains") / "program", PROGRAM)


STACKS = ("", "stack")
EARLIER = ("", "jump", "nodefer jump", "ignore", "once")
LATER = ("", "setup", "setup chain", "setup full", "setup nodefer chain", "setup chain setup", "setup full setup setup")


@pytest.mark.parametrize("words", [" ".join(words).split() for words in itertools.product(STACKS, EARLIER, LATER)], ids=" ".join)
def test_guards_of_all_libraries_catch_their_faults_again_and_again(program: Path, words: list[str]) -> None:
    """Whatever was installed before or after, by whichever way a handler is left, and no signal stays blocked."""
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("wrong: 0\n", 0), done.stderr


@pytest.mark.parametrize("words", ["threads", "stack jump setup chain threads"])
def test_threads_fault_at_the_same_time(program: Path, words: str) -> None:
    """Each thread has a guard of its own, also where the first of them sets the handler up."""
    done = subprocess.run([program, *words.split()], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("wrong: 0\n", 0), done.stderr


@pytest.mark.parametrize("words", ["", "setup", "ignore setup", "setup chain", "setup chain setup", "stack setup full setup"])
def test_fault_in_no_guard_ends_the_process(program: Path, words: str) -> None:
    """SIG_DFL and SIG_IGN do not catch an access, and handlers that call each other do not go round in a circle."""
    done = subprocess.run([program, *words.split(), "foreign"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("wrong: 0\n", -signal.SIGBUS), done.stderr


def test_crash_reporter_that_runs_once_runs_once(program: Path) -> None:
    """A handler with SA_RESETHAND returns, and expects the repeated access to end the process."""
    done = subprocess.run([program, "once", "setup", "foreign"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("wrong: 0\nreported ", -signal.SIGBUS), done.stderr


def relocations(library: Path) -> str:
    """The dynamic section and the relocations of a library."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is missing")
    return subprocess.run([readelf, "-dr", library], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_only_glibc_gets_static_thread_locals(tmp_path: Path, optimisation: str) -> None:
    """Elsewhere (musl) a library that is loaded later has no space for them, and dlopen would refuse it."""
    header = tmp_path / "other_libc.h"
    header.write_text("#define _GNU_SOURCE\n#include <features.h>\n#undef __GLIBC__\n#undef _GNU_SOURCE\n")
    shared = ["-shared", "-fPIC", optimisation]
    other = relocations(compiled(tmp_path / "other.so", *shared, "-include", header))
    assert "STATIC_TLS" not in other
    assert "TPOFF" not in other
    assert "STATIC_TLS" in relocations(compiled(tmp_path / "glibc.so", *shared)), "negative control: the check can fail"


HANDLER = """
import re, sys
def catches():
    caught = int(re.search(r"SigCgt:\\s*(\\w+)", open("/proc/self/status").read())[1], 16)
    return bool(caught >> (7 - 1) & 1)  # SIGBUS
"""


def test_import_installs_no_handler(shm_dir: Path) -> None:
    """Importing pmwal leaves SIGBUS alone; opening a log for writing handles it."""
    done = run_script(
        HANDLER
        + """
import pmwal, pmwal.aio, pmwal.events, pmwal.logs, pmwal.repair, pmwal.testing
path, = sys.argv[1:]
print(catches())
pmwal.open(path, size="64KiB").close()
print(catches())
""",
        shm_dir / "log",
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_scan_before_the_first_writer_is_guarded(shm_dir: Path) -> None:
    """The first guarded access of a process sets the handler up, also where it scans a mapping and nothing was opened."""
    with pmwal.open(shm_dir / "log", size="64KiB") as wal:
        wal.extend([bytes(1000)] * 20)
        block = wal._engine.block
    done = run_script(
        HANDLER
        + f"""
import mmap, os
from pmwal.format.ring import Rules, Window
from pmwal.native import native
from pmwal.records import Bound
path, = sys.argv[1:]
block = ({block.capacity}, {block.alignment}, {block.payload_max})
with open(path, "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
os.truncate(path, {block.ring_offset})
ring = memoryview(mapped)[{block.ring_offset}:]
scanner = native.Scanner(*block, 0, Bound)
print(catches())
for call in (
    lambda: scanner.run(Window(ring, 0, 0), Bound(0, 1), Rules(99, block[0], 1, 1), 1, 0, None, 1 << 20),
    lambda: native.load(mapped, {block.ring_offset}, 64),
    lambda: native.store(mapped, {block.ring_offset}, b"x"),
    lambda: native.write_back(mapped, {block.ring_offset}, 64),
    lambda: native.stream(mapped, {block.ring_offset}, bytes(64)),
):
    try:
        print(call())
    except OSError as error:
        print(error.errno)
print(catches())
""",
        shm_dir / "log",
    )
    assert done.stdout.split() == ["False", *["5"] * 5, "True"], (done.returncode, done.stderr)


def test_thread_that_blocks_the_signal_is_documented() -> None:
    """The kernel ends the process at a fault of such a thread, so that this is not promised: docs/durability.md says so."""
    text = (Path(__file__).parents[1] / "docs" / "durability.md").read_text()
    assert "a thread that blocks SIGBUS" in " ".join(text.split())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_log_in_a_thread_with_a_small_alternate_stack_survives(shm_dir: Path) -> None:
    """faulthandler gives the main thread a stack of its own for signals; a fault that is caught leaves it in use for the next."""
    done = run_script(
        """
import faulthandler, os, sys
import pmwal
faulthandler.enable()
path, = sys.argv[1:]
for _ in range(50):
    wal = pmwal.open(path, size="64KiB")
    os.truncate(path, 8192)
    try:
        wal._engine.core.store([b"x"], [0], False)
    except OSError:
        pass
    wal.close() if wal._access.poisoned else None
    del wal
    os.unlink(path)
print("done")
""",
        shm_dir / "log",
    )
    assert done.stdout == "done\n", done.stderr[-2000:]
