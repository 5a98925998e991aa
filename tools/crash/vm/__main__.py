"""Cut the power of a virtual machine while pmwal writes in it, and check the logs left on its device.

    python -m tools vm [--device nvdimm|virtio-blk|virtio-pmem] [--filesystem ext4|xfs] [--cuts N] [--kills N] [--seed N]
    python -m tools vm --control NAME          run with a deliberate mistake, which must be noticed (exit status 1)
    python -m tools vm --controls              run without a mistake, then with each: exit status 0 if all are noticed
    python -m tools vm --replay DIR            judge the device kept in a directory again
    python -m tools vm --fetch-kernel          download Debian's cloud kernel into the cache

QEMU runs without KVM and without root. A writer in one guest appends, truncates, rolls back, creates and removes logs, and
acknowledges each step to the host. A cut stops that machine at a random moment and copies its device, without memory and page cache
(--cuts), or kills QEMU with SIGKILL (--kills). A second guest mounts the copy, opens the logs and reports their contents.

"nvdimm" is memory that can be mapped with MAP_SYNC, "virtio-pmem" memory that cannot, "virtio-blk" a disk. Stores to emulated
memory are durable at once, so a missing flush instruction does not show here. A seed repeats the steps, but not the moments of the
cuts. Exit status: 0 no violation; 1 a violation, and the device is kept as the cut left it (--keep); 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put this directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from crash import needs
from crash.vm.campaign import IMAGE, Cut, Kept, Rig, Settings, boot
from crash.vm.image import FILESYSTEMS
from crash.vm.initramfs import CannotBuild, cached
from crash.vm.kernel import REMEDY, CannotFetch, fetch, find
from crash.vm.machine import DEVICES, MachineFailed, modules

VIOLATION, CANNOT_RUN = 1, 2
CONTROL_CUTS = 60  # at most: the first few cuts notice a mistake
SHM = Path("/dev/shm")
CONTROLS = {
    "early-ack": ("nvdimm", "virtio-blk", "virtio-pmem"),
    "no-sync": ("virtio-blk",),
    "no-map-sync": ("nvdimm", "virtio-pmem"),
}
"""The mistakes, and the devices on which each shows.

early-ack: each step except a creation is acknowledged before it is made. no-sync: msync does nothing. no-map-sync: the log is
mapped without MAP_SYNC and its file is not synced at creation, so that its blocks and its name are lost.
"""


def cache_directory() -> Path:
    """The directory for the kernel and the initramfs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmwal"


def every_module() -> list[str]:
    """The kernel modules for all devices and file systems, so that one initramfs serves them all."""
    return sorted({name for kind in DEVICES for filesystem in FILESYSTEMS for name in modules(kind, filesystem)})


