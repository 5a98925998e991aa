"""``pmwal archive``: move the records of logs into files, each once, and let the logs free them."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shlex
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from pmwal.cli.archiving.archiver import FORMATS, Archiver, Missing, Passed, Rules, Written
from pmwal.cli.archiving.directory import Kept, Other
from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.options import age_limit_option, consumer_option, size_limit_option
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.places import logs_of, one_log, without_logs
from pmwal.cli.reading.sets import status_of
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import print_json, say
from pmwal.cli.wording import numbers_in_words, printable, records_in_words
from pmwal.format.payload import parse_size
from pmwal.logs.archives.modules import needed
from pmwal.logs.paths import archives_at, check_place, is_archive
from pmwal.opening.units import format_size, parse_duration
from pmwal.storage.seam import SYSTEM

_SIZE, _AGE = 64 << 20, 3600.0
_PAUSE = 0.5  # seconds between two looks at the logs

_EPILOG = """\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes; TO is
a directory, which is created. pmwal archive is a named consumer of the logs: a
writer that frees what is consumed (on_full="consumed") keeps every record until
it is in a file, and the file is durable. A kill at any moment leaves no record
out and none twice; the next run continues after the last file.

A file is written when there is as much as --every SIZE, when the oldest record
waits for --every AGE, and always when half of the ring is to be archived: small
rings make smaller files than --every asks, which is said once. SIGTERM or ^C
write what there is, and end the command with status 0. The name of a file has
the log's name and uuid, and its first and last number. parquet has a column for
each field of events and structured log lines, like pmwal export; jsonl.zst is
JSON lines. Both require pyarrow: pip install 'pmwal[archive]'. Read them with
pmwal cat, logs and tail, with the logs or without: pmwal cat TO /var/log/shop.

SIZE is like 16MiB or 2GiB, AGE like '90 days', 12h or '30 min'. A number
without a unit is refused.

--keep and --max-total remove archives, the oldest first, of any log: at the
start, after each file, and every minute. The age of an archive is the time
since its last change; one never goes before earlier ones of its log.

The position belongs to the name of the consumer, not to TO. If TO has no
archives of a log, it gets all that the log still has; with --keep or
--max-total, only what the consumer has not acknowledged. For two archives of a
log, give one of them another --consumer NAME.

Records that were overwritten before they were archived are reported, and the
status is 1. If archived records are rolled back, the next files replace them.
A log whose last archive cannot be read is not archived; the others are.

Exit status (the worst of all logs):
  0    all that the logs have is archived, or there was nothing to archive;
       for a run until a signal: all that there was at its end
  1    records were gone from a log before they were archived; or another
       process has the consumer; or a log has several hard links; or pyarrow is
       not installed
  2    a log is corrupt
  3    a log cannot be opened; or TO cannot be written to, or the last archive
       of a log in it not be read
  4    another pmwal archive writes to TO
  64   usage error
  74   standard output failed; what was archived is archived
  130  interrupted by a second signal
  141  the reader of the output has gone

Examples:
  pmwal archive /var/log/shop /srv/archive --keep '90 days'
  pmwal archive app.wal /srv/archive --once --json
  pmwal archive app.wal /srv/archive --format jsonl.zst --every 5min
  pmwal cat --since yesterday /srv/archive /var/log/shop
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "archive",
        run,
        "move records into Parquet or JSON lines",
        "Move the records of logs into archive files, each once, until interrupted.",
        _EPILOG,
    )
    parser.add_argument("places", metavar="PATH", nargs="+", help="log files, directories of logs, or patterns")
    parser.add_argument("target", metavar="TO", help="the directory of the archives")
    parser.add_argument("--format", choices=tuple(FORMATS), default="parquet", help="format of the files (default: parquet)")
    parser.add_argument(
        "--every",
        type=_every,
        action="append",
        metavar="SIZE|AGE",
        help="write a file when this much, or something this old, is to be archived; both may be given (default: 64MiB and 1h)",
    )
    parser.add_argument("--keep", type=age_limit_option, metavar="AGE", help="remove archives that are older")
    parser.add_argument(
        "--max-total", type=size_limit_option, metavar="SIZE", help="remove archives until all together are no larger"
    )
    parser.add_argument(
        "--consumer", type=consumer_option, default="archive", metavar="NAME", help="name of the consumer (default: archive)"
    )
    parser.add_argument("--once", action="store_true", help="archive what the logs have now, and end")
    add_json(parser)


def _every(text: str) -> tuple[str, float]:
    """Which of the two limits, and its value. ``5m`` is five minutes, and ``5M`` a size."""
    unit = text.strip()[-1:]
    if unit.isdigit():
        n = text.strip()
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: give an age, such as {n}s or {n}min, or a size, {n}MiB")
    try:
        if unit:
            return ("size", parse_size(text)) if unit in "BbKMGT" else ("seconds", parse_duration(text))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is neither a size such as 64MiB nor an age such as 1h or '30 min'")


