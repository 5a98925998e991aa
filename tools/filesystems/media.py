"""The file systems of the rig: made, mounted, and taken apart at the end of a block.

Those on a disk lie on a loop device over a file in memory. The copy of that file is what the device got; the flushes that reached
the device are in its statistics.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crash.fuse import served
from crash.storage import loop_device, mounted
from filesystems.server import MODES, NAME

SERVER = Path(__file__).with_name("server.py")
_SIZES = {"ext4": 48 << 20, "xfs": 304 << 20, "btrfs": 128 << 20}  # mkfs.xfs and mkfs.btrfs make none below 300 and 109 MiB
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}


@dataclass(frozen=True)
class Place:
    """A directory for the log while it is mounted."""

    directory: Path
    counter: Path  # of syncs: see ``program.Settings``


@dataclass(frozen=True)
class Filesystem:
    """One file system: what it needs, what pmwal must say about it, and how it is used."""

    name: str
    needs: tuple[str, ...]
    durability: str
    mounted: Callable[[Path], contextlib.AbstractContextManager[Place]]
    survivor: Callable[[Path], contextlib.AbstractContextManager[Path]]  # after the unmount: the log as a power cut leaves it
    fills: bool = False
    syncs: bool = True  # each acknowledgement must wait for one
    creates: bool = True


@contextlib.contextmanager
def _on_loop(filesystem: str, work: Path) -> Iterator[Place]:
    image, directory = work / "image", work / "mounted"
    image.touch()
    os.truncate(image, _SIZES[filesystem])
    directory.mkdir()
    subprocess.run([*_MAKE[filesystem], image], check=True, stdout=subprocess.DEVNULL)
    with loop_device(image) as device, mounted(device, directory, filesystem):
        yield Place(directory, Path("/sys/block", Path(device).name, "stat"))
        shutil.copyfile(image, work / "cut")  # before the unmount writes what is left in the cache


@contextlib.contextmanager
def _cut(filesystem: str, inside: str, work: Path) -> Iterator[Path]:
    directory = work / "mounted"
    with loop_device(work / "cut") as device, mounted(device, directory, filesystem):
        yield directory / inside / NAME


@contextlib.contextmanager
def _on_overlay(option: str, work: Path) -> Iterator[Place]:
    with _on_loop("ext4", work) as lower:
        for name in ("lower", "upper", "work", "merged"):
            (lower.directory / name).mkdir()
        merged = lower.directory / "merged"
        parts = {f"{name}dir": lower.directory / name for name in ("lower", "upper", "work")}
        options = ",".join([*(f"{name}={path}" for name, path in parts.items()), option]).rstrip(",")
        with mounted("overlay", merged, "overlay", options):
            yield Place(merged, lower.counter)


@contextlib.contextmanager
def _by_server(mode: str, work: Path) -> Iterator[Place]:
    directory, syncs = work / "mounted", work / "syncs"
    directory.mkdir()
    syncs.write_bytes(bytes(8))
    with served(SERVER, directory, mode, syncs, work / "cut"):
        yield Place(directory, syncs)


@contextlib.contextmanager
def _kept_by_server(work: Path) -> Iterator[Path]:
    yield work / "cut"


def _disk(name: str) -> Filesystem:
    needs = ("root", "loop", name, f"mkfs.{name}")
    return Filesystem(name, needs, "power", partial(_on_loop, name), partial(_cut, name, ""), fills=True)


def _overlay(name: str, durability: str, option: str, *, syncs: bool) -> Filesystem:
    needs = ("root", "loop", "ext4", "mkfs.ext4", "overlay")
    return Filesystem(name, needs, durability, partial(_on_overlay, option), partial(_cut, "ext4", "upper"), syncs=syncs)


def _server(mode: str) -> Filesystem:
    return Filesystem(
        f"fuse-{mode}",
        ("root", "fuse"),
        "unknown",
        partial(_by_server, mode),
        _kept_by_server,
        creates=mode not in ("no-rename", "no-mmap"),
    )


FILESYSTEMS = {
    each.name: each
    for each in (
        *map(_disk, _SIZES),
        _overlay("overlay", "power", "", syncs=True),
        _overlay("overlay-volatile", "process", "volatile", syncs=False),
        *map(_server, MODES),
    )
}
