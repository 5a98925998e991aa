"""A failing crash that was kept in a directory: the log, and what its check needs to be run on it again."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from pmwal.testing.programs.report import Account

LOG, ACCOUNT = "program.wal", "crash.json"


def keep(directory: Path, account: Account) -> None:
    """Write a crash to a directory that is empty or not there."""
    prepare(directory)
    data = account.least.crash.data
    if data is not None:
        (directory / LOG).write_bytes(data)
    (directory / ACCOUNT).write_text(json.dumps(account.as_dict(), indent=1) + "\n")


def prepare(directory: Path) -> None:
    """Make the directory; ``ValueError`` if something is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; name a new directory")


def kept(directory: Path) -> tuple[bytes | None, list[Any], dict[str, Any]]:
    """The log, what had been acknowledged, and the account; ``ValueError`` if they cannot be read."""
    try:
        account = json.loads((directory / ACCOUNT).read_text())
        values, has_log = account["acknowledged"], account["log"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory} has no crash that was kept by --keep: {error}") from error
    try:
        done = [ast.literal_eval(value) for value in values]
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{directory}: what was acknowledged can be read again only if it consists of literals (text, bytes, numbers, lists, "
            "tuples, dicts); acknowledge such values, and keep the crash again"
        ) from error
    return (directory / LOG).read_bytes() if has_log else None, done, account
