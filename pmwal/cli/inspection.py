"""The verdict on a log and its writer, without opening it: nothing here writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmwal.cli.terminal import say
from pmwal.cli.wording import torn_in_words
from pmwal.format.scan import scan_for
from pmwal.opening.files import inspect, map_for_reading
from pmwal.records import Progress
from pmwal.recovery.judge import Judgement
from pmwal.storage.live_page import LiveWriter
from pmwal.storage.liveness import living_writer
from pmwal.storage.seam import SYSTEM

if TYPE_CHECKING:
    from pmwal.reading.reader import Reader
    from pmwal.recovery.rebuild import Rebuilt


def judge_log(path: str, progress: Progress | None = None) -> tuple[Judgement, LiveWriter | None]:
    """The verdict on a log, and its writer if one is running."""
    with inspect(path, SYSTEM, progress) as (mapping, judgement):
        return judgement, living_writer(mapping, SYSTEM)


def judge_for_salvage(path: str) -> tuple[Judgement, Rebuilt | None]:
    """The verdict on a log, read around what cannot be read; and of a corrupt one, what is whole."""
    with inspect(path, SYSTEM, around=True) as (mapping, judgement):
        if judgement.row.outcome != "corrupt":
            return judgement, None
        from pmwal.recovery.rebuild import rebuild  # noqa: PLC0415 - loads numpy, which only damage needs

        return judgement, rebuild(mapping.load, judgement, scan_for(judgement.identity.block))


def running_writer(path: str) -> LiveWriter | None:
    """The log's writer, if one is running."""
    mapping, _ = map_for_reading(path, "auto", SYSTEM)
    try:
        return living_writer(mapping, SYSTEM)
    finally:
        mapping.close()


def mention_torn_end(path: str, reader: Reader) -> None:
    """Report what a crash left unfinished at the end."""
    if running_writer(path) is None:  # a running writer's last record is unfinished, not torn
        for phrase in torn_in_words(reader.recovery):
            say(f"{path}: {phrase}")


def uuid_of(path: str) -> bytes:
    """The log's uuid."""
    mapping, identity = map_for_reading(path, "auto", SYSTEM)
    mapping.close()
    return identity.block.uuid


def end_offset(judgement: Judgement) -> int:
    """The file offset where the kept records end."""
    block = judgement.identity.block
    return block.ring_offset + judgement.end.position % block.capacity
