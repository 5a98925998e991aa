"""numpy, for those modules that cannot do without it. Loading it takes longer than recovering a small log."""

from __future__ import annotations

try:
    import numpy as np
    import numpy.typing as npt
except ImportError as error:
    reason = str(error).strip().splitlines()[-1:]  # numpy's own text is long, and ends with the cause
    raise ImportError(
        "numpy, which pmwal needs for arrays, for damage and for what a crash left past the end of a log, cannot be loaded "
        f"({''.join(reason)}); no sub-interpreter can load it: open such a log in the main interpreter"
    ) from error

__all__ = ["np", "npt"]
