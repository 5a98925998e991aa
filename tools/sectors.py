"""How many sectors a durable commit writes to the disk, read from the kernel's own counter.

    python tools/sectors.py [DIRECTORY] [--commits N] [--check]

It appends 128-byte records one durable commit at a time and reads field 7 (sectors written) of /sys/dev/block/MAJ:MIN/stat
(Documentation/ABI/stable/sysfs-block) around each. Whatever else writes to the device is counted too, so the median says
what a commit costs, and the mean how much the rest adds: slots, pages that a record crosses, the journal, other programs.
``--check`` exits with 1 when a pipelined median is not 8 or its mean above 10, or a strict median above 24.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pmwal

PAYLOAD = bytes(128)
PIPELINED_MEDIAN, PIPELINED_MEAN_MAX, STRICT_MEDIAN_MAX = 8, 10, 24
_SECTORS_WRITTEN = 6


class Case(NamedTuple):
    """One way to get a log ready, and what its commits wrote."""

    name: str
    ordering: str
    sectors: list[int]

    @property
    def median(self) -> float:
        """Median sectors for a commit."""
        return statistics.median(self.sectors)

    @property
    def mean(self) -> float:
        """Mean sectors for a commit."""
        return statistics.fmean(self.sectors)

    @property
    def passes(self) -> bool:
        """Whether the figures are within the bars."""
        if self.ordering == "strict":
            return self.median <= STRICT_MEDIAN_MAX
        return self.median == PIPELINED_MEDIAN and self.mean <= PIPELINED_MEAN_MAX


def counter_of(directory: Path) -> Path | None:
    """The stat file of the block device that holds a directory; None when there is none (tmpfs, overlay)."""
    device = os.stat(directory).st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return path if path.exists() else None


def measure(directory: Path, counter: Path, commits: int) -> Iterator[Case]:
    """All cases in both orderings."""

    def written() -> int:
        return int(counter.read_text().split()[_SECTORS_WRITTEN])

    def count(wal: pmwal.Wal) -> list[int]:
        figures = []
        before = written()
        for _ in range(commits):
            wal.append(PAYLOAD)
            after = written()
            figures.append(after - before)
            before = after
        return figures

    for ordering in ("pipelined", "strict"):
        for name, prepare, on_full in CASES:
            path = directory / f"{ordering}-{name.replace(' ', '-')}.wal"
            prepare(path)
            with pmwal.open(path, ordering=ordering, on_full=on_full) as wal:
                os.sync()
                yield Case(name, ordering, count(wal))
            path.unlink()


def _fresh(path: Path) -> None:
    pmwal.open(path, size="16MiB").close()


def _reopened(path: Path) -> None:
    """Written in large pieces by somebody, so that the page cache holds large folios, then closed."""
    with pmwal.open(path, size="16MiB") as wal:
        wal.extend([PAYLOAD] * 1000)
    raw = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.write(raw)
        os.fsync(file.fileno())


def _wrapped(path: Path) -> None:
    """A ring that has wrapped twice."""
    with pmwal.open(path, size="1MiB", commit="manual") as wal:
        for _ in range(3):
            wal.extend([PAYLOAD] * 5000)
            wal.truncate(before=wal.next_seq)


def _full(path: Path) -> None:
    """A ring that is full, so that every append overwrites."""
    with pmwal.open(path, size="1MiB", commit="manual", on_full="overwrite") as wal:
        for _ in range(7):
            wal.extend([PAYLOAD] * 1000)


CASES: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("fresh", _fresh, "raise"),
    ("reopened", _reopened, "raise"),
    ("wrapped", _wrapped, "raise"),
    ("overwrite", _full, "overwrite"),
)


def main() -> int:
    """Measure, print, and with --check judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="on the disk to measure (default: a temporary directory)")
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pmwal-sectors-", dir=options.directory) as name:
        directory = Path(name)
        counter = counter_of(directory)
        if counter is None:
            print(f"{directory} lies on no block device; name a directory on a disk", file=sys.stderr)
            return 3
        print(f"device {counter.parent.resolve().name}, {options.commits} commits of {len(PAYLOAD)} bytes for each line")
        print(f"{'ordering':<10} {'log':<10} {'median':>7} {'mean':>8} {'max':>6}  sectors of 512 bytes for each commit")
        cases = []
        for case in measure(directory, counter, options.commits):
            cases.append(case)
            print(f"{case.ordering:<10} {case.name:<10} {case.median:>7.0f} {case.mean:>8.2f} {max(case.sectors):>6}")
    if options.check and not all(case.passes for case in cases):
        print("outside of the bars", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
