"""Signposts: the names in comments and documents lead somewhere, and text for users names only public ones."""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import pmwal
from documents import DOCUMENTS, ROOT
from pmwal.native import native

TOP_ENTRIES_MAX = 24

ATTRIBUTES = r"pmwal\.(?:seq|log\.uuid|event\.format)\b"
"""Attributes of records at a collector, which are no names of Python."""

DOTTED = rf"(?<![\w./-])(?!{ATTRIBUTES})pmwal(?:\.[A-Za-z_]\w*)+"
"""A dotted name that begins with the package; not the end of a path."""

OLD_NAMES = {"pmwal.layout", "pmwal.handler", "pmwal.sink"}
"""Modules that warn when they are imported, so this file only names them."""

FACES = (
    *("pmwal", "pmwal.aio", "pmwal.cursor", "pmwal.errors", "pmwal.events", "pmwal.latency", "pmwal.records", "pmwal.repair"),
    "pmwal.ship",
    *(
        "pmwal.ship.otlp",
        "pmwal.testing",
        "pmwal.integrations.loguru",
        "pmwal.integrations.prometheus",
        "pmwal.integrations.structlog",
    ),
)
"""The public modules. In pmwal, events and testing only the names in ``__all__`` are public."""

FOR_USERS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "pytest_pmwal.py")),
    *sorted((ROOT / "examples").glob("*.py")),
    *(ROOT / "docs" / name for name in ("index.md", "api.md", "cli.md", "events.md", "SECURITY.md")),
    *(ROOT / "docs" / name for name in ("tutorial.md", "cookbook.md", "faq.md", "troubleshooting.md", "upgrade.md")),
    *sorted(ROOT.glob("docs/guide-*.md")),
]
"""Text that users read and copy. The other documents are for contributors and may name private modules."""

MOVED = {"pmwal.handler.LogHandler", "pmwal.layout", "pmwal.format.layout", "pmwal.sink"}
ALLOWED_PRIVATE = {"CHANGELOG.md": MOVED, "upgrade.md": {*MOVED, "pmwal.sink.SinkStats"}}
"""The changelog and the page on upgrading tell users which old import paths warn."""


# -- prose in sources and documents


def comments_of(source: str) -> str:
    """The comments and the docstrings of a Python source."""
    found = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append(node.value.value)
    return "\n".join(found)


def prose_of(path: Path) -> str:
    """The prose in a file: all of a document, the comments of a Python source, all of a C source but its includes."""
    text = path.read_text()
    return comments_of(text) if path.suffix == ".py" else re.sub(r"^#include .*", "", text, flags=re.MULTILINE)


def tracked(*patterns: str) -> list[Path]:
    """The files of the project that git tracks, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in sorted(set(result.stdout.split())) if (ROOT / name).exists()]


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")


def written() -> list[Path]:
    """Every file whose comments or prose may name a module."""
    return tracked("*.py", "*.pyi", "pmwal/native/*.c", "pmwal/native/*.h", "tools/*.c", "*.md")


# -- names of modules and files


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something in one."""
    if any(name == old or name.startswith(f"{old}.") for old in OLD_NAMES) or (native is None and "._native" in name):
        return True
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:count])
        if not (module / "__init__.py").exists() and not module.with_suffix(".py").exists():
            continue
        if count == len(parts):
            return True
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                thing = attribute(thing, part)
        except (ImportError, AttributeError):
            return False
        return True
    return False


def attribute(thing: object, name: str) -> object:
    """An attribute, or for a class also a field that only its instances have."""
    if isinstance(thing, type) and name in getattr(thing, "__annotations__", {}):
        return None
    return getattr(thing, name)


def stale_names(text: str) -> list[str]:
    """Each ``pmwal.name`` and ``pmwal/path`` in a text that leads nowhere."""
    names = {name for name in re.findall(DOTTED, text) if not resolves(name)}
    paths = {path for path in re.findall(r"(?<![\w./-])pmwal/[\w.-]+(?:/[\w.-]+)*", text) if not leads_somewhere(path.rstrip("."))}
    return sorted(names | paths)


def leads_somewhere(path: str) -> bool:
    """Whether this is a file or folder of the package, or a ratio as in tables."""
    return path in ("pmwal/floor", "pmwal/peer", "pmwal/queue") or (ROOT / path).exists()


