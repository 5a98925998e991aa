"""A smoke test of an installed pmwal: run it with the interpreter of the environment, from any directory.

The C engine is in use, five lines of the README work, the command prints what they stored, ``pmwal bench`` has its floors, and
after a SIGKILL every record that was acknowledged is there. It imports nothing of the repository. cibuildwheel runs it for each
wheel.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pmwal

ENOUGH = 200  # records before the kill
WRITER = """
import sys, pmwal
with pmwal.open(sys.argv[1], size="1MiB", on_full="overwrite") as wal:
    while True:
        print(wal.append(b"%d" % wal.next_seq), flush=True)
"""


def five_lines(path: Path) -> None:
    """Those at the head of the README, and which engine they ran with."""
    with pmwal.open(path, size="64MiB") as wal:
        seq = wal.append(b"payload")
        assert [(record.seq, record.data) for record in wal.read(start=seq)] == [(seq, b"payload")]
        engine = wal.stats().engine
    assert engine == "native", f"the engine is {engine}"


def command(*arguments: str | Path) -> str:
    """What the script prints that pip made."""
    script = Path(sysconfig.get_path("scripts")) / "pmwal"
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout


def commands(path: Path) -> None:
    """They find the library, and on x86-64 the floors in C that bench compares with, without a compiler."""
    said = command("cat", path)
    assert "payload" in said, said
    said = command("--version")
    assert pmwal.__version__ in said, said
    rows = json.loads(command("bench", path.parent, "--seconds", "1", "--json"))["rows"]
    floors = {row["key"] for row in rows if row["kind"] == "floor"}
    assert bool(floors) == (platform.machine() == "x86_64"), floors


def kill(path: Path) -> int:
    """Kill a writer that acknowledges; the number of the last record that it is known to have acknowledged."""
    with subprocess.Popen([sys.executable, "-P", "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(ENOUGH):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        acknowledged = process.stdout.read().split("\n")[:-1]  # the last line may be cut
    return int(acknowledged[-1]) if acknowledged else ENOUGH


def recover(path: Path, acknowledged: int) -> None:
    """Every record is there, and the report says that there was no close."""
    with pmwal.open(path) as wal:
        assert wal.recovery.outcome == "recovered", wal.recovery
        assert wal.recovery.last_seq >= acknowledged, (wal.recovery, acknowledged)
        assert all(record.data == b"%d" % record.seq for record in wal)


def main() -> None:
    """All of it."""
    assert "site-packages" in pmwal.__file__, f"{pmwal.__file__} is not an installed package"
    os.environ.pop("PMWAL_ENGINE", None)
    with tempfile.TemporaryDirectory() as directory:
        path, killed = Path(directory, "app.wal"), Path(directory, "killed.wal")
        five_lines(path)
        commands(path)
        recover(killed, acknowledged := kill(killed))
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"pmwal {pmwal.__version__} works on Python {version}: {acknowledged} acknowledged records survived a kill")


if __name__ == "__main__":
    main()
