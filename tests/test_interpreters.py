"""Sub-interpreters and free-threaded builds: what works there, and one clear error for each thing that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pmwal
from pmwal.native import native
from processes import PATIENCE, run_script
from support import file_offset, kill, payloads, superblock

RUN = """
import os, sys
try:
    import _interpreters
    def create():
        return _interpreters.create(kind)
    def run(number, source):
        problem = _interpreters.exec(number, source)
        if problem is not None:
            raise SystemExit(problem.formatted)
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as _interpreters
    def create():
        return _interpreters.create(isolated=kind == "isolated")
    run = _interpreters.run_string
kind, path, source = sys.argv[1:4]
if native_first:
    import pmwal.native
for round in range(2):
    number = create()
    run(number, "import sys; sys.argv = [''," + repr(path) + "]\\n" + source)
    _interpreters.destroy(number)
"""
"""Runs a source in two new sub-interpreters, one after the other, of the first argument's kind."""

NO_CTYPES = sys.version_info[:2] == (3, 12)
"""Python 3.12 gave isolated sub-interpreters a lock of their own, and ctypes, which pmwal needs, supports that from 3.13 on."""

KINDS = ("legacy",) if NO_CTYPES else ("legacy", "isolated")
"""With one lock for all interpreters, and from Python 3.12 on with a lock of its own."""

REFUSES_NUMPY = """
import sys
import pmwal
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            raise ImportError("advice\\n\\nmodule numpy does not support loading in subinterpreters\\n")
for name in [name for name in sys.modules if name.split(".")[0] == "numpy"]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuses())
"""
"""Makes numpy fail as it does in sub-interpreters, whatever its version says about them."""


def in_interpreters(kind: str, path: Path, source: str, *, after_main: bool = False) -> str:
    """What two sub-interpreters of a new process print, which the main one joins after it has imported the engine, or not."""
    done = run_script(f"native_first = {int(after_main)}\n" + RUN, kind, path, source)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    return done.stdout


