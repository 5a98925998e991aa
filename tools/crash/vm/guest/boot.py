"""The first process of the guest: mounts, loads kernel modules, and executes the host's requests from a virtio port.

Requests and answers are lines of JSON. "look" mounts the device and reports what pmwal detects, "write" writes until the power is
cut, "examine" mounts the device, examines the logs on it, and unmounts it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import termios
import time
import traceback
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from crash.vm.guest import examiner, writer

ACKS = Path("/dev/ttyS1")
MODULES = Path("/modules")
MOUNT_POINT = Path("/mnt")
PATIENCE = 300.0
_FINIT_MODULE = 313  # x86-64
T = TypeVar("T")
_LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """``OSError`` if a call of the C library failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, options: str = "") -> None:
    """mount(2)."""
    target.mkdir(exist_ok=True)
    check(_LIBC.mount(source.encode(), bytes(target), kind.encode(), 0, options.encode()), f"mount {source} ({kind} {options})")


def unmount(target: Path) -> None:
    """umount(2)."""
    check(_LIBC.umount2(bytes(target), 0), f"umount {target}")


def load_modules(names: list[str]) -> None:
    """Load these kernel modules in this order, except those that are loaded."""
    for name in names:
        if not Path("/sys/module", name).exists():
            with (MODULES / f"{name}.ko").open("rb") as file:
                check(_LIBC.syscall(_FINIT_MODULE, file.fileno(), b"", 0), f"load {name}")


def wait_for(find: Callable[[], T | None], what: str) -> T:
    """Wait for something that a driver provides."""
    end = time.monotonic() + PATIENCE
    while (found := find()) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{what} does not appear")
        time.sleep(0.01)
    return found


def open_port(name: str) -> int:
    """Open the virtio port with this name."""

    def find() -> str | None:
        for path in Path("/sys/class/virtio-ports").glob("*/name"):
            if path.read_text().strip() == name:
                return path.parent.name
        return None

    return os.open(f"/dev/{wait_for(find, f'port {name}')}", os.O_RDWR)


def open_acks() -> int:
    """Open the serial port for acknowledgements; it passes bytes on unchanged."""
    port = os.open(ACKS, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    return port


def acknowledge(port: int, number: int, step: int) -> None:
    """Acknowledge a step; the line is in the host's file when this returns.

    tcdrain(3) waits until the driver has given all bytes to the serial port, and QEMU writes each byte to the file before the
    instruction that gave it ends. A virtio port will not do: it has a queue, which a busy host may not have emptied yet.
    """
    line = f"{number} {step}\n".encode()
    if os.write(port, line) != len(line):
        raise OSError("an acknowledgement was cut short")
    termios.tcdrain(port)


class Disk:
    """The device under test, mounted in a block."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device = Path("/dev", request["device"])
        self.filesystem: str = request["filesystem"]
        self.options: str = request["options"]

        load_modules(request["modules"])

    def __enter__(self) -> Path:
        wait_for(lambda: self.device.exists() or None, str(self.device))
        mount(str(self.device), MOUNT_POINT, self.filesystem, self.options)
        return MOUNT_POINT

    def __exit__(self, *exc: object) -> None:
        unmount(MOUNT_POINT)


def obey(request: dict[str, Any], acks: int) -> dict[str, Any]:
    """Execute a request; the answer."""
    match request["do"]:
        case "look":
            with Disk(request) as directory:
                return examiner.look(directory)
        case "examine":
            with Disk(request) as directory:
                return {"logs": examiner.examine(directory)}
        case "write":
            with Disk(request) as directory:
                writer.write(directory, lambda number, step: acknowledge(acks, number, step), request)
            return {}
    raise ValueError(request["do"])


def main(ports: list[str]) -> None:
    """Answer requests until the power is cut. ``ports`` are the kernel modules for the virtio ports."""
    for source, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        mount(source, Path(target), source)
    load_modules(ports)
    os.environ["PMWAL_STORES"] = "write-back"  # QEMU's processor is AMD's: on a busy host its emulation decides what is measured
    acks = open_acks()
    with open(open_port("control"), "r+b", buffering=0) as port:
        requests = io.BufferedReader(port)
        port.write(json.dumps({"kernel": os.uname().release}).encode() + b"\n")
        for line in requests:
            try:
                answer = obey(json.loads(line), acks)
            except Exception:
                answer = {"error": traceback.format_exc()}
            port.write(json.dumps(answer).encode() + b"\n")
