"""Which engine an open gets: PMWAL_ENGINE, PMWAL_REQUIRE_NATIVE, and what happens without the extension."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import pmwal
from pmwal.native import native
from pmwal.native.choice import ENGINES, STORES
from pmwal.storage import medium
from processes import run_script

HIDDEN = """
import importlib.abc, sys, warnings
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pmwal.native._native":
            raise ImportError("hidden")
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_environment_chooses_the_engine_at_each_open(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """PMWAL_ENGINE is looked at by every open, and stats() says what came of it; unset and empty mean the native one."""
    monkeypatch.setenv("PMWAL_ENGINE", engine)
    with pmwal.open(shm_dir / "log", size="64KiB") as wal:
        assert wal.stats().engine == engine
    monkeypatch.setenv("PMWAL_ENGINE", "")
    with pmwal.open(shm_dir / "log") as wal:
        assert wal.stats().engine == "native"
    monkeypatch.delenv("PMWAL_ENGINE")
    with pmwal.open(shm_dir / "log") as wal:
        assert wal.stats().engine == "native"


@pytest.mark.parametrize("mode", ["a", "r"])
def test_unknown_engine_is_refused(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Another value of PMWAL_ENGINE is a ValueError that names both, and nothing is created or locked by it."""
    pmwal.open(shm_dir / "log", size="64KiB").close()
    monkeypatch.setenv("PMWAL_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="PMWAL_ENGINE must be one of native, python, not 'nonsense'"):
        pmwal.open(shm_dir / "log", mode)
    with pytest.raises(ValueError, match="PMWAL_ENGINE"):
        pmwal.open(shm_dir / "other", size="64KiB")
    assert not (shm_dir / "other").exists()
    monkeypatch.delenv("PMWAL_ENGINE")
    pmwal.open(shm_dir / "log").close()


@pytest.mark.parametrize("variables", [{"PMWAL_REQUIRE_NATIVE": "1"}, {"PMWAL_ENGINE": "native"}])
def test_missing_engine_that_is_demanded_is_an_error(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Without the extension an open raises ImportError that says what to do, and creates nothing."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = run_script(
        HIDDEN
        + """
import pmwal
try:
    pmwal.open(sys.argv[1], size="64KiB")
except ImportError as error:
    print(error)
""",
        shm_dir / "log",
    )
    assert "native engine is missing" in done.stdout, done.stderr
    assert "compiler" in done.stdout
    assert "install" in done.stdout
    assert not (shm_dir / "log").exists()


def test_missing_engine_says_why(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that is there and cannot be loaded is not called missing: the reason is told."""
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    hidden = HIDDEN.replace("hidden", "undefined symbol: strange")
    done = run_script(hidden + "import pmwal; pmwal.open(sys.argv[1])", shm_dir / "log")
    assert "ImportError" in done.stderr
    assert "undefined symbol: strange" in done.stderr


def test_missing_engine_is_one_warning(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension the Python engine works after one RuntimeWarning, shown by default and for the caller's line."""
    monkeypatch.delenv("PMWAL_REQUIRE_NATIVE", raising=False)
    done = run_script(
        HIDDEN
        + """
import pmwal
for number in range(3):
    with pmwal.open(sys.argv[1], size="64KiB") as wal:
        wal.append(b"x")
    with pmwal.open(sys.argv[1], "r") as reader:
        records = list(reader)
def elsewhere():
    pmwal.open(sys.argv[1]).close()
elsewhere()
print(wal.stats().engine, len(records), records[0].data)
""",
        shm_dir / "log",
    )
    assert done.stdout == "python 3 b'x'\n", done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "PMWAL_ENGINE=python" in done.stderr


def test_chosen_python_engine_needs_no_extension_and_no_warning(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PMWAL_ENGINE=python is silent without the extension, also when the native one is required by default."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    done = run_script(
        HIDDEN
        + """
import pmwal
with pmwal.open(sys.argv[1], size="64KiB") as wal:
    print(wal.append(b"x"), wal.stats().engine)
""",
        shm_dir / "log",
    )
    assert (done.stdout, done.stderr) == ("1 python\n", "")


@pytest.mark.usefixtures("native_engine")
def test_methods_of_the_native_handle_explain_themselves(shm_dir: Path) -> None:
    """help() and inspect.signature() say of the fast methods what they say of the others."""
    with pmwal.open(shm_dir / "log", size="64KiB") as wal:
        for name in ("append", "extend", "commit"):
            assert getattr(wal, name).__doc__, name
            assert str(inspect.signature(getattr(wal, name))), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["a", "r"])
def test_unknown_way_to_store_is_refused(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str, mode: str) -> None:
    """Another value of PMWAL_STORES is a ValueError that names both, with either engine, and nothing is created or locked by it."""
    monkeypatch.setenv("PMWAL_ENGINE", engine)
    pmwal.open(shm_dir / "log", size="64KiB").close()
    monkeypatch.setenv("PMWAL_STORES", "clwb")
    with pytest.raises(ValueError, match="PMWAL_STORES must be one of stream, write-back, not 'clwb'"):
        pmwal.open(shm_dir / "log", mode)
    with pytest.raises(ValueError, match="PMWAL_STORES"):
        pmwal.open(shm_dir / "other", size="64KiB")
    assert not (shm_dir / "other").exists()
    monkeypatch.delenv("PMWAL_STORES")
    pmwal.open(shm_dir / "log").close()


def test_stores_past_the_cache_are_refused_where_there_are_none(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PMWAL_STORES=stream says what to do on a processor without such stores; write-back is always possible."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    monkeypatch.setattr(native, "can_stream", False)
    monkeypatch.setenv("PMWAL_STORES", "stream")
    with pytest.raises(ValueError, match="no stores past the cache; set it to write-back, or unset it"):
        pmwal.open(shm_dir / "log", size="64KiB", medium="emulated-dax")
    assert list(shm_dir.iterdir()) == []
    monkeypatch.setenv("PMWAL_STORES", "write-back")
    pmwal.open(shm_dir / "log", size="64KiB", medium="emulated-dax").close()


@pytest.mark.parametrize(
    ("vendor", "times", "expected"),
    [
        ("GenuineIntel", (1, 100), False),
        ("", (1, 100), False),
        ("AuthenticAMD", (100, 200), True),
        ("HygonGenuine", (100, 200), True),
        ("AuthenticAMD", (95, 100), False),
        ("AuthenticAMD", (200, 100), False),
        ("AuthenticAMD", (0, 0), False),
    ],
)
def test_way_to_store_is_measured_on_some_processors_only(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, times: tuple[int, int], expected: bool
) -> None:
    """Intel's write lines back whatever the times; AMD's do so unless stores past the cache are clearly faster."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    monkeypatch.setenv("PMWAL_STORES", "")
    medium._streams_are_faster.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(native, "VENDOR", vendor)
        patch.setattr(native, "time_stores", lambda: times)
        with pmwal.open(shm_dir / "log", size="64KiB", medium="emulated-dax") as wal:
            assert (wal.stats().flush == "stream") == expected
    medium._streams_are_faster.cache_clear()


def test_both_ways_to_store_can_be_timed() -> None:
    """The measurement itself, on this processor."""
    assert native is not None
    streamed, written_back = native.time_stores()
    assert (streamed > 0) == (written_back > 0) == native.can_stream


@pytest.mark.parametrize("stores", STORES)
def test_environment_chooses_the_stores_at_each_open(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, stores: str) -> None:
    """PMWAL_STORES is looked at by every open, and stats() says what came of it; media without cache lines do not care."""
    if stores == "stream" and not getattr(native, "can_stream", False):
        pytest.skip("this processor has no stores past the cache")
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    monkeypatch.setenv("PMWAL_STORES", stores)
    with pmwal.open(shm_dir / "lines", size="64KiB", medium="emulated-dax") as wal:
        assert (wal.stats().flush == "stream") == (stores == "stream")
    with pmwal.open(shm_dir / "memory", size="64KiB", medium="memory") as wal:
        assert wal.stats().flush == "none"
    with pmwal.open(shm_dir / "file", size="64KiB", medium="file") as wal:
        assert wal.stats().flush == "msync"
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    with pmwal.open(shm_dir / "lines", medium="emulated-dax") as wal:
        assert wal.stats().flush == "msync"
