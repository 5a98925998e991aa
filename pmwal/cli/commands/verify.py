"""``pmwal verify``: check logs as recovery would, and archives, without writing."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import chain

from pmwal.cli.archiving.verdicts import Verdict, verdicts_of
from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.inspection import end_offset, judge_log
from pmwal.cli.parser import Commands, add_command, add_json, add_verbose
from pmwal.cli.places import add_paths, has_several, logs_named
from pmwal.cli.streams import output_is_missing
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import count_in_words, lost_in_words, printable, records_in_words, torn_in_words
from pmwal.errors import FormatError
from pmwal.logs.paths import is_archive
from pmwal.opening.units import format_size
from pmwal.records import RecoveryReport
from pmwal.recovery.judge import Judgement
from pmwal.storage.live_page import LiveWriter

_WORDS = {OK: "sound", FAILED: "torn", CORRUPT: "corrupt", UNREADABLE: "cannot be opened"}

_EPILOG = """\
PATH is a log file, an archive, a directory (all *.wal and archives in it), or a
pattern in quotes. Each file has a line; after those of a directory or a pattern
a line counts them. An archive is read as a whole, and compared with its
checksums; after the archives comes a line for each log that has several, which
says whether their numbers follow each other. Archives require pyarrow.

Exit status (the worst of all files):
  0  clean; or not closed, with nothing torn;
     or in use, and sound as far as its writer made it durable;
     archives: sound; records that were gone before they were archived are
     named, and so is what was rolled back
  1  torn: recovery would drop what a crash left unfinished;
     or one commit slot or superblock copy is lost;
     archives: two files have the same records
  2  corrupt: acknowledged records are damaged, missing or in doubt;
     archives: damaged, or a file between others is missing
  3  cannot be opened: not a pmwal log, shortened, newer, or no permission;
     archives: no regular file, or no permission
Started without standard output (>&-) it checks all the same, like --quiet.

Examples:
  pmwal verify app.wal
  pmwal verify -q /var/log/shop || echo "needs attention"
  pmwal verify --json /var/log/shop | jq 'select(.status > 0) | .path'
  pmwal verify /srv/archive
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "verify",
        run,
        "check logs as recovery would, and archives",
        "Check each record of logs as recovery would, and of archives, without writing.",
        _EPILOG,
    )
    add_paths(parser)
    add_json(parser, "print one JSON object per file, each on a line")
    add_verbose(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing; only set the exit status")


def run(args: argparse.Namespace) -> int:
    """Check each log and each archive; return the worst status."""
    quiet = args.quiet or output_is_missing()  # without an output the status is the answer
    paths, worst = logs_named(args.paths, archives=True)
    logs, archives = [path for path in paths if not is_archive(path)], [path for path in paths if is_archive(path)]
    counts: dict[str, Counter[int]] = {"log": Counter(), "archive": Counter()}
    for verdict in chain((_verify(path, verbose=args.verbose) for path in logs), verdicts_of(archives, args.paths)):
        worst = max(worst, verdict.status)
        if verdict.of_file:
            counts["archive" if "archive" in verdict.value else "log"][verdict.status] += 1
        if quiet:
            continue
        if args.json:
            print_json(verdict.value)
        else:
            print(printable(verdict.line), flush=True)
    if any(map(has_several, args.paths)) and not quiet and not args.json:
        for what, by_status in counts.items():
            found = ", ".join(f"{by_status[status]} {words}" for status, words in _WORDS.items() if by_status[status])
            if found:
                print(f"{count_in_words(by_status.total(), what)}: {found}")
    return worst


def _verify(path: str, *, verbose: bool) -> Verdict:
    """The verdict on one log."""
    try:
        with progress_bar("verify") as progress:
            judgement, writer = judge_log(path, progress)
    except (FormatError, OSError) as error:
        reason = str(error).removeprefix(f"{path}: ") if isinstance(error, FormatError) else error.strerror or str(error)
        value = {"path": path, "status": UNREADABLE, "error": reason}
        return Verdict(UNREADABLE, f"{path}: cannot be opened: {reason}", value)
    report = judgement.report
    status = _status(report)
    value = {
        "path": path,
        "status": status,
        "writer": None if writer is None else writer.pid,
        "torn": torn_in_words(report, end_offset(judgement)),
        "report": report.as_dict(),
    }
    return Verdict(status, f"{path}: {_in_words(judgement, writer, verbose=verbose)}", value)


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
