"""A file shortened while it is mapped gives an error, and the interpreter survives. Other faults are not pmwal's.

Everything runs in fresh interpreters, straight into the mapping, because a failure here ends the process.
"""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from processes import run_script

CALLS = """
import faulthandler, json, os, signal, sys, threading, time
import pmwal

PAGE = 4096
CALLS = {
    "append": lambda wal: wal.append(b"x"),
    "append without commit": lambda wal: wal.append(b"x", commit=False),
    "large append": lambda wal: wal.append(bytes(40000)),
    "extend": lambda wal: wal.extend([b"x", bytearray(b"y")]),
    "batch": lambda wal: stage(wal),
    "reserve": lambda wal: fill(wal),
    "commit": lambda wal: wal.commit(),
    "wait_durable": lambda wal: wal.wait_durable(wal.next_seq - 1),
    "truncate": lambda wal: wal.truncate(wal.first_seq + 2),
    "truncate all": lambda wal: wal.truncate(wal.next_seq),
    "rollback": lambda wal: wal.rollback(wal.next_seq - 3),
    "read": lambda wal: list(wal.read()),
    "index": lambda wal: wal[wal.next_seq - 1],
    "iteration": lambda wal: list(begun),
    "close": lambda wal: wal.close(),
}

def stage(wal):
    with wal.batch() as batch:
        batch.append(b"x")

def fill(wal):
    with wal.reserve(5) as view:
        view[:] = b"hello"

def met(call, wal):
    try:
        call(wal)
    except BaseException as error:
        return [type(error).__name__, getattr(error, "errno", None)]
    return "returned"

def answers(path, options, size):
    global begun
    result = {}
    for name, call in CALLS.items():
        wal = pmwal.open(path, size="96KiB", **options)
        wal.extend([bytes(1000)] * 20)
        wal.append(b"pending", commit=False)
        begun = wal.read()
        next(begun)
        os.truncate(path, {"nothing": 0, "live page": 2 * PAGE, "ring": wal._engine.block.ring_offset + PAGE}[size])
        outcome = met(call, wal)
        after = met(lambda wal: wal.append(b"after"), wal)
        begun = None
        wal.close() if wal._access.poisoned else met(lambda wal: wal.close(), wal)
        os.unlink(path)
        result[name] = [outcome, after]
    return result
"""


def run(body: str, *args: object) -> CompletedProcess[str]:
    """Run the body, which sees ``CALLS`` and ``answers``, in a fresh interpreter."""
    return run_script(CALLS + body, *args)


@pytest.fixture(autouse=True)
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the native engine, which this module is about."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")


FAILURE = ["PersistError", errno.EIO]


