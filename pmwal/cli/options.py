"""Parsers, and the options and types of argument that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from pmwal.cli.exit_status import USAGE
from pmwal.format.layout import CAPACITY_MAX
from pmwal.opening.options import ORDERINGS
from pmwal.opening.units import format_size, parse_size
from pmwal.storage.medium import MEDIUMS

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors end with status 64."""

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and epilogs, and lists commands like options: one line each, no heading."""

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str
) -> Parser:
    """A parser for one command; ``run`` gets the parsed arguments."""
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=HelpFormatter)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_path(parser: argparse.ArgumentParser, meaning: str = "the log file") -> None:
    """The argument ``PATH``."""
    parser.add_argument("path", metavar="PATH", help=meaning)


def add_json(parser: argparse.ArgumentParser, meaning: str = "print JSON, for scripts") -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help=meaning)


def add_medium(parser: argparse.ArgumentParser) -> None:
    """The option ``--medium``."""
    parser.add_argument("--medium", choices=MEDIUMS, default="auto", help="what the file is stored on (default: auto)")


def add_ordering(parser: argparse.ArgumentParser) -> None:
    """The option ``--ordering``."""
    parser.add_argument(
        "--ordering",
        choices=ORDERINGS,
        default="auto",
        help="strict: commit pointer with each commit; pipelined: later, one barrier less (default: auto)",
    )


def size_option(text: str) -> int:
    """A capacity with units, for argparse."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size > CAPACITY_MAX:
        raise argparse.ArgumentTypeError(f"{text} is larger than the largest log, {format_size(CAPACITY_MAX)}")
    return size


def number_option(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers within bounds."""

    def number(text: str) -> int:
        limits = f"a whole number from {low}" + ("" if high is None else f" to {high}")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {limits}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return number
