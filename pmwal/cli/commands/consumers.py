"""``pmwal consumers``: show the named consumers of a log, and remove or move one."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Sequence
from typing import Any

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.options import consumer_option
from pmwal.cli.parser import Commands, add_command, add_json, add_path
from pmwal.cli.places import has_several, logs_named
from pmwal.cli.reading.sets import status_of
from pmwal.cli.terminal import print_json, say
from pmwal.cli.times import utc_text
from pmwal.cli.wording import table
from pmwal.cursor import parse_cursor
from pmwal.errors import PmwalError
from pmwal.opening import open
from pmwal.opening.spelling import did_you_mean
from pmwal.opening.units import format_size
from pmwal.reading.consumer import Standing
from pmwal.reading.internals import consumers_of, renewed_consumer
from pmwal.storage.positions import directory_of, remove_position
from pmwal.storage.seam import SYSTEM

_ENDS = ("oldest", "newest")

_EPILOG = """\
PATH is a log file, or a directory or a pattern in quotes, to show the consumers
of all its logs.

A named consumer keeps its position beside the log, in LOG.consumers/NAME. A
writer that truncates what is consumed keeps all records after the position of
the slowest one; a problem with a position holds all of them back.

CURSOR is oldest, newest, the number of the next record, or a cursor as
'pmwal cat --json' prints it. A consumer that a process holds is not changed.

Exit status: 0; 1 if a position has a problem; 2 if a log is corrupt;
3 if one cannot be opened.

Examples:
  pmwal consumers app.wal
  pmwal consumers /var/log/shop
  pmwal consumers app.wal --forget mail       what it has not had may be freed
  pmwal consumers app.wal --set mail=oldest   let it have everything again
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "consumers",
        run,
        "show who reads a log",
        "Show the named consumers of a log, remove one, or move its position.",
        _EPILOG,
    )
    add_path(parser, "a log file, or to show consumers, a directory of logs or a pattern")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--forget", type=consumer_option, metavar="NAME", help="remove a consumer and its position")
    how.add_argument("--set", type=_assignment, metavar="NAME=CURSOR", help="move a consumer, or make one")
    add_json(parser)


def _assignment(text: str) -> tuple[str, int | str]:
    name, equals, start = text.partition("=")
    if not equals or not start:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CURSOR, such as mail=oldest")
    if start.isascii() and start.isdigit():
        return consumer_option(name), int(start)
    if start not in _ENDS:
        try:
            parse_cursor(start)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{start!r} is no CURSOR; give {', '.join(_ENDS)}, the number of the next record, or a cursor as "
                f"'pmwal cat --json' prints it{did_you_mean(start, _ENDS)}"
            ) from None
    return consumer_option(name), start


def run(args: argparse.Namespace) -> int:
    """Do what was asked, and show the consumers as they are then."""
    if has_several(args.path):
        return _show_several(args)
    if args.forget is not None:
        with open(args.path, "r"):  # a log, and not what happens to lie beside something else
            _forget(args.path, args.forget)
    with open(args.path, "r") as reader:
        if args.set is not None:
            name, start = args.set
            with renewed_consumer(reader, name, start) as consumer:
                consumer.seek(start)
        found = consumers_of(reader)
    return _show(args.path, found, json=args.json)


def _show_several(args: argparse.Namespace) -> int:
    if args.forget is not None or args.set is not None:
        args.parser.error("--forget and --set are of one log: name its file")
    paths, status = logs_named([args.path])
    for path in paths:
        try:
            with open(path, "r") as reader:
                found = consumers_of(reader)
        except (PmwalError, OSError) as error:
            say(f"{path}: {(isinstance(error, OSError) and error.strerror) or str(error).removeprefix(f'{path}: ')}")
            status = max(status, status_of(error))
            continue
        if found and not args.json:
            print(f"{path}:")
        status = max(status, _show(path, found, json=args.json))
    return status


def _show(path: str, found: Sequence[Standing], *, json: bool) -> int:
    """Print the consumers of a log; the exit status."""
    if json:
        print_json({"path": path, "consumers": [_as_dict(each) for each in found]})
    elif found:
        print("\n".join(table(_HEADING, [_row(each) for each in found])))
        for each in found:
            if each.problem is not None:
                print(f"{each.name}: {each.problem}")
    else:
        print(f"{path}: no consumers")
    return FAILED if any(each.problem is not None for each in found) else OK


def _forget(path: str, name: str) -> None:
    directory = directory_of(path)
    try:
        if not stat.S_ISREG(os.lstat(os.path.join(directory, name)).st_mode):
            raise ValueError(
                f"{os.path.join(directory, name)}: no regular file, so pmwal has not made it; see where it came from, and remove "
                "it with rm, unlink or rmdir"
            )
        remove_position(directory, name, SYSTEM)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no consumer {name!r}; pmwal consumers {path} lists those that there are") from None


_HEADING = ("consumer", "position", "behind", "bytes", "age", "acknowledged", "holder")


def _row(each: Standing) -> tuple[str, ...]:
    position, lag = each.position, each.lag
    return (
        each.name,
        "?" if position is None else position.cursor or str(position.seq),
        "?" if lag is None else str(lag.records),
        "?" if lag is None else format_size(lag.bytes),
        "?" if lag is None else f"{lag.seconds:.1f} s",
        "?" if position is None else utc_text(position.time_ns),
        "none" if each.holder is None else f"process {each.holder or '?'}",
    )


def _as_dict(each: Standing) -> dict[str, Any]:
    position, lag = each.position, each.lag
    return {
        "name": each.name,
        "seq": None if position is None else position.seq,
        "cursor": None if position is None else position.cursor or None,
        "released": None if position is None else position.released,
        "time": None if position is None else utc_text(position.time_ns),
        "lag": None if lag is None else lag._asdict(),
        "held": each.holder is not None,
        "holder": each.holder or None,
        "problem": each.problem,
    }
