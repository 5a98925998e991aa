"""Fixtures: every behaviour is tested on every medium that this machine has."""

from __future__ import annotations

import os

os.environ.setdefault("PMWAL_CHECK", "1")  # before pmwal is imported: see pmwal/writing/checks.py

import gc
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from commands import cli, started  # noqa: F401 - fixtures
from loggers import handler, log, logger  # noqa: F401 - fixtures
from pmwal.native import native
from pmwal.native.choice import ENGINES, chosen_engine
from pmwal.storage import lock
from pmwal.storage.descriptors import is_still
from preload import build
from shipped_streams import server, servers_end, stream  # noqa: F401 - fixtures
from shipping import form  # noqa: F401 - fixtures
from slotted import opened_handler, slots_directory  # noqa: F401 - fixtures
from support import open_small

SHM = Path("/dev/shm")

# A shell ignores SIGINT in what it starts in the background, and nohup SIGHUP. Processes that a test ends so would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test marked ``both_engines`` once with each engine that was built."""
    if metafunc.definition.get_closest_marker("both_engines"):
        engines = ENGINES if native is not None else ("python",)
        for engine in engines:
            if metafunc.definition.get_closest_marker(f"{engine}_engine"):
                engines = (engine,)
        metafunc.parametrize("engine", engines, indirect=True)


def pytest_collection_finish() -> None:
    """Spare the collector the modules and the thousands of collected tests, which live to the end: many tests collect in a loop."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A test leaves the environment as it found it: what it sets for good would decide what later tests of the process run with."""

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    before = variables()
    yield
    assert variables() == before


@pytest.fixture(autouse=True)
def lock_descriptors() -> Iterator[None]:
    """No test leaves the number of a closed descriptor among those of locks, which each forked child closes."""
    yield
    for fd, file in lock._descriptors.items():
        assert is_still(fd, file)


@pytest.fixture(autouse=True)
def engine(environment: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
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


PLACES = [
    "memory-strict",
    "memory-pipelined",
    "emulated-dax-strict+write-back",
    "emulated-dax-strict+stream",
    "file-pipelined",
    "file-strict",
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A path for a log on each medium, in each ordering, with each way to store to cache lines.

    "file" lies on the disk of the temporary directory.
    """
    name, _, stores = request.param.partition("+")
    if stores == "stream" and native is not None and not native.can_stream:
        pytest.skip("this processor has no stores past the cache")
    monkeypatch.setenv("PMWAL_STORES", stores)
    medium, _, ordering = name.rpartition("-")
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
