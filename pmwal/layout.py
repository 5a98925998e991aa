"""The old name of ``pmwal.format.layout``, until 0.3."""

import warnings

from pmwal.format.layout import *  # noqa: F403

warnings.warn("pmwal.layout is pmwal.format.layout now; this name goes with 0.3", DeprecationWarning, stacklevel=2)
