"""The documents: their tables, diagrams, constants and examples say what the code says, both ways."""

from __future__ import annotations

import ast
import doctest
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from pmwal.format import layout
from pmwal.format.layout import HEADER, LIVE_OFFSET, STRUCTURES, Structure, Superblock
from pmwal.records import RecoveryReport
from pmwal.recovery.verdict import TABLE
from pmwal.repair import repair
from pmwal.storage import medium
from pmwal.storage.seam import Seam
from pmwal.testing import Recorder
from pmwal.writing.wal import Wal
from support import (
    SMALL_RING,
    BarrierRecorder,
    Step,
    file_offset,
    flip,
    kill,
    open_small,
    payloads,
    superblock,
    whole_records,
)

ROOT = Path(__file__).parent.parent
PACKAGE = Path(pmwal.__file__).parent
DOCUMENTS = sorted(path for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md") if path.exists())
IDS = [path.name for path in DOCUMENTS]


# -- reading Markdown


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


# -- the format


def draw(structure: Structure) -> str:
    """The byte diagram of a structure: eight bytes a row, a field of more than one row as one."""
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
    """Offset, size, name and meaning of each field stand in docs/format.md, and nothing else does."""
    expected = [
        [str(structure.offsets[field.name]), str(structure.field_size(field.name)), field.name, field.meaning]
        for field in structure.fields
    ]
    assert expected == read_table(read_section("format.md", structure.title), "offset")


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.title)
def test_format_diagram_is_the_structure(structure: Structure) -> None:
    """The byte diagram in docs/format.md is the one that the fields give."""
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
    """Every number of the layout stands in the table, with its value."""
    table = {row[0]: row[1] for row in read_table(read_section("format.md", "Limits and constants"), "name")}
    assert {name: str(value) for name, value in constants().items()} == table


def test_format_constants_are_the_same_in_other_words() -> None:
    """What a constant is "also" written as is its value."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "TiB": 1 << 40}
    for name, value, also, _ in read_table(read_section("format.md", "Limits and constants"), "name"):
        if also:
            source = re.sub(r"(\d+) (\w+)", lambda match: f"{match[1]} * {units[match[2]]}", also).replace("^", "**")
            assert int(value) == eval(source, {"__builtins__": {}}), name


def test_format_names_the_flags() -> None:
    """The values of the slot's flags in the text are those of the code."""
    text = "\n".join(read_section("format.md", "commit slot").lines)
    assert f"Flags: `{layout.SLOT_CLEAN}` clean close, `{layout.SLOT_PIPELINED}` pipelined." in text


def test_format_slot_picture_is_the_placement() -> None:
    """The formula in docs/format.md gives the place that the code takes, for every generation of two turns."""
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
    """No row is left without advice, and no advice without a row."""
    text = "\n".join(read_section("recovery.md", "What you see, and what to do").lines)
    advised = [label for head in re.findall(r"^- \*\*(.*?)\.\*\*", text, re.MULTILINE) for label in head.split(", ")]
    assert sorted(row.label for row in TABLE) == sorted(advised)


def test_recovery_explains_every_field_of_the_report() -> None:
    """The table of the report has every field of it, and no other."""
    names = [name for row in read_table(read_section("recovery.md", "The report"), "field") for name in re.findall(r"\w+", row[0])]
    assert sorted(field.name for field in fields(RecoveryReport)) == sorted(names)


# -- durability


def step_of(event: Step, block: Superblock) -> str | None:
    """What docs/durability.md calls this step; None for the live page."""
    if event.name not in ("store", "flush"):
        return event.name
    if LIVE_OFFSET <= event.offset < LIVE_OFFSET + layout.PAGE:
        return None
    what = "slot" if event.offset < block.ring_offset else "records"
    return f"{'store' if event.name == 'store' else 'barrier'} {what}"


def steps_of(events: list[Step], block: Superblock) -> str:
    """The steps in order; one that is repeated counts once, but for syncs, which may be of different files."""
    steps = [step for event in events if (step := step_of(event, block)) is not None]
    kept = [step for before, step in zip(["", *steps], steps, strict=False) if step != before or step == "sync"]
    return ", ".join(kept) or "nothing"


def _append(wal: Wal) -> None:
    wal.append(b"payload")


def _append_pending(wal: Wal) -> None:
    wal.append(b"pending", commit=False)


def _extend(wal: Wal) -> None:
    wal.extend([b"a", b"b"])


def _batch(wal: Wal) -> None:
    with wal.batch() as batch:
        batch.append(b"a")
        batch.append(b"b")


def _reserve(wal: Wal) -> None:
    with wal.reserve(8) as view:
        view[0] = 1


