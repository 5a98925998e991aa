"""Run a native engine built with checks under sanitizers or valgrind.

    python tools/sanitize.py [--quick] [--mutant] [TEST ...]    AddressSanitizer and UndefinedBehaviorSanitizer, over files in
                                                                tests/ (default: those that use the engine most)
    python tools/sanitize.py --threads [--rounds N] [--mutant]  ThreadSanitizer, over a script whose threads use one log
    python tools/sanitize.py --valgrind [--mutant]              memcheck, over a short script with the calls of a log

The package is copied and built in a temporary directory; the checkout keeps its own extension. Reports of all processes are
collected, including those that a test expects to die. Exit status: 0; 1 a report or a failed test; 2 it could not be built or run.

Leaks are not reported, because the interpreter itself never frees much of its memory. A SIGBUS is not an error: the engine catches
it when a file is shortened under its mapping.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = "-fsanitize=address,undefined"
TESTS = (
    "test_calls.py",
    "test_reads.py",
    "test_handles.py",
    "test_batches.py",
    "test_interrupts.py",
    "test_reentry.py",
    "test_caller_buffers.py",
    "test_framing.py",
    "test_flush_ranges.py",
    "test_limits.py",
    "test_reader.py",
    "test_verdict_races.py",
    "test_takeover.py",
    "test_damage.py",
    "test_arrays.py",
    "test_events.py",
    "test_follow.py",
    "test_medium.py",
    "test_metrics.py",
    "test_prometheus.py",
    "test_surroundings.py",
)
QUICK = ("test_framing.py", "test_limits.py")
QUICK_ONLY = "native and (payloads or fits or forged or torn or generation)"
SELECTED = "not rigs and not nightly"
"""The marks of the tests that run: slow ones too, which a plain pytest leaves out."""
BUILD_TIMEOUT = 300

SCRIPT = """
import sys
import tempfile
from pathlib import Path

import pmwal
from pmwal.native import native

assert native is not None and Path(native.__file__).is_relative_to(sys.argv[1]), native


def use(path, **options):
    with pmwal.open(path, size="64KiB", **options) as wal:
        for length in (0, 1, 7, 8, 100, 5000):
            wal.append(bytes(length), kind=length)
        wal.append(memoryview(b"a view"))
        wal.extend([b"x" * n for n in range(100)])
        wal.extend([bytes(1000)] * 40)
        wal.commit()
        with wal.batch() as batch:
            batch.append(b"batched")
        reservation = wal.reserve(100)
        with reservation as view:
            view[:5] = b"hello"
        assert len(list(wal.read())) == len(wal)
        wal.truncate(before=wal.next_seq - 20)
        wal.rollback(after=wal.next_seq - 5)
        for _ in range(3):
            wal.extend([bytes(600)] * 50)
            wal.truncate(before=wal.next_seq - 3)
        with pmwal.open(path, "r") as reader:
            expected = [record.data for record in reader]
        wal.append(b"not committed", commit=False)
        image = path.read_bytes()
    assert pmwal.verify(path).outcome == "clean"
    path.write_bytes(image)
    assert pmwal.verify(path).outcome == "recovered"
    with pmwal.open(path, "r+", **options) as wal:
        assert [record.data for record in wal][: len(expected)] == expected
    damaged = bytearray(image)
    at = damaged.rindex(b"not committed")
    damaged[at] ^= 1
    path.write_bytes(damaged)
    pmwal.verify(path)
    path.unlink()


for directory in ("/dev/shm", None):
    with tempfile.TemporaryDirectory(dir=directory) as work:
        media = ("auto", "file", "emulated-dax") if directory else ("file",)
        for medium in media:
            for ordering in ("strict", "pipelined"):
                use(Path(work) / "valgrind.wal", medium=medium, ordering=ordering)
                print(medium, ordering, "done", flush=True)
"""

THREADS = """
import sys
import tempfile
import threading
from pathlib import Path

import pmwal
from pmwal import events
from pmwal.native import native

assert native is not None and Path(native.__file__).is_relative_to(sys.argv[1]), native


