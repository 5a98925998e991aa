"""The reference of the command line, from the parsers: what Sphinx puts in place of the comments in docs/cli.md.

A comment ``<!-- options of pmwal cat -->`` becomes the usage, the arguments and the notes of that command, and
``<!-- notes of pmwal -->`` the text that ends ``pmwal --help``. So no option is described twice, and the page is never older than
the parsers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from pmwal.cli import entry
from pmwal.cli.parser import HelpFormatter

WIDTH = 100
_COMMENT = re.compile(r"^<!-- (options|notes) of pmwal(?: (\w+))? -->$", re.MULTILINE)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, in the order of the help."""
    (found,) = (action for action in entry._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def filled(page: str) -> str:
    """A page with every comment replaced."""
    parsers = commands()

    def replacement(match: re.Match[str]) -> str:
        what, name = match.groups()
        if what == "notes":
            return _block(entry._parser().epilog or "")
        return "\n\n".join(_described(parsers[name]))

    return _COMMENT.sub(replacement, page)


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _plain(" ".join((parser.description or "").split()))
    formatter = HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield _block(formatter.format_help())
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != "help"]
        if shown:
            title = "arguments" if group.title == "positional arguments" else group.title or ""
            yield f"**{title.capitalize()}**"
            yield "\n\n".join(f"{_names(action, formatter)}\n: {_plain(_help(action, formatter))}" for action in shown)
    if parser.epilog:
        yield _block(parser.epilog)


def _names(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    """How an argument is written: each name of an option with its value."""
    default = action.dest if not action.option_strings else action.dest.upper()
    value = formatter._format_args(action, default) if action.nargs != 0 else ""
    names = action.option_strings or [""]
    return ", ".join(f"`{f'{name} {value}'.strip()}`" for name in names)


def _help(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    return formatter._expand_help(action) if action.help else ""


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def _plain(text: str) -> str:
    """Text of a help in which no character means anything to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text) or "-"
