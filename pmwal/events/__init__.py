"""A logger for hot paths: a call stores an event's number and its arguments; the text is made when the event is read.

>>> import pmwal
>>> from pmwal import events
>>> with pmwal.open(path, size="64KiB") as wal:
...     log = events.Logger(wal)
...     fill = log.event("order {id} filled {qty} @ {px:.2f}")
...     numbers = fill(17, 5, 1.25), fill(18, qty=1, px=99.5)
...     [event.text for event in events.read(wal)]
['order 17 filled 5 @ 1.25', 'order 18 filled 1 @ 99.50']

docs/events.md describes the records and the guarantees.
"""

from typing import TYPE_CHECKING

from pmwal.events.decoder import Decoder, Event, read
from pmwal.events.definition import DEFINITION_KIND, EVENT_KIND

if TYPE_CHECKING:
    from pmwal.events.logger import Logger
else:

    def __getattr__(name):
        if name != "Logger":
            raise AttributeError(f"module 'pmwal.events' has no attribute {name!r}")
        from pmwal.events.logger import Logger  # noqa: PLC0415 - with all that stores records, which readers do not need

        globals()[name] = Logger
        return Logger


__all__ = ["DEFINITION_KIND", "EVENT_KIND", "Decoder", "Event", "Logger", "read"]
