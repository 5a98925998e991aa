"""The API reference: the page in Markdown is made from the docstrings, and the web page has the same entries."""

from __future__ import annotations

import ast
import re
import sys
from inspect import getdoc
from pkgutil import resolve_name
from types import ModuleType

import pytest

from documents import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import api_reference

PAGE = api_reference.PAGE.read_text()
CLASSES = re.findall(r"^<!-- class ([\w.]+)(?:\(\))?: members", PAGE, re.MULTILINE)


def test_page_is_what_the_docstrings_say() -> None:
    """Whoever changes one runs ``python tools/api_reference.py``."""
    assert api_reference.filled(PAGE) == PAGE


def test_page_that_is_out_of_date_is_noticed() -> None:
    """Negative control: a sentence that was changed, and an entry that was not made yet, are made anew."""
    assert api_reference.filled(PAGE.replace("Append one record and", "Append it and")) == PAGE
    new = api_reference.filled("<!-- function pmwal.verify -->\n<!-- end -->\n")
    assert "Judge a log as recovery would" in new
    assert new.strip() in PAGE


def test_every_entry_is_one_of_the_web_page() -> None:
    """With the same members, and without the text that autodoc makes there."""
    site = api_reference.directives(PAGE)
    assert "<!-- " not in site
    assert ">>>" not in site
    named = re.findall(r"^<!-- (function|class|exception|module) ([\w.]+)", PAGE, re.MULTILINE)
    assert re.findall(r"^\.\. auto(\w+):: ([\w.]+)", site, re.MULTILINE) == named
    assert len(named) > 40
    wal = ".. autoclass:: pmwal.Wal()\n   :members:\n   :inherited-members:\n```"
    assert wal in site
    assert ".. autoclass:: pmwal.CopyReport()\n   :members: as_dict\n```" in site


@pytest.mark.parametrize("name", CLASSES)
def test_entry_of_a_class_has_all_that_is_public_in_it(name: str) -> None:
    """Each method and property that ``help`` explains has a heading, with what is said of it there."""
    kind: type = resolve_name(name)
    entry = PAGE.split(f"\n### {name}\n", 1)[1].split("<!-- end -->", 1)[0]
    listed = set(re.findall(r"^#### \w+\.(\w+)$", entry, re.MULTILINE))
    own = {key for key, value in vars(kind).items() if not key.startswith("_") and (callable(value) or isinstance(value, property))}
    assert own <= listed
    for member in own:
        said = (getdoc(getattr(kind, member)) or "").split("\n", 1)[0]
        assert api_reference._markdown(said) in entry


def call_of(source: str, *, method: bool = False) -> str:
    """The signature that the reference shows of a function."""
    module = ModuleType("example")
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_reference, "_source", lambda module: source)
        return api_reference._call("f", node, module, method=method)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(): ...", "f()"),
        (
            "def f(a: int, /, b: str = 'x', *, mode: int = 0o600) -> None: ...",
            "f(a: int, /, b: str = 'x', *, mode: int = 0o600) -> None",
        ),
        ("async def f(*items: bytes, **options: int) -> int: ...", "async f(*items: bytes, **options: int) -> int"),
        ("def f(self, a=None): ...", "f(a=None)"),
        ("def f(self, /): ...", "f()"),
    ],
)
def test_signature_is_that_of_the_source(source: str, shown: str) -> None:
    """Defaults as they are written: a mode in octal is not shown as 384."""
    assert call_of(source, method="self" in source).replace(" = None", "=None") == shown


def test_long_signature_is_broken_between_parameters() -> None:
    """No line is longer than the page is wide."""
    shown = call_of(f"def f({', '.join(f'parameter_{at}: int = {at}' for at in range(12))}) -> int: ...")
    assert len(shown.splitlines()) > 2
    assert max(map(len, shown.splitlines())) <= api_reference.WIDTH
    assert re.sub(r"\s+", " ", shown).count("parameter_") == 12


def test_name_that_is_nowhere_is_an_error() -> None:
    """A stale entry is not left empty."""
    with pytest.raises((AttributeError, LookupError)):
        api_reference.filled("<!-- function pmwal.gone -->\n<!-- end -->")
