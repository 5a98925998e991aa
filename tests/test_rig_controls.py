"""The mistakes that the stepper and the fuzzer must notice can still be made: each is an edit of a C source as it is now."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import pmwal

ROOT = Path(pmwal.__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from crash.stepper.controls import CONTROLS  # noqa: E402
from fuzz.run import MUTANTS  # noqa: E402

NATIVE = ROOT / "pmwal" / "native"
EDITS = {name: (control.file, control.pattern) for name, control in CONTROLS.items()}
EDITS |= {name: ("ring.c", pattern) for name, (pattern, _) in MUTANTS.items()}


@pytest.mark.skipif(not NATIVE.joinpath("ring.c").exists(), reason="needs the sources of the native engine")
@pytest.mark.parametrize("name", EDITS)
def test_control_matches_its_source(name: str) -> None:
    """The rigs run them for minutes; this tells at once which one a change of the sources has left without a place."""
    file, pattern = EDITS[name]
    assert re.search(pattern, NATIVE.joinpath(file).read_text(), flags=re.DOTALL)
