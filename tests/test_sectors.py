"""What a commit writes to a disk, counted by the kernel on a block device that nothing else uses."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pmwal
from processes import PATIENCE

pytestmark = [pytest.mark.both_engines, pytest.mark.slow]

IMAGE_SIZE = 128 << 20
TOOL = Path(__file__).parent.parent / "tools" / "sectors.py"


@pytest.fixture(params=["has_journal", "^has_journal"], ids=["journal", "no-journal"])
def disk(request: pytest.FixtureRequest, shm_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 on a loop device of its own.

    With lazytime: without a journal an msync writes the inode when a tick of the clock has changed its times, which is every
    commit on a machine that is slow enough.
    """
    needed = ("losetup", "mkfs.ext4", "mount", "umount")
    if os.geteuid() != 0 or not all(shutil.which(name) for name in needed):
        pytest.skip("needs root, losetup, mkfs.ext4 and mount")
    image = shm_dir / "disk.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", request.param, image], check=True)
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    try:
        subprocess.run(["mount", "-o", "lazytime", device, tmp_path], check=True)
        try:
            yield tmp_path
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sectors", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pipelined_commit_writes_one_page_and_a_strict_one_at_most_three(disk: Path) -> None:
    """Fresh, reopened, wrapped and overwriting, over 1,000 commits, in turns with msyncs of single pages of a plain file.

    Compared with those, a pipelined commit writes nothing more in the median and at most 2 sectors more on average.
    """
    sectors = _tool()
    counter = sectors.counter_of(disk)
    assert counter is not None
    cases = list(sectors.measure(disk, counter, commits=1000))
    assert [case.name for case in cases] == ["fresh", "reopened", "wrapped", "overwrite"] * 2
    for case in cases:
        assert case.passes, case.text


@contextlib.contextmanager
def followed(wal: pmwal.Wal) -> Iterator[Callable[[], None]]:
    """A reader that follows the log. What it yields waits until the reader has all records, and sleeps."""
    got = 0

    def follow() -> None:
        nonlocal got
        while not wal.closed:
            with contextlib.suppress(pmwal.Overrun):
                for record in reader.follow():
                    got = record.seq

    def catch_up() -> None:
        deadline = time.monotonic() + PATIENCE
        while got < wal.next_seq - 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.002)

    with pmwal.open(wal.path, "r") as reader:
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield catch_up
        finally:
            wal.close()
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("way", ["alone", "together", "followed"])
def test_small_commits_after_large_batches_write_one_page_each(
    disk: Path, request: pytest.FixtureRequest, way: str, committed: bool
) -> None:
    """Though the last page of a batch is in a large folio, however the small records are stored, and who else has pages mapped."""
    journal = request.node.callspec.params["disk"] == "has_journal"
    sectors = _tool()
    counter = sectors.counter_of(disk)

    def written() -> int:
        return int(sectors.sectors_in(counter.read_text()))

    found = []
    with pmwal.open(disk / "log", size="8MiB") as wal, followed(wal) if way == "followed" else contextlib.nullcontext() as catch_up:
        for _ in range(70):
            wal.append(b"alone")
        for pages in (40, 61, 127, 128, 250, 255, 256, 300):
            if way != "alone":  # a new thread: the next commits are made by msync
                another = threading.Thread(target=wal.append, args=(b"another",))
                another.start()
                another.join()
            for size in (pages * 4096, 100_000, pages * 4096 - 100):
                wal.truncate(before=wal.next_seq)
                wal.append(bytes(size), commit=committed)
                if catch_up and committed:
                    catch_up()
            wal.append(b"small")
            each = []
            for _ in range(21):
                before = written()
                wal.append(b"small")
                each.append(written() - before)
                if catch_up:
                    catch_up()
            found.append(sorted(each)[10])
    assert max(found) <= (8 if journal else 16)  # without a journal the inode may be written too, as often as the clock ticks


def test_a_second_page_for_each_commit_fails_the_bar(disk: Path) -> None:
    """The negative control on every kernel: commits with two barriers, judged as pipelined ones."""
    sectors = _tool()
    cases = list(sectors.measure(disk, sectors.counter_of(disk), commits=100))
    pipelined, strict = cases[:4], cases[4:]
    for one, two in zip(pipelined, strict, strict=True):
        assert not two._replace(ordering="pipelined", floor=one.floor).passes


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 16), reason="ext4 has large folios since Linux 6.16"
)
def test_a_log_in_large_folios_fails_the_bar(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control on kernels with large folios: with those in the cache, a commit through the mapping writes far more.

    In strict order every commit is one. A pipelined one of a lone thread is a write(2), and the kernel then writes that block only.
    """
    sectors = _tool()
    for module in ("opening.files", "storage.readahead"):
        monkeypatch.setattr(f"pmwal.{module}.drop_cache", lambda fd: None)
    monkeypatch.setattr(sectors, "CASES", [case for case in sectors.CASES if case[0] == "reopened"])
    (_, strict) = sectors.measure(disk, sectors.counter_of(disk), commits=50)
    assert not strict.passes
