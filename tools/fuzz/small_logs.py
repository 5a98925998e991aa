"""Small log files for the fuzzers: the golden files, and histories made from a seed, whose payloads may imitate the log.

Clock, uuid and process are fixed, so the same seed gives the same bytes. No process that lives is named in them.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from random import Random

import pmwal
from pmwal.format.layout import CONTROL_SIZE_MIN, PAGE
from pmwal.opening import open_log
from pmwal.storage.seam import Seam
from pmwal.testing.lookalikes import lookalike, place_in

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
SHM = Path("/dev/shm")


class FixedSeam(Seam):
    """Two control pages, a clock that counts its calls, a process of no machine."""

    control_size = CONTROL_SIZE_MIN

    def __init__(self, uuid: bytes = bytes(range(16))) -> None:
        self.uuid = uuid
        self.time_ns = 1_700_000_000_000_000_000

    def now_ns(self) -> int:
        self.time_ns += 1
        return self.time_ns

    def new_uuid(self) -> bytes:
        return self.uuid

    def pid(self) -> int:
        return 1

    def boot_id(self) -> bytes:
        return b"pmwal fuzz image"


def scratch_directory() -> tempfile.TemporaryDirectory[str]:
    """On tmpfs if there is one: thousands of opens, and nothing needs to last."""
    return tempfile.TemporaryDirectory(prefix="pmwal-fuzz-", dir=SHM if SHM.is_dir() else None)


def golden() -> list[bytes]:
    """The golden files."""
    return [path.read_bytes() for path in sorted(DATA.glob("v1-*.bin"))]


def step(wal: pmwal.Wal, random: Random) -> None:
    """One call that changes a log. A full one is truncated instead."""
    largest = min(wal.capacity // 8, 2000)
    sizes = [random.choice((0, 1, 7, 8, 30, 200, random.randrange(largest))) for _ in range(5)]
    payloads = [lookalike(random, place_in(wal), size) if random.random() < 0.4 else random.randbytes(size) for size in sizes]
    try:
        match random.randrange(10):
            case 0:
                wal.truncate(before=random.randint(wal.first_seq, wal.next_seq))
            case 1:
                wal.rollback(after=random.randint(wal.first_seq - 1, wal.next_seq - 1))
            case 2 | 3:
                wal.extend(payloads[: random.randint(2, 5)], kind=random.randrange(9))
            case 4:
                wal.commit()
            case 5 | 6:
                wal.append(payloads[0], commit=False)
            case _:
                wal.append(payloads[0], kind=random.randrange(65536))
    except pmwal.WalFull:
        wal.truncate(before=(wal.first_seq + wal.next_seq) // 2 + 1)


def history(random: Random, directory: Path) -> list[bytes]:
    """Images of one small log in order of time, each as a kill would leave it; the last one may be closed."""
    path = directory / "history.wal"
    align = random.choice((8, 8, 8, 16, 64, 512))
    options = {
        "medium": "file",
        "ordering": random.choice(("strict", "pipelined")),
        "commit": random.choice(("each", "manual")),
        "on_full": random.choice(("raise", "overwrite")),
    }
    seam = FixedSeam()
    found: list[bytes] = []
    size = random.choice((1, 2, 4, 4)) * PAGE
    for _ in range(random.randint(1, 3)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if found:
            path.write_bytes(found[-1])
        fresh = {} if found else {"size": size, "align": align}
        wal = open_log(path, "a", seam=seam, **fresh, **options)  # type: ignore[arg-type]
        assert isinstance(wal, pmwal.Wal)
        with wal:
            for _ in range(random.choice((0, 3, 20, 60))):
                if random.random() < 0.2:
                    found.append(path.read_bytes())
                step(wal, random)
            found.append(path.read_bytes())
        if random.random() < 0.5:
            found.append(path.read_bytes())
    path.unlink()
    return found[-8:]


def images_of_a_log(random: Random, directory: Path) -> list[bytes]:
    """Images of one log to mutate."""
    return [random.choice(golden())] if random.random() < 0.2 else history(random, directory)