def run(args: argparse.Namespace) -> int:
    """Archive, until interrupted."""
    needed("pyarrow")
    every = dict(args.every or ())
    size, age = int(every.get("size", _SIZE)), every.get("seconds", _AGE)
    rules = Rules(args.format, args.consumer, size, age, args.keep, args.max_total)
    for place in args.places:
        _check_has_logs(place)
    args.path = one_log(args.places)  # of which errors are
    with contextlib.closing(Archiver(args.places, os.fsdecode(args.target), rules, SYSTEM)) as archiver:
        reports = _Reports(args, limited=bool(args.every))
        if args.once:
            reports.show(archiver.look(flush=True))
        else:
            with _ended_by_signals() as ended:
                while not ended.is_set():
                    reports.show(archiver.look())
                    reports.complain(archiver.problems)
                    refuse_closed_output()
                    ended.wait(_PAUSE)
                reports.show(archiver.look(flush=True))
        reports.complain(archiver.problems)
        if not reports.files and not args.json and args.once:
            print(f"{args.target}: nothing to archive")
    return max(reports.status, max(map(status_of, archiver.problems.values()), default=OK))


def _check_has_logs(place: str) -> None:
    """``FileNotFoundError`` if it is not there, or is archives. A directory may have no logs yet."""
    check_place(place)
    if next(archives_at(place), None) is not None and all(map(is_archive, logs_of(place))):
        raise FileNotFoundError(errno.ENOENT, without_logs(place), place)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGHUP and SIGINT set; a second one ends the command at once."""
    ended = threading.Event()

    def end(number: int, frame: object) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    own = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if own else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, end)
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Reports:
    """Prints what was written and removed, and what went wrong."""

    def __init__(self, args: argparse.Namespace, *, limited: bool) -> None:
        """``limited``: the user asked for files of a size or an age."""
        self._json: bool = args.json
        self._target: str = args.target
        self._consumer: str = args.consumer
        self._limited = limited
        self._said: dict[str, str] = {}
        self.files = 0
        self.status = OK

    def show(self, done: Iterable[Written | Kept | Passed | Missing | Other]) -> None:
        """Print each file as soon as it is there."""
        for each in done:
            if isinstance(each, Kept):
                self._print({"removed": each.path, "bytes": each.size}, f"{each.path}: removed, {format_size(each.size)}")
                continue
            if isinstance(each, Other):
                self._say(f"{each.path}: {each.reason}")
                continue
            if isinstance(each, Missing):
                words = f"{numbers_in_words(each.first, each.last)} in no archive of {self._target}, though later ones are"
                check = f"pmwal verify {shlex.quote(self._target)} checks all files"
                self._say(f"{each.log}: {words}; bring the file back from a copy; {check}")
                continue
            if isinstance(each, Passed):
                self._say(
                    f"{each.log}: consumer {self._consumer} is at record {each.position} already, and {self._target} has no "
                    "archives: a position belongs to the consumer, not to the directory; to archive these records here, too, "
                    "use another --consumer"
                )
                continue
            self.files += 1
            if each.early and self._limited:
                self._limited = False  # once is enough
                self._say(
                    f"{each.log}: files are smaller than --every asks: one is written when half of the ring is to be archived; "
                    "for larger ones make the ring larger with pmwal resize"
                )
            summary = each.summary
            if summary.gap is not None:
                self.status = FAILED
                self._say(f"{each.log}: {numbers_in_words(*summary.gap)} gone from the log before they were archived")
            if summary.rollback is not None:
                self._say(
                    f"{each.log}: rolled back, or restored, to record {summary.rollback} after later ones had been archived; "
                    "the new files replace those"
                )
            words = f"{records_in_words(summary.first, summary.last)} of {each.log}, {format_size(each.size)}"
            self._print(_as_dict(each), f"{each.path}: {words}")

    def _print(self, value: dict[str, Any], text: str) -> None:
        if self._json:
            print_json(value)
        else:
            print(printable(text), flush=True)

    def _say(self, text: str) -> None:
        """Names of logs may contain anything."""
        say(printable(text))

    def complain(self, problems: dict[str, Exception]) -> None:
        """Report what is wrong with logs, each thing once."""
        for path, error in problems.items():
            text = (isinstance(error, OSError) and error.strerror) or str(error)
            if self._said.get(path) != text:
                self._say(text if path in text else f"{path}: {text}")
                if self._json:
                    print_json({"log": path, "error": text})
        self._said = {path: (isinstance(error, OSError) and error.strerror) or str(error) for path, error in problems.items()}


def _as_dict(each: Written) -> dict[str, Any]:
    summary = each.summary
    return {
        "path": each.path,
        "log": each.log,
        "uuid": summary.uuid,
        "first": summary.first,
        "last": summary.last,
        "bytes": each.size,
        "gap": summary.gap,
        "rollback": summary.rollback,
    }