@needs_git
def test_names_in_comments_and_documents_lead_somewhere() -> None:
    """When a module is moved or removed, every comment and document that names it must change with it."""
    paths = [path for path in written() if path != Path(__file__)]  # this file names some that lead nowhere
    assert len(paths) >= 250
    suspects = [path for path in paths if stale_names(path.read_text())]  # most have none even in code, which is quick to check
    assert [f"{path.relative_to(ROOT)}: {name}" for path in suspects for name in stale_names(prose_of(path))] == []


@pytest.mark.parametrize(
    "text",
    ["see pmwal.native.fast", "`pmwal.wal.Wal`", "pmwal.engine", "(pmwal/native/gone.c)", "in pmwal/wal.py.", "pmwal.Wal.gone()"],
)
def test_check_of_signposts_finds_a_stale_one(text: str) -> None:
    """Negative control of the check above: these modules have moved, and these names never existed."""
    assert stale_names(text)


@pytest.mark.parametrize(
    "text",
    [
        *("pmwal.native", "`pmwal.Wal.append`.", "pmwal/native/*.c", "pmwal/writing/engine.py.", "/srv/pmwal.wal"),
        *("pmwal.RecoveryReport.case", "https://example.org/pmwal/gone", "pmwal.layout", "pmwal.handler.LogHandler"),
    ],
)
def test_check_of_signposts_lets_true_ones_pass(text: str) -> None:
    """The check above raises no false alarm."""
    assert stale_names(text) == []


# -- names of functions in links into the code


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The names that a source defines; in Python also those in classes, as ``Class.name``."""
    text = path.read_text()
    if path.suffix != ".py":
        functions = re.findall(r"^(?![ \t#}/]|typedef\b)[^;=\n]*?\b(\w+)\((?:[^;]*?)\)\n\{", text, re.MULTILINE)
        return frozenset({*functions, *re.findall(r"^(?:#define|struct|union|enum) (\w+)", text, re.MULTILINE)})
    return frozenset(names_in(ast.parse(text).body))


def names_in(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """The functions, classes and constants of a module, and the methods and fields of its classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.If | ast.Try):
            yield from names_in(node.body, prefix)


def lost_links(text: str, directory: Path) -> list[str]:
    """Each link of the form [`name`](file) whose file does not define the name."""
    found = re.findall(r"\[`([\w.]+)`\]\(((?:\.\./|pmwal/|tests/|tools/)[\w./]*\.(?:py|c|h))\)", text)
    targets = [(name, (directory / link).resolve(), link) for name, link in found]
    return [
        f"{name} in {link}"
        for name, target, link in targets
        if name != target.name and (not target.exists() or name not in defined_in(target))
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_linked_names_are_defined_where_the_link_leads(path: Path) -> None:
    """A function that is renamed or moved must be renamed in the documents that link to it."""
    assert lost_links(path.read_text(), path.parent) == []


def test_check_of_linked_names_finds_a_lost_one() -> None:
    """Negative control of the check above, for Python, for C, for a method and for a missing file."""
    links = {
        "[`Wal.gone`](../pmwal/writing/wal.py)": 1,
        "[`core_gone`](../pmwal/native/core.c)": 1,
        "[`fits`](../pmwal/gone.c)": 1,
        "[`Wal.append`](../pmwal/writing/wal.py), [`core_new`](../pmwal/native/core.c), [`core.c`](../pmwal/native/core.c)": 0,
    }
    assert list(links.values()) == [len(lost_links(text, ROOT / "docs")) for text in links]


def test_page_that_follows_a_record_links_into_the_code() -> None:
    """The check above finds such links."""
    assert len(re.findall(r"\[`[\w.]+`\]\(\.\./pmwal/", (ROOT / "docs" / "record.md").read_text())) >= 60


# -- private names of packages


@cache
def faces() -> dict[str, ModuleType]:
    """The public modules that can be imported here; an adapter needs its library."""
    found = {}
    for name in FACES:
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            assert name.startswith("pmwal.integrations.")
    return found


def is_public(name: str) -> bool:
    """Whether users may rely on this dotted name."""
    face = max((face for face in FACES if name == face or name.startswith(face + ".")), key=len)
    rest = name.removeprefix(face).removeprefix(".").split(".")[0]
    if not rest:
        return True
    if name in ("pmwal.integrations", "pmwal.__all__", "pmwal.__version__"):
        return True
    module = faces().get(face)
    if module is None:
        return not rest.startswith("_")
    public = getattr(module, "__all__", None)
    if face == "pmwal" and public is not None:
        return rest in public
    return rest in public if public is not None else not rest.startswith("_") and defined_here(module, rest)


def defined_here(module: ModuleType, name: str) -> bool:
    """Whether a module without ``__all__`` defines this name, rather than importing it."""
    thing = getattr(module, name, None)
    return thing is not None and getattr(thing, "__module__", module.__name__) in (module.__name__, "pmwal.native._native")


def private_names(text: str) -> list[str]:
    """Each private name of the package in a text or its imports."""
    found = set(re.findall(DOTTED, text))
    for module, names in re.findall(r"from (pmwal[\w.]*) import ([\w, ]+)", text):
        found |= {f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",")}
    paths = set(re.findall(r"(?<![\w./-])pmwal/[\w.]+(?:/[\w.]+)*", text))
    return sorted({name for name in found if not is_public(name)} | paths)


