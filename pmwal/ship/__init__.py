"""Ships logs to a stream of NATS JetStream, each record once, and restores them from it. Needs the extra ``pmwal[nats]``.

A log is a chain of messages on a subject of its own, ``PREFIX.UUID``; docs/shipping-format.md has their form.

>>> async def ship(path):
...     async with Shipper(path, to="nats://127.0.0.1:4222", stream="LOGS") as shipper:
...         await shipper.acked(1)
"""

from pmwal.ship.checks import Problem, check
from pmwal.ship.folding import Folding, Gap, Rollback, records
from pmwal.ship.link import Options
from pmwal.ship.relay import Progress
from pmwal.ship.restoring import RestoreReport, restore
from pmwal.ship.sets import SetShipper
from pmwal.ship.shipper import Shipper

__all__ = [
    "Folding",
    "Gap",
    "Options",
    "Problem",
    "Progress",
    "RestoreReport",
    "Rollback",
    "SetShipper",
    "Shipper",
    "check",
    "records",
    "restore",
]
