"""Every public name has a docstring, and every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import pmwal

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
