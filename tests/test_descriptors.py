"""No descriptor of a log is 0, 1 or 2, whatever the process was started with, so stray output never reaches one."""

from __future__ import annotations

import ast
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import pmwal
from marks import first_fast
from processes import elsewhere, run_script
from support import open_small, payloads
from test_structure import MODULES

pytestmark = pytest.mark.both_engines

STANDARD = (0, 1, 2)
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(STANDARD, count)]

PROGRAM = """
import contextlib, logging, os, sys, threading, traceback

closed, path, told = [int(number) for number in sys.argv[1].split(",")], sys.argv[2], int(sys.argv[3])
for fd in closed:
    os.close(fd)
import pmwal
from pmwal.repair import repair

real_open, seen, done, quiet = os.open, [], threading.Event(), threading.Lock()

def watched(*arguments, **options):
    fd = real_open(*arguments, **options)
    if fd < 3 and arguments[0] != "/":
        seen.append(f"{arguments[0]} was opened as {fd}")
    return fd

os.open = watched

def stray():
    while not done.is_set():
        for fd in closed:
            with quiet, contextlib.suppress(OSError):
                os.write(fd, b"some library: a warning that nobody asked for\\n" * 100)

def step(name):
    for fd in closed:
        try:
            os.fstat(fd)
        except OSError:
            continue
        seen.append(f"after {name}, descriptor {fd} is {os.readlink(f'/proc/self/fd/{fd}')}")

thread = threading.Thread(target=stray)
thread.start()
try:
    for medium in ("auto", "file"):
        wal = pmwal.open(path, size="64KiB", medium=medium)
        step("open")
        for number in range(100):
            wal.append(b"acknowledged %d" % number)
        wal.extend([bytes(1000)] * 40)
        wal.truncate(before=wal.next_seq - 10)
        step("append")
        with pmwal.open(path, "r") as reader:
            records = len(list(reader))
            followed = len(list(reader.follow(timeout=0.01)))
            step("follow")
        wal.close()
        step("close")
        assert pmwal.verify(path).outcome == "clean"
        repair(path)
        step("verify")
    with quiet, open(path, "r+b") as file:  # the one file here that may be descriptor 0, 1 or 2
        file.seek(100)
        file.write(bytes(100))
    report = repair(path)
    step("repair")
    handler = pmwal.LogHandler(path + ".log", size="64KiB")
    logging.getLogger("x").addHandler(handler)
    for number in range(20):
        logging.getLogger("x").error("line %d", number)
    step("handler")
    handler.close()
except BaseException:
    os.write(told, traceback.format_exc().encode())
    raise
finally:
    done.set()
    thread.join()
os.write(told, repr((seen, records, followed, report.after.outcome)).encode())
"""


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
@pytest.mark.parametrize("where", first_fast(["memory", "disk"]))
def test_stray_output_never_reaches_a_log(closed: Sequence[int], where: str, shm_dir: Path, tmp_path: Path) -> None:
    """Each subset of the standard descriptors closed, and a thread that writes to them all the time, as C libraries do."""
    path = (shm_dir if where == "memory" else tmp_path) / "test.wal"
    there, told = os.pipe()
    try:
        os.set_inheritable(told, True)
        result = run_script(PROGRAM, ",".join(map(str, closed)), path, told, pass_fds=(told,))
    finally:
        os.close(told)
    with open(there, "rb") as pipe:
        answer = pipe.read().decode()
    assert result.returncode == 0, answer or result.stderr
    assert ast.literal_eval(answer) == ([], 10, 10, "clean")
    for name in ("test.wal", "test.wal.log"):
        assert pmwal.verify(path.with_name(name)).outcome == "clean"
        assert b"nobody asked for" not in path.with_name(name).read_bytes()


def test_free_numbers_stay_free(path: Path) -> None:
    """A daemon that closed its streams opens /dev/null three times, and expects 0, 1 and 2, also beside an open log."""

    def body() -> tuple[list[int], list[bytes]]:
        for fd in STANDARD:
            os.close(fd)
        with open_small(path) as wal:
            numbers = [os.open(os.devnull, os.O_RDWR) for _ in STANDARD]
            wal.append(b"a")
            return numbers, payloads(wal)

    assert elsewhere(body) == ([0, 1, 2], [b"a"])


OPENS = {"open", "dup", "dup2", "memfd_create", "fdopen", "openpty"}


def opened_in(source: str) -> list[str]:
    """Calls of ``os`` and ``mmap`` in a module's source that make a descriptor."""
    return [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and ((node.func.value.id == "os" and node.func.attr in OPENS) or ast.unparse(node.func) == "mmap.mmap")
        and not (node.args and ast.unparse(node.args[0]) == "-1")  # memory without a file
    ]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(("pmwal.cli", "pmwal.testing"))])
def test_one_module_opens_what_belongs_to_a_log(name: str) -> None:
    """So no other can get a low number. The command line opens files of its own, too."""
    found = opened_in(MODULES[name].read_text())
    assert found == (["os.open", "mmap.mmap", "os.open"] if name == "pmwal.storage.descriptors" else [])


def test_check_for_opens_finds_them() -> None:
    """Negative control of the check above."""
    source = "import os\nfd = os.open(path, 0)\nother = os.dup(fd)\nmmap.mmap(fd, 1)\nmmap.mmap(-1, 1)"
    assert opened_in(source) == ["os.open", "os.dup", "mmap.mmap"]