def _commit(wal: Wal) -> None:
    wal.commit()


def _pass_lag(wal: Wal) -> None:
    for _ in range(3):
        wal.append(bytes(400_000), commit=False)


def _truncate(wal: Wal) -> None:
    wal.truncate(before=2)


def _rollback(wal: Wal) -> None:
    wal.rollback(after=1)


def _fill(wal: Wal) -> None:
    while wal.free >= 4096:
        wal.append(bytes(4000))


def _append_large(wal: Wal) -> None:
    wal.append(bytes(5000))


def _close(wal: Wal) -> None:
    wal.close()


def _nothing(wal: Wal) -> None:
    pass


OPERATIONS: dict[str, list[tuple[Callable[[Wal], None], Callable[[Wal], None]]]] = {
    "`append`, `extend`, `batch`, `reserve`": [
        (_nothing, _append),
        (_nothing, _extend),
        (_nothing, _batch),
        (_nothing, _reserve),
    ],
    "append(commit=False)": [(_nothing, _append_pending)],
    "`commit()`, records pending": [(_append_pending, _commit)],
    "`commit()`, nothing pending": [(_nothing, _commit)],
    "a commit that ends more than 1 MiB past the newest slot": [(_pass_lag, _commit)],
    "`truncate`, nothing pending": [(_nothing, _truncate)],
    "`truncate`, records pending": [(_append_pending, _truncate)],
    "`rollback`, nothing pending": [(_nothing, _rollback)],
    "`rollback`, records pending": [(_append_pending, _rollback)],
    '`append`, ring full, `on_full="overwrite"`': [(_fill, _append_large)],
    "`close`, nothing pending": [(_nothing, _close)],
    "`close`, records pending": [(_append_pending, _close)],
}
"""What prepares each row of the table, and what is watched; two records were appended and committed before both."""

OPENS: dict[str, Callable[[Wal], None]] = {
    "create (an open follows)": _nothing,
    "open, cleanly closed": _close,
    "open, records past the newest slot": _append_pending,
}
"""The rows that are watched from outside of a handle."""


def order_table(ordering: str) -> dict[str, str]:
    """Operation -> steps, as docs/durability.md has them."""
    column = ("strict", "pipelined").index(ordering) + 1
    return {row[0]: row[column] for row in read_table(read_section("durability.md", "Order of steps"), "operation")}


def open_watched(path: Path, ordering: str, **options: Any) -> tuple[Wal, BarrierRecorder]:
    """A log opened as a file, and the seam under it."""
    seam = BarrierRecorder()
    return open_small(path, seam=seam, medium="file", ordering=ordering, **options), seam


def prepared(path: Path, ordering: str, size: int = SMALL_RING) -> tuple[Wal, BarrierRecorder]:
    """A log with two records, made durable."""
    wal, seam = open_watched(path, ordering, size=size, on_full="overwrite" if size == SMALL_RING else "raise")
    wal.append(b"first")
    wal.append(b"second")
    return wal, seam


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_durability_table_has_the_steps_of_the_code(operation: str, ordering: str, shm_dir: Path) -> None:
    """Each operation stores, flushes and syncs in the order that docs/durability.md argues about."""
    for number, (prepare, act) in enumerate(OPERATIONS[operation]):
        path = shm_dir / f"{number}.wal"
        wal, seam = prepared(path, ordering, 1 << 21 if prepare is _pass_lag else SMALL_RING)
        block = superblock(path)
        prepare(wal)
        before = len(seam.events)
        act(wal)
        steps = steps_of(seam.events[before:], block)
        wal.close()
        assert order_table(ordering)[operation] == steps, act.__name__


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("operation", [name for name in OPENS if name.startswith("open")])
def test_durability_table_has_the_steps_of_an_open(operation: str, ordering: str, shm_dir: Path) -> None:
    """An open for writing syncs, stores again and begins an epoch in the order that docs/durability.md argues about."""
    path = shm_dir / "test.wal"
    wal, _ = prepared(path, ordering)
    OPENS[operation](wal)
    if not wal.closed:
        kill(wal)
    block = superblock(path)
    wal, seam = open_watched(path, ordering)
    steps = steps_of(seam.events, block)
    wal.close()
    assert order_table(ordering)[operation] == steps


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_durability_table_has_the_steps_of_a_creation(ordering: str, shm_dir: Path) -> None:
    """A creation ends with the sync of the directory behind the link; the steps of an open of a clean log follow."""
    path = shm_dir / "test.wal"
    wal, seam = open_watched(path, ordering)
    steps = steps_of(seam.events, superblock(path))
    wal.close()
    table = order_table(ordering)
    assert f"{table['create (an open follows)']}, {table['open, cleanly closed']}" == steps


