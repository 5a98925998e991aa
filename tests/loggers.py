"""Loggers that store into a log of their own, and what they stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmwal

SIZE = "64KiB"


@pytest.fixture
def log(shm_dir: Path) -> Path:
    """The log's path."""
    return shm_dir / "app.wal"


@pytest.fixture
def handler(log: Path) -> Iterator[pmwal.LogHandler]:
    """A handler with commit="manual"."""
    handler = pmwal.LogHandler(log, size=SIZE, commit="manual")
    yield handler
    handler.close()


@pytest.fixture
def logger(handler: pmwal.LogHandler) -> logging.Logger:
    """A logger of that handler."""
    return logger_of(handler)


def logger_of(handler: logging.Handler) -> logging.Logger:
    """A logger for one handler only."""
    logger = logging.Logger("app")
    logger.addHandler(handler)
    return logger


def stored(path: Path) -> list[str]:
    """The text of all records of a log."""
    with pmwal.open(path, "r") as reader:
        return [record.data.decode() for record in reader]
