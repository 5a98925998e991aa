"""A failing crash that was kept in a directory: the log, and what its check needs to be run on it again."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from pmwal.testing.programs.report import Account
from pmwal.testing.programs.states import Crash

LOG, ACCOUNT, FILES = "program.wal", "crash.json", "files"


def keep(directory: Path, account: Account) -> None:
    """Write a crash to a directory that is empty or not there."""
    prepare(directory)
    crash = account.least.crash
    if crash.data is not None:
        (directory / LOG).write_bytes(crash.data)
    (directory / FILES).mkdir()
    for name, content in crash.files.items():
        (directory / FILES / name).write_bytes(content)
    (directory / ACCOUNT).write_text(json.dumps(account.as_dict(), indent=1) + "\n")


def prepare(directory: Path) -> None:
    """Make the directory; ``ValueError`` if something is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; name a new directory")


def kept(directory: Path) -> tuple[Crash, list[Any], str]:
    """The crash, what had been acknowledged, and the medium; ``ValueError`` if they cannot be read."""
    try:
        account = json.loads((directory / ACCOUNT).read_text())
        values, medium = account["acknowledged"], account["medium"]
        data = (directory / LOG).read_bytes() if account["log"] else None
        files = {path.name: path.read_bytes() for path in (directory / FILES).iterdir()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory} has no crash that was kept by --keep: {error}") from error
    try:
        done = [ast.literal_eval(value) for value in values]
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{directory}: what was acknowledged can be read again only if it consists of literals (text, bytes, numbers, lists, "
            "tuples, dicts); acknowledge such values, and keep the crash again"
        ) from error
    return Crash(account["kind"], account["step"], data, files), done, medium
