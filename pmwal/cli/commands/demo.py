"""``pmwal demo``: kill a writer repeatedly, and prove that nothing it acknowledged was lost."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from pmwal.cli.demo.check import Ledger
from pmwal.cli.demo.cycle import Demo, WriterEnded
from pmwal.cli.demo.input import Input, read_input
from pmwal.cli.demo.location import log_location, scratch_directory
from pmwal.cli.demo.report import Printer, summary
from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.formats.framing import as_item
from pmwal.cli.options import add_medium, add_ordering, size_option
from pmwal.cli.parser import Commands, add_command, add_json, add_verbose, number_option
from pmwal.cli.streams import StreamError
from pmwal.cli.terminal import print_json
from pmwal.errors import PmwalError
from pmwal.format.layout import CAPACITY_MIN, KIND_MAX, LINE
from pmwal.opening import open_log
from pmwal.writing.wal import Wal

_LONGEST = 64 * 1024
_EPILOG = """\
A writer process appends real lines with durable commits and reports each
append that has returned to its parent over a pipe, outside the log. The parent
kills it with SIGKILL at a random moment, opens the log, and compares every
record with the line that was appended. Each acknowledged line must be there, in
order and byte for byte, and nothing else but the one record that may have been
in flight ("extra"). The next writer continues in the same log. Writer and
parent truncate the log so that the ring wraps; the writer announces each
truncation in advance.

SIGKILL ends the process but not the kernel: this tests the log, not what a disk
does in a power cut.

With --sabotage early-ack the writer acknowledges lines before it appends them,
to prove that the demo can fail.

Exit status: 0 if the log was right after every kill; 1 if it was not, or if
nothing could be proved (the log is then kept and its path printed).

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
        "Kill a writer repeatedly, recover the log each time, and prove that nothing it\nacknowledged was lost.",
        _EPILOG,
    )
    parser.add_argument(
        "--path", metavar="PATH", help="directory for the log, or a new file *.wal (default: a temporary directory on a disk)"
    )
    parser.add_argument("--cycles", type=number_option(1, KIND_MAX), default=5, metavar="N", help="number of kills (default: 5)")
    parser.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="longest time until a kill (default: 1)")
    parser.add_argument(
        "--input", metavar="FILE", help="lines to append, - for standard input (default: logs and texts of this machine)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed for the times of the kills (default: random)")
    add_medium(parser)
    add_ordering(parser)
    parser.add_argument(
        "--size", type=size_option, default=1 << 20, metavar="SIZE", help="capacity (default: 1MiB, so that the ring wraps)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the log even if all is well")
    parser.add_argument("--sabotage", choices=("early-ack",), help="prove that the demo can fail: acknowledge before appending")
    add_verbose(parser)
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
    """Run the cycles and print the results; keep the log if something was wrong."""
    if args.input == "-" and sys.stdin.isatty():
        args.parser.error("--input - reads standard input, which is a terminal; pipe lines into it")
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    with scratch_directory() as scratch, log_location(args.path) as location:
        lines = read_input(args.input, min(_LONGEST, max(args.size, CAPACITY_MIN) // 16))
        wal = open_log(location.path, "x", size=args.size, medium=args.medium, ordering=args.ordering)
        assert isinstance(wal, Wal)
        location.created = True
        with wal:
            stats = wal.stats()
            next_seq = _fill(wal, lines.lines)
        demo = Demo(
            path=location.path,
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
        printer = Printer(quiet=args.json, verbose=args.verbose)
        printer.header(location.path, stats, lines, seed, args)
        location.keep = True  # unless the run ends and is sound
        error = ""
        try:
            for _ in range(args.cycles):
                printer.cycle(demo.cycle())
                if not demo.cycles[-1].sound:
                    break
        except WriterEnded as failure:
            error = str(failure)
        except (KeyboardInterrupt, StreamError):  # nobody would learn where the log is
            location.keep = args.keep
            raise
        except (PmwalError, OSError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        value = summary(demo, stats, lines, seed, error)
        sound = bool(value["sound"])
        location.keep = args.keep or not sound
        if location.keep:
            value["kept"] = location.path
        if args.json:
            print_json(value)
        else:
            printer.end(value)
    return OK if sound else FAILED


def _fill(wal: Wal, lines: Sequence[bytes]) -> int:
    """Fill the ring almost to its end, so that the first writers wrap onto old bytes; return the next number."""
    size = wal.capacity // 16 - LINE
    piece = (b"\n".join(lines) + b"\n")[:size]
    piece = (piece * -(-size // len(piece)))[:size]
    while wal.free > wal.capacity // 8:
        wal.append(piece)
    return wal.truncate(before=wal.next_seq)


def _save(lines: Input, scratch: str) -> str:
    """Save the lines in the form that the writer reads."""
    path = Path(scratch, "lines")
    with path.open("wb") as file:
        for line in lines.lines:
            file.write(as_item(line))
    return str(path)
