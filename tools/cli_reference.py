"""The reference of the command line: docs/cli.md in plain Markdown from the parsers.

After a comment ``<!-- options of pmwal cat -->``, up to ``<!-- end -->``, are the usage, the arguments and the notes of a command;
after ``<!-- notes of pmwal -->`` the text that ends ``pmwal --help``. So no option is described twice, the page can be read where
only Markdown is rendered, and a test compares it with the parsers.

Run it after a change of a command: python tools/cli_reference.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from pmwal.cli import entry
from pmwal.cli.parser import HelpFormatter

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100
_ENTRY = re.compile(r"^(<!-- (options|notes) of pmwal(?: (\w+))? -->)\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, in the order of the help."""
    (found,) = (action for action in entry._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def filled(page: str) -> str:
    """A page with every entry made anew."""
    parsers = commands()

    def replacement(match: re.Match[str]) -> str:
        comment, what, name = match.groups()
        text = _block(entry._parser().epilog or "") if what == "notes" else "\n\n".join(_described(parsers[name]))
        return f"{comment}\n\n{text}\n\n<!-- end -->"

    return _ENTRY.sub(replacement, page)


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
            yield "\n".join(f"- {_names(action, formatter)}: {_plain(_help(action, formatter))}" for action in shown)
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


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