def together(*bodies):
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def use(path, **options):
    wal = pmwal.open(path, size="4MiB", on_full="overwrite", **options)
    wal._engine.yield_at_barriers()  # also where threads that compute would make it keep the interpreter
    emit = events.Logger(wal).event("{} {}")
    stored = threading.Event()

    def append():
        for length in range(300):
            wal.append(bytes(length))

    def extend():
        for _ in range(30):
            wal.extend([bytes(500)] * 20)

    def bulk():
        for _ in range(10):
            wal.extend([bytes(2000)] * 50)

    def log():
        for number in range(200):
            emit(number, "text")

    def later():
        for _ in range(100):
            seq = wal.append(b"later", commit=False)
            wal.wait_durable(seq, timeout=0.1)  # it may have been rolled back

    def free():
        while not stored.wait(0.01):
            wal.truncate(before=max(wal.first_seq, wal.next_seq - 100))
            wal.commit()
            wal.stats()

    def discard():
        while not stored.wait(0.05):
            try:
                wal.rollback(after=wal.next_seq - 2)
            except (ValueError, pmwal.Overrun):  # others stored or truncated meanwhile
                pass

    def read():
        while not stored.wait(0.005):
            try:
                for record in wal:
                    pass
            except pmwal.Overrun:
                pass

    def follow():
        with pmwal.open(path, "r") as reader:
            while not stored.is_set():
                try:
                    for record in reader.follow(timeout=0.2):
                        pass
                except pmwal.Overrun:
                    pass

    def store():
        together(append, append, append, extend, bulk, log, later)
        stored.set()

    together(append, append, append, append)  # share their barriers: nothing else holds a lock of the log
    together(store, free, discard, read, follow)
    wal.append(b"the last", commit=False)
    together(wal.close, wal.close)
    with pmwal.open(path, "r+", **options) as wal:  # recovered by several threads
        wal.extend([bytes(9000)] * 200)
        wal.read_array("S9000", wal.next_seq - 200)
    pmwal.verify(path)
    path.unlink()


for _ in range(int(sys.argv[2])):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        for medium in ("file", "memory", "emulated-dax"):
            for ordering in ("strict", "pipelined"):
                for commit in ("each", 0.002):
                    use(Path(work) / "threads.wal", medium=medium, ordering=ordering, commit=commit)
                print(medium, ordering, "done", flush=True)
"""

MUTANT = ("iterator.c", r"PyBytes_FromStringAndSize\(NULL, (header\S*length)\)", r"PyBytes_FromStringAndSize(NULL, \1 / 2)")
"""What --mutant builds (a regular expression): a payload copied into a buffer that is too short, which must be noticed."""

RACE = (
    "commit.c",
    r"(\n +pthread_mutex_lock\(&core->flush_mutex\);)(\n[^\n]*flushes == before\) \{)\n +core->waiting\+\+;",
    r"\n core->waiting++;\1\2",
)
"""The same with --threads: a thread counts itself as waiting before it has the lock."""

UNINITIALISED = ("UninitCondition", "UninitValue", "SyscallParam", "ClientCheck")
"""Kinds that the interpreter itself causes: int.from_bytes of zeros reads a digit that was never written (CPython 3.11)."""


class CannotRun(Exception):
    """A tool is missing, or failed."""


def library(name: str, compiler: str) -> str:
    """The path of one of the compiler's shared libraries."""
    try:
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise CannotRun(f"{compiler}: {error}") from error
    path = found.stdout.strip()
    if not os.path.isabs(path):
        raise CannotRun(f"{compiler} has no {name}")
    return os.path.realpath(path)


