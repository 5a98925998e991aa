"""The old name of the module of ``SinkStats``, until 0.3: pickles of version 0.1 name ``pmwal.sink.SinkStats``."""

import warnings

from pmwal.records import SinkStats

__all__ = ["SinkStats"]

warnings.warn(
    "pmwal.sink is deprecated and will be removed in 0.3: SinkStats is in pmwal.records; a pickle made again names it there",
    DeprecationWarning,
    stacklevel=2,
)
