"""pmwal: a write-ahead log on persistent memory, disk or tmpfs.

>>> import pmwal
>>> with pmwal.open(path, size="1MiB") as wal:      # creates, or recovers what is there
...     seq = wal.append(b"payload")                # durable on return
>>> with pmwal.open(path, "r") as reader:
...     [record.data for record in reader]
[b'payload']
"""

from pmwal import events
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
from pmwal.opening import open, verify
from pmwal.reading.reader import Reader
from pmwal.records import Record, RecoveryReport, WalStats
from pmwal.writing.batch import Batch, Reservation
from pmwal.writing.wal import Wal

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CorruptWal",
    "ForkedWal",
    "FormatError",
    "LogHandler",
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
    "events",
    "open",
    "verify",
]
