"""``pmwal stat``: show what the writers of logs are doing, from their live pages.

Invariants
----------
- A report of what was sampled: it reads no log itself (``pmwal/cli/sampling.py``).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from pmwal.cli.exit_status import OK, UNREADABLE
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.places import ShortNames, add_paths, logs_named, logs_of, one_log
from pmwal.cli.sampling import Facts, Sample, Samples, facts_of, facts_without_log, take_sample
from pmwal.cli.terminal import columns, print_json
from pmwal.cli.times import local_text
from pmwal.cli.wording import count_in_words, numbers_in_words, printable, table, writer_in_words
from pmwal.errors import FormatError, PersistError
from pmwal.opening.units import format_ns, format_size

_BETWEEN = 0.5  # seconds between the two samples of a single report
_WATCH = 1.0

_EPILOG = """\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes.
Several logs are a table with a line for each; in JSON each is an object on a
line. With --watch logs that are new in a directory are shown, too.

Only the page that the writer shares with other processes is read, so the cost
does not depend on the size of the log and a busy writer is not disturbed.

Rates are measured between two samples, half a second apart or SECONDS with
--watch. Records and bytes count when they are stored, durable or not; bytes are
bytes of the ring, including headers and padding. "commits" counts commits,
truncates and rollbacks: between samples closer together than the writer commits
it is 0, or too high.

"last commit" is the age of the newest store that the writer had made when it
last committed (or opened the log); it does not show the time of later stores.
In JSON: newest_store_at_commit_seconds.

"latency" is how long the commits between the two samples took, "since open" all
commits since the writer opened the log. Percentiles are at most 1/8 too high
and never too low. On a disk the writer times every commit, on DAX and memory
one in 64. "-": none was timed, or the writer does not share it.

With --watch a path that leads to no log for a while, as during a rotation, is
reported ("error" in JSON) and looked at again; then the next log is shown.

Without a running writer the page shows the last writer's last state, with what
a killed one had stored and not committed. After the machine was started anew it
shows what was durable, and may be old after a power cut. For what the file has:
pmwal info, pmwal verify.

