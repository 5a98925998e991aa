"""The site: every page is listed, errors are explained by their messages, and readers' questions are near."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pmwal
from documents import PACKAGE, ROOT, anchors, prose
from pmwal import errors
from pmwal.cli.hints import for_command_line

DOCS = ROOT / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text()
ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]

# -- pages


def test_front_page_lists_every_page_once() -> None:
    """A page that no table of contents names cannot be found on the site."""
    trees = re.findall(r"^```{toctree}\n(.*?)^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    listed = [re.sub(r"^.* <(.*)>$", r"\1", line) for line in lines]
    assert sorted([*listed, "index"]) == sorted(path.stem for path in DOCS.glob("*.md"))


QUESTIONS = {
    "is my append durable?": ("faq.md", "is-my-append-durable"),
    "how fast on my disk?": ("faq.md", "how-fast-is-it-on-my-disk"),
    "what do I do when it says corrupt?": ("troubleshooting.md", "corrupt"),
}


def links_of(page: Path) -> set[tuple[Path, str]]:
    """Where the links of a page lead: file and anchor. A file that includes another has the links of that one."""
    text = prose(page)
    found = set()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if not re.match(r"[a-z]+:", link):
            found.add(((page.parent / name).resolve() if name else page, anchor))
    return found


@pytest.mark.parametrize("start", ["docs/index.md", "README.md"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_question_is_answered_within_two_clicks(start: str, question: str) -> None:
    """From the front page of the site and from the README, to the very heading."""
    name, anchor = QUESTIONS[question]
    target = (DOCS / name, anchor)
    assert anchor in anchors(DOCS / name)
    first = links_of(ROOT / start)
    second = {link for page, _ in first if page.suffix == ".md" and page.exists() for link in links_of(page)}
    assert target in first | second


# -- errors by message


Text = tuple[str, ...]
"""A text in the source: what is written, cut where a value is inserted."""


@cache
def texts() -> frozenset[Text]:
    """Every text of the package that has a few words."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    found = {text for tree in trees for node in ast.walk(tree) if (text := text_of(node)) is not None}
    return frozenset(text for text in found if is_telling(text))


def is_telling(text: Text) -> bool:
    """Whether a text has enough words to be recognised."""
    return len(re.findall(r"[a-z]{2,}", " ".join(text))) >= 3


def text_of(node: ast.AST) -> Text | None:
    """The text of a literal; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
        return tuple("".join(parts).split("\0"))
    return None


def can_become(text: Text, message: str) -> bool:
    """Whether some values make the message of the text."""
    if len(text) == 1:
        return message == text[0]
    if not message.startswith(text[0]):
        return False
    place = len(text[0])
    for part in text[1:-1]:
        place = message.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return message.endswith(text[-1]) and place <= len(message) - len(text[-1])


def shown_messages() -> list[tuple[str, str]]:
    """The messages on the page: class, and text without the number of an errno."""
    found = re.findall(r"^(?:pmwal\.errors\.)?([A-Z]\w+): (.+)$", TROUBLESHOOTING, re.MULTILINE)
    return [(name, re.sub(r"^\[Errno \d+\] ", "", text)) for name, text in found]


def is_written_somewhere(message: str) -> bool:
    """Whether the package has a text that can become this message."""
    return any(can_become(text, each) for text in texts() for each in (message, message.partition(": ")[2]))


def test_messages_on_the_page_are_those_of_the_code() -> None:
    """A message that is reworded is found by nobody, until the page follows."""
    assert len(shown_messages()) >= 55
    assert [message for _, message in shown_messages() if not is_written_somewhere(message)] == []


def test_check_of_messages_finds_a_stale_one() -> None:
    """Negative control."""
    assert not is_written_somewhere("app.wal: this message was never written by anybody")
    assert is_written_somewhere("record 7 is gone: the log now begins at 120")


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_class_is_explained(name: str) -> None:
    """Each public error and warning has a message on the page, and a row in the table of what one sees."""
    table = TROUBLESHOOTING.split("## Corrupt")[0]
    if name == "PmwalError":
        assert "`pmwal.PmwalError`" in table
        return
    assert name in {shown for shown, _ in shown_messages()}
    assert f"`{name}`" in table


def raised() -> Iterator[tuple[str, Text]]:
    """Each text with which the library makes one of its errors, and where."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in ("testing", "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                given = [text for argument in node.args if (text := text_of(argument)) is not None]
                yield from ((f"{place}:{node.lineno} {node.func.id}", text) for text in given if is_telling(text))


def test_every_message_of_the_library_is_on_the_page() -> None:
    """A new error cannot be forgotten: who meets its message finds it by searching the page."""
    shown = [message for _, message in shown_messages()]
    found = list(raised())
    assert len(found) >= 40
    assert [f"{place}: {text}" for place, text in found if not any(can_become(text, message) for message in shown)] == []


COMMAND_LINE = {
    pmwal.WalFull: "app.wal: 40 of 4096 bytes are free, the record needs 552; truncate(before=...) what you have processed, or "
    'open with on_full="wait" or "overwrite"',
    pmwal.WalLocked: 'app.wal: process 4711 has it open for writing; wait for it, or read with mode="r"',
}


@pytest.mark.parametrize("error", COMMAND_LINE, ids=lambda error: error.__name__)
def test_command_line_says_what_the_page_shows(error: type[Exception]) -> None:
    """These two advise options and commands there, and the page shows both texts."""
    text = COMMAND_LINE[error]
    assert (error.__name__, text) in shown_messages()
    assert f"`pmwal: {for_command_line(error(text), text)}`" in re.sub(r"\n", " ", TROUBLESHOOTING)
