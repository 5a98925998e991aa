"""Reading the documents: sections, tables and code blocks of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pmwal

ROOT = Path(__file__).parent.parent
PACKAGE = Path(pmwal.__file__).parent
DOCUMENTS = sorted(path for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md") if path.exists())
IDS = [path.name for path in DOCUMENTS]


class Section(NamedTuple):
    """A heading, the number of its line, and all lines up to the next heading of any level."""

    title: str
    line: int
    lines: list[str]


def read_sections(path: Path) -> list[Section]:
    """A document, cut at its headings; a "#" in a code block is none."""
    sections = [Section("", 0, [])]
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        heading = None if fenced else re.match(r"#+ (.*)", line)
        if heading:
            sections.append(Section(heading[1], number, []))
        else:
            sections[-1].lines.append(line)
    return sections


def read_section(name: str, title: str) -> Section:
    """The one section of docs/``name`` with this title."""
    (section,) = [section for section in read_sections(ROOT / "docs" / name) if section.title == title]
    return section


def read_table(section: Section, first_column: str) -> list[list[str]]:
    """The rows of the table with this first column; backticks are taken off a cell that is code as a whole."""
    (start,) = [number for number, line in enumerate(section.lines) if line.startswith(f"| {first_column} |")]
    assert re.fullmatch(r"[|:\- ]+", section.lines[start + 1])
    rows = takewhile(lambda line: line.startswith("|"), section.lines[start + 2 :])
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in row.strip().strip("|").split("|")] for row in rows]


def read_blocks(section: Section, *languages: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a section in these languages, with the number of their first line."""
    start = 0
    block: list[str] | None = None
    for number, line in enumerate(section.lines, section.line + 1):
        if not line.startswith("```"):
            if block is not None:
                block.append(line)
        elif block is not None:
            yield start, "\n".join(block) + "\n"
            block = None
        elif line[3:].strip() in languages:
            start, block = number + 1, []


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings."""
    return {slug(section.title) for section in read_sections(path)}


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
