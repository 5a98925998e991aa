"""Support for tests of log sets: a handler that keeps its errors, a directory for slots, and what is in it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of, stored
from pmwal.storage.create import is_fresh
from processes import PATIENCE


class Watched(pmwal.LogHandler):
    """A handler that keeps the errors that it reports."""

    def __init__(self, **options: Any) -> None:
        self.reported: list[BaseException | None] = []
        super().__init__(**{"size": SIZE, "commit": "manual"} | options)

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.reported.append(sys.exc_info()[1])


@pytest.fixture(name="directory")
def slots_directory(shm_dir: Path) -> Path:
    """A directory for a set; it does not exist yet, nor does the one above it."""
    return shm_dir / "logs" / "shop"


@pytest.fixture(name="opened")
def opened_handler(directory: Path) -> Iterator[Watched]:
    """A handler of this process in the directory."""
    handler = Watched(directory=directory)
    yield handler
    handler.close()


def names(directory: Path) -> list[str]:
    """Everything in the directory."""
    return sorted(os.listdir(directory))


def texts(directory: Path) -> dict[str, list[str]]:
    """What each slot has stored."""
    return {name: stored(directory / name) for name in names(directory)}


def log_and_hold(pipe: Connection, directory: Path, text: str) -> None:
    """In a process of its own: log a line, and keep the slot until the pipe says so."""
    handler = Watched(directory=directory)
    logger_of(handler).warning(text)
    pipe.send(handler.wal.path)
    pipe.recv()
    handler.close()


def spares_of(handler: pmwal.LogHandler) -> Any:
    """What keeps the spares of a handler's directory."""
    target: Any = handler._sink._target
    return target._spares


def wait_for_spares(handler: pmwal.LogHandler, count: int = 1) -> list[int]:
    """The descriptors of the spares that no child has used, as soon as there are as many; the first one as before a fork."""
    spares_of(handler)._keeper.pause()
    deadline = time.monotonic() + PATIENCE
    while True:
        fds = [spare.fd for spare in spares_of(handler)._kept if is_fresh(*spare)]
        if len(fds) >= count:
            return fds
        assert time.monotonic() < deadline
        time.sleep(0.001)
