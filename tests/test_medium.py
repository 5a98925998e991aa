"""Media: each is only as good as the file system under the log, and the statistics claim no more than that."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.storage import medium as medium_module
from support import open_small, payloads

pytestmark = pytest.mark.both_engines


def test_dax_is_refused_where_it_is_not_real(shm_dir: Path, tmp_path: Path) -> None:
    """medium="dax" needs MAP_SYNC; without it nothing is created, and the message says what to mount or use instead."""
    for directory in (shm_dir, tmp_path):
        path = directory / "test.wal"
        with pytest.raises(pmwal.UnsupportedMedium, match=r'-o dax on persistent memory; MAP_SYNC is refused.*medium="auto"'):
            open_small(path, medium="dax")
        assert list(directory.iterdir()) == []
        open_small(path).close()
        before = path.read_bytes()
        for mode in ("a", "r+", "r"):
            with pytest.raises(pmwal.UnsupportedMedium, match=str(path)):
                pmwal.open(path, mode, medium="dax")
        assert path.read_bytes() == before


@pytest.mark.parametrize("medium", ["memory", "emulated-dax"])
def test_memory_is_refused_on_a_disk(tmp_path: Path, medium: str) -> None:
    """medium="memory" would skip the flushes that a disk needs."""
    path = tmp_path / "test.wal"
    with pytest.raises(pmwal.UnsupportedMedium, match=rf'medium="{medium}" needs tmpfs, ramfs or a memfd.*use medium="auto"'):
        open_small(path, medium=medium)
    assert list(tmp_path.iterdir()) == []
    open_small(path).close()
    for mode in ("a", "r"):
        with pytest.raises(pmwal.UnsupportedMedium):
            pmwal.open(path, mode, medium=medium)


@pytest.mark.parametrize(
    ("medium", "expected"),
    [
        ("auto", ("memory", "process", "tmpfs", "strict", 8)),
        ("memory", ("memory", "process", "tmpfs", "strict", 8)),
        ("file", ("file", "process", "tmpfs", "pipelined", 8)),
        ("emulated-dax", ("emulated-dax", "process", "tmpfs", "strict", 64)),
    ],
)
def test_stats_of_tmpfs_do_not_claim_power_safety(path: Path, medium: str, expected: tuple[Any, ...]) -> None:
    """Whatever its medium, a log on tmpfs survives the process and no more."""
    with open_small(path, medium=medium) as wal:
        stats = wal.stats()
        assert (stats.medium, stats.durability, stats.filesystem, stats.ordering, stats.alignment) == expected
        assert stats.flush
        assert stats.assumptions == ()
        with pmwal.open(path, "r", medium=medium) as reader:
            assert (reader.stats().medium, reader.stats().durability) == expected[:2]


def test_stats_of_a_disk_name_it(tmp_path: Path) -> None:
    """On a disk "auto" is a file, power-safe, and pipelined."""
    with open_small(tmp_path / "test.wal") as wal:
        stats = wal.stats()
    assert (stats.medium, stats.durability, stats.ordering) == ("file", "power", "pipelined")
    assert stats.flush == "msync"
    assert stats.filesystem not in ("tmpfs", "ramfs", "")


def test_log_keeps_its_alignment_on_another_medium(path: Path, tmp_path: Path) -> None:
    """A log can move from memory to a disk and back."""
    with open_small(path, medium="emulated-dax") as wal:
        wal.extend([b"a", b"b"])
    moved = tmp_path / "moved.wal"
    shutil.copyfile(path, moved)
    with open_small(moved) as wal:
        assert (wal.stats().medium, wal.stats().alignment) == ("file", 64)
        wal.append(b"c")
    shutil.copyfile(moved, path)
    with open_small(path) as wal:
        assert payloads(wal) == [b"a", b"b", b"c"]


def test_memfd_is_memory(log_bytes: bytes) -> None:
    """A log in a memfd opens by its name under /proc."""
    fd = os.memfd_create("pmwal-test")
    try:
        os.write(fd, log_bytes)
        with open_small(f"/proc/self/fd/{fd}", "r+") as wal:
            assert wal.stats().medium == "memory"
            assert payloads(wal) == [b"a", b"b", b"c"]
            wal.append(b"d")
        with pmwal.open(f"/proc/self/fd/{fd}", "r") as reader:
            assert payloads(reader) == [b"a", b"b", b"c", b"d"]
    finally:
        os.close(fd)


def test_other_platforms_are_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pmwal cannot work, open says which platform it needs, and creates nothing."""
    for name, value in (("platform", "darwin"), ("byteorder", "big")):
        with monkeypatch.context() as patch:
            patch.setattr("sys." + name, value)
            with pytest.raises(pmwal.UnsupportedMedium, match="runs on little-endian Linux"):
                pmwal.open(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_file_that_cannot_be_mapped_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    """FUSE with direct I/O: nothing is created, an existing log stays as it is, and readers, which map nothing, work."""
    if exists:
        open_small(path).close()
    before = path.read_bytes() if exists else None
    real = medium_module.map_file

    def refuse(fd: int, size: int, flags: int, protection: int) -> Any:
        if protection & mmap.PROT_WRITE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return real(fd, size, flags, protection)

    monkeypatch.setattr(medium_module, "map_file", refuse)
    with pytest.raises(pmwal.UnsupportedMedium, match=rf"{path}: .*cannot map a file for writing.*another file system"):
        open_small(path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert list(path.parent.iterdir()) == ([path] if exists else [])
    if exists:
        with pmwal.open(path, "r") as reader:
            assert payloads(reader) == []
