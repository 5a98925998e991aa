"""The old name of ``pmwal.format.layout``, until 0.3."""

import warnings

from pmwal.format.layout import *  # noqa: F403

warnings.warn(
    "pmwal.layout is deprecated and will be removed in 0.3: use pmwal.format.layout",
    DeprecationWarning,
    stacklevel=2,
)
