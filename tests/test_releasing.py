"""What is released: the description for the package index, the files of a wheel and an sdist, other Pythons, other processors."""

from __future__ import annotations

import configparser
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from crash import needs  # noqa: E402
from releasing import cross, interpreters, sdists, wheels  # noqa: E402
from releasing.environments import Failed, lend_packages, make_environment, requirements, run  # noqa: E402

HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands."""
    command = [sys.executable, "-m", "tools", name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGING, check=False)


# -- the description


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, and as "given" what it gives to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    return {**runpy.run_path("setup.py"), "given": given}


README = """
[a guide](docs/guide.md#part), ![a picture](docs/a.svg) and [a long
text](docs/b.md); [elsewhere](https://example.org/x), [here](#below), `call(x)[0]`
"""


def test_links_of_the_readme_lead_to_the_files_of_the_version(setup_py: dict[str, Any]) -> None:
    """With a known home they are absolute, and pictures are the files themselves."""
    text = setup_py["description"](README, "https://example.org/pmwal", "1.2.3")
    assert "[a guide](https://example.org/pmwal/blob/v1.2.3/docs/guide.md#part)" in text
    assert "![a picture](https://example.org/pmwal/raw/v1.2.3/docs/a.svg)" in text
    assert "text](https://example.org/pmwal/blob/v1.2.3/docs/b.md)" in text
    assert "[elsewhere](https://example.org/x), [here](#below), `call(x)[0]`" in text


def test_links_of_the_readme_are_texts_where_no_home_is_known(setup_py: dict[str, Any]) -> None:
    """No link leads nowhere."""
    text = setup_py["description"](README, None, "1.2.3")
    assert text == "\na guide,  and a long\ntext; [elsewhere](https://example.org/x), [here](#below), `call(x)[0]`\n"


def test_description_for_the_index_has_no_relative_link(setup_py: dict[str, Any]) -> None:
    """The README as it is. Without its links rewritten it would have many."""
    relative = r"\]\((?![a-z]+:|#)"
    assert len(re.findall(relative, (ROOT / "README.md").read_text())) > 3
    assert re.findall(relative, setup_py["given"]["long_description"]) == []


def test_home_is_read_from_the_project_urls(setup_py: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry "Source"; others do not count."""
    monkeypatch.chdir(tmp_path)
    Path("setup.cfg").write_text("[metadata]\nproject_urls =\n    Documentation = https://d\n    Source = https://s?a=b\n")
    assert setup_py["source_url"]() == "https://s?a=b"
    Path("setup.cfg").write_text("[metadata]\nname = pmwal\n")
    assert setup_py["source_url"]() is None


# -- wheels and sdists


def test_files_of_a_wheel_are_the_package_and_its_engine() -> None:
    """Sources of the engine, tests and tools are not among them; data files are."""
    files = wheels.files_of_package(ROOT)
    assert {"pmwal/py.typed", "pmwal/native/_native.pyi", "pmwal/__init__.py", "pmwal_command.py", "pytest_pmwal.py"} <= files
    assert not [name for name in files if name.endswith((".c", ".h")) or name.split("/")[0] in ("tests", "tools", "docs", "build")]


def test_extensions_that_are_built_are_those_of_a_wheel(setup_py: dict[str, Any]) -> None:
    """The engine, and the floors of the benchmark where they can be built."""
    built = {extension.name.replace(".", "/") for extension in setup_py["given"]["ext_modules"]}
    assert built == set(wheels.EXTENSIONS)


def test_a_file_too_much_or_too_few_is_named() -> None:
    """Negative control of both audits."""
    assert wheels.differences(["a", "b"], ["b", "c"]) == ["unexpected: a", "missing: c"]
    assert wheels.differences(["a"], ["a"]) == []


def test_extras_that_tests_need_are_in_the_test_extra() -> None:
    """The next machine installs only that one. cibuildwheel and the rest are needed by the tests of this module."""
    assert set(requirements("release")) <= set(requirements("test"))
    with pytest.raises(KeyError):
        requirements("test", ["no-such-package"])


def test_version_of_python_that_is_declared_is_one_that_is_looked_for() -> None:
    """The classifiers name versions that were tested; cibuildwheel builds those and newer ones."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    declared = re.findall(r"Python :: 3\.(\d+)$", parser["metadata"]["classifiers"], re.MULTILINE)
    assert [int(minor) for minor in declared] == list(range(interpreters.OLDEST[1], interpreters.NEWEST[1]))


def test_interpreters_are_found_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At least the one that runs this test; of each version one, and a version that nobody has is exit status 2."""
    own = interpreters.probe(Path(sys.executable))
    assert own is not None
    monkeypatch.setattr(interpreters, "candidates", lambda: [Path(sys.executable), Path(sys.executable), ROOT / "setup.cfg"])
    assert interpreters.find() == [own]
    assert interpreters.main(["--list"]) == 0
    assert f"{own.name} " in capsys.readouterr().out
    assert interpreters.main(["--list", "--only", "2.7"]) == interpreters.NONE
    assert interpreters.main(["--others"]) == interpreters.NONE


def test_quick_runs_name_tests_that_exist() -> None:
    """A renamed file must be renamed there."""
    for name in (*interpreters.QUICK, *sdists.QUICK):
        assert (ROOT / "tests" / name).exists(), name


# -- runs: marked rigs


@pytest.mark.rigs
def test_wheel_of_this_machine_is_whole_and_works(tmp_path: Path) -> None:
    """Built from the sdist, audited, installed with nothing but its dependencies; engine, README, command, kill and recovery."""
    done = tool("wheel", "--output", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "records survived a kill" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert "-manylinux_2_" in wheel.name
    assert list(tmp_path.glob("pmwal-*.tar.gz"))


@pytest.mark.rigs
def test_wheel_without_the_engine_is_noticed(tmp_path: Path) -> None:
    """Negative control of the smoke test: the engine of an installed wheel is removed."""
    python = make_environment(tmp_path / "environment")
    lend_packages(tmp_path / "environment")
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    for name in wheels.MODULES:
        shutil.copy(ROOT / name, site)
    shutil.copytree(ROOT / "pmwal", site / "pmwal", ignore=shutil.ignore_patterns("*.so"))
    with pytest.raises(Failed, match="the engine is python"):
        run(python, "-P", wheels.SMOKE, cwd=tmp_path, env={"PMWAL_REQUIRE_NATIVE": "", "PYTHONPATH": ""})


@pytest.mark.rigs
def test_tests_run_from_an_unpacked_sdist() -> None:
    """Some that read files beside the package; ``python -m tools sdist`` runs the whole default suite."""
    done = tool("sdist", "--quick")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.rigs
def test_tests_pass_on_the_other_pythons() -> None:
    """On those that are here, a part of the suite; ``python -m tools pythons`` runs all of it."""
    if not [python for python in interpreters.find() if python.version[:2] != sys.version_info[:2]]:
        pytest.skip("no other Python from 3.11 on is here")
    done = tool("pythons", "--quick", "--others")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert " passed" in done.stdout


@pytest.mark.rigs
def test_configuration_for_wheels_names_all_platforms() -> None:
    """cibuildwheel reads it: CPython 3.11 to 3.14 on manylinux and musllinux, x86-64 and aarch64."""
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGING, check=False)
    assert done.returncode == 0, done.stderr
    expected = {
        f"cp3{minor}-{libc}_{machine}"
        for minor in (11, 12, 13, 14)
        for libc in ("manylinux", "musllinux")
        for machine in ("x86_64", "aarch64")
    }
    assert set(done.stdout.split()) == expected


@pytest.mark.rigs
@pytest.mark.parametrize("target", cross.TARGETS)
def test_c_engine_works_on_another_platform(target: str) -> None:
    """Compiled with -Werror; checksums, records and faults are right, and for musl the library can be loaded."""
    needs.require(*cross.TARGETS[target].needs)
    done = tool("cross", "--target", target)
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("compiled without a warning", "right\n", "executions", "faults: caught"):
        assert said in done.stdout
    assert ("loaded as a library" in done.stdout) == cross.TARGETS[target].loads
    assert ("pmull" in done.stdout) == (target == "aarch64")


@pytest.mark.rigs
@pytest.mark.parametrize("control", cross.CONTROLS)
@pytest.mark.parametrize("target", cross.TARGETS)
def test_mistake_on_another_platform_is_noticed(target: str, control: str) -> None:
    """Negative control: one for each program."""
    needs.require(*cross.TARGETS[target].needs)
    done = tool("cross", "--target", target, "--control", control, "--seed", "1")
    assert done.returncode == 1
    assert "error:" not in done.stderr, "it was not even compiled"
