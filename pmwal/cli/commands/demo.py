"""``pmwal demo``: kill a writer of real lines again and again, and prove that nothing it acknowledged was lost."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from pmwal.cli.common import (
    FAILED,
    OK,
    Commands,
    add_command,
    add_json,
    add_medium,
    add_ordering,
    number_option,
    print_json,
    size_option,
)
from pmwal.cli.demo.check import Ledger
from pmwal.cli.demo.cycle import Demo, WriterEnded
from pmwal.cli.demo.input import Input, read_input
from pmwal.cli.demo.report import Printer, summary
from pmwal.errors import PmwalError
from pmwal.format.layout import CAPACITY_MIN, KIND_MAX, LINE
from pmwal.opening import open_log
from pmwal.storage.medium import filesystem
from pmwal.writing.wal import Wal

_LONGEST = 64 * 1024
_DISK_DIRECTORIES = ("/var/tmp", ".", "~")
_EPILOG = """\
A writer process appends real lines with durable commits, and tells its parent
over a pipe, outside of the log, when append has returned. The parent kills it
with SIGKILL at a random moment, opens the log, and compares every record with
the line that was issued: each acknowledged line must be there, in order and
byte for byte, and nothing else but the one record that can have been under way
("extra"). The next writer goes on in the same log; writer and parent truncate
it, so that the ring wraps, and the writer says what it truncates beforehand.

SIGKILL ends the process and leaves the kernel alive: it tests the log, not what
a disk does in a power cut.

--sabotage early-ack proves that the demo can fail: its writer acknowledges
lines before it appends them.

Exit status: 0 when the promise was kept, 1 when it was not (the log is kept
then, and its path printed).

Examples:
  pmwal demo
  pmwal demo --path /mnt/pmem --cycles 20
  pmwal demo --path /dev/shm --ordering strict --seed 7
  journalctl -o cat | pmwal demo --input -
  pmwal demo --sabotage early-ack; echo "must be 1: $?"
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "demo",
        run,
        "kill a writer, recover, prove that nothing was lost",
        "Kill a writer of real lines again and again, recover, and prove that nothing\nit acknowledged was lost.",
        _EPILOG,
    )
    parser.add_argument(
        "--path", metavar="PATH", help="directory for the log, or a new file (default: a temporary directory on a disk)"
    )
    parser.add_argument("--cycles", type=number_option(1, KIND_MAX), default=5, metavar="N", help="kills (default: 5)")
    parser.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="the longest time until a kill (default: 1)")
    parser.add_argument(
        "--input", metavar="FILE", help="lines to append, - for standard input (default: this machine's own logs and texts)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="fixes the moments of the kills (default: a random one)")
    add_medium(parser)
    add_ordering(parser)
    parser.add_argument(
        "--size", type=size_option, default=1 << 20, metavar="SIZE", help="capacity (default: 1MiB, so that the ring wraps)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the log in any case")
    parser.add_argument("--sabotage", choices=("early-ack",), help="prove that the demo can fail: the writer lies")
    add_json(parser)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the cycles, print what was found, and keep the log when something was wrong."""
    if args.input == "-" and sys.stdin.isatty():
        args.parser.error("--input - reads standard input, and that is a terminal; pipe something in")
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    with _scratch() as scratch, _place(args.path) as place:
        lines = read_input(args.input, min(_LONGEST, max(args.size, CAPACITY_MIN) // 16))
        wal = open_log(place.path, "x", size=args.size, medium=args.medium, ordering=args.ordering)
        assert isinstance(wal, Wal)
        place.made = True
        with wal:
            stats = wal.stats()
            next_seq = _fill(wal, lines.lines)
        demo = Demo(
            path=place.path,
            lines_file=_save(lines, scratch),
            ledger=Ledger(lines.lines),
            scratch=scratch,
            random=Random(seed),
            seconds=args.seconds,
            medium=args.medium,
            ordering=args.ordering,
            sabotage=args.sabotage or "",
            first_seq=next_seq,
            next_seq=next_seq,
        )
        printer = Printer(quiet=args.json)
        printer.header(place.path, stats, lines, seed, args)
        place.keep = True  # until it is known that nothing is wrong
        error = ""
        try:
            for _ in range(args.cycles):
                printer.cycle(demo.cycle())
                if not demo.cycles[-1].sound:
                    break
        except WriterEnded as failure:
            error = str(failure)
        except (PmwalError, OSError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        except KeyboardInterrupt:
            place.keep = args.keep
            raise
        value = summary(demo, stats, lines, seed, error)
        sound = bool(value["sound"])
        place.keep = args.keep or not sound
        if place.keep:
            value["kept"] = place.path
        if args.json:
            print_json(value)
        else:
            printer.end(value)
    return OK if sound else FAILED


def _fill(wal: Wal, lines: Sequence[bytes]) -> int:
    """Bring the log near the ring's end, so that the first writers wrap onto old bytes; the next number."""
    size = wal.capacity // 16 - LINE
    piece = (b"\n".join(lines) + b"\n")[:size]
    piece = (piece * -(-size // len(piece)))[:size]
    while wal.free > wal.capacity // 8:
        wal.append(piece)
    return wal.truncate(before=wal.next_seq)


def _save(lines: Input, scratch: str) -> str:
    """The lines as the writer reads them."""
    path = Path(scratch, "lines")
    with path.open("wb") as file:
        for line in lines.lines:
            file.write(len(line).to_bytes(4, "little") + line)
    return str(path)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A directory for what is not under test."""
    directory = tempfile.mkdtemp(prefix="pmwal-demo-input-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Place:
    """Where the log goes, and whether it stays."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.made = False
        self.keep = False


@contextlib.contextmanager
def _place(requested: str | None) -> Iterator[_Place]:
    """A path for the log; what was made there is removed at the end unless it shall stay."""
    directory: str | None = None
    if requested is None or os.path.isdir(requested):
        directory = tempfile.mkdtemp(prefix="pmwal-demo-", dir=requested if requested is not None else _disk_directory())
        place = _Place(os.path.join(directory, "demo.wal"))
    else:
        place = _Place(requested)
    try:
        yield place
    finally:
        if not (place.made and place.keep):
            if place.made:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(place.path)
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def _disk_directory() -> str:
    """The first writable directory that does not lie in memory; the temporary directory when all do."""
    usual = tempfile.gettempdir()
    for directory in (usual, *map(os.path.expanduser, _DISK_DIRECTORIES)):
        with contextlib.suppress(OSError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if filesystem(fd) not in ("tmpfs", "ramfs") and os.access(directory, os.W_OK):
                    return os.path.abspath(directory)
            finally:
                os.close(fd)
    return usual
