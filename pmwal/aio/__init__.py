"""Logs and named consumers in an event loop.

>>> import asyncio, pmwal.aio
>>> async def main():
...     async with pmwal.aio.open(path, size="64KiB") as wal:
...         return await wal.append(b"durable on return")
>>> asyncio.run(main())
1
"""

from pmwal.aio.consumers import AsyncConsumer, consumer
from pmwal.aio.log import AsyncWal, Opening, open

__all__ = ["AsyncConsumer", "AsyncWal", "Opening", "consumer", "open"]
