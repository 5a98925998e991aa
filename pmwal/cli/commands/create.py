"""``pmwal create``: create an empty log."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import OK
from pmwal.cli.options import add_medium, size_option
from pmwal.cli.parser import Commands, add_command, add_json, add_path, number_option
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import durability_in_words
from pmwal.format.layout import ALIGN_DEFAULT, ALIGN_MAX
from pmwal.opening import open_log
from pmwal.opening.options import check_label
from pmwal.opening.units import format_size
from pmwal.writing.wal import Wal

_EPILOG = """\
The file appears under its name only once all of it is on the medium. An
existing file is never touched.

Examples:
  pmwal create app.wal --size 256MiB
  pmwal create /mnt/pmem/orders.wal --medium dax --label "orders, shard 3"
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "create", run, "create an empty log", "Create an empty log.", _EPILOG)
    add_path(parser, "the file to create")
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity of the ring (default: 64MiB)")
    parser.add_argument(
        "--align",
        type=_alignment,
        metavar="BYTES",
        help="alignment of records, a power of two from 8 to 4096 (default: 64 on DAX, else 8)",
    )
    add_medium(parser)
    parser.add_argument("--label", type=_label, metavar="TEXT", help="a name for people, at most 64 bytes of UTF-8")
    add_json(parser)


def _alignment(text: str) -> int:
    value = number_option(ALIGN_DEFAULT, ALIGN_MAX)(text)
    if value & (value - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two")
    return value


def _label(text: str) -> str:
    try:
        check_label(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(args: argparse.Namespace) -> int:
    """Create the log, close it and describe it."""
    with progress_bar("create") as progress:
        wal = open_log(
            args.path,
            "x",
            size=args.size,
            align=args.align,
            medium=args.medium,
            label=args.label,
            progress=progress,
        )
    assert isinstance(wal, Wal)
    with wal:
        stats = wal.stats()
    if args.json:
        print_json(
            {
                "path": args.path,
                "capacity": stats.capacity,
                "alignment": stats.alignment,
                "medium": stats.medium,
                "filesystem": stats.filesystem,
                "durability": stats.durability,
                "assumptions": list(stats.assumptions),
            }
        )
        return OK
    print(
        f"created {args.path}: ring of {format_size(stats.capacity)}, records aligned to {stats.alignment}, "
        f"{stats.medium} on {stats.filesystem}; a record survives {durability_in_words(stats.durability)}"
    )
    return OK
