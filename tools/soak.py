"""Append at a steady rate for long, beside readers, a computing thread and a disk that freezes; judge latency, memory and log.

    python -m tools soak [--seconds N] [--rate N] [--freeze-every N] [--computing SHARE] [--path DIR] [--json FILE]
    python -m tools soak --control NAME       run with a mistake, which must be noticed

One thread appends durably, each record when it is due: a record that is late is timed from then, and separately from its call. In
the same process another thread computes and one sleeps for 1 ms, over and over. Other processes follow the log, compare each
record, and look up random ones. The log is on an ext4 of its own, on a loop device over a file in DIR (needs root). Freezes of that
file system (FIFREEZE) stop everything that writes to it, and nothing else.

The run fails if a percentile of the latency, the memory, descriptors or threads of the writer or a reader, the barriers of a
record or the sectors of a barrier grow; if other threads do not run while the disk is frozen; if the log lacks an acknowledged
record, or a reader was not shown each record once and in order. A plain durable write to the same disk, 100 times a second, shows
what the machine does meanwhile.

Exit status: 0 nothing failed; 1 something failed (with --control: the mistake was noticed); 2 wrong usage, or something is missing;
130 or 143 ended by Ctrl-C or SIGTERM, after the log was compared and the figures were printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from crash import needs
from crash.storage import StorageError, loop_device, mounted, own_mounts
from pmwal.testing import machine
from pmwal.testing.stress.interrupt import Interruption
from pmwal.testing.stress.results import environment_of, growth_text
from sectors import counter_of
from soaking.processes import CONTROLS, STORED_MAX
from soaking.run import Results, Settings, Soak
from soaking.verdict import Window

USAGE = 2
WINDOWS_MIN = 8
FREEZE_MIN = 1.5  # seconds: a shorter one is no longer than pauses on a busy machine
_SPARE = 64 << 20  # of the file system, beside the log and what ext4 needs for itself
_HEAD = ("from", "records", "due p50", "p99", "p99.9", "max", "call p50", "p99", "p99.9", "max", "floor p50", "p99", "seek p50",
         "ticks/s", "pause", "barriers", "sectors", "memory", "fds")  # fmt: skip
_WIDTH = 9


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, about in (
        ("seconds", 3600.0, "length of the run"),
        ("rate", 1000, "records a second"),
        ("window", 60.0, "seconds for each row of figures"),
        ("freeze-every", 600.0, "seconds between freezes"),
        ("freeze-for", 3.0, "seconds of each freeze"),
        ("readers", 2, "reading processes"),
        ("computing", 1.0, "share of the time in which a thread of the writer computes"),
    ):
        shown = f"{about} (default: {default:g})"
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help=shown)
    parser.add_argument("--engine", choices=("native", "python"), default="native", help="of all processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the payloads (default: random)")
    parser.add_argument(
        "--path",
        type=Path,
        default=Path("/dev/shm"),
        metavar="DIR",
        help="directory for the image of the disk (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    what = "; ".join(f"{name}: {control.what}" for name, control in CONTROLS.items())
    parser.add_argument("--control", choices=sorted(CONTROLS), metavar="NAME", help=f"run with a mistake ({what})")
    options = parser.parse_args(arguments)
    if options.window <= 0 or options.seconds < WINDOWS_MIN * options.window:
        parser.error(f"--seconds must be at least {WINDOWS_MIN} times --window, which is more than 0")
    if options.freeze_for < FREEZE_MIN or options.freeze_every < 2 * options.freeze_for:
        parser.error(f"--freeze-for must be at least {FREEZE_MIN:g}, and --freeze-every twice that")
    if options.rate < 1 or options.readers < 1:
        parser.error("--rate and --readers must be at least 1")
    if not 0 <= options.computing <= 1:
        parser.error("--computing must be from 0 to 1")
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options


def command_of(settings: Settings, path: Path) -> str:
    """The command line of the same run."""
    words = ["python", "-m", "tools", "soak", "--seconds", f"{settings.seconds:g}", "--rate", str(settings.rate)]
    words += ["--window", f"{settings.window:g}", "--freeze-every", f"{settings.freeze_every:g}"]
    words += ["--freeze-for", f"{settings.freeze_for:g}", "--readers", str(settings.readers)]
    words += ["--computing", f"{settings.computing:g}", "--engine", settings.engine]
    words += ["--seed", str(settings.seed), "--path", str(path)]
    return shlex.join(words + (["--control", settings.control] if settings.control else []))


def missing(options: argparse.Namespace) -> str | None:
    """What the machine lacks, and what to do."""
    lacking = needs.missing("root", "loop", "ext4", "mkfs.ext4")
    if importlib.util.find_spec("psutil") is None:
        lacking.append("psutil: pip install 'pmwal[test]'")
    if lacking:
        return f"this needs {'; '.join(lacking)}"
    if not (options.path.is_dir() and os.access(options.path, os.W_OK)):
        return f"{options.path} is not a directory that can be written to"
    return None


def row(window: Window) -> str:
    """The figures of a window in one line: latencies in ms, memory in MiB."""

    def ms(what: str, *names: str) -> list[str]:
        return [f"{window.latency[what][name] * 1e3:.3f}" if window.latency[what] else "" for name in names]

    every = ("p50", "p99", "p99.9", "max")
    memory = "/".join(f"{size / (1 << 20):.1f}" for name, size in window.memory.items() if name != "floor")
    descriptors = "/".join(f"{count:g}" for name, count in window.descriptors.items() if name != "floor")
    cells = [f"{window.start:.0f}{'*' if window.frozen else ''}", str(window.records), *ms("due", *every), *ms("call", *every)]
    cells += [*ms("floor", "p50", "p99"), *ms("seek", "p50"), f"{window.ticks / window.seconds:.0f}", f"{window.pause * 1e3:.1f}"]
    cells += [str(window.barriers), str(window.sectors), memory, descriptors]
    return " ".join(f"{cell:>{_WIDTH}}" for cell in cells)


def report(results: Results, options: argparse.Namespace) -> None:
    """Print the results and write the file."""
    print(f"\n{results.seconds:.0f} s: {results.records} records acknowledged, {results.compared} compared with the log at the end")
    print(f"readers were shown {', '.join(map(str, results.seen))} records")
    if results.interrupted is not None:
        print(f"interrupted by {results.interrupted}")
    for freeze in results.freezes:
        print(
            f"frozen at {freeze.begin:.1f} s for {freeze.end - freeze.begin:.2f} s: longest pause of the sleeper "
            f"{freeze.pause * 1e3:.1f} ms, of one in another process {freeze.floor_pause * 1e3:.1f} ms, "
            f"{freeze.rounds} rounds computed, {freeze.waited} appends waited"
        )
    print(f"growth: {growth_text(results.growths)}")
    for trend in results.trends:
        scale, unit = (1e3, " ms") if "from" in trend.name else (1, "")
        print(
            f"{trend.name:<20} first third {trend.first * scale:>9.3f}{unit}, last third {trend.last * scale:>9.3f}{unit}, "
            f"allowed {trend.limit * scale:.3f}{unit}: {'GROWS' if trend.grows else 'flat'}"
        )
    if not results.trends:
        print("run too short to judge its latencies")
    for failure in results.failures:
        print(f"FAILED {failure.kind}: {failure.message}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(results.as_dict(), indent=1) + "\n")


def soak(options: argparse.Namespace, interruption: Interruption) -> Results:
    """One run on a disk of its own."""
    settings = Settings(
        options.seconds, options.rate, options.window, options.freeze_every, options.freeze_for, options.readers,
        options.computing, options.engine, options.seed, options.control,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pmwal-soak-", dir=options.path) as name:
        image, disk = Path(name, "disk.img"), Path(name, "disk")
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(_SPARE + int(settings.seconds * settings.rate * STORED_MAX * 1.1) >> 12 << 12)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        own_mounts()
        with loop_device(image) as device, mounted(device, disk, "ext4"):
            counter = counter_of(disk)
            assert counter is not None
            results = Results(environment_of(machine.look(disk), ("file",)), command_of(settings, options.path), settings)
            print(results.command, *(f"{what}: {value}" for what, value in results.environment.items()), sep="\n")
            print("* a freeze; milliseconds; memory (MiB) and descriptors of the writer and each reader")
            print(" ".join(f"{cell:>{_WIDTH}}" for cell in _HEAD), flush=True)
            Soak(disk, Path(name), counter, results, lambda window: print(row(window), flush=True), interruption).run()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status."""
    options = parse(arguments)
    if (problem := missing(options)) is not None:
        print(problem, file=sys.stderr)
        return USAGE
    interruption = Interruption()
    try:
        with interruption.watched():
            results = soak(options, interruption)
    except (OSError, StorageError, subprocess.CalledProcessError) as error:
        print(f"no disk of its own: {error}", file=sys.stderr)
        return USAGE
    report(results, options)
    if results.failures:
        return 1
    return 0 if interruption.signal is None else 128 + interruption.signal


if __name__ == "__main__":
    sys.exit(main())
