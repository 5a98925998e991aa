"""Standard streams that are missing, full, closed by their reader, hung up, slow or non-blocking: every command, every fault."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from commands import MAKERS, VERIFY_STATUS, Cli, make_log, make_torn
from marks import first_fast
from pmwal.cli import entry, main, streams
from pmwal.cli.atomic_file import descriptor_named
from processes import PATIENCE, child, elsewhere
from shipped_streams import running_stream, uuid_of
from support import open_small, payloads

LINES = b"".join(b"line %d\n" % number for number in range(1, 40))
JSON_LINES = b'{"data": "one"}\n{"data": "two"}\n'


class Run(NamedTuple):
    """A command that succeeds: its arguments after the log's path is known, and its standard input."""

    arguments: Callable[[Path], list[str]]
    stdin: bytes = b""


def _ship(log: Path) -> list[str]:
    return [str(log), *running_stream().to("--once")]


def _restore(log: Path) -> list[str]:
    shipped = running_stream()
    assert main(["ship", str(log), *shipped.to("--once", "--json")]) == 0
    return [f"{log}.again", *shipped.from_(uuid_of(log))]


RUNS = {
    "demo": Run(lambda log: ["--json", "--cycles=1", "--seconds=0.01", f"--path={log.parent}", "--input=-"], LINES),
    "create": Run(lambda log: [f"{log}.new", "--size=64KiB"]),
    "write": Run(lambda log: [str(log)], LINES),
    "logs": Run(lambda log: [str(log)]),
    "cat": Run(lambda log: [str(log)]),
    "tail": Run(lambda log: [str(log)]),
    "stat": Run(lambda log: [str(log)]),
    "info": Run(lambda log: [str(log)]),
    "verify": Run(lambda log: [str(log)]),
    "repair": Run(lambda log: [str(log)]),
    "truncate": Run(lambda log: [str(log), "--before=3"]),
    "consumers": Run(lambda log: [str(log), "--set=mail=oldest"]),
    "prune": Run(lambda log: [str(log.parent), "--keep=1s"]),
    "copy": Run(lambda log: [str(log), f"{log}.copy"]),
    "resize": Run(lambda log: [str(log), "64KiB"]),
    "archive": Run(lambda log: [str(log), str(log.parent / "to"), "--once"]),
    "ship": Run(_ship),
    "restore": Run(_restore),
    "export": Run(lambda log: [str(log)]),
    "import": Run(lambda log: [str(log)], JSON_LINES),
    "serve": Run(lambda log: [str(log), "--idle=0.01s"]),
    "stress": Run(lambda log: [str(log.parent), "--json", "--seconds=0.05", "--readers=1", "--cpu-load=0", "--io-load=0"]),
    "crashsim": Run(lambda log: ["--replay=python:page:strict:lapped:4096:8:write-back:1:append_small"]),
    "bench": Run(lambda log: [str(log.parent), "--json", "--seconds=0.05"]),
    "completion": Run(lambda log: ["bash"]),
}
"""How to run each command so that it prints something."""

LEFT = (".", "pmwal-demo", "pmwal-stress", "pmwal-bench")
"""How the names of files begin that no command may leave."""

VARIES = {
    "demo",
    "stress",
    "bench",
    "verify",
    "info",
    "stat",
    "consumers",
    "serve",
}
"""Times and random numbers are in the output; the lines are as many."""


class Ended(NamedTuple):
    """How a command ended: its status, what reached standard output and error, and where descriptors 0 to 2 led afterwards."""

    status: int
    out: bytes
    err: str
    descriptors: tuple[str, ...]


Fault = Callable[[], None]


def _as_interpreter(fd: int) -> Any:
    """A standard stream as the interpreter makes it: None if the descriptor is missing."""
    try:
        return io.TextIOWrapper(io.FileIO(fd, "r" if fd == 0 else "w", closefd=False), "utf-8", write_through=True)
    except OSError:
        return None


