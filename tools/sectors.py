"""Count the sectors that a durable commit writes to the disk, with the kernel's own counter.

    python -m tools sectors [DIRECTORY] [--commits N] [--check]

The tool appends records of 128 bytes, one durable commit at a time, in turns with a floor: a store to a plain mapped file of the
same file system and an msync of that page, once for each barrier of the commit. Before and after each it reads field 7 (sectors
written) of /sys/dev/block/MAJ:MIN/stat (Documentation/ABI/stable/sysfs-block), which counts everything that writes to the device.
What the file system adds to an msync, such as the inode after a tick of the clock, the floor pays as well, so the difference is
what the log adds: slots, and pages that a record crosses. --check exits with 1 if the median difference of a pipelined commit is
not 0 or its mean above 2, or the median of a strict one above 8.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pmwal
from pmwal.opening.options import FullPolicy, Ordering
from pmwal.testing.machine import SECTORS_WRITTEN

PAYLOAD = bytes(128)
PAGE, PAGE_SECTORS = 4096, 8
BARRIERS: dict[Ordering, int] = {"pipelined": 1, "strict": 2}
"""Flushes of one commit, by ordering."""
PIPELINED_MEAN_MAX, STRICT_MEDIAN_MAX = 2, 8  # sectors more than the floor
_FLOOR_PAGES = 256


class Case(NamedTuple):
    """One way to get a log ready, and what each commit and the floor beside it wrote."""

    name: str
    ordering: Ordering
    sectors: list[int]
    floor: list[int]

    @property
    def extra(self) -> list[int]:
        """Sectors that each commit wrote beyond the floor of its turn."""
        return [ours - floor for ours, floor in zip(self.sectors, self.floor, strict=True)]

    @property
    def passes(self) -> bool:
        """Whether the figures are within the bars, and those of the floor are of single pages."""
        if min(self.floor) != PAGE_SECTORS * BARRIERS[self.ordering]:
            return False
        median = statistics.median(self.extra)
        if self.ordering == "strict":
            return median <= STRICT_MEDIAN_MAX
        return median == 0 and statistics.fmean(self.extra) <= PIPELINED_MEAN_MAX

    @property
    def text(self) -> str:
        """The figures in one line."""
        figures = [(statistics.median(each), statistics.fmean(each), max(each)) for each in (self.sectors, self.floor)]
        shown = "  ".join(f"{median:>7.0f} {mean:>8.2f} {most:>6}" for median, mean, most in figures)
        return f"{self.ordering:<10} {self.name:<10} {shown}  {statistics.fmean(self.extra):>+8.2f}"


class Floor:
    """A plain mapped file, in which each store is followed by an msync of its page."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b", buffering=0) as file:
            for _ in range(_FLOOR_PAGES):  # a page at a time, so that the page cache holds no large folio
                file.write(bytes(PAGE))
            os.fsync(file.fileno())
            self._map = mmap.mmap(file.fileno(), 0)
        self._turn = 0

    def commit(self, barriers: int) -> None:
        """Store and flush, each in another half of the file: a record's page and, where there are two barriers, a slot's."""
        half = len(self._map) // 2
        for number in range(barriers):
            at = number * half + self._turn * len(PAYLOAD) % half
            self._map[at : at + len(PAYLOAD)] = PAYLOAD
            self._map.flush(at // PAGE * PAGE, PAGE)
        self._turn += 1

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


def counter_of(directory: Path) -> Path | None:
    """The stat file of the block device that holds a directory; None when there is none (tmpfs, overlay)."""
    device = os.stat(directory).st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return path if path.exists() else None


def sectors_in(counters: str | bytes) -> int:
    """Sectors written, of the text of such a file."""
    return int(counters.split()[SECTORS_WRITTEN])


def measure(directory: Path, counter: Path, commits: int) -> Iterator[Case]:
    """All cases in both orderings."""

    def counted(call: Callable[[], object]) -> int:
        before = sectors_in(counter.read_text())
        call()
        return sectors_in(counter.read_text()) - before

    for ordering, barriers in BARRIERS.items():
        for name, prepare, on_full in CASES:
            path, plain = directory / f"{ordering}-{name}.wal", directory / "floor"
            prepare(path)
            floor = Floor(plain)
            with pmwal.open(path, ordering=ordering, on_full=on_full) as wal:
                os.sync()
                pairs = [
                    (counted(lambda: wal.append(PAYLOAD)), counted(lambda: floor.commit(barriers)))  # noqa: B023 (called here)
                    for _ in range(commits)
                ]
            yield Case(name, ordering, [ours for ours, _ in pairs], [bare for _, bare in pairs])
            floor.close()
            path.unlink()
            plain.unlink()


def _fresh(path: Path) -> None:
    pmwal.open(path, size="16MiB").close()


def _reopened(path: Path) -> None:
    """A log that was copied in large writes, so that the page cache holds large folios."""
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
    """A full ring, so that every append overwrites."""
    with pmwal.open(path, size="1MiB", commit="manual", on_full="overwrite") as wal:
        for _ in range(7):
            wal.extend([PAYLOAD] * 1000)


CASES: tuple[tuple[str, Callable[[Path], None], FullPolicy], ...] = (
    ("fresh", _fresh, "raise"),
    ("reopened", _reopened, "raise"),
    ("wrapped", _wrapped, "raise"),
    ("overwrite", _full, "overwrite"),
)


def main() -> int:
    """Measure, print, and with --check judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="on the disk to measure (default: that of temporary files)")
    parser.add_argument("--commits", type=int, default=1000, metavar="N", help="commits for each line (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure is outside its bar")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pmwal-sectors-", dir=options.directory) as name:
        directory = Path(name)
        counter = counter_of(directory)
        if counter is None:
            print(f"{directory} lies on no block device; name a directory on a disk", file=sys.stderr)
            return 3
        print(f"device {counter.parent.resolve().name}, {options.commits} commits of {len(PAYLOAD)} bytes for each line")
        print("sectors of 512 bytes for each commit, and for the floor of its turn")
        heads = f"{'median':>7} {'mean':>8} {'max':>6}"
        print(f"{'ordering':<10} {'log':<10} {heads}  {heads}  {'extra':>8}")
        cases = []
        for case in measure(directory, counter, options.commits):
            cases.append(case)
            print(case.text, flush=True)
    if options.check and not all(case.passes for case in cases):
        print("a figure is outside its bar", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
