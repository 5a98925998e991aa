"""The environment of a measurement: file system, device, processor, kernel, Python, engine."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
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
    """A directory to measure in, and the file system and device below it."""

    directory: Path
    mount: Mount
    device: str

    @property
    def in_memory(self) -> bool:
        """Whether the file system is in memory, so that nothing survives a power cut."""
        return self.mount.filesystem in _IN_MEMORY

    @property
    def note(self) -> str:
        """The note on every table that was measured here."""
        return TMPFS_NOTE if self.in_memory else f"{self.mount.filesystem} on {self.device}"

    @property
    def text(self) -> str:
        """File system, options and device in one line, without the path, which does not affect figures."""
        return f"{self.mount.filesystem} ({self.mount.options}), {self.device}"


def parse_mounts(text: str) -> list[Mount]:
    """Parse /proc/PID/mountinfo (proc(5)): fields before " - " describe the mount, those after it the file system."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split(" ", 2)
        if len(before) >= 6 and len(after) >= 2:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before[4])
            mounts.append(Mount(point, after[0], after[1], before[5]))
    return mounts


def find_mount(path: Path, mounts: list[Mount]) -> Mount:
    """The mount of a path: the deepest one, and of several at one mount point the last."""
    real = str(path.resolve())
    best = Mount("", "unknown", "unknown", "")
    for mount in mounts:
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def look(directory: Path) -> Site:
    """The site of a directory."""
    mount = find_mount(directory, parse_mounts(Path("/proc/self/mountinfo").read_text()))
    number = os.stat(directory).st_dev
    return Site(directory, mount, describe_device(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")))


def describe_device(path: Path) -> str:
    """Name, model, kind and write cache of a block device in /sys; "no block device" if the path does not exist."""
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
    """The model name of the first processor, and how many this process may use."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} for this process"


def load() -> str:
    """The load average of the last minute: how much else ran."""
    return f"{os.getloadavg()[0]:.2f}"


def clocksource() -> str:
    """The kernel's clock source. A slow one shows in every figure of memory."""
    return _word(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or "unknown"


def describe_engine(site: Site) -> dict[str, str]:
    """Engine and flush of logs in a directory, as ``stats()`` names them: on emulated-dax the method of storing that is chosen."""
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
    """The environment for the head of a report."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "date": time.strftime("%Y-%m-%d"),
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