def build(work: Path, mutant: tuple[str, str, str] | None, cflags: str, ldflags: str = "") -> None:
    """A copy of the package and of its tests, with the extension built in place."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for name in ("pmwal", "tests", "tools", "docs"):
        shutil.copytree(ROOT / name, work / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, work)
    if mutant:
        name, old, new = mutant
        path = work / "pmwal" / "native" / name
        changed, count = re.subn(old, new, path.read_text())
        if not count:
            raise CannotRun(f"nothing in {name} matches {old!r}")
        path.write_text(changed)
    environment = {**os.environ, "PMWAL_REQUIRE_NATIVE": "1", "PMWAL_CHECK": "1", "PMWAL_CFLAGS": cflags, "PMWAL_LDFLAGS": ldflags}
    environment.setdefault("CC", "gcc")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    made = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if made.returncode or not (work / "pmwal" / "native" / f"_native{suffix}").exists():
        raise CannotRun(f"the extension cannot be built:\n{made.stdout}{made.stderr}")


def copied(tests: list[str], work: Path) -> list[str]:
    """The files in the copy that match these names or patterns."""
    found = [str(path) for name in tests for path in sorted((work / "tests").glob(name))]
    if not found:
        raise CannotRun(f"no tests: {tests}")
    return found


def run_sanitized(work: Path, tests: list[str], arguments: list[str], mutant: bool) -> int:
    """Build with the sanitizers and run tests; the number of reports and failures."""
    compiler = os.environ.get("CC", "gcc")
    preload = f"{library('libasan.so', compiler)} {library('libubsan.so', compiler)}"
    build(work, MUTANT if mutant else None, f"{SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1", SANITIZE)
    reports = work / "reports"
    reports.mkdir()
    common = f"log_path={reports}/report:log_exe_name=0"
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": f"detect_leaks=0:handle_sigbus=0:allocator_may_return_null=1:{common}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:{common}",
        "PYTHONMALLOC": "malloc",  # the interpreter's own pools would hide the ends of objects
        "PYTHONPATH": str(work),
        "PMWAL_ENGINE": "native",
    }
    probe = "import pmwal.native as e, sys; sys.exit(not e.native.__file__.startswith(sys.argv[1]))"
    command = [sys.executable, "-c", probe, str(work)]
    if subprocess.run(command, cwd=work, env=environment, check=False).returncode:
        raise CannotRun("the interpreter does not load the extension that was built")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", SELECTED, *arguments, *copied(tests, work)]
    status = subprocess.run(command, cwd=work, env=environment, check=False).returncode
    found = sorted(reports.iterdir())
    for path in found:
        print(path.read_text(errors="replace"), file=sys.stderr)
    print(f"pytest ended with {status}; {len(found)} reports of the sanitizers")
    return len(found) + (status != 0)


def run_threads(work: Path, rounds: int, mutant: bool) -> int:
    """Build with ThreadSanitizer and run the script with threads; the number of reports and failures.

    The interpreter is not instrumented, but its lock consists of calls that the sanitizer intercepts: what it orders is known.
    """
    preload = library("libtsan.so", os.environ.get("CC", "gcc"))
    build(work, RACE if mutant else None, "-fsanitize=thread -Wno-tsan -fno-omit-frame-pointer -g -O1", "-fsanitize=thread")
    script, reports = work / "threads.py", work / "reports"
    script.write_text(THREADS)
    reports.mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "TSAN_OPTIONS": f"handle_sigbus=0:exitcode=0:log_path={reports}/report:log_exe_name=0",
        "PYTHONPATH": str(work),
        "PMWAL_ENGINE": "native",
    }
    fixed = [setarch, "-R"] if (setarch := shutil.which("setarch")) else []  # it cannot map its shadow with much randomness
    command = [*fixed, sys.executable, str(script), str(work), str(rounds)]
    status = subprocess.run(command, cwd=work, env=environment, check=False).returncode
    found = sorted(reports.iterdir())
    races = 0
    for path in found:
        text = path.read_text(errors="replace")
        races += text.count("WARNING: ThreadSanitizer")
        print(text, file=sys.stderr)
    print(f"the script ended with {status}; {races} reports of the sanitizer")
    return races + (status != 0)


def counts(error: ElementTree.Element) -> bool:
    """Whether a valgrind error may be ours: any invalid access, and uninitialised values used in the extension."""
    objects = [obj.text or "" for obj in error.iter("obj")]
    if any("/ld-linux" in name for name in objects):
        return False  # the loader compares strings by whole words
    return error.findtext("kind", "") not in UNINITIALISED or any("_native" in name for name in objects)


def told(error: ElementTree.Element) -> str:
    """An error in words."""
    frames = [f"    {frame.findtext('fn')} ({frame.findtext('file')}:{frame.findtext('line')})" for frame in error.iter("frame")]
    return "\n".join([error.findtext("what") or error.findtext("xwhat/text") or "?", *frames[:12]])


def run_valgrind(work: Path, mutant: bool) -> int:
    """Build with debug information and run the script under valgrind; the number of errors."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotRun("valgrind is missing")
    build(work, MUTANT if mutant else None, "-g -O1 -fno-omit-frame-pointer")
    script, log = work / "script.py", work / "valgrind.xml"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(work), "PMWAL_ENGINE": "native"}
    command = [valgrind, "-q", "--num-callers=20", "--xml=yes", f"--xml-file={log}", sys.executable, str(script), str(work)]
    status = subprocess.run(command, cwd=work, env=environment, check=False).returncode
    try:
        found = ElementTree.parse(log).getroot().iter("error")
    except (ElementTree.ParseError, FileNotFoundError) as error:
        print(f"valgrind ended with {status} and without a whole report: {error}", file=sys.stderr)
        return 1
    errors = [wrong for wrong in found if not wrong.findtext("kind", "").startswith("Leak_")]  # XML always has those
    ours = [wrong for wrong in errors if counts(wrong)]
    for wrong in ours:
        print(told(wrong), file=sys.stderr)
    print(f"the script ended with {status}; {len(ours)} errors, {len(errors) - len(ours)} of the interpreter's own not counted")
    return len(ours) + (status != 0)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what is not known goes to pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="files in tests/, patterns allowed")
    parser.add_argument("--quick", action="store_true", help=f"only some of {', '.join(QUICK)}")
    parser.add_argument("--threads", action="store_true", help="the script with threads under ThreadSanitizer instead")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often it runs (default: %(default)s)")
    parser.add_argument("--valgrind", action="store_true", help="the script under valgrind instead")
    parser.add_argument("--mutant", action="store_true", help="with a mistake in the copy, which must be noticed")
    return parser.parse_known_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build, run, report."""
    options, further = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="pmwal-sanitize-") as name:
        try:
            if options.threads:
                wrong = run_threads(Path(name), options.rounds, options.mutant)
            elif options.valgrind:
                wrong = run_valgrind(Path(name), options.mutant)
            else:
                tests = options.tests or list(QUICK if options.quick else TESTS)
                only = ["-k", QUICK_ONLY] if options.quick and not options.tests else []
                wrong = run_sanitized(Path(name), tests, [*only, *further], options.mutant)
        except CannotRun as error:
            print(error, file=sys.stderr)
            return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
