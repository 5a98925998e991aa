"""The command line in the documents: the reference is made from the parsers, and commands that are shown can be typed."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import COMMANDS
from documents import DOCUMENTS, IDS, ROOT, prose, read_blocks, read_section, read_sections, read_table
from pmwal.cli import exit_status
from pmwal.cli.parser import join_relative

sys.path.insert(0, str(ROOT / "tools"))

import cli_reference

PAGE = (ROOT / "docs" / "cli.md").read_text()

# -- the reference


def test_reference_has_each_command_once() -> None:
    """A new command cannot be forgotten, and each has its heading and its options."""
    found = re.findall(r"^### pmwal (\w+)$", PAGE, re.MULTILINE)
    assert sorted(COMMANDS) == sorted(found) == sorted(cli_reference.commands())
    assert found == re.findall(r"^<!-- options of pmwal (\w+) -->$", PAGE, re.MULTILINE)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions of argparse write a usage in another way")
def test_reference_is_what_the_parsers_have() -> None:
    """Whoever changes a command runs ``python tools/cli_reference.py``."""
    assert cli_reference.filled(PAGE) == PAGE
    assert cli_reference.filled(PAGE.replace("print JSON", "print text")) == PAGE


@pytest.mark.parametrize("name", COMMANDS)
def test_reference_has_what_the_parser_has(name: str) -> None:
    """Every option with its help, and the notes and examples that end the help."""
    text = cli_reference.filled(f"<!-- options of pmwal {name} -->\n<!-- end -->")
    parser = cli_reference.commands()[name]
    shown = [action for action in parser._actions if action.dest != "help" and action.help != argparse.SUPPRESS]
    options = {option for action in shown for option in action.option_strings}
    assert sorted(options) == sorted(set(re.findall(r"`(-{1,2}[\w-]+)[^`]*`(?=,|:)", text, re.MULTILINE)) & options)
    assert parser.epilog is not None
    assert parser.epilog.strip() in text
    assert "%(" not in re.sub(r"```text.*?```", "", text, flags=re.DOTALL)


def test_reference_leaves_nothing_to_markdown() -> None:
    """A help text with signs of Markdown is shown as it is."""
    assert cli_reference._plain("'shop*' matches a_b [x]") == r"'shop\*' matches a\_b \[x\]"


def test_reference_has_the_exit_statuses() -> None:
    """The list that ends ``pmwal --help`` is on the page, with every status of the code."""
    listed = {int(number) for number in re.findall(r"^  (\d+) +\w", PAGE.split("Examples:")[0], re.MULTILINE)}
    assert statuses() == listed


# -- commands in documents


def statuses() -> set[int]:
    """Every exit status."""
    return {value for name, value in vars(exit_status).items() if name.isupper()}


def test_troubleshooting_has_every_exit_status() -> None:
    """A script's author finds what each means, and what to do."""
    rows = read_table(read_section("troubleshooting.md", "Exit statuses of the command line"), "status")
    assert sorted(statuses()) == [int(row[0]) for row in rows]
    assert all(all(row) for row in rows)


def commands_of(line: str) -> Iterator[list[str]]:
    """The arguments of each ``pmwal`` in a line of a shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if re.fullmatch(r"[();<>|&]+", word):
            if words[:1] == ["pmwal"]:
                yield words[1:]
            words = []
        elif words or not re.fullmatch(r"sudo|exec|\w+=.*", word):
            words.append(word)


def typed_commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each ``pmwal`` command in the console blocks of a document."""
    for section in read_sections(path):
        for first, block in read_blocks(section, "console"):
            for number, line in enumerate(block.splitlines(), first):
                if line.startswith("$ "):
                    yield from ((number, arguments) for arguments in commands_of(line[2:]))


def refusal(arguments: list[str]) -> str | None:
    """Why the command line would not take these arguments; None if it would."""
    if arguments[:1] in (["--help"], ["--version"]):
        return None
    parser = cli_reference.commands().get(arguments[0]) if arguments else None
    if parser is None:
        return "no such command"
    if "--help" in arguments:
        return None
    try:
        _, unknown = parser.parse_known_args(join_relative(arguments[1:]))
    except SystemExit:
        return "wrong usage"
    options = [word for word in unknown if word.startswith("-")]
    return f"unknown {options}" if options else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_commands_in_documents_can_be_typed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of pmwal in a console block exists and takes these options."""
    wrong = [f"{path.name}:{line}: {arguments}: {why}" for line, arguments in typed_commands(path) if (why := refusal(arguments))]
    assert wrong == [], capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_options_named_in_documents_exist(path: Path) -> None:
    """Each ``pmwal COMMAND --option`` in backticks names a command and options that it has; the changelog may name old ones."""
    wrong = []
    parsers = cli_reference.commands()
    for command, rest in re.findall(r"`pmwal ([a-z]+)((?: [^`]*)?)`", prose(path)):
        known = (
            {option for action in parsers[command]._actions for option in action.option_strings} if command in parsers else set()
        )
        wrong += [
            f"pmwal {command}: {option}" for option in re.findall(r" (--?[a-z][\w-]*)", rest.split(" | ")[0]) if option not in known
        ]
        wrong += [] if command in parsers else [f"pmwal {command}"]
    assert wrong == []


def test_check_of_commands_finds_wrong_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: an unknown command, an unknown option, one without its value."""
    line = "pmwal cut a.wal && pmwal cat --gone a.wal | pmwal write; pmwal cat -n 2 a.wal > out  # pmwal none"
    assert [refusal(arguments) for arguments in commands_of(line)] == ["no such command", "unknown ['--gone']", "wrong usage", None]
    assert "required" in capsys.readouterr().err


def test_parser_of_the_reference_is_that_of_the_command() -> None:
    """The reference describes subcommands of argparse; another kind of parser would leave the page empty."""
    assert all(isinstance(parser, argparse.ArgumentParser) for parser in cli_reference.commands().values())
    assert len(cli_reference.commands()) == len(COMMANDS)
