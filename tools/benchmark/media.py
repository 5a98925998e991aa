"""What the figures were measured on: file system, device, processor, kernel, Python, engine."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pmwal

TMPFS_NOTE = "tmpfs: no power-fail durability was measured"
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    filesystem: str
    source: str
    options: str


@dataclass(frozen=True)
class Site:
    """A directory to measure in, and what it lies on."""

    directory: Path
    mount: Mount
    device: str

    @property
    def in_memory(self) -> bool:
        """Whether nothing here survives a power cut."""
        return self.mount.filesystem in _IN_MEMORY

    @property
    def note(self) -> str:
        """What every table measured here says."""
        return TMPFS_NOTE if self.in_memory else f"{self.mount.filesystem} on {self.device}"

    @property
    def text(self) -> str:
        """File system, options and device, in one line. No path: it says nothing about a figure."""
        return f"{self.mount.filesystem} ({self.mount.options}), {self.device}"


def parse_mounts(text: str) -> list[Mount]:
    """The lines of a mountinfo (proc(5)): fields before " - " are of the mount, those after it of the file system."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split(" ", 2)
        if len(before) >= 6 and len(after) >= 2:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before[4])
            mounts.append(Mount(point, after[0], after[1], before[5]))
    return mounts


def find_mount(path: Path, mounts: list[Mount]) -> Mount:
    """The mount that a path lies on: the deepest one, and of several in one place the last."""
    real = str(path.resolve())
    best = Mount("", "unknown", "unknown", "")
    for mount in mounts:
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def look(directory: Path) -> Site:
    """What a directory lies on."""
    mount = find_mount(directory, parse_mounts(Path("/proc/self/mountinfo").read_text()))
    number = os.stat(directory).st_dev
    return Site(directory, mount, describe_device(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")))


def describe_device(path: Path) -> str:
    """Name, model, rotational and write cache of a block device in /sys; "no block device" where there is none."""
    if not path.exists():
        return "no block device"
    disk = path.resolve()
    name = disk.name
    if (disk / "partition").exists():
        disk = disk.parent
    model = _word(disk / "device" / "model") or _driver(disk)
    kind = {"0": "solid state", "1": "rotational"}.get(_word(disk / "queue" / "rotational"), "unknown kind")
    cache = _word(disk / "queue" / "write_cache") or "unknown"
    return f"{name}, {model}, {kind} by its own account, write cache: {cache}"


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _driver(disk: Path) -> str:
    try:
        return (disk / "device" / "driver").resolve(strict=True).name
    except OSError:
        return "unknown model"


def processor() -> str:
    """The model name of the first processor, and how many there are for this process."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} for this process"


def clocksource() -> str:
    """Where the kernel's clock comes from: a slow one shows in every figure of memory."""
    return _word(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or "unknown"


def describe_engine(site: Site) -> dict[str, str]:
    """Engine and flush instruction of logs on memory, as ``stats()`` names them."""
    found = {}
    for medium in ("memory", "emulated-dax") if site.in_memory else ("file",):
        path = site.directory / "look.wal"
        with pmwal.open(path, "x", size="64KiB", medium=medium) as wal:
            stats = wal.stats()
        path.unlink()
        found["engine"] = stats.engine
        found[f"flush on {medium}"] = stats.flush
    return found


def describe(memory: Site, disk: Site) -> dict[str, str]:
    """Everything that the head of a report says."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "memory": memory.text,
        "disk": disk.text,
        "processor": processor(),
        "clock": clocksource(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}{'' if gil else ', no GIL'}",
        "pmwal": pmwal.__version__,
        **describe_engine(disk),
        **describe_engine(memory),
    }
