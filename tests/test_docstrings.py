"""Every public name has a docstring, and every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from pmwal.native import native
from pmwal.writing.wal import Wal

OLD_NAMES = ("pmwal.handler", "pmwal.layout", "pmwal.sink")
"""Modules that only warn that their content has moved."""

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pmwal.__path__, "pmwal.")
    if "__main__" not in module.name and module.name not in OLD_NAMES
)
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.mark.parametrize("name", ["pmwal", *MODULES])
def test_docstring_examples_run(name: str, tmp_path: Path) -> None:
    """The examples of a module give the output shown."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for number, example in enumerate(finder.find(importlib.import_module(name), name)):
        example.globs["path"] = tmp_path / f"{number}.wal"
        runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", [name for name in pmwal.__all__ if name != "__version__"])
def test_public_name_has_a_docstring_with_an_example(name: str) -> None:
    """Each public name, and each public method of the two handles, is explained."""
    thing = getattr(pmwal, name)
    assert ">>>" in (thing.__doc__ or ""), name
    ours = [base for base in reversed(thing.__mro__) if base.__module__.startswith("pmwal")] if isinstance(thing, type) else []
    members = {key: value for base in ours for key, value in vars(base).items() if not key.startswith("_")}
    for key, value in members.items():
        if callable(value) or isinstance(value, property):
            assert value.__doc__, f"{name}.{key}"


@pytest.mark.skipif(native is None, reason="compares the two engines")
def test_help_says_the_same_with_both_engines() -> None:
    """What users read with ``help(wal.append)`` does not depend on whether a method is written in C."""
    from pmwal.writing.native_engine import NativeWal  # noqa: PLC0415 - needs the engine

    names = [name for name in dir(Wal) if not name.startswith("_")]
    assert {"append", "extend", "commit", "read"} <= set(names)
    for name in names:
        in_python, in_c = getattr(Wal, name), getattr(NativeWal, name)
        assert inspect.getdoc(in_c) == inspect.getdoc(in_python), name
        if callable(in_python):
            assert _parameters(in_c) == _parameters(in_python), name


def _parameters(method: Callable[..., object]) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults: a signature in C has no annotations, and its ``self`` has no name for callers."""
    first, *others = inspect.signature(method).parameters.values()
    return [(first.name, None, first.default), *((each.name, each.kind, each.default) for each in others)]
