"""The guest's initramfs: the Python interpreter, the files that pmwal and the rig load, and kernel modules; nothing else.

The files are not listed but observed: the interpreter rehearses on the host what it will do in the guest, and reports the modules
and shared libraries that it loaded. Each has the same path in the guest, so nothing needs configuration. The first process of the
guest is that interpreter: there is no shell, no init and no mount command.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import py_compile
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from crash.vm.kernel import Kernel, load_order

TOOLS = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).resolve().parent / "guest"
PORT_MODULES = ("virtio_pci", "virtio_console")
KEEP = 3  # archives in the cache, so that one in use by another run stays
_PACKAGES = ("pmwal", "numpy", "crc32c")

REHEARSAL = """
import sys
opened = set()
sys.addaudithook(lambda event, arguments: event == "open" and opened.add(arguments[0]))
import contextlib, importlib, json, os, pkgutil, tempfile, traceback
from pathlib import Path
import pmwal
from crash.vm.guest import boot, examiner, writer
with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    writer.write(directory, lambda life, step: None, {"control": None, "seed": 0, "first_life": 0, "lives": 6})
    examiner.look(directory)
    answers = examiner.examine(directory)
    assert answers and not any("error" in answer for answer in answers.values()), answers
traceback.format_exc()
for module in pkgutil.walk_packages(pmwal.__path__, "pmwal."):  # what a sound log does not need, one after a cut may
    if not module.name.endswith("__main__"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
modules = {file for module in sys.modules.values() if (file := getattr(module, "__file__", None))}
data = {str(file) for file in opened if isinstance(file, (str, Path)) and not str(file).startswith(("/proc/", "/sys/", "/dev/"))}
mapped = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(json.dumps([sorted(filter(os.path.isfile, names)) for names in (modules | data, mapped)]))
"""


class CannotBuild(Exception):
    """Something that the guest needs is missing, or does not run here."""


class Archive:
    """A cpio archive in the kernel's format (newc; Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._parts: list[bytes] = []

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add an entry, unless the archive has it."""
        if name in self._names:
            return
        self._names.add(name)
        path = name.encode() + b"\0"
        numbers = (len(self._names), mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]

    def add_path(self, path: Path, content: bytes | None = None) -> None:
        """Add a file under its own path, with all directories and symbolic links on the way to it."""
        at = Path("/")
        parts = [*path.parts[1:]]
        while parts:
            at /= parts.pop(0)
            if at.is_symlink():
                target = os.readlink(at)
                self.add(str(at)[1:], stat.S_IFLNK | 0o777, target.encode())
                self.add_path(Path(os.path.normpath(at.parent / target), *parts), content)
                return
            if parts:
                self.add(str(at)[1:], stat.S_IFDIR | 0o755)
        self.add(str(at)[1:], stat.S_IFREG | 0o755, at.read_bytes() if content is None else content)

    def bytes(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def interpreter() -> Path:
    """The interpreter, that of the installation if this is a virtual environment."""
    return Path(os.path.realpath(sys.executable))


def search_path() -> list[str]:
    """The import path: directories of pmwal, of what it imports, and of the rig."""
    roots = [str(TOOLS)]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise CannotBuild(f"{name} is not installed for {sys.executable}")
        root = str(Path(spec.origin).parent.parent)
        roots += [root] if root not in roots else []
    return roots


def rehearse(roots: list[str]) -> tuple[list[Path], list[Path]]:
    """The Python modules and data files that the guest will read, and the shared libraries that it will load."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    command = [str(interpreter()), "-SB", "-c", REHEARSAL]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CannotBuild(f"the guest's programs do not run here:\n{ended.stderr}")
    files, mapped = json.loads(ended.stdout)
    return [*map(Path, files)], [*map(Path, mapped)]


def build(kernel: Kernel, modules: Iterable[str]) -> bytes:
    """Build the archive."""
    archive, roots = Archive(), search_path()
    files, libraries = rehearse(roots)
    for name in ("proc", "sys", "dev", "mnt", "modules", "tmp"):
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    ports = [*load_order(kernel, PORT_MODULES)]
    script = f"#!{interpreter()} -SB\nimport sys\nsys.path[:0] = {roots}\nfrom crash.vm.guest.boot import main\nmain({ports})\n"
    archive.add("init", stat.S_IFREG | 0o755, script.encode())
    for name, content in load_order(kernel, [*PORT_MODULES, *modules]).items():
        archive.add(f"modules/{name}.ko", stat.S_IFREG | 0o644, content)
    archive.add_path(interpreter())
    for path in files:
        if path.suffix != ".pyc":
            archive.add_path(path)
        if path.suffix == ".py":
            archive.add_path(Path(importlib.util.cache_from_source(str(path))), compiled(path))
    for path in libraries:
        for alias in _aliases(path):
            archive.add_path(alias)
    for path in (Path("/lib64/ld-linux-x86-64.so.2"), Path("/etc/ld.so.cache")):
        if path.exists():
            archive.add_path(path)
    return archive.bytes()


def compiled(path: Path) -> bytes:
    """The byte code of a module, marked as unchecked: time stamps in the guest differ."""
    with tempfile.NamedTemporaryFile(suffix=".pyc") as file:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), file.name, doraise=True, invalidation_mode=mode)
        return Path(file.name).read_bytes()


def _aliases(path: Path) -> Iterable[Path]:
    """A library and the links in its directory that lead to it, by which programs may load it."""
    links = [link for link in path.parent.iterdir() if link.is_symlink() and link.name.split(".so")[0] == path.name.split(".so")[0]]
    return [path, *(link for link in links if link.resolve() == path.resolve())]


def fingerprint(kernel: Kernel) -> str:
    """A hash of everything that the archive depends on."""
    found = hashlib.sha256(f"{sys.version} {interpreter()} {kernel.image} {search_path()}".encode())
    sources = [*GUEST.glob("*.py"), *Path(__file__).parent.glob("*.py")]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        sources += [*root.rglob("*.py"), *root.rglob("*.so")] if name == "pmwal" else [Path(spec.origin)]
    for path in sorted(sources):
        found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()[:20]


def cached(cache: Path, kernel: Kernel, modules: Iterable[str]) -> Path:
    """The archive with these kernel modules, from the cache or newly built."""
    path = cache / f"initramfs-{fingerprint(kernel)}.cpio"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(build(kernel, modules))
        os.replace(file.name, path)
        for old in sorted(cache.glob("initramfs-*.cpio"), key=lambda file: file.stat().st_mtime)[:-KEEP]:
            old.unlink(missing_ok=True)
    return path