Examples:
  pmwal stat app.wal
  pmwal stat app.wal --watch
  pmwal stat /var/log/shop --watch
  pmwal stat app.wal --watch 10 --json >> rates.jsonl
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "stat",
        run,
        "show what the writers of logs are doing",
        "Show what the writers of logs are doing: rates, latency, fill.",
        _EPILOG,
    )
    add_paths(parser)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=_WATCH,
        metavar="SECONDS",
        help="repeat until interrupted: in place on a terminal, else one line each time (default: 1)",
    )
    add_json(parser, "print JSON, for scripts: one object per line")


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; PATH comes before --watch") from None
    if not 0.01 <= seconds <= 86400:  # also refuses nan
        raise argparse.ArgumentTypeError(f"{text} is not from 0.01 to 86400 seconds")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Take two samples and report; with --watch repeatedly."""
    args.path = one_log(args.paths)
    if args.path is None:
        return _run_several(args)
    sample = take_sample(args.path)
    if args.watch is not None:
        _watch(args, sample)
    before = None
    if sample.alive or sample.unsettled:
        time.sleep(_BETWEEN)
        before, sample = sample, take_sample(args.path, sample)
    facts = facts_of(args.path, sample, before)
    if args.json:
        print_json(facts)
    else:
        print("\n".join(_page(facts)))
    return OK


def _watch(args: argparse.Namespace, before: Sample) -> NoReturn:
    """Report until interrupted, or until the output is closed."""
    in_place = _is_in_place(args)
    drawn = _draw(_page(facts_of(args.path, before, None)), 0) if in_place else 0
    due = before.monotonic
    while True:
        due = _wait(due, args.watch)
        try:
            sample = take_sample(args.path, before)
        except (FileNotFoundError, FormatError, PersistError) as error:  # between two logs of this name
            facts = facts_without_log(args.path, error)
        else:
            facts = facts_of(args.path, sample, before)
            before = sample
        if in_place:
            drawn = _draw(_page(facts), drawn)
        elif args.json:
            print_json(facts)
        else:
            print(_line(facts))
        sys.stdout.flush()


def _run_several(args: argparse.Namespace) -> int:
    """The same of several logs; with --watch they are looked for each time."""
    paths, status = logs_named(args.paths)
    names, samples = ShortNames(paths), Samples()
    several, due = samples.take(paths), time.monotonic()
    if args.watch is not None:
        _watch_several(args, names, samples, several)
    if samples.may_move:
        _wait(due, _BETWEEN)
        several = samples.take(paths)
    if args.json:
        for facts in several:
            print_json(facts)
    else:
        print("\n".join(_table(names, several)))
    return UNREADABLE if any("error" in facts for facts in several) else status


def _watch_several(args: argparse.Namespace, names: ShortNames, samples: Samples, several: list[Facts]) -> NoReturn:
    in_place = _is_in_place(args)
    drawn = _draw(_table(names, several), 0) if in_place else 0
    due = time.monotonic()
    while True:
        due = _wait(due, args.watch)
        several = samples.take(path for place in args.paths for path in logs_of(place))
        names.add(facts["path"] for facts in several)
        if in_place:
            drawn = _draw(_table(names, several), drawn)
        for facts in () if in_place else several:
            if args.json:
                print_json(facts)
            else:
                print(f"{printable(names[facts['path']]):<{names.width}}  {_line(facts)}")
        sys.stdout.flush()


def _is_in_place(args: argparse.Namespace) -> bool:
    return not args.json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _wait(due: float, seconds: float) -> float:
    """Sleep until this long after ``due``; the time that came."""
    due = max(due + seconds, time.monotonic())
    time.sleep(max(0.0, due - time.monotonic()))
    return due


def _draw(page: Sequence[str], drawn: int) -> int:
    """Replace the page drawn before, which had ``drawn`` lines; return how many lines this one has."""
    width = columns() - 1
    page = [line[:width] for line in page]  # a line that wraps would take two
    print((f"\x1b[{drawn}F\x1b[J" if drawn else "") + "\n".join(page), flush=True)
    return len(page)


def _page(facts: Facts) -> list[str]:
    """For people: one line per fact."""
    bounds, rates, latency = facts["bounds"], facts["rates"], facts["commit_latency"]
    if "error" in facts:
        return [f"{'no log':<12}{facts['error']}"]
    lines = [("writer", writer_in_words(facts["writer"]))]
    if bounds is None:
        lines.append(("records", "the live page is not valid; see pmwal info"))
    else:
        pending = bounds["last_seq"] - bounds["durable_seq"]
        count = _count(bounds)
        held = f"{bounds['first_seq']} to {bounds['last_seq']}, {count:,} in all" if count else "none"
        when = "not durable yet" if facts["writer"] and facts["writer"]["alive"] else "not committed when the writer ended"
        lines += [
            ("epoch", str(bounds["epoch"])),
            ("records", held + (f"; {pending:,} {when}" if pending else "")),
            ("fill", f"{bounds['fill']:.1%}, {format_size(bounds['used_bytes'])} of {format_size(facts['capacity'])}"),
        ]
    if "newest_store_at_commit_seconds" in facts:
        lines.append(("last commit", f"newest store {_age(facts)}"))
    if rates is not None:
        lines += [("rates", _rates_in_words(rates)), ("latency", _latency_in_words(latency["interval"]))]
    if bounds is not None:
        lines.append(("since open", _latency_in_words(latency["since_open"])))
    return [f"{name:<12}{text}" for name, text in lines]


def _table(names: ShortNames, several: list[Facts]) -> list[str]:
    """For people: one line per log, and the sums."""
    heading = ("log", "records", "fill", "records/s", "bytes/s", "commits/s", "p50", "p99", "writer")
    rows = [(printable(names[facts["path"]]), *_row(facts)) for facts in several]
    held = sum(_count(facts["bounds"]) for facts in several if facts["bounds"] is not None)
    rates = [facts["rates"] for facts in several if facts["rates"] is not None]
    total = f"{count_in_words(len(several), 'log')}, {count_in_words(held, 'record')}, {len(rates)} written to: "
    sums = {name: sum(rate[name] for rate in rates) for name in ("records", "bytes", "commits")}
    return [*table(heading, rows), total + _rates_in_words(sums)]


def _row(facts: Facts) -> tuple[str, ...]:
    bounds, rates, latency = facts["bounds"], facts["rates"], facts["commit_latency"]["interval"]
    if "error" in facts:
        return *("-",) * 7, f"no log: {facts['error']}"
    held = ("-", "-") if bounds is None else (f"{_count(bounds):,}", f"{bounds['fill']:.1%}")
    moved = ("-",) * 3
    if rates is not None:
        moved = (f"{rates['records']:,.0f}", format_size(round(rates["bytes"])), f"{rates['commits']:,.0f}")
    timed = ("-", "-") if latency is None else (format_ns(latency["p50_ns"]), format_ns(latency["p99_ns"]))
    return *held, *moved, *timed, writer_in_words(facts["writer"])


def _count(bounds: Facts) -> int:
    return int(bounds["last_seq"] - bounds["first_seq"] + 1)


def _line(facts: Facts) -> str:
    """For a pipe: one line per sample."""
    bounds, rates = facts["bounds"], facts["rates"]
    if "error" in facts:
        return f"{local_text(facts['time_ns'])}; no log: {facts['error']}"
    words = [local_text(facts["time_ns"]), writer_in_words(facts["writer"]) if facts["writer"] else "no writer"]
    if bounds is not None:
        held = f"{numbers_in_words(bounds['first_seq'], bounds['last_seq'])}, durable up to {bounds['durable_seq']}"
        words.append(held if _count(bounds) else "no records")
        words.append(f"fill {bounds['fill']:.1%}")
    if rates is not None:
        words += [_rates_in_words(rates), f"latency {_latency_in_words(facts['commit_latency']['interval'])}"]
    if "newest_store_at_commit_seconds" in facts:
        words.append(f"last commit: newest store {_age(facts)}")
    return "; ".join(words)


def _rates_in_words(rates: dict[str, float]) -> str:
    return f"{rates['records']:,.0f} records/s, {format_size(round(rates['bytes']))}/s, {rates['commits']:,.0f} commits/s"


def _latency_in_words(figures: dict[str, int] | None) -> str:
    if figures is None:
        return "-"
    times = ", ".join(f"{name} {format_ns(figures[f'{name}_ns'])}" for name in ("p50", "p99", "max"))
    return f"{times}, {figures['count']:,} timed" + (f", 1 in {figures['step']}" if figures["step"] > 1 else "")


def _age(facts: Facts) -> str:
    seconds = facts["newest_store_at_commit_seconds"]
    digits = 3 if seconds < 10 else 0
    return f"{math.floor(seconds) if not digits else seconds:,.{digits}f} s ago"
