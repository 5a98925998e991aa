"""Programs that tests of shipping start and kill.

python shipping_programs.py write LOG COUNT                append records with known payloads, slowly enough to be overtaken
python shipping_programs.py ship LOG COUNT FORM URL...     ship until the stream has that many

The last records are appended once there is a file LOG.go, so that there is something to do until whoever kills has done so.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import cast

import pmwal
from pmwal.ship import Shipper
from pmwal.ship.forms import Form
from shipping import FAST, payload

_HELD_BACK = 500


def write(path: str, count: int) -> None:
    """Append up to record ``count``; continue where an earlier writer was killed."""
    with pmwal.open(path, size="2MiB", commit="manual", on_full="consumed", consumers=["nats"]) as wal:
        while wal.next_seq <= count:
            if wal.next_seq > count - _HELD_BACK and not os.path.exists(f"{path}.go"):
                time.sleep(0.01)
                continue
            for _ in range(min(40, count + 1 - wal.next_seq)):
                wal.append(payload(wal.next_seq), kind=wal.next_seq % 7)
            wal.commit()
            wal.truncate(consumed=True)
            time.sleep(0.002)


async def ship(path: str, count: int, form: Form, servers: list[str]) -> None:
    """Ship until the stream has acknowledged record ``count``."""
    async with Shipper(path, to=servers, stream="LOGS", hold=0.5, form=form, **FAST) as shipper:
        await shipper.acked(count)


if __name__ == "__main__":
    what, log, number, *more = sys.argv[1:]
    if what == "write":
        write(log, int(number))
    else:
        form, *urls = more
        asyncio.run(ship(log, int(number), cast(Form, form), urls))
