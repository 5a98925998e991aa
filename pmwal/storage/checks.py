"""Checks of invariants at run time: on when PMWAL_CHECK=1 is in the environment at import.

A check that fails is a bug in pmwal, hence an ``AssertionError``; ``python -O`` does not remove it.
"""

from __future__ import annotations

import os

CHECKING = os.environ.get("PMWAL_CHECK") == "1"


def check(holds: bool, invariant: str, *found: object) -> None:
    """Raise ``AssertionError`` with this sentence, and what was found instead, unless the invariant holds. Only if ``CHECKING``."""
    if not holds:
        facts = f": {', '.join(map(str, found))}" if found else ""
        raise AssertionError(f"pmwal broke an invariant of its own, please report this: {invariant}{facts}")
