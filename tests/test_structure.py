"""The structure of the code: which module may import which, and which may touch a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pmwal
from processes import run_script

PACKAGE = Path(pmwal.__file__).parent
TESTS = Path(__file__).parent


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
EXTENSION = "pmwal.native._native"
"""The extension module: plain C beside the package, which imports nothing."""

PURE = (
    *("opening.units", "errors", "records", "cursor", "latency", "recovery.verdict", "recovery.superblock", "reading.walk"),
    *(name.removeprefix("pmwal.") for name in MODULES if name.startswith("pmwal.format") and name != "pmwal.format.scan"),
)
"""The parts that know no I/O: format, ring arithmetic, arguments, verdicts."""

INPUT_OUTPUT = {
    "asyncio", "builtins", "ctypes", "fcntl", "glob", "io", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that a source imports, at any depth; a name imported from a package may be a submodule."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in MODULES or name == EXTENSION]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


@cache
def imported_by(name: str) -> frozenset[str]:
    """Everything that a module of the package imports."""
    return frozenset(imports_of(ast.parse(MODULES[name].read_text())))


def graph() -> dict[str, set[str]]:
    """Module of the package -> modules of the package that it imports."""
    return {name: {found for found in imported_by(name) if found in MODULES} for name in MODULES}


def reached(start: str) -> set[str]:
    """A module and all modules of the package that it needs."""
    edges, todo, seen = graph(), [start], set[str]()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen


def order_of(edges: dict[str, set[str]]) -> list[str]:
    """An order in which each module needs only earlier ones; ``CycleError`` if there is none."""
    return list(TopologicalSorter(edges).static_order())


def test_imports_go_downwards_only() -> None:
    """No chain of imports, not even one inside a function, leads back to its start."""
    assert sorted(MODULES) == sorted(order_of(graph()))


def test_check_for_cycles_finds_one() -> None:
    """Negative control of the check above."""
    with pytest.raises(CycleError):
        order_of({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_no_input_or_output(name: str) -> None:
    """The pure parts reach no module that opens, maps, waits or reads the clock, not even through another module of pmwal."""
    found = {
        f"{module} imports {imported}"
        for module in reached(f"pmwal.{name}")
        for imported in imported_by(module)
        if imported.split(".")[0] in INPUT_OUTPUT
    }
    assert set() == found


def test_check_for_input_and_output_finds_it() -> None:
    """Negative control of the check above: the mapping does import mmap and os."""
    assert {"mmap", "os"} <= imported_by("pmwal.storage.mapping") & INPUT_OUTPUT


@pytest.mark.slow
def test_each_module_can_be_imported_alone() -> None:
    """A fresh interpreter can start with any module of the library: none relies on an earlier import of another."""
    alone = [name for name in MODULES if "." in name and "pmwal" not in reached(name) and not name.startswith("pmwal.cli")]
    result = run_script(
        """
        import importlib, os, sys, traceback, types
        import crc32c, numpy  # shared by all the interpreters below, because they are slow to load

        where, *names = sys.argv[1:]
        for name in names:
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                continue
            package = types.ModuleType("pmwal")  # without running pmwal/__init__.py, which imports them all in order
            package.__path__ = [where]
            sys.modules["pmwal"] = package
            try:
                importlib.import_module(name)
                os.write(1, (name + "\\n").encode())
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(0)
        """,
        PACKAGE,
        *alone,
    )
    assert result.stdout.split() == alone, result.stderr
    assert len(alone) >= len(PURE)


def test_every_test_has_a_docstring() -> None:
    """Each test says in words what it claims."""
    silent = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


# -- the storage seam

HARNESS = ("pmwal.testing.stress", "pmwal.testing.bench")
"""``pmwal stress`` and ``pmwal bench``, which are no part of the library: they measure the raw disk beside it, and share memory
with the processes that they kill. They open logs as every program does."""


def is_harness(name: str) -> bool:
    """Whether a module belongs to the harness."""
    return name.startswith(HARNESS)


def test_library_does_not_know_the_harness() -> None:
    """Only its commands import it, and only when they run: what it may do beside the seam never reaches the library."""
    users = {name for name in MODULES if not is_harness(name) and any(is_harness(found) for found in imported_by(name))}
    assert users <= {f"pmwal.cli.commands.{command}" for command in ("stress", "bench")}


OUTSIDE = {
    "pwrite", "pwritev", "fsync", "fdatasync", "link", "symlink", "rename", "renames", "replace", "truncate", "ftruncate",
    "posix_fallocate", "copy_file_range",
}  # fmt: skip
"""Functions of ``os`` that change a log's file or its name."""

OUTSIDE_OF_THE_LIBRARY = {"write", "writev", "unlink", "remove", "sendfile", "splice"}
"""More of them, which the command line may use for its own output and files, but the library may not."""

STORES = {"flush", "write", "write_byte", "move", "resize"}
"""Methods of a mapping that change it or write it back."""


def names_a_mapping(node: ast.expr) -> bool:
    """Whether an expression ends in a name that the code uses for a mapping."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_") in ("map", "mapping")


def past_the_seam(source: str, name: str = "pmwal") -> list[str]:
    """Changes to files and mappings in a module's source that only the seam may make."""
    found = []
    outside = OUTSIDE if name.startswith("pmwal.cli") else OUTSIDE | OUTSIDE_OF_THE_LIBRARY
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"imports os.{alias.name}" for alias in node.names if alias.name in outside]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found += [f"os.{node.attr}"] if node.attr in outside else []
        elif isinstance(node, ast.Attribute) and node.attr == "msync":
            found.append("msync")
        elif isinstance(node, ast.Attribute) and node.attr in STORES and names_a_mapping(node.value):
            found.append(f"{ast.unparse(node)}()")
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del) and names_a_mapping(node.value):
            found.append(f"stores {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pmwal.storage.seam" and not is_harness(name)])
def test_only_the_seam_changes_files(name: str) -> None:
    """Every store, flush, sync, write, link and rename goes through the seam, so that tests run the code that ships."""
    assert past_the_seam(MODULES[name].read_text(), name) == []


def test_only_the_seam_and_the_mapping_know_mmap() -> None:
    """No other module can hold a raw mapping of a file to store into."""
    users = {name for name in MODULES if "mmap" in imported_by(name) and not is_harness(name)}
    assert users == {"pmwal.storage.seam", "pmwal.storage.medium", "pmwal.storage.mapping", "pmwal.storage.descriptors"}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fsync(3)",
        "from os import pwrite",
        "import os\nwrite = os.pwrite",
        "self._map[0:8] = data",
        "mapping[0] = 1",
        "self._mapping.flush(0, 4096)",
        "mapping.write(data)",
        "libc.msync(address, 4096, 4)",
        "del mapping[3]",
    ],
)
def test_check_of_the_seam_finds_what_goes_past_it(source: str) -> None:
    """Negative control of the check above."""
    assert past_the_seam(source)


@pytest.mark.parametrize("source", ["data = self._map[0:8]", "mapping.store(0, data)", "text.replace('a', 'b')", "slots[3] = 1"])
def test_check_of_the_seam_lets_other_code_pass(source: str) -> None:
    """The check above raises no false alarm."""
    assert past_the_seam(source) == []


def test_seam_itself_does_what_is_looked_for() -> None:
    """The check's names are those that the seam uses."""
    found = past_the_seam(MODULES["pmwal.storage.seam"].read_text())
    assert {"os.fsync", "os.link", "os.posix_fallocate", "os.pwrite", "os.replace", "os.unlink"} <= set(found)
    assert any(what.startswith("stores mapping[") for what in found)
    assert "mapping.flush()" in found
