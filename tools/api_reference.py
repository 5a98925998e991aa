"""The API reference: docs/api.md in plain Markdown from the docstrings, and the same entries for Sphinx.

The page lists what is public by comments, such as ``<!-- class pmwal.Wal(): members, inherited -->``: a function, a class, an
exception or a module, with "()" where users do not make one, then whose members are shown. What is between a comment and the next
``<!-- end -->`` is made from the sources, so the page can be read where only Markdown is rendered; a test compares the two. On the
web pages Sphinx's autodoc takes the place of each entry.

Run it after a change of a public name, a signature or a docstring: python tools/api_reference.py
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
WIDTH = 100
_ENTRY = re.compile(
    r"^<!-- (?P<kind>function|class|exception|module) (?P<name>[\w.]+)(?P<bare>\(\))?(?:: (?P<shown>[^\n]*?))? -->\n"
    r".*?^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Member(NamedTuple):
    """What is documented in a class: its name, how it is written, and the docstring."""

    name: str
    written: str
    doc: str


def filled(page: str) -> str:
    """The page with every entry made anew."""
    return _ENTRY.sub(lambda entry: "\n\n".join([entry[0].split("\n", 1)[0], *_described(entry), "<!-- end -->"]), page)


def directives(page: str) -> str:
    """The page with each entry as a directive of autodoc."""
    return _ENTRY.sub(_directive, page)


def _directive(entry: re.Match[str]) -> str:
    lines = [f".. auto{entry['kind']}:: {entry['name']}{entry['bare'] or ''}"]
    shown = _shown(entry)
    if shown is not None:
        names = [name for name in shown if name not in ("members", "inherited")]
        lines.append(f"   :members: {', '.join(names)}".rstrip())
        lines += ["   :inherited-members:"] * ("inherited" in shown)
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _shown(entry: re.Match[str]) -> list[str] | None:
    return None if entry["shown"] is None else entry["shown"].split(", ")


# -- Markdown


def _described(entry: re.Match[str]) -> Iterator[str]:
    name, kind, shown = entry["name"], entry["kind"], _shown(entry)
    yield f"### {name}"
    if kind == "module":
        module = import_module(name)
        yield _markdown(ast.get_docstring(_tree(module)) or "")
        for node in _tree(module).body if shown else ():
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield f"#### {node.name}"
                bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
                yield _markdown(f"{ast.get_docstring(node) or ''}\n\nBase: {bases}.")
        return
    module, node = _find(name)
    if isinstance(node, ast.ClassDef):
        init = _last(node, "__init__")
        if init is not None and not entry["bare"]:
            yield _block(_call(name, init, module, method=True))
    else:
        yield _block(_call(name, node, module))
    yield _markdown(ast.get_docstring(node) or "")
    for member in _members(name, shown or []):
        yield f"#### {node.name}.{member.name}"
        yield _block(member.written)
        yield _markdown(member.doc)


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def _markdown(doc: str) -> str:
    """A docstring as Markdown: examples become blocks, names in two backticks have one, and pages of docs become links."""
    parts = []
    for part in re.split(r"\n\s*\n", doc.strip("\n")):
        before, found, example = part.partition(">>>")
        if before.strip():
            parts.append(re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", before.rstrip().replace("``", "`")))
        if found:
            parts.append(f"```python\n{found}{example}\n```")
    return "\n\n".join(parts)


# -- sources


@cache
def _source(module: ModuleType) -> str:
    return getsource(module)


@cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(_source(module))


def _find(name: str) -> tuple[ModuleType, Definition]:
    """Where a public name is defined, which may be another module than the one that offers it."""
    offered_by, _, last = name.rpartition(".")
    module = import_module(offered_by)
    for place in (module, import_module(getattr(getattr(module, last), "__module__", offered_by))):
        found = [node for node in _tree(place).body if isinstance(node, Definition) and node.name == last]
        if found:
            return place, found[-1]  # the ones before it are its overloads
    raise LookupError(f"{name} is defined nowhere")


def _members(name: str, shown: list[str]) -> list[Member]:
    """The documented members of a class: those named, or all, or all with inherited ones. Each in the order of its class."""
    if not shown:
        return []
    offered_by, _, last = name.rpartition(".")
    found: dict[str, Member] = {}
    for base in getattr(import_module(offered_by), last).__mro__:
        if base.__module__.partition(".")[0] in ("pmwal", "pytest_pmwal"):
            for member in _members_of(base):
                found.setdefault(member.name, member)
        if "inherited" not in shown and "members" in shown:
            break
    names = found if "members" in shown else shown
    return [found[each] for each in names]


def _members_of(base: type) -> Iterator[Member]:
    if base.__module__.endswith("._native"):
        return  # of the C engine, which has no source here; the class that derives from it says all
    module, node = _find(f"{base.__module__}.{base.__name__}")
    assert isinstance(node, ast.ClassDef)
    for each in node.body:
        if isinstance(each, Definition) and not each.name.startswith("_") and each is _last(node, each.name):
            doc = ast.get_docstring(each)
            if doc and not isinstance(each, ast.ClassDef):
                yield Member(each.name, _written(each, module), doc)
    for body in (node.body, getattr(_last(node, "__init__"), "body", [])):
        for statement, text in pairwise(body):
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr):
                target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
                called = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else "_"
                if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str) and not called.startswith("_"):
                    of = f": {ast.unparse(statement.annotation)}" if isinstance(statement, ast.AnnAssign) else ""
                    yield Member(called, f"{called}{of}", text.value.value)


def _last(node: ast.ClassDef, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The definition with this name, after its overloads."""
    found = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == name]
    return found[-1] if found else None


def _written(node: ast.FunctionDef | ast.AsyncFunctionDef, module: ModuleType) -> str:
    """How a member is written: a call, or an attribute with its type."""
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        return node.name + (f": {ast.unparse(node.returns)}" if node.returns is not None else "")
    return _call(node.name, node, module, method="staticmethod" not in decorators)


def _call(name: str, node: Definition, module: ModuleType, *, method: bool = False) -> str:
    """The signature as it is in the source, on as many lines as it takes."""
    assert not isinstance(node, ast.ClassDef)
    given, source = node.args, _source(module)

    def one(argument: ast.arg, default: ast.expr | None = None, stars: str = "") -> str:
        kind = f": {ast.unparse(argument.annotation)}" if argument.annotation is not None else ""
        value = "" if default is None else f" = {ast.get_source_segment(source, default)}"
        return f"{stars}{argument.arg}{kind}{value}"

    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    words = [one(argument, default) for argument, default in zip(plain, defaults, strict=True)]
    if given.posonlyargs:
        words.insert(len(given.posonlyargs), "/")
    words = words[1:] if method else words
    words = words[1:] if words[:1] == ["/"] else words
    if given.vararg is not None or given.kwonlyargs:
        words.append("*" if given.vararg is None else one(given.vararg, stars="*"))
    words += [one(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    words += [] if given.kwarg is None else [one(given.kwarg, stars="**")]
    end = f") -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ")"
    start = ("async " if isinstance(node, ast.AsyncFunctionDef) else "") + f"{name}("
    lines = [start]
    for at, word in enumerate(words):
        text = word + (", " if at < len(words) - 1 else end)
        if len(lines[-1]) + len(text.rstrip()) > WIDTH and lines[-1].strip():
            lines.append("    ")
        lines[-1] += text
    if not words:
        lines[-1] += end
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
