"""Crash images, to test what a program makes of its log after a power cut or a kill.

``crash_images`` runs a function on a log and yields every file that a crash may leave of it, each with the records that were
acknowledged by then. It needs no pytest, no root and no device. A store of keys and values tests its replay like this:

>>> from pmwal.testing import crash_images
>>> def run(wal):
...     _ = wal.append(b"color=red")
...     _ = wal.extend([b"color=blue", b"shape=round"])
>>> def replay(records):
...     return dict(record.data.split(b"=") for record in records)
>>> states = []
>>> for image in crash_images(run, size="8KiB"):
...     with image.open() as wal:                          # as after the crash: recovered, and open for writing
...         state, count = replay(wal), len(wal)
...     assert count >= len(image.acknowledged)            # what append had returned for is there
...     if state not in states:
...         states.append(state)
>>> sorted(states, key=len)
[{}, {b'color': b'red'}, {b'color': b'blue', b'shape': b'round'}]

No state has the new color without the shape: ``extend`` is all or nothing. ``medium="pmem"`` does the same for the lines of
persistent memory, and ``image.save(path)`` keeps a file that a test has failed on.

``check_crashes`` does all of that for a program that opens its log itself, and explains the first failure; the command for it is
``pmwal crashsim``.

Two names of 0.1 meant something else elsewhere in pmwal, and have changed: ``Event`` is now ``Step``, ``Medium``
is ``PowerCutModel``, which says in its module what it can show and what not. The old names still work.
"""

from pmwal.testing.crashes import CrashImage, crash_images
from pmwal.testing.crashlog import CrashLog, Piece
from pmwal.testing.images import Image
from pmwal.testing.power_cut import UNITS, PowerCutModel
from pmwal.testing.programs.campaign import CrashFailure, check_crashes
from pmwal.testing.programs.recording import acknowledged
from pmwal.testing.recorder import Crash, Recorder, Step
from pmwal.testing.violation import ORACLES, Violation

Event = Step
"""The name of ``Step`` in 0.1."""
Medium = PowerCutModel
"""The name of ``PowerCutModel`` in 0.1."""

__all__ = [
    "ORACLES",
    "UNITS",
    "Crash",
    "CrashFailure",
    "CrashImage",
    "CrashLog",
    "Event",
    "Image",
    "Medium",
    "Piece",
    "PowerCutModel",
    "Recorder",
    "Step",
    "Violation",
    "acknowledged",
    "check_crashes",
    "crash_images",
]
