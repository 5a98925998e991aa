"""Crash images, to test what a program makes of its log after a power cut or a kill.

``crash_images`` runs a function on a log and yields every file that a crash may leave of it, each with the records that were
acknowledged by then. It needs no pytest, no root and no device:

>>> from pmwal.testing import crash_images
>>> def run(wal):
...     for amount in (b"+10", b"-3"):
...         _ = wal.append(amount)
>>> def balance(records):
...     return sum(int(record.data) for record in records)
>>> found = set()
>>> for image in crash_images(run, size="8KiB"):
...     with image.open() as wal:
...         assert len(wal) >= len(image.acknowledged)
...         found.add(balance(wal))
>>> sorted(found)
[0, 7, 10]

The other modules are what ``tools/crashsim.py`` is made of: operations, a model of what a log may hold, oracles, and mutants that
they must notice. What the models of the media can show and what not stands at the head of ``pmwal.testing.media``.
"""

from pmwal.testing.crashes import CrashImage, crash_images
from pmwal.testing.crashlog import CrashLog, Piece
from pmwal.testing.images import Image
from pmwal.testing.media import UNITS, Medium
from pmwal.testing.oracles import ORACLES, Violation
from pmwal.testing.recorder import Crash, Event, Recorder

__all__ = [
    "ORACLES",
    "UNITS",
    "Crash",
    "CrashImage",
    "CrashLog",
    "Event",
    "Image",
    "Medium",
    "Piece",
    "Recorder",
    "Violation",
    "crash_images",
]
