"""pmwal: a write-ahead log on persistent memory, disk or tmpfs.

>>> import pmwal
>>> with pmwal.open(path, size="1MiB") as wal:      # creates, or recovers what is there
...     seq = wal.append(b"payload")                # durable on return
>>> with pmwal.open(path, "r") as reader:
...     [record.data for record in reader]
[b'payload']
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CopyReport",
    "CorruptWal",
    "ForkedWal",
    "FormatError",
    "LogHandler",
    "LogSet",
    "Overrun",
    "PersistError",
    "PmwalError",
    "Reader",
    "Record",
    "RecordTooLarge",
    "RecoveryReport",
    "ReentrantCall",
    "Reservation",
    "ShortenedWal",
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
        CorruptWal,
        ForkedWal,
        FormatError,
        Overrun,
        PersistError,
        PmwalError,
        RecordTooLarge,
        ReentrantCall,
        ShortenedWal,
        UnlinkedWarning,
        UnsupportedMedium,
        WalClosed,
        WalFull,
        WalLocked,
        WalUnlinked,
    )
    from pmwal.logs.handler import LogHandler
    from pmwal.logs.log_set import LogSet
    from pmwal.opening import open, verify
    from pmwal.opening.copying import CopyReport, copy, resize
    from pmwal.reading.reader import Reader
    from pmwal.records import Record, RecoveryReport, WalStats
    from pmwal.writing.batch import Batch, Reservation
    from pmwal.writing.wal import Wal
else:
    # Each name is imported when it is first used, so that a program pays for what it uses. A test compares these with the imports
    # above.
    _SUBMODULES = ("errors", "events", "latency", "records")
    _HOMES = {
        "errors": (
            *("CorruptWal", "ForkedWal", "FormatError", "Overrun", "PersistError", "PmwalError", "RecordTooLarge", "ReentrantCall"),
            *("ShortenedWal", "UnlinkedWarning", "UnsupportedMedium", "WalClosed", "WalFull", "WalLocked", "WalUnlinked"),
        ),
        "logs.handler": ("LogHandler",),
        "logs.log_set": ("LogSet",),
        "opening": ("open", "verify"),
        "opening.copying": ("CopyReport", "copy", "resize"),
        "reading.reader": ("Reader",),
        "records": ("Record", "RecoveryReport", "WalStats"),
        "writing.batch": ("Batch", "Reservation"),
        "writing.wal": ("Wal",),
    }

    def __getattr__(name):
        from importlib import import_module  # noqa: PLC0415

        if name in _SUBMODULES:
            return import_module(f"pmwal.{name}")
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'pmwal' has no attribute {name!r}")
        try:
            value = getattr(import_module(f"pmwal.{home}"), name)
        except ImportError:
            from pmwal.storage.platform import check_platform  # noqa: PLC0415

            check_platform()  # elsewhere than on Linux modules of the standard library are missing
            raise
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, *_SUBMODULES})