@pytest.mark.both_engines
@pytest.mark.parametrize("after_main", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sub_interpreter_writes_and_reads_a_log(path: Path, kind: str, after_main: bool) -> None:
    """Creating, appending in every way, reading, following, verifying and closing work, with the engine that was asked for."""
    source = """
import os, pmwal, pmwal.events
with pmwal.open(sys.argv[1], size="64KiB") as wal:
    assert wal.stats().engine == os.environ["PMWAL_ENGINE"]
    wal.append(b"a"), wal.extend([b"b", b"c"])
    with wal.batch() as batch:
        batch.append(b"d")
    with wal.reserve(1) as view:
        view[:] = b"e"
    last = wal.next_seq - 1
    pmwal.events.Logger(wal).event("x {a}")(1)
    wal.rollback(after=last)
    wal.truncate(before=wal.next_seq - 2)
    with pmwal.open(sys.argv[1], "r") as reader:
        print([record.data for record in reader], len(list(reader.follow(timeout=0.01))))
print(pmwal.verify(sys.argv[1]).case)
"""
    assert in_interpreters(kind, path, source, after_main=after_main).splitlines() == ["[b'd', b'e'] 2", "R1"] * 2


@pytest.mark.skipif(not NO_CTYPES, reason="ctypes can be loaded")
def test_isolated_sub_interpreter_without_ctypes_gets_one_error(path: Path) -> None:
    """It is Python's own, and names the module."""
    source = "import pmwal\ntry:\n    pmwal.open\nexcept ImportError as error:\n    print(error)"
    line = "module _ctypes does not support loading in subinterpreters"
    assert in_interpreters("isolated", path, source).splitlines() == [line] * 2


@pytest.mark.skipif(native is None, reason="the reference engine recovers in numpy")
@pytest.mark.parametrize("kind", KINDS)
def test_sub_interpreter_recovers_what_a_kill_left(path: Path, kind: str) -> None:
    """The native engine needs no numpy for that."""
    wal = pmwal.open(path, size="64KiB")
    wal.extend([b"a", b"b"])
    kill(wal)
    source = "import pmwal\nwith pmwal.open(sys.argv[1]) as wal: print(wal.recovery.case, len(list(wal)))"
    assert in_interpreters(kind, path, source).splitlines() == ["R2 2", "R1 2"]


@pytest.mark.parametrize("kind", KINDS)
def test_log_of_another_interpreter_of_the_process_is_locked(path: Path, kind: str) -> None:
    """Each has modules of its own, so that none knows the others' handles: the lock of the file tells."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"a")
    source = "import pmwal\ntry:\n    pmwal.open(sys.argv[1])\nexcept pmwal.WalLocked as error:\n    print('locked')"
    script = "import sys, pmwal\nwal = pmwal.open(sys.argv[2])\nwal.append(b'b')\n" + f"native_first = 0\n{RUN}\nwal.close()"
    done = run_script(script, kind, path, source)
    assert (done.stdout, done.stderr, done.returncode) == ("locked\nlocked\n", "", 0)
    with pmwal.open(path) as wal:
        assert payloads(wal) == [b"a", b"b"]


@pytest.mark.both_engines
def test_numpy_that_cannot_be_loaded_is_one_clear_error(path: Path) -> None:
    """Where records past the end must be weighed: the log is left as it was, and the main interpreter recovers it."""
    wal = pmwal.open(path, size="64KiB", commit="manual")
    wal.append(b"a")
    wal.commit()
    end = wal.stats().used
    wal.extend([b"b", b"c", b"d"])
    kill(wal)
    with path.open("r+b") as file:
        file.seek(file_offset(superblock(path), end) + 8)
        file.write(b"\xff" * 8)
    before = path.read_bytes()
    source = "for _ in range(2):\n    try:\n        pmwal.open(sys.argv[1])\n    except ImportError as error:\n        print(error)"
    done = run_script(REFUSES_NUMPY + source, path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert "does not support loading in subinterpreters" in line
        assert "open such a log in the main interpreter" in line
    assert len(done.stdout.splitlines()) == 2
    assert path.read_bytes() == before
    with pmwal.open(path) as wal:
        assert payloads(wal) == [b"a"]


@pytest.mark.skipif(NO_CTYPES, reason="see above")
@pytest.mark.both_engines
def test_background_commits_without_daemon_threads_are_one_clear_error(path: Path) -> None:
    """As in an isolated sub-interpreter: the error says what to use instead, and the log is closed cleanly."""
    source = """
import pmwal
try:
    pmwal.open(sys.argv[1], size="64KiB", commit=0.5)
except RuntimeError as error:
    print(error)
with pmwal.open(sys.argv[1], commit="manual") as wal:
    print(wal.recovery.case)
"""
    lines = in_interpreters("isolated", path, source).splitlines()
    assert len(lines) == 4
    for error, case in (lines[:2], lines[2:]):
        assert error.startswith("commit=0.5 needs a daemon thread, and none can begin here (")
        assert error.endswith('): use commit="each" or commit="manual"')
        assert case == "R1"


@pytest.mark.both_engines
def test_log_in_use_gives_no_warning_of_this_python(path: Path) -> None:
    """Where each warning is an error: background commits, a fork, reading, a kill's recovery, logging and closing."""
    source = """
import logging, os, shutil, pmwal
with pmwal.open(sys.argv[1], size="64KiB", commit=0.001) as wal:
    wal.extend([b"a", b"b"])
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pmwal.open(sys.argv[1], "r") as reader:
        assert [record.data for record in reader.follow(start=1, timeout=0)] == [b"a", b"b"]
    shutil.copyfile(sys.argv[1], sys.argv[1] + ".copy")
with pmwal.open(sys.argv[1] + ".copy") as wal:
    wal.append(b"c")
handler = pmwal.LogHandler(sys.argv[1] + ".log", size="64KiB")
logging.getLogger("a").addHandler(handler)
logging.getLogger("a").error("b")
handler.close()
print(pmwal.verify(sys.argv[1]).case)
"""
    command = [sys.executable, "-W", "error", "-P", "-c", "import sys\n" + source, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("R1\n", "", 0)


@pytest.mark.both_engines
@pytest.mark.parametrize("mode", ["a", "r"])
def test_free_threaded_interpreter_without_its_lock_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With PYTHON_GIL=0 the lock stays off when the engine is imported, and both engines rely on it: nothing is created."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(pmwal.UnsupportedMedium, match=r"needs the interpreter's lock .* set PYTHON_GIL=1"):
        pmwal.open(path, mode, **({} if mode == "r" else {"size": "64KiB"}))  # type: ignore[arg-type]
    assert not path.exists()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    pmwal.open(path, size="64KiB").close()
