"""Parsers: what every command needs to describe itself. It imports nothing of the library, so ``pmwal --version`` is quick."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

from pmwal.cli.exit_status import USAGE
from pmwal.cli.terminal import columns

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

_ELSEWHERE = {"help": "--help", "version": "--version", "ls": "info", "list": "info", "append": "write", "read": "cat"}
"""What other programs call commands and options of this one."""

_TAKES_TIME = ("--since", "--until", "-S", "-U")


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors end with status 64, and name the word that was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does. It reports missing arguments before it looks for unknown options, of which ``error`` must know."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit. A misspelt option comes before what is missing, for it may be why."""
        if re.match("the following arguments are required|one of the arguments .* is required", message):
            unknown, self._given = self._unknown_options(), ()
            if unknown:
                self.unknown(unknown)
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")

    def unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Report arguments that the parser does not know, and exit."""
        from pmwal.opening.spelling import did_you_mean  # noqa: PLC0415 - for errors only

        options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        hint = next(filter(None, (did_you_mean(option, self._long_options()) for option in options)), "")
        self.error(f"unrecognized arguments: {' '.join(arguments)}{hint}")

    def no_mistake(self, name: str, known: Iterable[str]) -> NoReturn:
        """Report that ``--control`` names a mistake that there is not, and exit."""
        from pmwal.opening.spelling import did_you_mean  # noqa: PLC0415 - for errors only

        names = list(known)
        self.error(f"--control {name}: there is no such mistake; choose one of {', '.join(names)}{did_you_mean(name, names)}")

    def _unknown_options(self) -> list[str]:
        words = self._given[: self._given.index("--")] if "--" in self._given else self._given
        names = self._long_options()
        return [
            word for word in words if word.startswith("--") and not any(name.startswith(word.partition("=")[0]) for name in names)
        ]

    def _long_options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _check_value(self, action: argparse.Action, value: str) -> None:
        """Refuse what is none of the choices of an argument; it also refuses a command that there is not."""
        if action.choices is None or value in action.choices:
            return
        from pmwal.opening.spelling import did_you_mean  # noqa: PLC0415 - for errors only

        known = [str(choice) for choice in action.choices]
        hint = did_you_mean(value, known)
        if isinstance(action, argparse._SubParsersAction):
            if value in _ELSEWHERE:
                hint = f"; did you mean {_ELSEWHERE[value]!r}?"
            self.error(f"there is no command {value!r}{hint}")
        raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {', '.join(known)}){hint}")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and epilogs, and lists commands like options: one line each, no heading."""

    def __init__(self, prog: str, width: int | None = None) -> None:
        super().__init__(prog, width=columns() - 2 if width is None else width)

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


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """The option ``--verbose``."""
    parser.add_argument("-v", "--verbose", action="store_true", help="add what those want who know how pmwal works")


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


def length_option(most: float) -> Callable[[str], float]:
    """A type for argparse: the length of a run. Without any there would be no result."""

    def length(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no length of a run; give a number above 0 and at most {most:,.0f}")
        return value

    return length


def join_relative(arguments: Sequence[str]) -> list[str]:
    """``--since -10min`` as ``--since=-10min``: otherwise argparse takes the time for an option.

    >>> join_relative(["cat", "--since", "-10min", "app.wal"])
    ['cat', '--since=-10min', 'app.wal']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _TAKES_TIME and re.match(r"-\s*[0-9]", argument):
            joined[-1] += argument if len(joined[-1]) == 2 else f"={argument}"
        else:
            joined.append(argument)
    return joined