def test_durability_table_has_no_row_that_is_not_tested() -> None:
    """Each row of the table of steps is one of those above."""
    assert sorted([*OPERATIONS, *OPENS]) == sorted(order_table("strict"))


def test_durability_names_the_file_systems_that_weaken_assumptions() -> None:
    """What docs/durability.md says of a file system is what ``stats().assumptions`` says."""
    table = read_table(read_section("durability.md", "Network and copy-on-write file systems"), "file system")
    written = {name: weakened for names, weakened in table for name in names.split(", ")}
    expected = {
        name: "; ".join(medium.Medium("file", name).assumptions)
        for name in sorted(set(medium._FILESYSTEMS.values()))
        if medium.Medium("file", name).assumptions
    }
    assert expected == written


def test_durability_assumptions_are_numbered_without_a_gap() -> None:
    """A1, A2 and so on, and no document names one that is not there."""
    text = "\n".join(read_section("durability.md", "Assumptions about the medium").lines)
    numbers = [int(number) for number in re.findall(r"^- \*\*A(\d+)\.", text, re.MULTILINE)]
    assert list(range(1, len(numbers) + 1)) == numbers
    named = {int(number) for path in DOCUMENTS for number in re.findall(r"\bA(\d+)\b", path.read_text())}
    assert named <= set(numbers)


GROUPS, EACH = 6, 3

WINDOW = {
    "the newest slot's pointer": ("strict", [GROUPS * EACH], "R4", False),
    "an earlier group": ("pipelined", [2], "R5", False),
    "the last group but one": ("pipelined", [(GROUPS - 1) * EACH], "R5", False),
    "the last group": ("pipelined", [GROUPS * EACH - 1], "R3", True),
    "the last group but one, and all of the last": ("pipelined", [*range((GROUPS - 1) * EACH, GROUPS * EACH + 1)], "R3", True),
    "a group and all after it": ("pipelined", [*range(EACH, GROUPS * EACH + 1)], "R3", True),
}


@pytest.mark.parametrize("damaged", WINDOW)
def test_window_of_maybe_acknowledged_is_as_described(damaged: str, shm_dir: Path) -> None:
    """Damage behind the last slot is told from a torn tail exactly when something stored after its barrier is whole."""
    ordering, numbers, case, maybe = WINDOW[damaged]
    path = shm_dir / "test.wal"
    wal, _ = open_watched(path, ordering, commit="manual")
    for group in range(GROUPS):
        for place in range(EACH):
            wal.append(f"record {place} of group {group}".encode())
        wal.commit()
    kill(wal)
    records, block = whole_records(path), superblock(path)
    for number in numbers:
        flip(path, file_offset(block, records[number].position) + HEADER)
    report = pmwal.verify(path)
    assert (case, maybe, numbers[0] - 1) == (report.case, report.maybe_acknowledged, report.last_seq)


def test_commit_with_nothing_pending_closes_the_window(shm_dir: Path) -> None:
    """What docs/durability.md advises helps: damage to the last record is reported then."""
    path = shm_dir / "test.wal"
    wal, _ = open_watched(path, "pipelined")
    wal.append(b"first")
    last = wal.append(b"last")
    wal.commit()
    kill(wal)
    flip(path, file_offset(superblock(path), whole_records(path)[last].position) + HEADER)
    assert pmwal.verify(path).case == "R4"


# -- what docs/recovery.md says of salvage, repair and the report


def damaged_behind_a_rollback(path: Path, *behind: bytes) -> None:
    """Record 4 was rolled back, stands whole in the gap before the ring's end, and was replaced by a longer one, now damaged."""
    wal, _ = open_watched(path, "strict")
    wal.extend([bytes(7000), bytes(7000), b"keep"])
    wal.truncate(before=3)
    wal.extend([b"old 4", b"old 5"])
    wal.rollback(after=3)
    wal.append(bytes(3000))
    wal.extend(behind)
    wal.close()
    flip(path, file_offset(superblock(path), whole_records(path)[4].position) + HEADER)


def test_salvage_with_a_slot_hands_out_nothing_that_was_rolled_back(shm_dir: Path) -> None:
    """A discarded record in the gap before the ring's end neither comes back nor hides the one that replaced it."""
    path = shm_dir / "test.wal"
    damaged_behind_a_rollback(path, b"new 5", b"new 6")
    with pmwal.open(path, "r", recover="salvage") as reader:
        salvaged = [(record.seq, record.data) for record in reader]
    assert salvaged == [(3, b"keep"), (5, b"new 5"), (6, b"new 6")]


