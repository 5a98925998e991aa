"""The mistakes that the stepper must notice can still be made: each is an edit of a C source as it is now."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import pmwal

ROOT = Path(pmwal.__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from crash.stepper.controls import CONTROLS  # noqa: E402

NATIVE = ROOT / "pmwal" / "native"


@pytest.mark.skipif(not NATIVE.joinpath("core.c").exists(), reason="needs the sources of the native engine")
@pytest.mark.parametrize("name", CONTROLS)
def test_control_matches_its_source(name: str) -> None:
    """The rig runs them for minutes; this tells at once which one a change of the sources has left without a place."""
    control = CONTROLS[name]
    assert re.search(control.pattern, NATIVE.joinpath(control.file).read_text(), flags=re.DOTALL)
