"""Creation under crashes: under the name there is no file or a whole empty log, and none is lost once it was opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from pmwal.opening import open_log
from pmwal.testing._simulator.model import Expectation
from pmwal.testing._simulator.oracles import Examiner, check, documented_errors
from pmwal.testing._simulator.session import Setting
from pmwal.testing.images import build, choices
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.recorder import Recorder, Step
from pmwal.testing.violation import Violation


def explore_creation(directory: Path, setting: Setting, recorder: Recorder | None = None) -> int:
    """Create a log and look at what every crash leaves; how many images there were. ``Violation`` of oracle "creation"."""
    path = directory / "created.wal"
    recorder = Recorder() if recorder is None else recorder
    wal = open_log(path, "x", size=setting.size, align=setting.align, medium=setting.mapped, seam=recorder)
    size = path.stat().st_size
    wal.close()
    path.unlink()
    examiner, images, is_durable = Examiner(), 0, False
    empty = Expectation(frozenset([()]), (), 1, 1)
    for medium, is_named, is_name_durable in _points(recorder.events, PowerCutModel(setting.medium, bytes(size))):
        is_durable = is_name_durable
        for choice in choices(medium, Random(0), 4) if is_named else ():
            images += 1
            try:
                with documented_errors():
                    check(examiner.examine(build(medium, choice).data), empty)
            except Violation as violation:
                raise violation.renamed("creation") from violation
    if not is_durable:
        raise Violation("creation", "the open returned, and a power cut may still take the file's name")
    return images


def _points(events: list[Step], medium: PowerCutModel) -> Iterator[tuple[PowerCutModel, bool, bool]]:
    named = durable = False
    for step in events:
        if medium.settles(step):
            yield medium, named, durable
        medium.take(step)
        durable |= named and step.name == "sync"
        named |= step.name in ("link", "rename")
    yield medium, named, durable
