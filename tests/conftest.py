"""Fixtures: every behaviour is tested on every medium that this machine has."""

from __future__ import annotations

import os

os.environ.setdefault("PMWAL_CHECK", "1")  # before pmwal is imported: see pmwal/writing/checks.py

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from commands import cli, started  # noqa: F401 - fixtures
from pmwal.native import native
from pmwal.native.choice import ENGINES, chosen_engine
from preload import build
from support import open_small

SHM = Path("/dev/shm")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores it in what it starts in the background, and processes that a test ends by Ctrl-C would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test marked ``both_engines`` once with each engine that was built."""
    if metafunc.definition.get_closest_marker("both_engines"):
        engines = ENGINES if native is not None else ("python",)
        for engine in engines:
            if metafunc.definition.get_closest_marker(f"{engine}_engine"):
                engines = (engine,)
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that every open of this test gets, in child processes too."""
    if hasattr(request, "param"):
        monkeypatch.setenv("PMWAL_ENGINE", request.param)
    return chosen_engine()


@pytest.fixture
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native engine, for a module that is about it alone."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")


@pytest.fixture
def hints_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look for hints of the writer also where they would sooner walk, so that small logs are enough to test them."""
    monkeypatch.setattr("pmwal.reading.hints._WALKED", 0)


class Place(NamedTuple):
    """Where a test keeps its log, and how it opens it: ``open_small(place.path, **place.options)``."""

    path: Path
    options: dict[str, Any]


@pytest.fixture
def shm_dir() -> Iterator[Path]:
    """A directory on tmpfs."""
    directory = Path(tempfile.mkdtemp(prefix="pmwal-test-", dir=SHM))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["memory-strict", "memory-pipelined", "emulated-dax-strict", "file-pipelined", "file-strict"])
def place(request: pytest.FixtureRequest, tmp_path: Path, shm_dir: Path) -> Place:
    """A path for a log on each medium, in each ordering. "file" lies on the disk of the temporary directory."""
    medium, _, ordering = request.param.rpartition("-")
    directory = tmp_path if medium == "file" else shm_dir
    return Place(directory / "test.wal", {"medium": medium, "ordering": ordering})


@pytest.fixture(params=["strict", "pipelined"])
def shm_place(request: pytest.FixtureRequest, shm_dir: Path) -> Place:
    """A path on tmpfs in each ordering, opened as a file: the same code as on a disk, and fast."""
    return Place(shm_dir / "test.wal", {"medium": "file", "ordering": request.param})


@pytest.fixture(scope="session")
def log_bytes() -> bytes:
    """The bytes of a closed log with three records."""
    path = SHM / f"pmwal-test-{os.getpid()}.wal"
    try:
        with open_small(path) as wal:
            wal.extend([b"a", b"b", b"c"])
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """A path for a log, where the test does not depend on the medium."""
    return shm_dir / "test.wal"


@pytest.fixture(params=["strict", "pipelined"])
def ordering(request: pytest.FixtureRequest) -> str:
    """Each ordering."""
    return str(request.param)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of tests/preload.c, for ``preload.run``."""
    return build(tmp_path_factory.mktemp("preload"))
