"""Create the golden files tests/data/v1-*.bin: logs of format 1 that every later version must open.

    python -m tools golden DIRECTORY

Clock, uuid, process and boot id are fixed, so the bytes are the same each time, except for the live page, which depends on the
machine and is not durable state. Committed files are never rewritten: a change of the format gets a new version and new files.
Files that exist are left alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pmwal.format.layout import CONTROL_SIZE_MIN, PAGE
from pmwal.opening import open_log
from pmwal.storage.seam import Seam
from pmwal.writing.wal import Wal

UUID = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
FIRST_TIME_NS = 1_700_000_000_000_000_000


class GoldenSeam(Seam):
    """A fixed environment: two control pages, a clock that advances only with ``tick``, fixed uuid, process and boot id."""

    control_size = CONTROL_SIZE_MIN

    def __init__(self) -> None:
        self.time_ns = FIRST_TIME_NS

    def tick(self) -> None:
        """Advance the clock by a second. Reading it does not, so the files do not depend on how often the log reads it."""
        self.time_ns += 1_000_000_000

    def now_ns(self) -> int:
        return self.time_ns

    def new_uuid(self) -> bytes:
        return UUID

    def pid(self) -> int:
        return 1

    def boot_id(self) -> bytes:
        return b"pmwal golden v1."


def _create(path: Path, seam: GoldenSeam, ordering: str, align: int) -> Wal:
    wal = open_log(path, "x", size=PAGE, align=align, medium="file", ordering=ordering, seam=seam, label="golden")
    assert isinstance(wal, Wal)
    return wal


def make_clean(path: Path) -> bytes:
    """A strict log, closed cleanly: an empty record, kinds, a batch of two, zeros and ones."""
    seam = GoldenSeam()
    with _create(path, seam, "strict", 8) as wal:
        wal.append(b"")
        seam.tick()
        wal.append(b"hello", kind=7)
        seam.tick()
        wal.extend([b"first of two", b"second of two"], kind=65535)
        seam.tick()
        wal.append(bytes(20))
        wal.append(b"\xff" * 20)
    return path.read_bytes()


def make_killed(path: Path) -> bytes:
    """A pipelined log, killed: four records and a batch acknowledged past the slot, one more torn in its payload."""
    seam = GoldenSeam()
    with _create(path, seam, "pipelined", 8) as wal:
        for number in range(1, 5):
            seam.tick()
            wal.append(b"acknowledged %d" % number)
        wal.extend([b"batched 5", b"batched 6"])
        wal.append(b"torn " * 20, commit=False)
        image = bytearray(path.read_bytes())
    torn = image.index(b"torn " * 20)
    image[torn + 64 : torn + 100] = bytes(36)
    return bytes(image)


def make_wrapped(path: Path) -> bytes:
    """A strict log on its third lap, aligned to cache lines, killed: truncated, rolled back, and a record that wrapped."""
    seam = GoldenSeam()
    with _create(path, seam, "strict", 64) as wal:
        for number in range(1, 10):
            seam.tick()
            wal.append(b"%04d" % number * 150)
            if number > 4:
                wal.truncate(before=number - 3)
        for _ in range(2):
            wal.append(b"discarded " * 20)
        wal.rollback(after=9)
        wal.truncate(before=8)
        wal.append(b"after the rollback", kind=13)
        wal.append(b"over the end" * 93)
        return path.read_bytes()


GOLDEN: dict[str, Callable[[Path], bytes]] = {
    "v1-clean.bin": make_clean,
    "v1-killed.bin": make_killed,
    "v1-wrapped.bin": make_wrapped,
}


def main() -> None:
    """Create the files that do not exist."""
    directory = Path(sys.argv[1])
    for name, make in GOLDEN.items():
        if (directory / name).exists():
            print(f"{name}: there already, left as it is")
            continue
        with tempfile.TemporaryDirectory() as work:
            image = make(Path(work) / "golden.wal")
        with (directory / name).open("xb") as file:
            file.write(image)
        print(f"{name}: {len(image)} bytes")


if __name__ == "__main__":
    main()