def test_repair_with_a_slot_keeps_nothing_that_was_rolled_back(shm_dir: Path) -> None:
    """Where the damage begins the repaired log ends, also when a discarded record with the right number stands there."""
    path = shm_dir / "test.wal"
    damaged_behind_a_rollback(path)
    repair(path)
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == [b"keep"]


@pytest.mark.parametrize("lost", [1, 2, 128])
def test_damage_is_a_range_of_the_ring_only_for_damaged_records(lost: int, shm_dir: Path) -> None:
    """When slots are damaged and no record was looked at, the report does not point into the ring."""
    path = shm_dir / "test.wal"
    wal, _ = prepared(path, "strict")
    wal.close()
    block = superblock(path)
    for index in range(lost):
        flip(path, layout.slot_offset(layout.slot_index(index, block.control_pages)) + 8)
    report = pmwal.verify(path)
    assert report.slots_lost == lost
    assert report.damage is None or report.damage[1] <= block.copy_offset


# -- the map of modules


def modules() -> set[str]:
    """The modules and packages directly in pmwal."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return packages | {path.stem for path in PACKAGE.glob("*.py")}


def imported_by(name: str) -> set[str]:
    """What a module, or a package with all that is in it, imports of pmwal, the extension module left out."""
    sources = [*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/**/*.py")]
    found: set[str] = set()
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "pmwal" else {node.module}
    inner = {found_name.split(".")[1] for found_name in found if found_name.startswith("pmwal.")}
    return {module if module in modules() else "__init__" for module in inner - {"_native"}} - {name}


def test_map_of_modules_is_complete_and_in_import_order() -> None:
    """docs/developing.md lists each module once, below all that it imports."""
    names = [row[0] for row in read_table(read_section("developing.md", "Map of the modules"), "module")]
    assert sorted(modules()) == sorted(names)
    early = [f"{name} imports {other}" for place, name in enumerate(names) for other in imported_by(name) - set(names[:place])]
    assert early == []


# -- all documents


def is_there(name: str) -> bool:
    """Whether a dotted name can be imported here."""
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def can_run(section: Section) -> bool:
    """Whether all is there that a section says it needs, in comments of the form "needs NAME"."""
    return all(map(is_there, re.findall(r"^<!-- needs ([\w.]+) -->$", "\n".join(section.lines), re.MULTILINE)))


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_examples_in_documents_run(path: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block that starts with ">>>" does what it shows; a heading starts with fresh names and a fresh ``path``."""
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for number, section in enumerate(filter(can_run, read_sections(path))):
        directory = shm_dir / str(number)
        names: dict[str, Any] = {"path": directory / "app.wal"}
        for line, block in read_blocks(section, "python", "pycon"):
            if not block.startswith(">>>"):
                continue
            directory.mkdir(exist_ok=True)
            monkeypatch.chdir(directory)
            example = parser.get_doctest(block, names, f"{path.name}:{line}", str(path), line - 1)
            runner.run(example, clear_globs=False)
            names = example.globs
    assert runner.failures == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_python_in_documents_is_python(path: Path) -> None:
    """Each other block of Python can at least be compiled."""
    for section in read_sections(path):
        for line, block in read_blocks(section, "python"):
            if not block.startswith(">>>"):
                compile(block, f"{path.name}:{line}", "exec")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings."""
    return {slug(section.title) for section in read_sections(path)}


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_relative_links_resolve(path: Path) -> None:
    """Each link to another file of the project, and to a heading, leads somewhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else path.parent / name
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_named_files_exist(path: Path) -> None:
    """Each file of the project that stands in backticks is there."""
    named = re.findall(r"`((?:pmwal|tests|docs|tools|examples)/[\w./-]*)`", prose(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_documents_are_there() -> None:
    """The list above is not empty by mistake, and a block of each kind is found."""
    assert {"format.md", "durability.md", "recovery.md", "developing.md"} <= set(IDS)
    blocks = [block for path in DOCUMENTS for section in read_sections(path) for _, block in read_blocks(section, "python")]
    assert len([block for block in blocks if block.startswith(">>>")]) >= 5


def test_recorder_notes_every_step_of_the_seam() -> None:
    """As docs/developing.md says: a step that the recorder left out would escape every crash test."""
    steps = {name for name, value in vars(Seam).items() if callable(value) and not name.startswith("_")}
    facts = {"monotonic_ns"}  # which no file depends on
    assert set() == steps - facts - set(vars(Recorder))


def test_tests_that_the_testing_page_names_exist() -> None:
    """Each scenario in docs/testing.md has tests, and there are such tests."""
    rows = read_table(read_section("testing.md", "Scenarios"), "scenario")
    named = {name.strip("`") for row in rows for name in row[1].split(", ")}
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) == 50
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []
