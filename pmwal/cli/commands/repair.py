"""``pmwal repair``: make a damaged log usable again."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.parser import Commands, add_command, add_json, add_path
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import count_in_words, lost_in_words, records_in_words
from pmwal.repair import RepairReport, repair

_EPILOG = """\
The damaged file is never modified: it is kept under another name beside the
repaired one. A repaired log has one unbroken run of records; whole records
around the damage can still be read from the damaged file (pmwal cat --salvage),
also into a new log.

Exit status: 0 if nothing was lost or nothing was wrong, 1 if records were lost,
3 if the log cannot be rebuilt, 4 if another process has it open for writing.

Examples:
  pmwal repair --dry-run app.wal    show what would be done; change nothing
  pmwal repair app.wal              the damaged file becomes app.wal.damaged
  pmwal repair --backup app.wal.old app.wal
  pmwal cat --salvage -o json app.wal.damaged | pmwal import salvaged.wal
"""


_PAST = {"keep": "kept", "leave": "left", "rebuild": "rebuilt", "rewrite": "rewrote", "use": "used", "write": "wrote"}


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "repair", run, "make a damaged log usable again", "Make a damaged log usable again.", _EPILOG)
    add_path(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")
    parser.add_argument("--backup", metavar="FILE", help="name for the damaged file, in the same directory (default: PATH.damaged)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Repair the log, and report what was kept and lost."""
    with progress_bar("repair") as progress:
        report = repair(args.path, backup=args.backup, dry_run=args.dry_run, progress=progress)
    if args.json:
        print_json(report.as_dict())
    else:
        for line in _in_words(report):
            print(line)
    return FAILED if report.lost_records or report.lost_first_seq is not None else OK


def _done(action: str) -> str:
    """A step of a repair that was done: its verb, which comes first, in the past."""
    verb, rest = action.split(" ", 1)
    return f"{_PAST.get(verb, verb)} {rest}"


def _in_words(report: RepairReport) -> list[str]:
    before, after = report.before, report.after
    kept = records_in_words(after.first_seq, after.last_seq)
    if not report.backup:
        return [f"{report.path}: nothing to repair: {before.outcome} ({before.case}), {kept}"]
    lines = [f"{report.path}: {before.outcome} ({before.case}): {before.reason}"]
    lines += [f"  {f'would {action}' if report.dry_run else _done(action)}" for action in report.actions]
    if report.lost_first_seq is not None:
        lines.append(f"  lost: {lost_in_words(report.lost_first_seq, report.lost_last_seq)}")
    if report.lost_records:
        where = report.path if report.dry_run else report.backup
        lines.append(f"  {count_in_words(report.lost_records, 'whole record')} around the damage: pmwal cat --salvage {where}")
    if report.doubtful_records:
        lines.append(
            f"  {report.doubtful_records} of the kept records may have been truncated or rolled back before: no commit slot says"
        )
    lines += [f"  bytes {start} to {end} of the damaged file cannot be read" for start, end in report.unreadable]
    lines.append(f"  {'would be' if report.dry_run else 'now'} {after.outcome}: {kept}")
    if report.dry_run:
        lines.append("  dry run: nothing was changed")
    return lines