@pytest.mark.parametrize(
    ("medium", "align", "where"),
    [
        ("memory", 8, "main thread"),
        ("memory", 8, "faulthandler between"),
        ("file", 8, "main thread"),
        ("file", 8, "other thread, faulthandler before"),
        ("emulated-dax", 64, "main thread"),
        ("emulated-dax", 8, "faulthandler before"),
    ],
)
def test_shortened_file_is_an_error_and_the_interpreter_lives(shm_dir: Path, medium: str, align: int, where: str) -> None:
    """Every call that touches the missing part raises PersistError with EIO and acknowledges nothing; later calls raise, too."""
    done = run(
        """
path, medium, align, where = sys.argv[1:]
if "before" in where:
    faulthandler.enable()
if "between" in where:
    first = pmwal.open(path + ".first", size="64KiB", medium=medium)
    faulthandler.enable()
result = {}
def work():
    for size in ("nothing", "live page", "ring"):
        for ordering in ("strict", "pipelined"):
            result[size + " " + ordering] = answers(path, {"medium": medium, "ordering": ordering, "align": int(align)}, size)
if "other" in where:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
print(json.dumps(result))
""",
        shm_dir / "log",
        medium,
        align,
        where,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Fatal" not in done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert len(results) == 6
    wrong = {
        f"{size}: {call}": answer
        for size, answers in results.items()
        for call, answer in answers.items()
        if not as_promised(call, *answer)
    }
    assert wrong == {}


def as_promised(call: str, outcome: Any, after: Any) -> bool:
    """Whether a call on a shortened file behaved as documented."""
    if call == "close":
        return outcome == FAILURE and after == ["WalClosed", None]
    if outcome == "returned":  # it made nothing durable, and the next commit notices
        return call == "append without commit" and after == FAILURE
    return outcome == FAILURE and after == FAILURE


FAULT = """
import mmap
def fault(path):
    with open(path, "wb+") as file:
        file.truncate(PAGE)
        mapped = mmap.mmap(file.fileno(), PAGE)
        file.truncate(0)
    return mapped[0]
"""


@pytest.mark.parametrize("before", ["nothing", "faulthandler", "faulthandler between", "poisoned"])
def test_fault_elsewhere_ends_the_process_as_before(shm_dir: Path, before: str) -> None:
    """A SIGBUS in the user's own mapping kills the process with a log open, with one report if faulthandler is enabled."""
    done = run(
        FAULT
        + """
path, before = sys.argv[1:]
if before == "faulthandler":
    faulthandler.enable()
wal = pmwal.open(path, size="64KiB")
if before == "faulthandler between":
    faulthandler.enable()
    second = pmwal.open(path + "2", size="64KiB")
if before == "poisoned":
    os.truncate(path, 0)
    assert met(lambda wal: wal.append(b"x"), wal)[0] == "PersistError"
print("so far", flush=True)
fault(path + ".own")
print("survived")
""",
        shm_dir / "log",
        before,
    )
    assert done.stdout == "so far\n"
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == before.startswith("faulthandler")


def test_fault_in_an_appended_buffer_ends_the_process(shm_dir: Path) -> None:
    """A payload in the user's own shortened mapping is the user's fault, although the engine reads it."""
    done = run(
        """
import mmap
path, = sys.argv[1:]
wal = pmwal.open(path, size="64KiB")
with open(path + ".own", "wb+") as file:
    file.truncate(PAGE)
    mapped = mmap.mmap(file.fileno(), PAGE)
    file.truncate(0)
print("so far", flush=True)
wal.append(mapped)
print("survived")
""",
        shm_dir / "log",
    )
    assert (done.stdout, done.returncode) == ("so far\n", -signal.SIGBUS)


@pytest.mark.parametrize(
    ("handler", "sender"),
    [
        ("default", "os.kill(os.getpid(), signal.SIGBUS)"),
        ("default", "signal.raise_signal(signal.SIGBUS)"),
        ("ignored", "os.kill(os.getpid(), signal.SIGBUS)"),
        ("python", "os.kill(os.getpid(), signal.SIGBUS)"),
        ("faulthandler", "signal.raise_signal(signal.SIGBUS)"),
    ],
)
def test_signal_that_is_sent_does_what_it_did_before(shm_dir: Path, handler: str, sender: str) -> None:
    """A SIGBUS from kill or raise reaches the handler from before the open, each time, and pmwal's handler stays installed."""
    done = run(
        f"""
path, handler = sys.argv[1:]
calls = []
if handler == "ignored":
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
if handler == "python":
    signal.signal(signal.SIGBUS, lambda *_: calls.append(1))
if handler == "faulthandler":
    faulthandler.enable()
wal = pmwal.open(path, size="64KiB")
for _ in range(2):
    {sender}
    print("sent", flush=True)
os.truncate(path, 0)
print(len(calls), met(lambda wal: wal.append(b"x"), wal))
""",
        shm_dir / "log",
        handler,
    )
    if handler in ("default", "faulthandler"):
        assert (done.stdout, done.returncode) == ("", -signal.SIGBUS)
    else:
        assert done.stdout == f"sent\nsent\n{2 if handler == 'python' else 0} {FAILURE}\n", done.stderr
        assert done.returncode == 0


def test_handler_is_installed_again_at_the_next_open(shm_dir: Path) -> None:
    """A handler installed over pmwal's is called for foreign faults, and after an open pmwal catches its own again."""
    done = run(
        """
path, = sys.argv[1:]
pmwal.open(path + ".first", size="64KiB").close()
calls = []
signal.signal(signal.SIGBUS, lambda *_: calls.append(1))
wal = pmwal.open(path, size="64KiB")
os.kill(os.getpid(), signal.SIGBUS)
sum(range(1000))
os.truncate(path, 0)
print(len(calls), met(lambda wal: wal.append(b"x"), wal))
""",
        shm_dir / "log",
    )
    assert done.stdout == f"1 {FAILURE}\n", done.stderr


def test_faulthandler_enabled_after_the_open_leaves_the_log_its_error(shm_dir: Path) -> None:
    """faulthandler may report the fault, because it was installed last, but the call still raises and the interpreter survives."""
    done = run(
        """
path, = sys.argv[1:]
wal = pmwal.open(path, size="64KiB")
faulthandler.enable()
os.truncate(path, 0)
print(met(lambda wal: wal.append(b"x"), wal))
""",
        shm_dir / "log",
    )
    assert done.stdout == f"{FAILURE}\n", done.stderr


def test_two_threads_fault_at_once(shm_dir: Path) -> None:
    """A thread inside a flush and others that append meet the same shortened file, and each gets its own error."""
    done = run(
        """
path, = sys.argv[1:]
wal = pmwal.open(path, size="1MiB", medium="file", ordering="strict")
def work():
    try:
        while True:
            if wal.free < 10000:
                wal.truncate(wal.next_seq)
            wal.append(bytes(500))
    except pmwal.PersistError as error:
        met.append(error.errno)
    except BaseException as error:
        met.append(repr(error))
met = []
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
while wal.next_seq < 600 and not met:
    time.sleep(0.001)
os.truncate(path, 0)
for thread in threads:
    thread.join()
print(met)
""",
        shm_dir / "log",
    )
    assert done.stdout == f"{[errno.EIO] * 6}\n", done.stderr[-2000:]
