"""Handlers that store structured records, and what they stored, for the tests of both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pmwal
from pmwal.logs.encoder import LIBRARIES

SIZE = "1MiB"
LIBRARY_SETS = [(), *((library,) for library in LIBRARIES)]

Make = Callable[..., pmwal.LogHandler]


@contextlib.contextmanager
def handlers(directory: Path) -> Iterator[Make]:
    """Makes structured handlers with the options that it is given."""
    made: list[pmwal.LogHandler] = []

    def handler(**options: Any) -> pmwal.LogHandler:
        path = directory / f"{len(made)}.wal"
        made.append(pmwal.LogHandler(path, size=SIZE, commit="manual", structured=True, **options))
        return made[-1]

    yield handler
    for each in made:
        each.close()


def documents(handler: pmwal.LogHandler) -> list[dict[str, Any]]:
    """What was stored."""
    assert handler.stats().errors == 0
    return [json.loads(record.data) for record in handler.wal]


def last(handler: pmwal.LogHandler) -> dict[str, Any]:
    """The newest record."""
    return documents(handler)[-1]


def raised(error: BaseException, **options: Any) -> BaseException:
    """This exception, with a traceback."""
    try:
        if "cause" in options:
            raise error from options["cause"]
        raise error
    except BaseException as caught:
        return caught