def _with_fault(arguments: list[str], directory: Path, faults: tuple[Fault, ...]) -> tuple[int, tuple[str, ...]]:
    files = ((0, "in", os.O_RDONLY), (1, "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), (2, "err", os.O_WRONLY | os.O_CREAT))
    for fd, name, flags in files:
        opened = os.open(directory / name, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    for fault in faults:
        fault()
    sys.stdin, sys.stdout, sys.stderr = map(_as_interpreter, range(3))
    status = main(arguments)
    return status, tuple(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3))


def run_under(command: str, directory: Path, *faults: Fault, log: Path | None = None, options: tuple[str, ...] = ()) -> Ended:
    """Run a command in a forked process after these faults were made. In the output, DIRECTORY is the directory."""
    if log is None:
        log = make_log(directory / "a.wal")
    run = RUNS[command]
    streams_directory = directory / "streams"
    streams_directory.mkdir(exist_ok=True)
    (streams_directory / "in").write_bytes(run.stdin)
    (streams_directory / "err").write_bytes(b"")
    status, descriptors = elsewhere(_with_fault, [command, *run.arguments(log), *options], streams_directory, faults)
    out = (streams_directory / "out").read_bytes().replace(bytes(directory), b"DIRECTORY")
    return Ended(status, out, (streams_directory / "err").read_text(), descriptors)


def missing(*fds: int) -> Fault:
    """Descriptors that are closed."""
    return lambda: [os.close(fd) for fd in fds]


def leading_to(fd: int, make: Callable[[], int]) -> Fault:
    """A descriptor that leads to what ``make`` opens."""

    def fault() -> None:
        opened = make()
        os.dup2(opened, fd)
        os.close(opened)

    return fault


def _without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _hung_up() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


BROKEN = {
    "full": lambda: os.open("/dev/full", os.O_WRONLY),
    "no reader": _without_reader,
    "hung up": _hung_up,
    "read-only": lambda: os.open("/dev/null", os.O_RDONLY),
}
"""What an output may lead to that takes nothing."""


SUBSETS = [
    *((0,), (1,), (2,), (0, 1, 2)),
    *(pytest.param(fds, marks=pytest.mark.slow) for fds in combinations(range(3), 2)),
]
"""Descriptors that may be missing."""


def is_right(ended: Ended, sound: Ended, command: str) -> bool:
    """Whether a command delivered all of its output, or failed and named the stream; a closed pipe is silent, with status 141."""
    if ended.status == 0:
        return ended.out == sound.out or (command in VARIES and ended.out.count(b"\n") == sound.out.count(b"\n") > 0)
    if ended.status == 141:
        return ended.err == ""
    return ended.err.startswith("pmwal: standard output: ") and ended.err.count("\n") == 1


def test_every_command_is_in_the_table() -> None:
    """A new command cannot be forgotten here."""
    (commands,) = (action for action in entry._parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(RUNS) == set(commands.choices)


@pytest.fixture(scope="module")
def sound() -> Iterator[Callable[[str], Ended]]:
    """How a command ends without any fault."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:

        @cache
        def run(command: str) -> Ended:
            own = Path(directory, command)
            own.mkdir()
            return run_under(command, own)

        yield run


@pytest.mark.parametrize("fault", ["missing", *BROKEN])
@pytest.mark.parametrize("command", RUNS)
def test_output_that_does_not_arrive_is_a_status_and_names_the_stream(shm_dir: Path, command: str, fault: str) -> None:
    """No command loses output in silence; the message names standard output, not the log."""
    ended = run_under(command, shm_dir, missing(1) if fault == "missing" else leading_to(1, BROKEN[fault]))
    if command == "verify" and fault == "missing":  # its status is the answer
        assert (ended.status, ended.err) == (0, "")
    else:
        assert ended.status == (141 if fault == "no reader" else 74)
        assert is_right(ended, ended, command)
    assert [
        path.name for path in shm_dir.iterdir() if path.name.startswith((".", "pmwal-demo", "pmwal-stress", "pmwal-bench"))
    ] == []


@pytest.mark.parametrize("command", RUNS)
def test_output_to_a_slow_non_blocking_pipe_arrives_complete(shm_dir: Path, command: str, sound: Callable[[str], Ended]) -> None:
    """A pipe that is full when the command begins gets all of it, in order."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    filler = bytes(os.write(writer, bytes(8192)))
    told, tell = os.pipe()

    def slowly() -> None:
        os.dup2(writer, 1)
        os.close(writer)
        wait = streams.wait_for

        def waiting(fd: int, ready: int) -> None:
            os.write(tell, b"w")
            wait(fd, ready)

        streams.wait_for = waiting

    def read_when_it_waits(pipe: Any) -> None:
        os.close(writer)
        os.close(tell)
        assert os.read(told, 1) == b"w"  # only now is there anything to take
        with open(reader, "rb") as file:
            pipe.send(file.read())

    with child(read_when_it_waits) as taker:
        os.close(reader)
        ended = run_under(command, shm_dir, slowly)
        os.close(writer)
        os.close(tell)
        taken = taker.hear()
    assert (ended.status, ended.err) == (0, "")
    assert taken.startswith(filler)
    arrived = taken[len(filler) :].replace(bytes(shm_dir), b"DIRECTORY")
    assert is_right(ended._replace(out=arrived), sound(command), command)
    if command == "demo":
        assert json.loads(arrived)["sound"]


@pytest.mark.parametrize("fds", SUBSETS, ids=str)
@pytest.mark.parametrize("command", RUNS)
def test_missing_descriptors_are_never_taken_by_files(
    shm_dir: Path, command: str, fds: tuple[int, ...], sound: Callable[[str], Ended]
) -> None:
    """Whichever of 0 to 2 are missing, they lead to /dev/null afterwards, and what the command needs of them decides the status."""
    ended = run_under(command, shm_dir, missing(*fds))
    assert [ended.descriptors[fd] for fd in fds] == ["/dev/null"] * len(fds)
    reads = command in ("write", "import", "demo")
    fails = (0 in fds and reads) or (1 in fds and command != "verify")
    assert ended.status == (74 if fails else 0)
    if 2 not in fds and fails:
        assert "it is missing: the descriptor is closed" in ended.err
    if not fails and 1 not in fds:
        assert is_right(ended, sound(command), command)


@pytest.mark.parametrize("fault", first_fast(BROKEN))
@pytest.mark.parametrize("command", RUNS)
def test_broken_standard_error_changes_nothing_without_a_message(shm_dir: Path, command: str, fault: str) -> None:
    """A command with nothing to say needs no standard error."""
    ended = run_under(command, shm_dir, leading_to(2, BROKEN[fault]))
    assert ended.status == 0
    assert ended.out


@pytest.mark.parametrize(("fault", "status"), [("missing", 0), ("full", 74), ("no reader", 74), ("hung up", 74)])
def test_message_that_is_lost_shows_in_the_status(shm_dir: Path, fault: str, status: int) -> None:
    """All records arrive although the message about the torn end cannot; only who closed standard error himself is not told."""
    log = make_torn(shm_dir / "a.wal")
    ended = run_under("cat", shm_dir, missing(2) if fault == "missing" else leading_to(2, BROKEN[fault]), log=log)
    assert (ended.status, len(ended.out.splitlines())) == (status, 9)


@pytest.mark.parametrize("state", MAKERS)
def test_verify_without_an_output_answers_by_its_status(cli: Cli, shm_dir: Path, state: str) -> None:
    """The status is the same as with an output."""
    log = MAKERS[state](shm_dir / "a.wal")
    expected = cli("verify", log).status
    assert expected == VERIFY_STATUS.get(state, 3)
    assert run_under("verify", shm_dir, missing(1), log=log).status == expected
    assert run_under("verify", shm_dir, missing(0, 1, 2), log=log).status == expected


@contextlib.contextmanager
def command_of(run: Callable[[argparse.Namespace], int]) -> Iterator[None]:
    """The command ``cat`` replaced by another function."""
    parser = entry._parser

    def replaced(names: Sequence[str]) -> Any:
        made = parser(names)
        (commands,) = (action for action in made._actions if isinstance(action, argparse._SubParsersAction))
        commands.choices["cat"].set_defaults(run=run)
        return made

    entry._parser = replaced
    try:
        yield
    finally:
        entry._parser = parser


def careless_write(args: argparse.Namespace) -> int:
    """Output past the streams of the command line, whose errors nobody sees."""
    with contextlib.suppress(OSError):
        os.write(1, b"lost\n")
    return 0


def careless_print(args: argparse.Namespace) -> int:
    """Output through them, with errors ignored."""
    with contextlib.suppress(OSError):
        print("lost", flush=True)
    print("and lost")
    return 0


def test_table_notices_a_command_that_ignores_errors(shm_dir: Path) -> None:
    """Negative control: the check above fails for a command that writes to the descriptor and does not look."""
    with command_of(careless_write):
        sound = run_under("cat", shm_dir)
        assert sound.out == b"lost\n"
        assert not is_right(run_under("cat", shm_dir, leading_to(1, BROKEN["full"])), sound, "cat")


@pytest.mark.parametrize("fault", BROKEN)
def test_command_that_prints_and_ignores_errors_fails_all_the_same(shm_dir: Path, fault: str) -> None:
    """The stream remembers its first error."""
    with command_of(careless_print):
        ended = run_under("cat", shm_dir, leading_to(1, BROKEN[fault]))
    assert ended.status == (141 if fault == "no reader" else 74)
    assert is_right(ended, ended, "cat")


def test_error_of_close_is_one_of_the_output(shm_dir: Path) -> None:
    """Quotas and network file systems may refuse data only then (close(2))."""

    def refuse() -> None:
        close, dup = os.close, os.dup
        copies: set[int] = set()

        def copy(fd: int) -> int:
            copies.add(dup(fd))
            return max(copies)

        def refused(fd: int) -> None:
            close(fd)
            if fd in copies:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        streams.os = type("Refusing", (), vars(os) | {"dup": staticmethod(copy), "close": staticmethod(refused)})  # type: ignore[assignment]

    ended = run_under("cat", shm_dir, refuse)
    assert (ended.status, ended.err) == (74, "pmwal: standard output: Disk quota exceeded\n")


def test_replaced_stream_does_not_leave_its_descriptor_to_files(shm_dir: Path) -> None:
    """Also where a program has set ``sys.stdin`` to a stream in memory, all missing descriptors are occupied."""
    script = "import io, os, sys; sys.stdin = io.StringIO(); os.closerange(0, 2); from pmwal.cli import main; main(['--version'])"
    script += "; sys.stderr.write(' '.join(os.readlink(f'/proc/self/fd/{fd}') for fd in range(2)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr == "pmwal: standard output: it is missing: the descriptor is closed\n/dev/null /dev/null"


def test_program_that_calls_main_keeps_the_order_of_its_output(shm_dir: Path) -> None:
    """What it printed before and after comes before and after."""
    script = "from pmwal.cli import main; print('before'); main(['--version']); print('after')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == f"before\npmwal {pmwal.__version__}\nafter\n"


# -- input


@pytest.mark.parametrize(
    ("arguments", "pieces", "expected"),
    [
        (["write"], [b"on", b"e\ntw", b"o"], [b"one", b"two"]),
        (["write", "--length-prefixed"], [b"\x03\0", b"\0\0o", b"ne\x03\0\0\0two"], [b"one", b"two"]),
        (["import"], [b'{"data"', b': "one"}\n{', b'"data": "two"}'], [b"one", b"two"]),
        (["import", "--format=length-prefixed"], [b"\x03", b"\0\0\0", b"one"], [b"one"]),
    ],
)
def test_input_that_pauses_is_waited_for(shm_dir: Path, arguments: list[str], pieces: list[bytes], expected: list[bytes]) -> None:
    """A non-blocking pipe that is empty for now is not the end of the input."""
    log = shm_dir / "a.wal"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def append(pipe: Any) -> None:
        os.close(writer)
        os.dup2(reader, 0)
        os.close(reader)
        wait = streams.wait_for

        def waiting(fd: int, ready: int) -> None:
            pipe.send("waiting")
            wait(fd, ready)

        streams.wait_for = waiting
        sys.stdin = _as_interpreter(0)
        pipe.send(main([*arguments, str(log), "--size=64KiB"]))

    with child(append) as process:
        os.close(reader)
        for piece in pieces:
            assert process.hear() == "waiting"
            os.write(writer, piece)
        assert process.hear() == "waiting"
        os.close(writer)
        status = process.hear()
    assert status == 0
    with pmwal.open(log, "r") as found:
        assert payloads(found) == expected


@pytest.mark.parametrize("command", ["write", "import"])
@pytest.mark.parametrize("fault", ["missing", "write-only", "directory", "hung up"])
def test_input_that_cannot_be_read_leaves_no_log(shm_dir: Path, command: str, fault: str) -> None:
    """The status is 74, the message names standard input, and the log that it would have filled is not there."""
    opened = {
        "write-only": lambda: os.open("/dev/null", os.O_WRONLY),
        "directory": lambda: os.open(shm_dir, os.O_RDONLY),
        "hung up": _hung_up,
    }
    log = shm_dir / "new.wal"
    ended = run_under(command, shm_dir, missing(0) if fault == "missing" else leading_to(0, opened[fault]), log=log)
    if fault == "hung up":  # reads the end of the input, or an error
        assert ended.status in (0, 74)
    else:
        assert (ended.status, ended.out) == (74, b"")
        assert ended.err.startswith("pmwal: standard input: ")
    assert log.exists() == (ended.status == 0)


# -- the cursor of tail


@pytest.mark.parametrize("fault", ["missing", *BROKEN])
def test_cursor_is_saved_only_for_what_was_taken(cli: Cli, shm_dir: Path, fault: str) -> None:
    """After any fault of the output the next run prints the same records again."""
    log, cursor = make_log(shm_dir / "a.wal"), shm_dir / "cursor"
    assert cli("tail", log, "--cursor-file", cursor).status == 0
    before = cursor.read_bytes()
    with open_small(log) as wal:
        wal.append(b"next")
    broken = missing(1) if fault == "missing" else leading_to(1, BROKEN[fault])
    ended = run_under("tail", shm_dir, broken, log=log, options=(f"--cursor-file={cursor}",))
    assert ended.status == (141 if fault == "no reader" else 74)
    assert cursor.read_bytes() == before
    assert len(cli("tail", log, "--cursor-file", cursor).lines) == 1
    assert cursor.read_bytes() != before


# -- whole processes


@pytest.fixture
def big_log(shm_dir: Path) -> Path:
    """A log with one record of 300,000 bytes."""
    with pmwal.open(shm_dir / "a.wal", size="1MiB") as wal:
        wal.append(b"x" * 300_000)
    return shm_dir / "a.wal"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["cat -o raw", "tail", "export", "export --format arrow", "cat --length-prefixed"])
def test_short_write_is_not_the_end_of_the_output(big_log: Path, unbuffered: str, arguments: str) -> None:
    """A limit on the size of the output cuts it, also in an unbuffered interpreter, and that is reported."""
    command, *options = arguments.split()
    line = f'ulimit -f 50; exec "{sys.executable}" -m pmwal {command} {" ".join(options)} "$1" > "$1.out"'
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run(["bash", "-c", line, "-", str(big_log)], capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stderr) == (74, "pmwal: standard output: File too large\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_file_that_cannot_grow_is_named(big_log: Path, unbuffered: str) -> None:
    """The file is named, not the log; there is no file, not even a hidden one."""
    line = f'ulimit -f 50; exec "{sys.executable}" -m pmwal export "$1" -o "$1.jsonl"'
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run(["bash", "-c", line, "-", str(big_log)], capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stderr) == (3, f"pmwal: {big_log}.jsonl: File too large\n")
    assert os.listdir(big_log.parent) == ["a.wal"]


def test_terminal_gets_text_as_it_is_printed(shm_dir: Path) -> None:
    """On a pseudo-terminal a line arrives without waiting for the end of the command."""
    master, terminal = pty.openpty()
    log = make_log(shm_dir / "a.wal")
    process = subprocess.Popen([sys.executable, "-m", "pmwal", "tail", "-f", "-n1", log], stdout=terminal, stdin=terminal)
    os.close(terminal)
    try:
        assert b"line 10\r\n" in os.read(master, 1 << 16)
        with open_small(log) as wal:
            wal.append(b"next")
            assert b"next\r\n" in os.read(master, 1 << 16)
        os.close(master)
        assert process.wait(PATIENCE) in (74, 141)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("start", [("-c", "import sys, pmwal_command; sys.exit(pmwal_command.main())"), ("-m", "pmwal")])
@pytest.mark.parametrize(("module", "argument"), [("argparse", "--version"), ("json", "cat"), ("numpy", "--help")])
def test_ctrl_c_while_modules_are_imported_is_silent(shm_dir: Path, start: tuple[str, str], module: str, argument: str) -> None:
    """The script that pip installs ends with status 130 and no traceback, wherever in the imports the signal comes."""
    (shm_dir / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError\n")
    environment = os.environ | {"PYTHONPATH": str(shm_dir)}
    ran = subprocess.run([sys.executable, *start, argument], capture_output=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_descriptor_is_known_by_its_names(shm_dir: Path, name: str) -> None:
    """Also through a symbolic link; a file that such a descriptor leads to is not one."""
    (shm_dir / "link").symlink_to(name)
    assert (descriptor_named(name), descriptor_named(str(shm_dir / "link"))) == (1, 1)
    assert descriptor_named(str(shm_dir / "file")) is None
    assert descriptor_named("/dev/full") is None


def test_error_of_a_stream_keeps_its_number() -> None:
    """So that a broken pipe is told from a full disk."""
    reader, writer = os.pipe()
    os.close(reader)
    raw = streams.Descriptor(writer, "standard output", streams.StreamError)
    with pytest.raises(streams.StreamError, match="standard output") as caught:
        raw.write(b"x")
    os.close(writer)
    assert (caught.value.errno, raw.failure) == (errno.EPIPE, caught.value)
