"""A process that runs during the whole run: it opens, uses, reads and closes a log of its own, over and over.

Writers that are killed live too briefly to show a leak. This process makes the same calls, and its memory, descriptors and threads
must not grow.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pmwal
from pmwal.opening.options import Ordering
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import MediumName
from pmwal.testing.process import using_engine
from pmwal.testing.stress.payloads import STEP, TICKETED, Payloads, first_ticket, life_of
from pmwal.testing.stress.violation import Violation

CAPACITY = 1 << 20
CALLS = 60  # between two opens
_ORDERINGS: tuple[Ordering, ...] = ("strict", "pipelined")
_LIFE = (1 << 24) - 1  # of the tickets: no writer gets that far
_LEAK = 4 << 20  # bytes that the control leaks with each handle


def _leak(control: str) -> None:
    """Make each close of a log's mapping leak something, like a mistake in the library."""
    kept: list[object] = []
    close = Mapping.close

    def leaking(mapping: Mapping) -> None:
        if mapping.fd >= 0:
            kept.append(os.dup(mapping.fd) if control == "leak-descriptors" else bytearray(os.urandom(4096) * (_LEAK >> 12)))
        close(mapping)

    Mapping.close = leaking  # type: ignore[method-assign, assignment]


def live_long(path: Path, medium: MediumName, engine: str, payloads: Payloads, control: str | None) -> None:
    """The body of the process."""
    if control in ("leak-descriptors", "leak-memory"):
        _leak(control)
    with using_engine(engine):
        _live_long(path, medium, payloads)


def _live_long(path: Path, medium: MediumName, payloads: Payloads) -> None:
    rng = random.Random(0)
    ticket = first_ticket(_LIFE, 0)
    kind = payloads.kind(ticket)
    while True:
        wal = pmwal.open(path, size=CAPACITY, medium=medium, ordering=rng.choice(_ORDERINGS), on_full="overwrite")
        assert isinstance(wal, pmwal.Wal)
        with wal:
            for _ in range(CALLS):
                items = []
                for _ in range(rng.randint(1, 8)):
                    ticket += STEP
                    items.append(payloads.of(ticket | rng.randint(0, 8)))
                _call(wal, rng, items, kind)
            with pmwal.open(path, "r") as reader:
                for record in reader.read(max(reader.first_seq, wal.next_seq - 100)):
                    found = payloads.genuine(record.data)
                    if record.kind != kind or (found is None and len(record.data) >= TICKETED):
                        raise Violation(f"record {record.seq} of the steady log is not what was stored", "changed-record")
                    assert found is None or life_of(found) == _LIFE
        time.sleep(0.02)


def _call(wal: pmwal.Wal, rng: random.Random, items: list[bytes], kind: int) -> None:
    """Make one random call with these payloads."""
    chosen = rng.random()
    if chosen < 0.5:
        wal.append(items[0], kind=kind)
    elif chosen < 0.7:
        wal.extend(items, kind=kind)
    elif chosen < 0.8:
        with wal.batch() as batch:
            for item in items:
                batch.append(item, kind=kind)
    elif chosen < 0.9:
        with wal.reserve(len(items[0]), kind=kind) as view:
            view[:] = items[0]
    elif chosen < 0.95:
        for item in items:
            wal.append(item, kind=kind, commit=False)
        wal.commit()
    elif chosen < 0.98:
        wal.truncate(rng.randint(wal.first_seq, wal.next_seq))
    else:
        wal.rollback(wal.next_seq - 1 - rng.randint(0, min(len(wal), 20)))
