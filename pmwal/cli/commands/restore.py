"""``pmwal restore``: make a log again from a stream of NATS JetStream."""

from __future__ import annotations

import argparse
import asyncio

from pmwal.cli.exit_status import OK
from pmwal.cli.options import size_option
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.shipping.options import add_connection, add_stream, check_servers, connection, given
from pmwal.cli.terminal import print_json, progress_bar, say
from pmwal.cli.wording import count_in_words, records_in_words
from pmwal.opening.units import format_size

_EPILOG = """\
The new log has the records that pmwal ship has sent to the stream, with the
same numbers, kinds and times, and another uuid: shipped again, it gets another
subject. It is complete or not there: a command that fails leaves no file. The
next record that is appended gets the number after the last one. Records that
were rolled back and marked are left out; if some were gone before they were
shipped, the log begins after the last such gap, which is said.

UUID is that of the log that is lost, as pmwal info prints it; it is the last
part of the subject. SIZE is like 64MiB or 1GiB, or a number of bytes. Restoring
requires nats-py: pip install 'pmwal[nats]'

Exit status: 0; 1 if the stream has nothing of that log, or a message of it is
damaged, or the server cannot be reached; 3 if the file cannot be made.

Examples:
  pmwal restore app.wal --from nats://broker:4222 --stream LOGS --log UUID
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "restore",
        run,
        "make a log again from NATS JetStream",
        "Make a log again of what pmwal ship has sent to a stream of NATS JetStream.",
        _EPILOG,
    )
    parser.add_argument("path", metavar="LOG", help="the file to create")
    add_stream(parser, "--from", "the servers")
    parser.add_argument("--log", required=True, metavar="UUID", help="the uuid of the log that was shipped")
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity of the ring (default: what the records need)")
    add_connection(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Restore the log, and report what it has."""
    from pmwal.ship import restore  # noqa: PLC0415 - help needs none of it
    from pmwal.ship.chain import as_uuid  # noqa: PLC0415

    try:
        as_uuid(args.log)
    except ValueError as error:
        args.parser.error(str(error))
    check_servers(args)
    options = connection(args)
    with progress_bar("restore", unit=" messages") as progress:
        report = asyncio.run(
            restore(
                args.path,
                from_=args.url,
                stream=args.stream,
                log=args.log,
                size=args.size,
                options=options,
                progress=progress,
                **given(args, "prefix"),
            )
        )
    if args.json:
        print_json(report.as_dict())
        return OK
    records = records_in_words(report.first_seq, report.last_seq)
    print(f"restored {report.path} from stream {args.stream}: {records}, in a ring of {format_size(report.capacity)}")
    if report.left_out:
        count = count_in_words(report.left_out, "older record")
        say(f"{report.path}: {count} left out, from before a gap or for which --size has no room")
    return OK
