"""The events that the demo's writer sends to its parent over a pipe: the only trace of an acknowledgement outside the log.

Invariants
----------
- An event is one write of 17 bytes, which is atomic on a pipe (pipe(7), PIPE_BUF). So a killed writer leaves no partial
  event, and what it wrote before it died stays in the pipe for the parent.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

OPENED = 1  # the log is open; number: of the next record
ACKNOWLEDGED = 2  # append returned; number: of the record, value: ns that the call took
TRUNCATING = 3  # about to free all records before this number
TRUNCATED = 4  # truncate returned

EVENT = struct.Struct("<BQQ")  # what, number, value
_DTYPE = np.dtype([("what", "u1"), ("number", "<u8"), ("value", "<u8")])

assert EVENT.size == _DTYPE.itemsize == 17

Events = npt.NDArray[np.void]


def parse_events(raw: bytes) -> Events:
    """All whole events among the bytes received."""
    return np.frombuffer(raw, dtype=_DTYPE, count=len(raw) // EVENT.size)
