"""``pmwal ship``: send the records of logs to a stream of NATS JetStream, or to an OpenTelemetry collector."""

from __future__ import annotations

import argparse

from pmwal.cli.options import consumer_option, duration_option, size_option
from pmwal.cli.parser import Commands, Parser, add_command, add_json
from pmwal.cli.places import set_named
from pmwal.cli.shipping.options import add_connection, add_stream, header_option, target_option

_EPILOG = """\
LOG is a log file, a directory (all *.wal in it, also new ones), or a pattern in
quotes. URL is like nats://broker:4222, several servers of a cluster with commas
between them, or otlp+http://HOST:4318 for an OpenTelemetry collector.

NATS needs --stream. The stream must be there, with the subjects P.*: pmwal
makes and changes none. Each log has a subject of its own, P.UUID, which
renaming the log or its machine does not change. A message has many records;
with --form atomic it is one record, for consumers in any language: that needs
allow_atomic of the stream and a server from 2.12 on, and costs several times as
much. pmwal restore makes a log of either form again.

Each record is in the stream once and in order, whatever is killed and whenever:
the server stores a message right after the one before it, or not at all, and
where to continue is asked of the stream. pmwal ship is a named consumer of the
logs: a writer that frees what is consumed (on_full="consumed") keeps every
record until the stream has acknowledged it and --hold has passed. JetStream
acknowledges before it syncs, every 2 minutes by default: --hold must be longer.

If the server does not answer, or the stream is full, it is said once and tried
again, with --once for half a minute. Records that were overwritten before they
were shipped are reported and marked in the stream, and the status is 1. A log
that was rolled back, or copied over, after it was shipped is not shipped any
more (--on-rollback stop): its records are others than those in the stream. With
mark, the stream is told which are void, and gets the new ones.

A collector (OTLP over HTTP; otlp+https for TLS) gets each record at least once,
as a log record with its level and fields. /v1/logs is added to the path unless
it ends so. Several LOGs are one set, with one progress. --header adds a header
to each request. Other users see it in the list of processes, so give keys in
the environment: OTEL_EXPORTER_OTLP_HEADERS=name=value,name=value. If the
collector refuses a request, the command ends, and the next one sends it again.
Records that it takes and rejects are reported, and the status is 1. --stream,
--prefix, --form, --frame, --linger, --hold, --on-rollback, --too-large,
--creds, --nkey, --user and --check are for NATS only.

--check asks the server whether the stream can keep what is promised, prints
what is wrong, and ships nothing. SIGTERM or ^C end the command with status 0;
what was acknowledged is noted. --once ends when all is acknowledged that the
logs have now.

--metrics publishes progress and lag of each log for Prometheus: at
http://ADDRESS:PORT/metrics, of the loopback address if only PORT is given, or
in a file *.prom for the node exporter's textfile collector. NATS requires
nats-py: pip install 'pmwal[nats]'; a collector opentelemetry-proto:
pip install 'pmwal[otlp]'; --metrics prometheus_client:
pip install 'pmwal[metrics]'.

Exit status: 0; 1 if records were gone before they were shipped or were
rejected, a log could not be shipped, or --check found what breaks this; 2 if a
log is corrupt; 3 if one cannot be opened.

Examples:
  pmwal ship app.wal --to nats://broker:4222 --stream LOGS
  pmwal ship /var/log/shop --to tls://broker:4222 --stream LOGS --creds me.creds
  pmwal ship app.wal --to nats://broker:4222 --stream LOGS --once --json
  pmwal ship /var/log/shop --to nats://broker --stream LOGS --metrics 9470
  pmwal ship app.wal --to otlp+http://127.0.0.1:4318
  pmwal ship /var/log/shop --to otlp+https://collector --header x-tenant=7
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "ship",
        run,
        "send records to NATS or a collector",
        "Send the records of logs to a stream of NATS JetStream, each exactly once, or\nto an OpenTelemetry collector.",
        _EPILOG,
    )
    parser.add_argument("paths", metavar="LOG", nargs="+", help="log files, directories of logs, or patterns")
    add_stream(parser, "--to", "the servers, or the collector", required=False)
    _add_rules(parser)
    add_connection(parser)
    parser.add_argument(
        "--header",
        type=header_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a header for the collector; may be repeated",
    )
    parser.add_argument("--metrics", type=target_option, metavar="WHERE", help="publish figures: [ADDRESS:]PORT, or a file *.prom")
    parser.add_argument("--once", action="store_true", help="ship what the logs have now, and end")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with the stream")
    add_json(parser)


def _add_rules(parser: Parser) -> None:
    """What a message has, and what to do in which case."""
    parser.add_argument(
        "--form", choices=("frame", "atomic"), help="many records a message, or one, in atomic batches (default: frame)"
    )
    parser.add_argument("--frame", type=size_option, metavar="SIZE", help="size of a message, or a batch (default: 256KiB)")
    parser.add_argument("--linger", type=duration_option, metavar="TIME", help="wait this long for more records (default: 10ms)")
    parser.add_argument("--consumer", type=consumer_option, metavar="NAME", help="name of the consumer (default: nats, or otlp)")
    parser.add_argument(
        "--hold", type=duration_option, metavar="TIME", help="let logs free a record this long after (default: 180s)"
    )
    parser.add_argument("--on-rollback", choices=("stop", "mark"), help="when shipped records were rolled back (default: stop)")
    parser.add_argument(
        "--too-large",
        choices=("split", "stop"),
        help="when a record is larger than the server takes (default: split)",
    )


def run(args: argparse.Namespace) -> int:
    """Ship, until interrupted."""
    from pmwal.cli.shipping.collecting import check_options  # noqa: PLC0415 - help needs none of it
    from pmwal.cli.shipping.running import check_stream, ship  # noqa: PLC0415 - needs the extra

    check_options(args)
    if args.check:
        return check_stream(args)
    places, missing = set_named(args.paths, follow=not args.once)
    return max(ship(args, places), missing)
