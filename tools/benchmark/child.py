"""Child processes: a module of this package, run with the same pmwal as this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pmwal


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``benchmark.MODULE`` with this interpreter."""
    return [sys.executable, "-P", "-m", f"benchmark.{module}", *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child, in which it imports these tools and the pmwal of this process."""
    found = dict(os.environ) | dict(more or {})
    tools, ours = str(Path(__file__).parents[1]), str(Path(pmwal.__file__).parents[1])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (tools, ours, os.environ.get("PYTHONPATH"))))
    return found
