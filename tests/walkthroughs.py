"""Following a page as its reader does: write its files, run its commands, compare what they print."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from documents import Section, read_blocks
from processes import PATIENCE

_MATCHES = doctest.OutputChecker().check_output
_KILLED = 128  # what a shell adds to the number of the signal


class Step(NamedTuple):
    """A command of a console block, the exit status that its comment names, and the output below it, if any is shown."""

    line: int
    command: str
    status: int
    output: str


def steps_of(section: Section) -> list[Step]:
    """The commands of a section's console blocks, in order. Each is one line."""
    steps: list[Step] = []
    for first, block in read_blocks(section, "console"):
        for line, text in enumerate(block.splitlines(), first):
            if text.startswith("$ "):
                status = re.search(r"#.*exit status (\d+)", text)
                steps.append(Step(line, text.removeprefix("$ "), int(status[1]) if status else 0, ""))
            else:
                steps[-1] = steps[-1]._replace(output=f"{steps[-1].output}{text}\n")
    return steps


def write_files(section: Section, directory: Path) -> None:
    """Write each block of Python that begins with the name of a file."""
    for _, block in read_blocks(section, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name is not None:
            (directory / name[1]).write_text(block)


def commands_in(directory: Path) -> dict[str, str]:
    """An environment in which ``python`` and ``pmwal`` are those of this process."""
    directory.mkdir()
    for name, arguments in (("python", ""), ("pmwal", " -m pmwal")):
        script = directory / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        script.chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}


def follow(section: Section, directory: Path, environment: dict[str, str]) -> list[str]:
    """Do what a section says; what went otherwise than it shows, one text for each step."""
    write_files(section, directory)
    problems = []
    for step in steps_of(section):
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        status = done.returncode if done.returncode >= 0 else _KILLED - done.returncode
        fits = not step.output or _MATCHES(step.output, done.stdout, doctest.ELLIPSIS)
        if status != step.status or not fits:
            problems.append(f"line {step.line}: {step.command}\nstatus {status}\n{done.stdout}{done.stderr}")
    return problems
