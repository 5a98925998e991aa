"""A user's program under type checkers: what is right passes in their strictest modes, and each mistake is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import pmwal

RIGHT = """\
import array
from typing import assert_type

import pmwal
import pmwal.aio
from pmwal import LogHandler, Reader, Record, Wal

with pmwal.open("a.wal", size="1MiB", medium="file", ordering="strict", commit=0.5, on_full="overwrite") as wal:
    assert_type(wal, Wal)
    wal.append(b"bytes", kind=3)
    wal.append(bytearray(b"more"), commit=False)
    wal.append(memoryview(b"view"))
    wal.append(array.array("d", [1.0]))
    wal.extend([b"a", bytearray(b"b")])
    with wal.batch() as batch:
        batch.append(b"c")
    record = wal[1]
    assert_type(record, Record)
    assert_type(record.time.year, int)
    assert_type(record.data, bytes)
with pmwal.open("a.wal", "r", recover="salvage") as reader:
    assert_type(reader, Reader)
    print([each.seq for each in reader.read(kind=3)])
handler = LogHandler("b.wal", on_full="raise", commit=1)


async def main() -> None:
    async with pmwal.aio.open("c.wal", "x", on_full="wait") as log:
        await log.append(b"d")
"""

WRONG = """\
import pmwal, pmwal.aio
pmwal.open("a.wal", on_full="overwite")
pmwal.open("a.wal", commit="always")
pmwal.open("a.wal", medium="pmem")
pmwal.open("a.wal", ordering="lazy")
pmwal.open("a.wal", "w")
pmwal.open("a.wal", on_fill="raise")
pmwal.aio.open("a.wal", on_full="drop")
pmwal.LogHandler("b.wal", on_full="wait")
pmwal.open("a.wal").append("text")
pmwal.open("a.wal").extend(["text"])
pmwal.open("a.wal").batch().append("text")
pmwal.open("a.wal", "r").append(b"x")
"""


def by_mypy(directory: Path) -> list[tuple[str, int]]:
    """The errors that mypy finds in a user's directory, each as file and line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", os.devnull, "."]
    environment = os.environ | {"MYPYPATH": str(Path(pmwal.__file__).parents[1])}
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    found = re.findall(r"^(\w+\.py):(\d+): error: ", run.stdout, re.MULTILINE)
    assert found or "Success" in run.stdout, run
    return [(name, int(line)) for name, line in found]


def by_pyright(directory: Path) -> list[tuple[str, int]]:
    """The same by pyright, in the distribution that needs no network: it brings its own node."""
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(Path(pmwal.__file__).parents[1])]}
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    found = json.loads(run.stdout)["generalDiagnostics"]
    return [(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "check"), [("mypy", by_mypy), ("basedpyright", by_pyright)], ids=["mypy", "pyright"])
def test_type_checkers_pass_what_is_right_and_find_each_mistake(
    tmp_path: Path, module: str, check: Callable[[Path], list[tuple[str, int]]]
) -> None:
    """Misspelt policies, media, orderings, modes and keywords are found, text as a payload, and an append to a reader."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    expected = {("wrong.py", line) for line in range(2, WRONG.count("\n") + 1)}
    assert {(name, line) for name, line in check(tmp_path)} == expected
