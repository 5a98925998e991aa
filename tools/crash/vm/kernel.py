"""The guest's kernel: Debian's cloud kernel, installed or unpacked from its package, and the modules that the guest loads."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PACKAGE = "linux-image-cloud-amd64"
REMEDY = f"a kernel for the guest: python -m tools vm --fetch-kernel, or apt-get install {PACKAGE}"


class CannotFetch(Exception):
    """The kernel's package cannot be downloaded or unpacked."""


class Kernel(NamedTuple):
    """A kernel image and the directory of its modules."""

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        """The guest's uname -r."""
        return self.modules.name


def _in(root: Path) -> list[Kernel]:
    found = []
    for image in root.glob("boot/vmlinuz-*cloud-amd64"):
        release = image.name.removeprefix("vmlinuz-")
        found += [Kernel(image, path) for path in (root / "lib/modules" / release,) if path.is_dir()]
    return sorted(found, key=lambda kernel: [int(part) for part in re.findall(r"\d+", kernel.release)])


def find(cache: Path) -> Kernel | None:
    """The newest fetched kernel, else the newest installed one."""
    found = _in(cache / "kernel") or _in(Path("/"))
    return found[-1] if found else None


def fetch(cache: Path) -> Kernel:
    """Download the package on which the metapackage depends, and unpack it into the cache. Nothing is installed."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        depends = _run(["apt-cache", "depends", PACKAGE], work)
        package = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", depends)
        if package is None:
            raise CannotFetch(f"{PACKAGE} names no kernel: {depends}")
        _run(["apt-get", "download", package.group(1)], work)
        (archive,) = work.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "kernel"], work)
        shutil.rmtree(cache / "kernel", ignore_errors=True)
        (work / "kernel").rename(cache / "kernel")
    kernel = find(cache)
    if kernel is None:
        raise CannotFetch(f"{package.group(1)} holds no kernel")
    return kernel


def _run(command: list[str], directory: Path) -> str:
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise CannotFetch(f"{command[0]} is missing: fetching a kernel needs Debian's tools") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(line for line in error.stderr.splitlines() if not line.startswith("W:"))  # apt prints many warnings
        raise CannotFetch(f"{' '.join(command)}: {said} (Debian's main archive is needed; try apt-get update)") from error


def load_order(kernel: Kernel, names: Iterable[str]) -> dict[str, bytes]:
    """These modules and their dependencies, uncompressed, in load order, without those that are built into the kernel.

    The package has no modules.dep, which its installation would create, but each module names its dependencies.
    """
    files = {_plain(path.name.split(".ko")[0]): path for path in kernel.modules.rglob("*.ko*")}
    built_in = {_plain(Path(line).stem) for line in (kernel.modules / "modules.builtin").read_text().split()}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise LookupError(f"kernel {kernel.release} has no module {name}")
        content = _content(files[name])
        needs = re.search(rb"(?:^|\0)depends=([^\0]*)\0", content)
        for needed in needs.group(1).decode().split(",") if needs else []:
            if needed:
                add(_plain(needed))
        order[name] = content

    for name in names:
        add(_plain(name))
    return order


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _content(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise LookupError(f"{path.name}: only plain and xz-compressed modules can be read")
