"""Options and types of argument that describe a log, which several commands have."""

from __future__ import annotations

import argparse

from pmwal.format.layout import CAPACITY_MAX, CAPACITY_MIN
from pmwal.format.payload import parse_size
from pmwal.format.position import check_name
from pmwal.opening.options import ORDERINGS
from pmwal.opening.units import check_has_unit, format_size, parse_duration
from pmwal.storage.medium import MEDIUMS


def add_medium(parser: argparse.ArgumentParser) -> None:
    """The option ``--medium``."""
    parser.add_argument("--medium", choices=MEDIUMS, default="auto", help="what the file is stored on (default: auto)")


def add_ordering(parser: argparse.ArgumentParser) -> None:
    """The option ``--ordering``."""
    parser.add_argument(
        "--ordering",
        choices=ORDERINGS,
        default="auto",
        help="strict: two flushes a commit; pipelined: one, and more to search after a crash (default: auto)",
    )


def size_option(text: str) -> int:
    """A capacity with units, for argparse."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < CAPACITY_MIN and text.strip().isdecimal():
        smallest = format_size(CAPACITY_MIN)
        raise argparse.ArgumentTypeError(
            f"{text} is in bytes, and less than the smallest ring, {smallest}; did you mean {text.strip()}MiB?"
        )
    if size > CAPACITY_MAX:
        raise argparse.ArgumentTypeError(f"{text} is larger than the largest log, {format_size(CAPACITY_MAX)}")
    return size


def duration_option(text: str) -> float:
    """Seconds from a duration with a unit, for argparse."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def consumer_option(text: str) -> str:
    """The name of a consumer, for argparse."""
    try:
        return check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def age_limit_option(text: str) -> float:
    """Seconds from an age past which something is removed, for argparse."""
    _check_has_unit(text, "s", " days")
    return duration_option(text)


def size_limit_option(text: str) -> int:
    """Bytes from a size past which something is removed, for argparse."""
    _check_has_unit(text, "MiB", "B")
    return size_option(text)


def _check_has_unit(text: str, *units: str) -> None:
    try:
        check_has_unit(text, *units)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
