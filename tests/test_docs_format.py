"""docs/format.md and docs/recovery.md have the tables, diagrams and constants of the code, and no others."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from documents import ROOT, read_blocks, read_section, read_sections, read_table
from pmwal.format import layout
from pmwal.format.layout import Structure, Superblock
from pmwal.format.position import HOLDER, POSITION
from pmwal.records import RecoveryReport
from pmwal.recovery.verdict import TABLE

STRUCTURES = (*layout.STRUCTURES, POSITION, HOLDER)

# -- the format


def draw(structure: Structure) -> str:
    """The byte diagram of a structure, eight bytes a row; a field longer than a row takes one row."""
    rows: list[tuple[int, list[tuple[int, str]]]] = []
    for name in structure.offsets:
        offset, size = structure.offsets[name], structure.field_size(name)
        text = name if size <= 8 else f"{name} ({size} bytes)"
        while size:
            if offset % 8 == 0:
                rows.append((offset, []))
            cell = min(size, 8 - offset % 8)
            rows[-1][1].append((cell, text))
            taken = size // 8 * 8 if cell == 8 else cell
            offset, size, text = offset + taken, size - taken, ""
    edges = ["+" + "+".join("-" * (8 * cell - 1) for cell, _ in cells) + "+" for _, cells in rows]
    lines = [" " * 8 + "".join(f"{number:<8}" for number in range(8)).rstrip()]
    for (offset, cells), above, below in zip(rows, [edges[0], *edges], edges, strict=False):
        lines.append(" " * 6 + "".join("+" if "+" in pair else "-" for pair in zip(above, below, strict=True)))
        lines.append(f"{offset:>5} |" + "|".join(f" {text}".ljust(8 * cell - 1) for cell, text in cells) + "|")
    return "\n".join([*lines, " " * 6 + edges[-1]])


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.title)
def test_format_table_is_the_structure(structure: Structure) -> None:
    """Offset, size, name and meaning of each field are in docs/format.md, and nothing else."""
    expected = [
        [str(structure.offsets[field.name]), str(structure.field_size(field.name)), field.name, field.meaning]
        for field in structure.fields
    ]
    assert expected == read_table(read_section("format.md", structure.title), "offset")


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.title)
def test_format_diagram_is_the_structure(structure: Structure) -> None:
    """The byte diagram in docs/format.md matches the fields."""
    expected = draw(structure)
    diagrams = [block.rstrip("\n") for _, block in read_blocks(read_section("format.md", structure.title), "text")]
    assert expected in diagrams, f"docs/format.md, {structure.title}, expects:\n{expected}"


def test_format_has_no_table_of_an_unknown_structure() -> None:
    """Each table of fields belongs to a structure of the code."""
    sections = read_sections(ROOT / "docs" / "format.md")
    titles = [section.title for section in sections if "| offset | size | name | meaning |" in section.lines]
    assert sorted(structure.title for structure in STRUCTURES) == sorted(titles)


def constants() -> dict[str, int]:
    """Every public number of the layout."""
    return {name: value for name, value in vars(layout).items() if name.isupper() and name[0] != "_" and isinstance(value, int)}


def test_format_constants_are_those_of_the_code() -> None:
    """The table has every number of the layout, with its value."""
    table = {row[0]: row[1] for row in read_table(read_section("format.md", "Limits and constants"), "name")}
    assert {name: str(value) for name, value in constants().items()} == table


def test_format_constants_are_the_same_in_other_words() -> None:
    """The "also" column gives the same value in another form."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "TiB": 1 << 40}
    for name, value, also, _ in read_table(read_section("format.md", "Limits and constants"), "name"):
        if also:
            source = re.sub(r"(\d+) (\w+)", lambda match: f"{match[1]} * {units[match[2]]}", also).replace("^", "**")
            assert int(value) == eval(source, {"__builtins__": {}}), name


def test_format_names_the_flags() -> None:
    """The text gives the slot's flags the values that the code has."""
    text = "\n".join(read_section("format.md", "commit slot").lines)
    assert f"Flags: `{layout.SLOT_CLEAN}` clean close, `{layout.SLOT_PIPELINED}` pipelined." in text


def test_format_slot_picture_is_the_placement() -> None:
    """The formula in docs/format.md gives the same place as the code, for every generation of two turns."""
    for pages in (2, 3, 32, 256):
        block = Superblock(bytes(16), pages * layout.PAGE, layout.CAPACITY_MIN, 8, 0)
        for generation in range(2 * block.turn):
            page, place = generation % pages, generation // pages % 64
            assert 8192 + 64 * (page * 64 + place) == layout.slot_offset(layout.slot_index(generation, pages))


# -- recovery


def test_recovery_table_is_the_verdict_table() -> None:
    """Label, outcome and meaning of each row, in the same order."""
    rows = [tuple(row[:3]) for row in read_table(read_section("recovery.md", "The table"), "label")]
    assert [(row.label, row.outcome, row.meaning) for row in TABLE] == rows


def test_recovery_says_what_to_do_for_each_row() -> None:
    """Every row has advice, and no advice lacks a row."""
    text = "\n".join(read_section("recovery.md", "What you see, and what to do").lines)
    advised = [label for head in re.findall(r"^- \*\*(.*?)\.\*\*", text, re.MULTILINE) for label in head.split(", ")]
    assert sorted(row.label for row in TABLE) == sorted(advised)


def test_recovery_explains_every_field_of_the_report() -> None:
    """The table of the report has all its fields, and no other."""
    names = [name for row in read_table(read_section("recovery.md", "The report"), "field") for name in re.findall(r"\w+", row[0])]
    assert sorted(field.name for field in fields(RecoveryReport)) == sorted(names)
