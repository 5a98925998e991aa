"""One virtual machine: QEMU without KVM, its monitor, a virtio port for requests, and a serial port for acknowledgements.

QEMU writes what the guest sends to the serial port to a file on the host, without a queue, and the guest waits for that. So an
acknowledgement that the writer gave is in the file even if the machine ends right after it.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from crash.process import die_with_parent
from crash.vm.kernel import Kernel, load_order

PATIENCE = 600.0
_CONSOLE_LINES = 50


class MachineFailed(Exception):
    """The machine did not start, stopped answering, or answered with an error."""


class Device(NamedTuple):
    """A kind of device: QEMU's arguments, its name in the guest, and what pmwal must detect."""

    arguments: tuple[str, ...]
    node: str
    dax: bool  # mounted with dax=always
    map_sync: bool
    medium: str
    flush: str
    modules: tuple[str, ...]  # of the guest's kernel
    saves: bool  # whether QEMU saves the device's state; it loses that of virtio-pmem, whose guest then waits forever


_MEMORY = "memory-backend-file,id=memory,share=on,mem-path={image},size={size}"
DEVICES = {
    "nvdimm": Device(
        ("-object", _MEMORY, "-device", "nvdimm,memdev=memory"),
        "pmem0",
        True,
        True,
        "dax",
        "clwb",
        ("nfit", "nd_pmem"),
        True,
    ),
    "virtio-blk": Device(
        ("-drive", "if=none,id=disk,format=raw,cache=writeback,file={image}", "-device", "virtio-blk-pci,drive=disk"),
        "vda",
        False,
        False,
        "file",
        "msync",
        ("virtio_blk",),
        True,
    ),
    "virtio-pmem": Device(
        ("-object", _MEMORY, "-device", "virtio-pmem-pci,memdev=memory"),
        "pmem0",
        True,
        False,
        "file",
        "msync",
        ("virtio_pmem", "nd_pmem"),
        False,
    ),
}


FILESYSTEM_MODULES = {"ext4": ("ext4",), "xfs": ("crc32c_generic", "xfs")}


def modules(kind: str, filesystem: str) -> tuple[str, ...]:
    """The kernel modules for the device and the file system, without their dependencies."""
    return DEVICES[kind].modules + FILESYSTEM_MODULES[filesystem]


