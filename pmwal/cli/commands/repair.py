"""``pmwal repair``."""

from __future__ import annotations

import argparse

from pmwal.cli.common import (
    FAILED,
    OK,
    Commands,
    add_command,
    add_json,
    numbers_in_words,
    print_json,
    progress_bar,
    records_in_words,
)
from pmwal.repair import RepairReport, repair

_EPILOG = """\
The damaged file is never written to: it keeps its bytes under another name
beside the repaired one. What is kept is one unbroken run of records; whole
records behind the damage stay readable there (pmwal cat --salvage).

Exit status: 0 when nothing was lost (or nothing was wrong), 1 when records were
lost, 3 when nothing can be rebuilt, 4 when a writer has the log.

Examples:
  pmwal repair --dry-run app.wal      what it would do; nothing is changed
  pmwal repair app.wal                the damaged file becomes app.wal.damaged
  pmwal repair --backup app.wal.old app.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "repair", run, "make a damaged log usable again", "Make a damaged log usable again.", _EPILOG)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and change nothing")
    parser.add_argument(
        "--backup", metavar="FILE", help="the name that the damaged file keeps, in the same directory (default: PATH.damaged)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Repair and say what was kept and lost."""
    with progress_bar("repair") as progress:
        report = repair(args.path, backup=args.backup, dry_run=args.dry_run, progress=progress)
    if args.json:
        print_json(report.as_dict())
    else:
        for line in _in_words(report):
            print(line)
    return FAILED if report.lost_records or report.lost_first_seq is not None else OK


def _in_words(report: RepairReport) -> list[str]:
    before, after = report.before, report.after
    kept = records_in_words(after.first_seq, after.last_seq)
    if not report.backup:
        return [f"{report.path}: nothing to repair: {before.outcome} ({before.case}), {kept}"]
    lines = [f"{report.path}: {before.outcome} ({before.case}): {before.reason}"]
    lines += [f"  {'would ' if report.dry_run else ''}{action}" for action in report.actions]
    if report.lost_first_seq is not None:
        lines.append(f"  lost: {numbers_in_words(report.lost_first_seq, report.lost_last_seq)}")
    if report.lost_records:
        where = report.path if report.dry_run else report.backup
        lines.append(f"  {report.lost_records} whole records behind the damage: pmwal cat --salvage {where}")
    lines.append(f"  {'it would be' if report.dry_run else 'now'} {after.outcome}: {kept}")
    if report.dry_run:
        lines.append("  dry run: nothing was changed")
    return lines
