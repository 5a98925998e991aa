"""docs/guide-crash-testing.md: its program is run as it is printed, and the output of the tool is the one on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from documents import ROOT
from pmwal.native import native

GUIDE = ROOT / "docs" / "guide-crash-testing.md"
BLOCK = re.compile(r"^(?:<!-- (file|fix|change) (\S+) -->\n)?```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def outputs(directory: Path, text: str) -> list[tuple[str, str, str]]:
    """Each command of the guide in order, its output now, and the printed one; the files are written and changed on the way."""
    found = []
    for action, name, language, block in BLOCK.findall(text):
        file = directory / name
        if language == "console":
            command, _, printed = block.partition("\n")
            environment = {name: value for name, value in os.environ.items() if not name.startswith(("PMWAL_", "PYTEST_"))}
            result = subprocess.run(
                [sys.executable, "-m", *command.removeprefix("$ ").split()],
                cwd=directory,
                env={**environment, "COLUMNS": "80", "PMWAL_ENGINE": "native"},
                capture_output=True,
                text=True,
                check=False,
            )
            found.append((command, result.stdout + result.stderr, printed))
        elif action == "file":
            file.write_text(block)
        elif action == "fix":  # the method, from the same first line to the end of the file
            method = indent(block, "    ")
            start = file.read_text().index(method.partition("\n")[0])
            file.write_text(file.read_text()[:start] + method)
        elif action == "change":  # the line with the same call, but for its last argument
            old = block.rstrip().rpartition(", ")[0] + ")"
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, block.rstrip()))
    return found


def without_times(text: str) -> str:
    """The output of pytest without its duration."""
    return re.sub(r"in \d+\.\d+s", "in 0.00s", text)


@pytest.mark.skipif(native is None, reason="the steps on persistent memory are those of the native engine")
def test_guide_shows_what_the_tool_prints(tmp_path: Path) -> None:
    """The bug, the fix, the form for pytest, and the planted mistake."""
    found = outputs(tmp_path, GUIDE.read_text())
    assert [command for command, _, _ in found] == [
        "$ pmwal crashsim test_stock.py",
        "$ pmwal crashsim test_stock.py",
        "$ pytest -q test_stock.py",
        "$ pmwal crashsim test_stock.py --medium page",
    ]
    for command, output, printed in found:
        assert without_times(output) == without_times(printed), command


def test_store_of_the_guide_is_short() -> None:
    """It can be read in one go."""
    (store,) = [block for action, name, _, block in BLOCK.findall(GUIDE.read_text()) if (action, name) == ("file", "stock.py")]
    assert len(store.splitlines()) <= 40
