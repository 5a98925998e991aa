"""pmwal: a write-ahead log on persistent memory, disk or tmpfs.

>>> import pmwal
>>> with pmwal.open(path, size="1MiB") as wal:      # creates, or recovers what is there
...     seq = wal.append(b"payload")                # durable on return
>>> with pmwal.open(path, "r") as reader:
...     [record.data for record in reader]
[b'payload']
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

__all__ = [
    "Batch",
    "Consumer",
    "ConsumerHeld",
    "CopyReport",
    "CorruptWal",
    "ForkedWal",
    "FormatError",
    "Frame",
    "Lag",
    "LogHandler",
    "LogSet",
    "Overrun",
    "PersistError",
    "PmwalError",
    "PositionError",
    "Reader",
    "Record",
    "RecordTooLarge",
    "RecoveryReport",
    "ReentrantCall",
    "Reservation",
    "SetConsumer",
    "ShipError",
    "ShortenedWal",
    "StaleStore",
    "Store",
    "UnlinkedWarning",
    "UnsupportedMedium",
    "Wal",
    "WalClosed",
    "WalFull",
    "WalLocked",
    "WalStats",
    "WalUnlinked",
    "__version__",
    "copy",
    "events",
    "open",
    "resize",
    "verify",
]

if TYPE_CHECKING:
    from pmwal import errors as errors
    from pmwal import events as events
    from pmwal import latency as latency
    from pmwal import records as records
    from pmwal.errors import (
        ConsumerHeld,
        CorruptWal,
        ForkedWal,
        FormatError,
        Overrun,
        PersistError,
        PmwalError,
        PositionError,
        RecordTooLarge,
        ReentrantCall,
        ShipError,
        ShortenedWal,
        StaleStore,
        UnlinkedWarning,
        UnsupportedMedium,
        WalClosed,
        WalFull,
        WalLocked,
        WalUnlinked,
    )
    from pmwal.logs.handler import LogHandler
    from pmwal.logs.log_set import LogSet
    from pmwal.logs.set_consumer import SetConsumer
    from pmwal.opening import open, verify
    from pmwal.opening.copying import copy, resize
    from pmwal.reading.consumer import Consumer
    from pmwal.reading.reader import Reader
    from pmwal.records import CopyReport, Frame, Lag, Record, RecoveryReport, WalStats
    from pmwal.store.base import Store
    from pmwal.writing.batch import Batch, Reservation
    from pmwal.writing.wal import Wal
else:
    # Each name is imported when it is first used, so that a program pays for what it uses. A test compares these with the imports
    # above.
    _SUBMODULES = ("errors", "events", "latency", "records")
    _HOMES = {
        "errors": (
            *("ConsumerHeld", "CorruptWal", "ForkedWal", "FormatError", "Overrun", "PersistError", "PmwalError", "PositionError"),
            *("RecordTooLarge", "ReentrantCall", "ShipError", "ShortenedWal", "StaleStore", "UnlinkedWarning", "UnsupportedMedium"),
            *("WalClosed", "WalFull", "WalLocked"),
            "WalUnlinked",
        ),
        "logs.handler": ("LogHandler",),
        "logs.log_set": ("LogSet",),
        "logs.set_consumer": ("SetConsumer",),
        "opening": ("open", "verify"),
        "opening.copying": ("copy", "resize"),
        "reading.consumer": ("Consumer",),
        "reading.reader": ("Reader",),
        "records": ("CopyReport", "Frame", "Lag", "Record", "RecoveryReport", "WalStats"),
        "store.base": ("Store",),
        "writing.batch": ("Batch", "Reservation"),
        "writing.wal": ("Wal",),
    }

    def __getattr__(name):
        from importlib import import_module  # noqa: PLC0415

        home = name if name in _SUBMODULES else next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'pmwal' has no attribute {name!r}")
        try:
            module = import_module(f"pmwal.{home}")
        except (ImportError, AttributeError):
            from pmwal.storage.platform import check_platform  # noqa: PLC0415

            check_platform()  # elsewhere than on Linux, modules of the standard library and names in them are missing
            raise
        globals()[name] = value = module if name in _SUBMODULES else getattr(module, name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__, *_SUBMODULES})
