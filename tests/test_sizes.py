"""No file is too long to read, and no function too long to see at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
SOURCES = sorted(
    path
    for directory in ("pmwal", "tests", "tools", "examples", ".")
    for path in (ROOT / directory).glob("*" if directory == "." else "**/*")
    if path.suffix in (".py", ".pyi", ".c", ".h")
)


def functions_of(path: Path, source: str) -> Iterator[tuple[str, int]]:
    """The name and the number of lines of each function."""
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.name, node.end_lineno - node.lineno + 1
        return
    # The code is formatted so that only the body of a function has its braces at the start of a line.
    for match in re.finditer(r"^(\w[^;{}]*?\b(\w+)\([^;{}]*\))\n\{\n.*?^\}$", source, re.MULTILINE | re.DOTALL):
        yield match[2], len(match[0].splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_is_short(path: Path) -> None:
    """A file that outgrows the limit has more than one idea, and a function more than one step."""
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES_MAX
    assert [(name, lines) for name, lines in functions_of(path, source) if lines > FUNCTION_LINES_MAX] == []


def test_check_of_functions_finds_a_long_one() -> None:
    """The check above can fail, in both languages."""
    body = "    x = 1;\n" * 80
    assert list(functions_of(Path("a.c"), f"static int\nlong_one(int a,\n  int b)\n{{\n{body}}}\n")) == [("long_one", 85)]
    python = "def long_one():\n" + "    x = 1\n" * 80
    assert list(functions_of(Path("a.py"), python)) == [("long_one", 81)]


def test_functions_of_the_c_engine_are_found() -> None:
    """The pattern above does not pass by missing them."""
    sources = {path: path.read_text() for path in (ROOT / "pmwal" / "native").glob("*.c")}
    found = {path: len(list(functions_of(path, source))) for path, source in sources.items()}
    assert found == {path: len(re.findall(r"^\{$", source, re.MULTILINE)) for path, source in sources.items()}
    assert sum(found.values()) > 200
