"""The old name of the module of ``LogHandler``, until 0.3: configurations of ``logging`` name ``pmwal.handler.LogHandler``."""

import warnings

from pmwal.logs.handler import LogHandler

__all__ = ["LogHandler"]

warnings.warn(
    "pmwal.handler is deprecated and will be removed in 0.3: use pmwal.LogHandler, also in configurations of logging",
    DeprecationWarning,
    stacklevel=2,
)
