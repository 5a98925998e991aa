"""Which records are printed: the option ``--grep``, and the test that a record passes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TypeAlias

from pmwal.cli.parser import Parser
from pmwal.records import Record

Matches: TypeAlias = Callable[[Record], bool]


def add_grep(parser: Parser) -> None:
    """The option ``--grep``."""
    parser.add_argument(
        "-g", "--grep", type=_pattern, metavar="REGEX", help="print only records whose payload or event text contains a match"
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def matches_pattern(pattern: re.Pattern[str] | None, searched: Callable[[Record], str]) -> Matches:
    """Whether a record's text, as ``searched`` gives it, contains the pattern; without a pattern every record matches."""
    if pattern is None:
        return lambda record: True
    search = pattern.search
    return lambda record: search(searched(record)) is not None
