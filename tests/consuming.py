"""Named consumers of a log, for tests."""

from __future__ import annotations

from pathlib import Path

import pmwal


def consume(path: Path, count: int | None = None, name: str = "nats", start: int | str = "oldest") -> list[bytes]:
    """What a consumer of this name gets now; of that it acknowledges so many."""
    with pmwal.open(path, "r") as reader, reader.consumer(name, start) as consumer:
        records = list(consumer.follow(timeout=0))
        if records:
            consumer.ack(records[-1 if count is None else count - 1].seq)
        return [record.data for record in records]


def position_file(path: Path, name: str = "nats") -> Path:
    return Path(f"{path}.consumers", name)
