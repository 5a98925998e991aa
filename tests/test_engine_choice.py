"""Which engine an open gets: PMWAL_ENGINE, PMWAL_REQUIRE_NATIVE, and what happens without the extension."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import pmwal
from pmwal.native.choice import ENGINES
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
