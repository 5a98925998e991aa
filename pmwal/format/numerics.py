"""numpy, for those modules that cannot do without it. Loading it takes longer than recovering a small log."""

from __future__ import annotations

try:
    import numpy as np
    import numpy.typing as npt
except ImportError as error:
    raise ImportError(
        "pmwal needs numpy for arrays, for damage and for what a crash left past the end of a log, and it cannot be loaded here: "
        f"{error}. Sub-interpreters cannot load it: open such a log in the main interpreter"
    ) from error

__all__ = ["np", "npt"]
