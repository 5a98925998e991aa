"""What a directory lies on, and the machine around it: file system, device and its counters, processor, kernel, Python, engine."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pmwal

TMPFS_NOTE = "tmpfs: no power-fail durability was measured"
_IN_MEMORY = ("tmpfs", "ramfs")
_YES_OR_NO = {"0": "no", "1": "yes"}
SECTORS_WRITTEN, _FLUSHES = 6, 15  # fields of the file stat


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    filesystem: str
    source: str
    options: str
    more: str = ""  # options of the file system, for all of its mounts


class Written(NamedTuple):
    """What a block device has done since the machine was started, for all who use it."""

    sectors: int  # written, of 512 bytes
    flushes: int  # of its write cache


@dataclass(frozen=True)
class Device:
    """A block device, as the kernel describes it in /sys/block (Documentation/ABI/stable/sysfs-block)."""

    name: str
    model: str
    kind: str
    write_cache: str  # "write back": volatile, a commit needs a flush; "write through": none, or it needs no flush
    fua: str  # whether a write can be made durable alone, without a flush of the whole cache
    dax: str
    scheduler: str
    counters: Path
    flush_counters: Path  # of the whole disk: the kernel counts no flushes of a partition

    @property
    def text(self) -> str:
        """Name, model, kind and write cache, in one line."""
        return f"{self.name}, {self.model}, {self.kind} by its own account, write cache: {self.write_cache}"

    def written(self) -> Written | None:
        """Its counters; None where the kernel has none."""
        try:
            sectors = int(self.counters.read_text().split()[SECTORS_WRITTEN])
            return Written(sectors, int(self.flush_counters.read_text().split()[_FLUSHES]))
        except (OSError, IndexError):
            return None


@dataclass(frozen=True)
class Site:
    """A directory to measure in, and the file system and device below it."""

    directory: Path
    mount: Mount
    device: str
    disk: Device | None = None

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
            mounts.append(Mount(point, after[0], after[1], before[5], after[2] if len(after) > 2 else ""))
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
    disk = device_at(_block_device(directory, mount))
    return Site(directory, mount, "no block device" if disk is None else disk.text, disk)


def _block_device(directory: Path, mount: Mount) -> Path:
    """The directory in /sys of the block device below a directory. Some file systems, as btrfs, show it only by their mount."""
    number = os.stat(directory).st_dev
    if os.major(number) == 0 and mount.source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            number = os.stat(mount.source).st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def device_at(path: Path) -> Device | None:
    """The block device of a directory in /sys; None if the directory does not exist."""
    if not path.exists():
        return None
    disk = path.resolve()
    name = disk.name
    if (disk / "partition").exists():
        disk = disk.parent
    scheduler = re.search(r"\[(.+?)\]", _word(disk / "queue" / "scheduler"))
    return Device(
        name=name,
        model=_word(disk / "device" / "model") or _driver(disk),
        kind={"0": "solid state", "1": "rotational"}.get(_word(disk / "queue" / "rotational"), "unknown kind"),
        write_cache=_word(disk / "queue" / "write_cache") or "unknown",
        fua=_YES_OR_NO.get(_word(disk / "queue" / "fua"), "unknown"),
        dax=_YES_OR_NO.get(_word(disk / "queue" / "dax"), "unknown"),
        scheduler=scheduler[1] if scheduler else "unknown",
        counters=path.resolve() / "stat",
        flush_counters=disk / "stat",
    )


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


def available_memory() -> int:
    """Bytes of memory that can be used without swapping (/proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


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


def facts(site: Site) -> dict[str, str]:
    """Everything that is known of a place, for a report."""
    options = dict.fromkeys(f"{site.mount.options},{site.mount.more}".strip(",").split(","))
    found = {"file system": f"{site.mount.filesystem} on {site.mount.source}", "mount options": ", ".join(options)}
    if site.disk is not None:
        found |= {
            "device": f"{site.disk.name}, {site.disk.model}, {site.disk.kind} by its own account",
            "write cache": site.disk.write_cache,
            "FUA": site.disk.fua,
            "DAX": site.disk.dax,
            "I/O scheduler": site.disk.scheduler,
        }
    else:
        found["device"] = site.device
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "host": platform.node(),
        **found,
        "processor": processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "pmwal": pmwal.__version__,
    }


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