def missing(filesystem: str) -> list[str]:
    """What is missing here, and how to install it."""
    wanting = needs.missing("linux-x86_64", "qemu-system-x86_64", f"mkfs.{filesystem}")
    return wanting if find(cache_directory()) else [*wanting, REMEDY]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(DEVICES), default="nvdimm", help="under test (%(default)s)")
    parser.add_argument("--filesystem", choices=FILESYSTEMS, default="ext4", help="on the device (%(default)s)")
    parser.add_argument("--cuts", type=int, default=20, metavar="N", help="copies of a stopped machine (%(default)s)")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kills of QEMU, each of which costs a boot (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the writer's steps (default: random)")
    parser.add_argument("--control", choices=sorted(CONTROLS), help="run with this deliberate mistake, which must be noticed")
    parser.add_argument(
        "--controls", action="store_true", help="after a run without a mistake, run with each that shows on the device"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new directory for a wrong device (default: vm-violation-SEED)")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="only judge the device kept in this directory again")
    parser.add_argument("--verbose", action="store_true", help="print a line for each cut")
    parser.add_argument("--fetch-kernel", action="store_true", help="only download the kernel")
    options = parser.parse_args(arguments)
    if options.control and options.device not in CONTROLS[options.control]:
        parser.error(f"{options.control} does not show on {options.device}, only on {' and '.join(CONTROLS[options.control])}")
    if options.control and options.controls:
        parser.error("give --control or --controls, not both")
    if options.cuts + options.kills < 1:
        parser.error("nothing to do: give --cuts or --kills")
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    if options.keep is None:
        options.keep = Path(f"vm-violation-{options.seed}")
    return options


def prepare(device: str, filesystem: str, seed: int) -> Settings:
    """The settings of a run; builds the initramfs if the cache has none."""
    kernel = find(cache_directory())
    assert kernel is not None
    initramfs = cached(cache_directory(), kernel, every_module())
    size = initramfs.stat().st_size / 1e6
    print(f"kernel {kernel.release}, initramfs {size:.0f} MB, {device}, {filesystem}", flush=True)
    return Settings(kernel, initramfs, device, filesystem, seed)


def run(rig: Rig, cuts: int, kills: int, control: str | None, keep: Path | None) -> bool:
    """Cut and report; whether there was a violation, whose device is kept in a new directory if one is named."""
    outcome, settings = rig.run(cuts, kills, control), rig.settings
    cases = ", ".join(f"{case} {count}" for case, count in sorted(outcome.cases.items()))
    copies = f" of {1000 * statistics.median(outcome.cut_seconds):.0f} ms" if outcome.cut_seconds else ""
    killed = f", {outcome.kills} kills" if outcome.kills else ""
    print(
        f"{control or 'no mistake'}: {outcome.cuts} cuts{copies}{killed}, "
        f"{outcome.records} records in {outcome.logs} logs checked{' (' + cases + ')' if cases else ''}, "
        f"{len(outcome.start_seconds)} starts of {statistics.median(outcome.start_seconds):.1f} s, {outcome.seconds:.1f} s in all",
        flush=True,
    )
    for wrong in outcome.violations:
        print(f"  {wrong}", flush=True)
    again = f"python -m tools vm --device {settings.device} --filesystem {settings.filesystem} --cuts {cuts}"
    again += f" --kills {kills} --seed {settings.seed}{f' --control {control}' if control else ''}"
    print(f"  run it again: {again}", flush=True)
    if outcome.violated is not None and keep is not None:
        kept = Kept(settings.device, settings.filesystem, settings.seed, outcome.violated)
        try:
            kept.save(keep, rig.cut_image)
        except FileExistsError:
            print(f"  not kept, because {keep} exists already: name another directory with --keep", flush=True)
        else:
            print(f"  kept in {keep}; judge it again: python -m tools vm --replay {keep}", flush=True)
    return outcome.violated is not None


def replay(rig: Rig, directory: Path, cut: Cut) -> int:
    """Judge a kept device again; the exit status."""
    wrong = rig.replay(directory / IMAGE, cut).violations
    print(f"{directory}: {cut}: {'; '.join(wrong) or 'nothing wrong'}")
    return VIOLATION if wrong else 0


def run_all(rig: Rig, options: argparse.Namespace) -> int:
    """The requested runs; the exit status."""
    found = rig.found
    print(
        f"boot {rig.boot_seconds:.1f} s, MAP_SYNC {'yes' if found['map_sync'] else 'no'}, medium {found['medium']}, "
        f"flush by {found['flush']}",
        flush=True,
    )
    if misjudged := rig.misjudged():
        print(*misjudged, sep="\n")
        return VIOLATION
    wrong = run(rig, options.cuts, options.kills, options.control, options.keep)
    if options.controls and not wrong:
        for control, devices in CONTROLS.items():
            if options.device in devices and not run(rig, CONTROL_CUTS, 0, control, None):
                print(f"{control} was not noticed")
                wrong = True
    return VIOLATION if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run and report; the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwind as on Ctrl-C, which ends the machines
    try:
        if options.fetch_kernel:
            print(f"kernel {fetch(cache_directory()).release} in {cache_directory()}")
            return 0
        kept = None if options.replay is None else Kept.load(options.replay)
        device, filesystem, seed = kept[:3] if kept else (options.device, options.filesystem, options.seed)
        if wanting := missing(filesystem):
            print("the virtual machine needs " + "; ".join(wanting), file=sys.stderr)
            return CANNOT_RUN
        settings = prepare(device, filesystem, seed)
        say = print if options.verbose else lambda line: None
        with (
            tempfile.TemporaryDirectory(prefix="pmwal-vm-", dir=SHM if SHM.is_dir() else None) as work,
            boot(settings, Path(work), say) as rig,
        ):
            return run_all(rig, options) if kept is None else replay(rig, options.replay, kept.cut)
    except (CannotFetch, CannotBuild, LookupError, OSError) as error:
        print(error, file=sys.stderr)
        return CANNOT_RUN
    except MachineFailed as error:
        print(error, file=sys.stderr)
        return VIOLATION


if __name__ == "__main__":
    sys.exit(main())
