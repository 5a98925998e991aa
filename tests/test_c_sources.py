"""The C sources: the generated header is up to date, compilers are silent, and build flags arrive."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format import layout

ROOT = Path(pmwal.__file__).parents[1]
needs_checkout = pytest.mark.skipif(not (ROOT / "tools").exists(), reason="needs the sources")


@pytest.fixture
def tool() -> Any:
    """tools/make_format_header.py as a module."""
    spec = importlib.util.spec_from_file_location("make_format_header", ROOT / "tools" / "make_format_header.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_checkout
def test_header_of_the_format_is_up_to_date(tool: Any) -> None:
    """pmwal/native/format.h is what pmwal/format/layout.py makes."""
    assert tool.main(["--check"]) == 0


@needs_checkout
@pytest.mark.parametrize("what", ["constant", "field", "order"])
def test_check_of_the_header_sees_a_changed_layout(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """The check above can fail, and says what to run."""
    if what == "constant":
        monkeypatch.setattr(tool, "CONSTANTS", [(name, value + (name == "POINTER_LAG_MAX")) for name, value in tool.CONSTANTS])
    else:
        fields = list(layout.SLOT.fields)
        fields = fields[1::-1] + fields[2:] if what == "order" else [*fields[:-1], layout.Field("reserved", "Q", "zero")]
        monkeypatch.setattr(tool, "STRUCTS", (("slot", layout.Structure("commit slot", *fields)), *tool.STRUCTS[1:]))
    assert tool.main(["--check"]) == 1
    assert "make_format_header.py" in capsys.readouterr().err


@needs_checkout
@pytest.mark.parametrize(
    ("compiler", "flag"),
    [
        ("gcc", "-O2"),
        pytest.param("gcc", "-DPMWAL_CHECKS", marks=pytest.mark.slow),
        pytest.param("clang", "-O2", marks=pytest.mark.slow),
        pytest.param("clang", "-DNDEBUG", marks=pytest.mark.slow),
    ],
)
def test_sources_compile_without_a_warning(compiler: str, flag: str) -> None:
    """-Wall -Wextra -Werror is silent with each compiler that is here, with and without assertions and checks."""
    include = Path(sysconfig.get_path("include"))
    if shutil.which(compiler) is None or not (include / "Python.h").exists():
        pytest.skip(f"no {compiler}, or no Python.h")
    sources = sorted((ROOT / "pmwal" / "native").glob("*.c"))
    assert len(sources) > 5
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", flag, f"-I{include}", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@needs_checkout
@pytest.mark.parametrize(("flags", "builds"), [("-Werror -DNDEBUG -O0", True), ("-DPyInit__native=(", False)])
def test_flags_for_the_compiler_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, builds: bool) -> None:
    """PMWAL_CFLAGS goes to the compiler, and with PMWAL_REQUIRE_NATIVE=1 an extension that cannot be built is an error."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no Python.h")
    monkeypatch.setenv("PMWAL_CFLAGS", flags)
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    shutil.copytree(ROOT / "pmwal", tmp_path / "pmwal", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "built"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == builds, done.stderr
    assert bool(list(tmp_path.glob("built/pmwal/native/_native*.so"))) == builds
