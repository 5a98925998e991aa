"""The old name of ``pmwal.LogHandler``, until 0.3: configurations of ``logging`` name ``pmwal.handler.LogHandler``."""

import warnings

from pmwal.logs.handler import LogHandler

__all__ = ["LogHandler"]

warnings.warn("pmwal.handler is pmwal.LogHandler now; this name goes with 0.3", DeprecationWarning, stacklevel=2)
