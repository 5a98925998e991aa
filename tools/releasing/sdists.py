"""Build an sdist, unpack it, and run the tests from the unpacked tree, with a build of its own.

    python -m tools sdist                 the default suite
    python -m tools sdist --quick         some of those that read files beside the package: CI runs these
    python -m tools sdist -- -k damage    arguments for pytest

The environment is new; its packages, but for pmwal, are those of the environment that runs this.
Exit status: 0 all passed; 1 some did not, or the sdist could not be built.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put its directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from releasing.environments import CHECKED, Failed, copy_sources, environment, lend_packages, make_environment, run

QUICK = (
    *("test_docs_format.py", "test_structure.py", "test_signposts.py", "test_tools.py", "test_releasing.py"),
    *("test_compatibility.py", "test_plugin.py"),
)
"""One for each kind of file that is read beside the package: documents, all sources, tools, setup.py, golden files; and the plugin.
That no file is missing is shown by ``wheels.wrong_in_sdist``."""


def build(work: Path) -> Path:
    """The directory of an unpacked sdist of the checkout as it is."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", work / "dist", copy_sources(work / "sources"))
    (sdist,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (tree,) = (work / "unpacked").iterdir()
    return tree


def test(tree: Path, directory: Path, arguments: Sequence[str]) -> int:
    """Install the tree in development mode, and run pytest there; its exit status."""
    python = make_environment(directory)
    lend_packages(directory)
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", tree, env=CHECKED)
    where = run(python, "-P", "-c", "import pmwal; print(pmwal.__file__)", cwd=directory).strip()
    if Path(where) != tree / "pmwal" / "__init__.py":
        raise Failed(f"the tests would import {where}")
    return subprocess.run([python, "-m", "pytest", "-q", *arguments], cwd=tree, env=environment(), check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, unpack and test; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run only some of the tests that read files beside the package")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="for pytest, after --")
    options = parser.parse_args(arguments)
    chosen = [*(f"tests/{name}" for name in QUICK if options.quick), *options.arguments]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        work.chmod(0o755)  # some tests act as other users, who import the package from there
        try:
            return 1 if test(build(work), work / "environment", chosen) else 0
        except Failed as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