class Lines:
    """A connection that carries lines of JSON in both directions."""

    def __init__(self, listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + PATIENCE
        while not select.select([listener], [], [], 0.1)[0]:
            if process.poll() is not None or time.monotonic() > end:
                raise MachineFailed("qemu does not start")
        self._socket, _ = listener.accept()
        self._socket.settimeout(PATIENCE)
        self._file = self._socket.makefile("rwb")

    def say(self, message: dict[str, Any]) -> None:
        """Send a line."""
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()

    def hear(self) -> dict[str, Any]:
        """Receive a line."""
        try:
            line = self._file.readline()
        except TimeoutError as error:
            raise MachineFailed(f"no answer for {PATIENCE:g} s") from error
        if not line.endswith(b"\n"):
            raise MachineFailed("the machine has ended")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def has_more(self) -> bool:
        """Whether there is an unsolicited line."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()


class Machine:
    """A guest with one device under test, booted or started from a saved state."""

    def __init__(
        self, directory: Path, kernel: Kernel, initramfs: Path, kind: str, image: Path, filesystem: str, state: Path | None
    ) -> None:
        directory.mkdir()
        self._state = state
        self.image = image
        self.seconds = 0.0  # until the guest answered
        self._started = time.monotonic()
        self._console = directory / "console"
        self._acks = directory / "acks"
        self._kind = DEVICES[kind]
        self._mount = {"filesystem": filesystem, "modules": [*load_order(kernel, modules(kind, filesystem))]}
        self._listeners = {name: _listen(directory / name) for name in ("monitor", "control")}
        device = [argument.format(image=image, size=image.stat().st_size) for argument in self._kind.arguments]
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg"]
        command += ["-machine", f"q35,nvdimm={'on' if kind == 'nvdimm' else 'off'}", "-cpu", "max,la57=off", "-smp", "1"]
        command += ["-m", "512M,slots=2,maxmem=4G", "-kernel", str(kernel.image), "-initrd", str(initramfs)]
        command += ["-append", "console=ttyS0 loglevel=4 cryptomgr.notests panic=-1 rdinit=/init nokaslr mitigations=off"]
        command += ["-serial", f"file:{self._console}", "-serial", f"file:{self._acks}", "-qmp", f"unix:{directory}/monitor"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=control,path={directory}/control"]
        command += ["-device", "virtserialport,chardev=control,name=control"]
        if state is not None:
            command += ["-incoming", "defer"]
        with (directory / "qemu").open("wb") as output:
            self._output = Path(output.name)
            self._process = subprocess.Popen(
                [*command, *device],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (there is one thread)
            )
        self._lines: list[Lines] = []

    def wait(self) -> None:
        """Wait until the guest answers."""
        try:
            for name in ("monitor", "control"):
                self._lines.append(Lines(self._listeners[name], self._process))
            self._monitor, self._control = self._lines
            self._monitor.hear()
            self._command("qmp_capabilities")
            self._command("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
            if self._state is None:
                self._control.hear()
            else:
                self._migrate("migrate-incoming", f"exec:cat {self._state}")
                self._command("cont")
        except MachineFailed as error:
            raise MachineFailed(f"{error}\n{self.tail()}") from error
        self.seconds = time.monotonic() - self._started

    def tail(self) -> str:
        """The last output of QEMU and the guest's kernel."""
        said = [path.read_text(errors="replace").splitlines() for path in (self._output, self._console) if path.exists()]
        return "\n".join(line for lines in said for line in lines[-_CONSOLE_LINES:])

    def _request(self, what: str, settings: dict[str, Any]) -> dict[str, Any]:
        options = "dax=always" if self._kind.dax else ""
        return {"do": what, "device": self._kind.node, "options": options, **self._mount, **settings}

    def ask(self, what: str) -> dict[str, Any]:
        """Make a request, and wait for the answer."""
        self._control.say(self._request(what, {}))
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            answer = self._control.hear()
        except MachineFailed as error:
            raise MachineFailed(f"{error}\n{self.tail()}") from error
        if "error" in answer:
            raise MachineFailed(f"in the guest: {answer['error']}")
        return answer

    def write(self, **settings: Any) -> None:
        """Start the writer, which runs until the machine ends."""
        self._control.say(self._request("write", settings))

    def wait_for_ack(self) -> None:
        """Wait for the first acknowledgement: a cut during the mount would test nothing."""
        end = time.monotonic() + PATIENCE
        while self.last_ack() is None:
            self.check_writer()
            if time.monotonic() > end:
                raise MachineFailed(f"no acknowledgement for {PATIENCE:g} s\n{self.tail()}")
            time.sleep(0.01)

    def check_writer(self) -> None:
        """``MachineFailed`` if the writer has ended."""
        if self._control.has_more():
            raise MachineFailed(f"the writer has ended: {self._answer()}")

    def last_ack(self) -> tuple[int, int] | None:
        """The life and step of the last acknowledgement; None before the first."""
        with self._acks.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 64))
            lines = file.read().split(b"\n")
        if len(lines) < 2:
            return None
        life, step = map(int, lines[-2].split())
        return life, step

    def _command(self, name: str, **arguments: Any) -> Any:
        self._monitor.say({"execute": name, "arguments": arguments})
        while "return" not in (answer := self._monitor.hear()):
            if "error" in answer:
                raise MachineFailed(f"qemu, {name}: {answer['error']}")
        return answer["return"]

    def _migrate(self, name: str, uri: str) -> None:
        self._command(name, uri=uri)
        while (status := self._command("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise MachineFailed(f"qemu, {name}: {status}\n{self.tail()}")
            time.sleep(0.02)

    def save(self, path: Path) -> None:
        """Save the state of memory and processor, but not the image of the device, and continue."""
        with self.stopped():
            self._migrate("migrate", f"exec:cat > {path}")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the guest for the block; what it wrote to its device is in the image."""
        self._command("stop")
        yield
        self._command("cont")

    def kill(self) -> None:
        """End QEMU with SIGKILL: the guest's memory and page cache are lost. Idempotent."""
        self._process.kill()
        self._process.wait()
        for line in self._lines:
            line.close()
        for listener in self._listeners.values():
            listener.close()
        self._lines.clear()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener
