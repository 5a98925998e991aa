"""All documents: their examples run, their links lead somewhere, and the map of modules is true."""

from __future__ import annotations

import ast
import contextlib
import doctest
import logging
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from documents import DOCUMENTS, IDS, PACKAGE, ROOT, Section, anchors, prose, read_blocks, read_section, read_sections, read_table
from pmwal.storage.seam import Seam
from pmwal.testing import Recorder

with contextlib.suppress(ImportError):
    import polars  # noqa: F401 - an example needs it; it sets a variable of the environment, which no test may

_EXTRAS = re.compile(r"(?:pmwal|'\.)\[([a-z]+(?:,[a-z]+)*)\]")

# -- the map of modules


def modules() -> set[str]:
    """The modules and packages directly in pmwal."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return packages | {path.stem for path in PACKAGE.glob("*.py")}


@cache
def imported_by(name: str) -> set[str]:
    """The modules of pmwal that a module or whole package imports, except the extension module."""
    sources = [*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/**/*.py")]
    found: set[str] = set()
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "pmwal" else {node.module}
    inner = {found_name.split(".")[1] for found_name in found if found_name.startswith("pmwal.")}
    return {module if module in modules() else "__init__" for module in inner - {"_native"}} - {name}


def map_of_modules() -> list[str]:
    """The names in the map of docs/developing.md, in order; a row may have several."""
    rows = read_table(read_section("developing.md", "Map of the modules"), "module")
    return [name for row in rows for name in row[0].split(", ")]


def early_imports(names: list[str]) -> list[str]:
    """Each import of a module that comes later in this order."""
    return [f"{name} imports {other}" for place, name in enumerate(names) for other in imported_by(name) - set(names[:place])]


def test_map_of_modules_is_complete_and_in_import_order() -> None:
    """docs/developing.md lists each module once, below all that it imports."""
    assert sorted(modules()) == sorted(map_of_modules())
    assert early_imports(map_of_modules()) == []


def test_check_of_the_map_finds_a_wrong_order() -> None:
    """Negative control of the check above: swapping two packages is noticed."""
    names = map_of_modules()
    names.insert(0, names.pop(names.index("recovery")))
    assert "recovery imports storage" in early_imports(names)


# -- all documents


def is_there(name: str) -> bool:
    """Whether a dotted name can be imported here."""
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def can_run(section: Section) -> bool:
    """Whether everything is installed that the section's comments require, written as "needs NAME"."""
    return all(map(is_there, re.findall(r"^<!-- needs ([\w.]+) -->$", "\n".join(section.lines), re.MULTILINE)))


def loggers() -> Iterator[logging.Logger]:
    """All loggers of this process."""
    yield logging.getLogger()
    yield from (each for each in list(logging.getLogger().manager.loggerDict.values()) if isinstance(each, logging.Logger))


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Examples configure loggers, and leave handlers whose logs are gone: both are undone, or later tests would meet them."""
    before = {each.name: (each.level, each.propagate, each.disabled, tuple(each.handlers)) for each in loggers()}
    yield
    for logger in loggers():
        level, propagate, disabled, handlers = before.get(logger.name, (logging.NOTSET, True, False, ()))
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_examples_in_documents_run(path: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block that starts with ">>>" gives the output shown, in one directory; a heading starts with new names and ``path``."""
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    monkeypatch.chdir(shm_dir)
    for number, section in enumerate(filter(can_run, read_sections(path))):
        place = shm_dir / f"of section {number}"
        names: dict[str, Any] = {"path": place / "app.wal"}
        for line, block in read_blocks(section, "python", "pycon"):
            if not block.startswith(">>>"):
                continue
            place.mkdir(exist_ok=True)
            example = parser.get_doctest(block, names, f"{path.name}:{line}", str(path), line - 1)
            runner.run(example, clear_globs=False)
            names = example.globs
    assert runner.failures == 0


def test_blocks_of_the_readme_run_each_on_its_own(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies one of them needs nothing of the others; in one directory, they run one after the other."""
    monkeypatch.chdir(shm_dir)
    blocks = [block for section in read_sections(ROOT / "README.md") for _, block in read_blocks(section, "python")]
    assert len(blocks) == 2
    for block in (*blocks, *reversed(blocks)):
        exec(compile(block, "README.md", "exec"), {})


def test_test_in_the_cookbook_runs_as_it_stands(pmwal_path: Path) -> None:
    """Its block is a whole file for pytest."""
    ((_, block),) = read_blocks(read_section("cookbook.md", "A log in a test"), "python")
    names: dict[str, Any] = {}
    exec(compile(block, "cookbook.md", "exec"), names)
    names["test_store"](pmwal_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_python_in_documents_is_python(path: Path) -> None:
    """Every other block of Python compiles."""
    for section in read_sections(path):
        for line, block in read_blocks(section, "python"):
            if not block.startswith(">>>"):
                compile(block, f"{path.name}:{line}", "exec")


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
    """Each file of the project named in backticks exists."""
    named = re.findall(r"`((?:pmwal|tests|docs|tools|examples)/[\w./-]*)`", prose(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_documents_are_there() -> None:
    """The list above is not empty by mistake, and a block of each kind is found."""
    assert {"format.md", "durability.md", "recovery.md", "developing.md"} <= set(IDS)
    blocks = [block for path in DOCUMENTS for section in read_sections(path) for _, block in read_blocks(section, "python")]
    assert len([block for block in blocks if block.startswith(">>>")]) >= 5


def test_recorder_notes_every_step_of_the_seam() -> None:
    """Every crash test would miss a step that the recorder leaves out, as docs/developing.md says."""
    steps = {name for name, value in vars(Seam).items() if callable(value) and not name.startswith("_")}
    facts = {"monotonic_ns", "touch"}  # no byte of a file depends on them
    assert set() == steps - facts - set(vars(Recorder))


def test_tests_that_the_testing_page_names_exist() -> None:
    """Each scenario in docs/testing.md names tests that exist."""
    rows = read_table(read_section("testing.md", "Scenarios"), "scenario")
    named = {name.strip("`") for row in rows for name in row[1].split(", ")}
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) == 50
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []


def commands(path: Path) -> dict[str, list[str]]:
    """A document's commands marked by a comment, by name."""
    found = re.findall(r"^<!-- (\w+) command -->\n```sh\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return {name: block.splitlines() for name, block in found}


def test_marked_commands_are_where_ci_takes_them_from() -> None:
    """Each is a single line in the document for those who run it: README for users, CONTRIBUTING.md for contributors."""
    readme, contributing = commands(ROOT / "README.md"), commands(ROOT / "docs" / "CONTRIBUTING.md")
    assert (sorted(readme), sorted(contributing)) == (["demo", "test"], ["docs", "rigs"])
    assert {1} == {len(lines) for lines in (readme | contributing).values()}


# -- the README

FIRST_SCREEN = 40
"""Lines that a reader sees before scrolling, with the picture below them."""

QUESTIONS = {
    "Is my append durable?": "docs/durability.md#guarantees",
    "How fast is it on my disk?": "docs/harness.md#pmwal-bench",
    "What do I do when it says": "docs/recovery.md#what-you-see-and-what-to-do",
}
"""What readers ask first, and where it is answered."""


def readme() -> str:
    """Its text."""
    return (ROOT / "README.md").read_text()


def test_first_screen_of_the_readme_convinces() -> None:
    """What it is, how to install it, five lines, what survives what, and the demo; and all of it is short."""
    lines = readme().splitlines()
    screen = "\n".join(lines[:FIRST_SCREEN])
    for wanted in (
        "# pmwal\n\nA write-ahead log for Python.",
        "pip install",
        "pmwal.open(",
        "| SIGKILL |",
        "](docs/pictures/demo.svg)",
    ):
        assert wanted in screen
    assert len(lines) <= 150


@pytest.mark.parametrize("question", QUESTIONS)
def test_readme_links_to_the_answer(question: str) -> None:
    """One click from the README."""
    answer = readme().split(f"**{question}", 1)[1].split("\n- **", 1)[0]
    assert f"({QUESTIONS[question]})" in answer


def test_readme_and_durability_page_say_the_same_of_each_medium() -> None:
    """The table of the README is a shorter one of what is guaranteed."""
    (section,) = (each for each in read_sections(ROOT / "README.md") if each.title == "pmwal")
    short = [row[1:] for row in read_table(section, "medium")]
    full = [row[1:] for row in read_table(read_section("durability.md", "Guarantees"), "medium (`stats().medium`)")]
    assert {tuple(cell.strip("*").split()[0] for cell in row) for row in short} == {
        tuple(cell.split()[0] for cell in row) for row in full
    }  # fmt: skip


def test_readme_and_comparison_have_the_same_rows() -> None:
    """Whoever follows the link finds what the table says."""
    (section,) = (each for each in read_sections(ROOT / "README.md") if each.title == "Who it is for")
    full = read_table(read_section("comparison.md", "Comparison"), "what")
    short = read_table(section, "what")
    assert len(short) == 7
    assert [row for row in short if row not in full] == []


def test_pre_commit_has_the_ruff_of_the_tests() -> None:
    """The pinned version lies in the range of setup.cfg, so that both format alike."""
    pinned = re.search(
        r"ruff-pre-commit\n\s+rev: v(\d+)\.(\d+)\.\d+$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE
    )
    allowed = re.search(r"^\s*ruff>=(\d+)\.(\d+),<(\d+)\.(\d+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert pinned is not None
    assert allowed is not None
    low, high = tuple(map(int, allowed.groups()[:2])), tuple(map(int, allowed.groups()[2:]))
    assert low <= tuple(map(int, pinned.groups())) < high


GROUPS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""The groups that keepachangelog.com 1.1.0 knows, in its order."""


def test_every_extra_that_is_named_exists() -> None:
    """In documents and in errors: what they say to install can be installed."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    sources = [*PACKAGE.rglob("*.py"), *DOCUMENTS]
    found = {extra for path in sources for names in _EXTRAS.findall(path.read_text()) for extra in names.split(",")}
    assert {"archive", "nats"} <= found
    assert found <= config["options.extras_require"].keys()


def test_changelog_has_the_form_of_keep_a_changelog() -> None:
    """Unreleased comes first, then versions with dates, newest first; each has only known groups, in order and not empty."""
    versions: list[str] = []
    groups: list[str] = []
    for section in read_sections(ROOT / "CHANGELOG.md")[2:]:
        version = re.fullmatch(r"\[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d{2}-\d{2}))?", section.title)
        if version:
            assert (version[1] == "Unreleased") == (version[2] is None)
            versions.append(version[2] or "now")
            groups = []
        else:
            groups.append(section.title)
            assert groups == [group for group in GROUPS if group in groups]
            assert any(line.startswith("- ") for line in section.lines)
    assert versions == ["now", *sorted(versions[1:], reverse=True)]


def test_snippets_of_readme_and_guides_open_each_log_with_one_size() -> None:
    """So they can be copied in order into one directory."""
    sizes: defaultdict[str, set[str]] = defaultdict(set)
    for document in [ROOT / "README.md", *sorted(ROOT.glob("docs/guide-*.md"))]:
        for name, size in re.findall(r'\("([a-z-]+\.wal)"[^)]*\bsize="(\w+)"', document.read_text()):
            sizes[name].add(size)
    assert len(sizes) > 10
    assert {name: found for name, found in sizes.items() if len(found) > 1} == {}
