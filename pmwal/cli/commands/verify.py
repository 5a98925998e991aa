"""``pmwal verify``: check logs as recovery would, without writing."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.inspection import end_offset, judge_log
from pmwal.cli.parser import Commands, add_command, add_json, add_verbose
from pmwal.cli.places import add_paths, has_several, logs_named
from pmwal.cli.streams import output_is_missing
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import count_in_words, lost_in_words, printable, records_in_words, torn_in_words
from pmwal.errors import FormatError
from pmwal.opening.units import format_size
from pmwal.records import RecoveryReport
from pmwal.recovery.judge import Judgement
from pmwal.storage.live_page import LiveWriter

_WORDS = {OK: "sound", FAILED: "torn", CORRUPT: "corrupt", UNREADABLE: "cannot be opened"}

_EPILOG = """\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes. Each
log has a line; after those of a directory or a pattern a line counts them.

Exit status (the worst of all files):
  0  clean; or not closed, with nothing torn;
     or in use, and sound as far as its writer made it durable
  1  torn: recovery would drop what a crash left unfinished;
     or one commit slot or superblock copy is lost
  2  corrupt: acknowledged records are damaged, missing or in doubt
  3  cannot be opened: not a pmwal log, shortened, newer, or no permission
Started without standard output (>&-) it checks all the same, like --quiet.

Examples:
  pmwal verify app.wal
  pmwal verify -q /var/log/shop || echo "needs attention"
  pmwal verify --json /var/log/shop | jq 'select(.status > 0) | .path'
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "verify",
        run,
        "check logs as recovery would, without writing",
        "Check every record of each log as recovery would, without writing.",
        _EPILOG,
    )
    add_paths(parser)
    add_json(parser, "print one JSON object per file, each on a line")
    add_verbose(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing; only set the exit status")


def run(args: argparse.Namespace) -> int:
    """Check each log; return the worst status."""
    quiet = args.quiet or output_is_missing()  # without an output the status is the answer
    paths, worst = logs_named(args.paths)
    counts: Counter[int] = Counter()
    for path in paths:
        status, line, value = _verify(path, verbose=args.verbose)
        worst = max(worst, status)
        counts[status] += 1
        if quiet:
            continue
        if args.json:
            print_json(value)
        else:
            print(printable(line), flush=True)
    if any(map(has_several, args.paths)) and not quiet and not args.json:
        found = ", ".join(f"{counts[status]} {words}" for status, words in _WORDS.items() if counts[status])
        print(f"{count_in_words(len(paths), 'log')}: {found}")
    return worst


def _verify(path: str, *, verbose: bool) -> tuple[int, str, dict[str, Any]]:
    """Status, line and JSON value for one file."""
    try:
        with progress_bar("verify") as progress:
            judgement, writer = judge_log(path, progress)
    except (FormatError, OSError) as error:
        reason = str(error).removeprefix(f"{path}: ") if isinstance(error, FormatError) else error.strerror or str(error)
        value = {"path": path, "status": UNREADABLE, "error": reason}
        return UNREADABLE, f"{path}: cannot be opened: {reason}", value
    report = judgement.report
    status = _status(report)
    value = {
        "path": path,
        "status": status,
        "writer": None if writer is None else writer.pid,
        "torn": torn_in_words(report, end_offset(judgement)),
        "report": report.as_dict(),
    }
    return status, f"{path}: {_in_words(judgement, writer, verbose=verbose)}", value


def _status(report: RecoveryReport) -> int:
    if report.outcome == "corrupt":
        return CORRUPT
    if report.slots_lost or report.superblocks_lost:
        return FAILED
    return FAILED if report.dropped_records else OK


def _in_words(judgement: Judgement, writer: LiveWriter | None, *, verbose: bool) -> str:
    report = judgement.report
    cost = f"[{report.case}, {format_size(report.bytes_scanned)} read in {report.seconds:.2f} s]"
    if report.outcome == "corrupt":
        words = [f"CORRUPT: {report.reason}"]
        if report.lost_first_seq is not None:
            words.append(f"{lost_in_words(report.lost_first_seq, report.lost_last_seq)} lost")
        if report.damage is not None:
            words.append("file offsets {} to {}".format(*report.damage))
        words.append(f"{records_in_words(report.first_seq, report.last_seq)} whole before it")
        words += ["a writer is running"] if report.live else []
        return "; ".join(words) + f" {cost}"
    kept = records_in_words(report.first_seq, report.last_seq)
    torn = torn_in_words(report, end_offset(judgement))
    if report.live:
        who = "a process that has ended since" if writer is None else f"process {writer.pid}"
        return f"in use by {who}, sound so far: {kept} durable {cost}"
    if torn:
        word = "torn" if report.dropped_records else "sound, but one copy is lost"
        return f"{word}: {kept} kept; {'; '.join(torn)} {cost}"
    if report.outcome == "clean":
        return f"clean: {kept} {cost}"
    past = doubt = ""
    if report.kept_past_pointer and verbose:
        past = f", {report.kept_past_pointer} of them past the commit pointer and every durable mark"
    if report.maybe_acknowledged:
        doubt = "; if the last records were damaged, it would look like this, too"
        doubt += ": a torn tail, at most back to the newest slot" if verbose else ""
    return f"not closed, nothing torn: {kept}{past}{doubt} {cost}"
