"""Virtual environments, copies of the sources, and commands run in them."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IGNORED = ("*.egg-info", "*.so", "*.pyc", "__pycache__", ".git", ".venv", "build", "dist", ".*_cache", ".hypothesis")
"""What is made in a checkout and belongs to no release: the patterns of .gitignore, and git's own files."""

CHECKED = {"PMWAL_REQUIRE_NATIVE": "1", "PMWAL_CHECK": "1"}
"""Builds for tests: the C engine is required, and checks its invariants."""


class Failed(Exception):
    """A command failed. The text has the command and the end of its output."""


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of this process, without what pytest noted there: a run inside a test is one of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | dict(changes or {})


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float | None = None) -> str:
    """Run a command and return its output; ``Failed`` unless it succeeds."""
    words = [str(word) for word in command]
    output = subprocess.PIPE
    done = subprocess.run(
        words, cwd=cwd, env=environment(env), stdout=output, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise Failed(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def copy_sources(to: Path) -> Path:
    """A copy of the checkout as it is now, without what was built in it: old lists of files would get into an sdist."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*IGNORED), symlinks=True)
    return to


def make_environment(directory: Path, python: str | Path = sys.executable) -> Path:
    """The interpreter of a new, empty environment."""
    shutil.rmtree(directory, ignore_errors=True)
    run(python, "-m", "venv", directory)
    return directory / "bin" / "python"


def lend_packages(directory: Path) -> None:
    """Let an environment import what is installed in the one that runs this. Its own packages come first."""
    (site,) = (directory / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))


def requirements(extra: str, names: Iterable[str] | None = None) -> list[str]:
    """The requirements of an extra in setup.cfg, or those with these names."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.extras_require"][extra].strip().splitlines()
    found = {re.split("[<>=!~;]", line)[0]: line for line in lines}
    return list(found.values()) if names is None else [found[name] for name in names]