@pytest.mark.parametrize("path", FOR_USERS, ids=lambda path: path.name)
def test_users_are_shown_public_names_only(path: Path) -> None:
    """Modules inside packages are private: text for users names only public modules and the command line."""
    assert [name for name in private_names(path.read_text()) if name not in ALLOWED_PRIVATE.get(path.name, ())] == []


@pytest.mark.parametrize(
    "text",
    [
        *("from pmwal.opening import open_log", "`pmwal.writing.wal.Wal`", "pmwal.storage", "see pmwal/format/layout.py"),
        *("import pmwal.testing.media", "from pmwal.events import definition", "pmwal.aio.AsyncWal and pmwal.aio.open_wal"),
    ],
)
def test_check_of_public_names_finds_a_private_one(text: str) -> None:
    """Negative control of the check above, also for names that a public module imports."""
    assert private_names(text)


@pytest.mark.parametrize(
    "text",
    [
        *("pmwal.open", "from pmwal.repair import repair", "pmwal.events.Logger(wal)", "pmwal.aio.AsyncWal", "pmwal.errors"),
        *("pmwal.integrations.prometheus.Collector", "pmwal.latency.LatencyHistogram", "pmwal.Wal.append", "app.wal"),
    ],
)
def test_check_of_public_names_lets_public_ones_pass(text: str) -> None:
    """The check above raises no false alarm."""
    assert private_names(text) == []


def test_reference_has_every_public_name() -> None:
    """Each name in ``pmwal.__all__`` is in docs/api.md, errors by their module."""
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in pmwal.__all__ if f"pmwal.{name}" not in text and name != "__version__"]
    assert [name for name in missing if not hasattr(pmwal.errors, name)] == []


def test_every_face_is_a_module() -> None:
    """The list of public modules has no stale entry."""
    modules = {module.name for module in pkgutil.walk_packages(pmwal.__path__, "pmwal.", onerror=lambda name: None)}
    assert set(FACES) - {"pmwal"} <= modules


# -- the top level


@needs_git
def test_package_has_few_entries_at_its_top() -> None:
    """``ls pmwal`` is a table of contents: it shows at a glance where recovery is, or the format."""
    entries = {path.relative_to(ROOT / "pmwal").parts[0] for path in tracked("pmwal")}
    entries -= {f"{name.removeprefix('pmwal.')}.py" for name in OLD_NAMES}  # until 0.3
    assert len(entries) <= TOP_ENTRIES_MAX, sorted(entries)


# -- words


WORN_WORDS = ("behind", "so many", "stands", "mended", "reckoned")
WORN_WORDS_MAX = 60


def worn_words(text: str) -> int:
    """How often a text uses a word that the rewording replaced; a line break in "so many" is a space."""
    return len(re.findall(rf"\b(?:{'|'.join(WORN_WORDS)})\b", re.sub(r"\s+", " ", text), re.IGNORECASE))


@needs_git
def test_worn_words_stay_rare() -> None:
    """Words that this project overused for after, is, fixed and computed do not creep back."""
    paths = tracked("pmwal/*.py", "pmwal/*.pyi", "pmwal/*.c", "pmwal/*.h", "docs/*.md", "tools/*.py", "tools/*.c", "README.md")
    counts = {str(path.relative_to(ROOT)): worn_words(path.read_text()) for path in paths}
    assert sum(counts.values()) <= WORN_WORDS_MAX, sorted(counts.items(), key=lambda item: -item[1])[:10]


def test_check_of_worn_words_counts_them() -> None:
    """The check above can fail, also across a line break."""
    assert worn_words("It stands behind so\nmany that were Mended; a bystander") == 4
