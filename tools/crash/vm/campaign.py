"""Power cuts, one after another: a writer's machine, a copy of its image at a random moment, and an examiner's machine.

One machine is booted, and its state is saved before anything was written. Writers start from that state, each with a fresh device,
or boot if the state of the device cannot be saved. The examiner is the booted machine itself, which never had a writer's memory.
Its device is unmounted between two examinations, so that its guest caches nothing of it and the host may replace the image.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crash.vm.image import copy_image, make_image
from crash.vm.judge import Ack, violations
from crash.vm.kernel import Kernel
from crash.vm.machine import DEVICES, Machine

LIVES_APART = 100_000  # more than one writer can begin
IMAGE, FACTS = "cut.img", "cut.json"  # files of a kept device
PAUSE_MAX = 0.3  # seconds of writing before a cut, at most


class Cut(NamedTuple):
    """The first life of the writer, and the last step that it acknowledged."""

    first_life: int
    ack: Ack | None

    def __str__(self) -> str:
        """For the report."""
        return "nothing was acknowledged" if self.ack is None else "life {}, step {} was acknowledged last".format(*self.ack)


@dataclass(frozen=True)
class Settings:
    """The machines and the seed of a run."""

    kernel: Kernel
    initramfs: Path
    device: str
    filesystem: str
    seed: int


class Kept(NamedTuple):
    """What is kept of a violation: the device as the cut left it, and what is needed to judge it."""

    device: str
    filesystem: str
    seed: int
    cut: Cut

    def save(self, directory: Path, image: Path) -> None:
        """Save to a new directory; ``FileExistsError`` if it exists."""
        directory.mkdir(parents=True)
        copy_image(image, directory / IMAGE)
        (directory / FACTS).write_text(json.dumps({**self._asdict(), "cut": self.cut._asdict()}, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Kept:
        """Load from such a directory; ``OSError`` if it cannot be read."""
        facts = json.loads((directory / FACTS).read_text())
        ack = facts["cut"]["ack"]
        cut = Cut(facts["cut"]["first_life"], None if ack is None else tuple(ack))
        return cls(facts["device"], facts["filesystem"], facts["seed"], cut)


@dataclass
class Outcome:
    """The figures of a run, and its violations."""

    start_seconds: list[float] = field(default_factory=list)  # of each writer's machine
    cut_seconds: list[float] = field(default_factory=list)
    cuts: int = 0
    kills: int = 0
    logs: int = 0
    records: int = 0
    cases: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    violated: Cut | None = None


@contextmanager
def boot(settings: Settings, work: Path, say: Callable[[str], None]) -> Iterator[Rig]:
    """A rig whose examiner has booted; its files are in ``work``, preferably on tmpfs."""
    fresh = work / "fresh.img"
    make_image(fresh, settings.filesystem, nvdimm=settings.device == "nvdimm")
    with start(settings, work / "examiner", fresh, None) as examiner:
        rig = Rig(settings, work, examiner, fresh, say)
        if rig.state is not None:
            examiner.save(rig.state)
        yield rig


@contextmanager
def start(settings: Settings, directory: Path, fresh: Path, state: Path | None) -> Iterator[Machine]:
    """A machine with a device of its own, which is removed with it."""
    image = directory.with_suffix(".img")
    copy_image(fresh, image)
    machine = Machine(directory, settings.kernel, settings.initramfs, settings.device, image, settings.filesystem, state)
    try:
        machine.wait()
        yield machine
    finally:
        machine.kill()
        image.unlink()


class Rig:
    """An examiner, and one writer after another."""

    def __init__(self, settings: Settings, work: Path, examiner: Machine, fresh: Path, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.state = work / "state" if DEVICES[settings.device].saves else None
        self.boot_seconds = examiner.seconds
        self.cut_image = work / IMAGE
        self.found = examiner.ask("look")
        self._work = work
        self._examiner = examiner
        self._fresh = fresh
        self._say = say
        self._writers = 0

    def misjudged(self) -> list[str]:
        """What pmwal detects wrongly about the device."""
        device = DEVICES[self.settings.device]
        expected = {
            "map_sync": device.map_sync,
            "opens_as_dax": device.map_sync,
            "medium": device.medium,
            "flush": device.flush,
            "durability": "power",
            "filesystem": self.settings.filesystem,
            "engine": "native",
        }
        return [f"{name} is {self.found[name]}, not {value}" for name, value in expected.items() if self.found[name] != value]

    def run(self, cuts: int, kills: int, control: str | None) -> Outcome:
        """Make all cuts, with a deliberate mistake if one is named, until the first violation."""
        outcome, started = Outcome(), time.monotonic()
        for cut in self._images(cuts, kills, control, outcome):
            if not self._examine(cut, outcome):
                break
        outcome.seconds = time.monotonic() - started
        return outcome

    def _images(self, cuts: int, kills: int, control: str | None, outcome: Outcome) -> Iterator[Cut]:
        """Make cuts; after each, the examiner's device is what the cut left."""
        moments = random.Random(f"moments/{self.settings.seed}")
        if cuts:
            with self._writer(control, outcome) as (writer, first_life):
                for _ in range(cuts):
                    pause(writer, moments)
                    started = time.monotonic()
                    with writer.stopped():
                        copy_image(writer.image, self._examiner.image)
                        ack = writer.last_ack()
                    outcome.cut_seconds.append(time.monotonic() - started)
                    outcome.cuts += 1
                    yield Cut(first_life, ack)
        for _ in range(kills):
            with self._writer(control, outcome) as (writer, first_life):
                pause(writer, moments)
                writer.kill()
                copy_image(writer.image, self._examiner.image)
                outcome.kills += 1
                yield Cut(first_life, writer.last_ack())

    @contextmanager
    def _writer(self, control: str | None, outcome: Outcome) -> Iterator[tuple[Machine, int]]:
        """A machine that writes, and its first life: each writer makes other steps of the seed."""
        self._writers += 1
        first_life = self._writers * LIVES_APART
        with start(self.settings, self._work / f"writer-{self._writers}", self._fresh, self.state) as writer:
            outcome.start_seconds.append(writer.seconds)
            writer.write(seed=self.settings.seed, control=control, first_life=first_life, lives=None)
            yield writer, first_life

    def _examine(self, cut: Cut, outcome: Outcome) -> bool:
        """Whether what the cut left is allowed. ``cut_image`` keeps a copy, because the examination changes the device."""
        settings = self.settings
        copy_image(self._examiner.image, self.cut_image)
        found = self._examiner.ask("examine")["logs"]
        wrong = violations(settings.seed, cut.ack, cut.first_life, found, DEVICES[settings.device].medium)
        outcome.logs += len(found)
        outcome.records += sum(len(answer.get("digests", ())) for answer in found.values())
        outcome.cases.update(answer.get("case", "not opened") for answer in found.values())
        self._say(f"cut {outcome.cuts + outcome.kills}: {cut}; {'; '.join(map(brief, found.items()))}")
        if wrong:
            outcome.violations += wrong
            outcome.violated = cut
        return not wrong

    def replay(self, image: Path, cut: Cut) -> Outcome:
        """Judge what a cut left again."""
        outcome, started = Outcome(), time.monotonic()
        copy_image(image, self._examiner.image)
        self._examine(cut, outcome)
        outcome.seconds = time.monotonic() - started
        return outcome


def pause(writer: Machine, moments: random.Random) -> None:
    """Let the writer run for a random time."""
    writer.wait_for_ack()
    time.sleep(moments.uniform(0, PAUSE_MAX))
    writer.check_writer()


def brief(item: tuple[str, dict[str, Any]]) -> str:
    """A short text about a log."""
    name, answer = item
    return f"{name} {answer['case']}, {len(answer['digests'])} records" if "case" in answer else f"{name} not opened"
