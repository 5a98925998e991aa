"""The states that a crash may leave of a recorded program: all of them, or a share of them that a seed chooses.

A power cut is looked at before each step that takes a possibility away, before each call for a file beside the log, and at the end;
a kill in each store; both as in ``pmwal.testing.images``. Equal files with equal acknowledgements count once. Before the log has
its name, a crash leaves none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from pmwal.testing.images import Choice, build, choices, digest_after, half_stored, parts, points
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.programs.files import Files
from pmwal.testing.programs.recording import Recording


@dataclass(frozen=True)
class Crash:
    """A state that a crash leaves: the bytes of the log (None: there is no log), the files beside it, and the steps before it.

    ``kind``: "cut" or "kill". ``stored``: after a kill, how many bytes of the store under way are there.
    """

    kind: str
    step: int
    data: bytes | None
    files: Files
    stored: int = 0


Key = tuple[int, int, tuple[tuple[str, bytes], ...]]
"""What tells states apart: the digest of the log, the number of acknowledgements, the files."""


def crashes(recording: Recording, samples: int, seed: int) -> Iterator[tuple[Key, Callable[[], Crash]]]:
    """A key of each state, and a function that builds it, to be called before the next one is taken.

    States with equal keys are equal.
    """
    random = Random(seed)
    if not recording.existed:
        for files in recording.beside[0].alternatives():
            yield (-1, 0, tuple(files.items())), partial(Crash, "cut", -1, None, files)
    model = PowerCutModel(recording.medium, recording.base)
    calls = {step for step, each in enumerate(recording.steps) if each.name == "file"}
    for step, medium, killed_in in points(model, recording.steps, between=calls):
        done, beside = recording.counts[step], recording.beside[step]
        if killed_in is None:
            alternatives = [(tuple(files.items()), files) for files in beside.alternatives()]
            for choice in choices(medium, random, samples):
                for items, files in alternatives:
                    yield (digest_after(medium, choice), done, items), partial(_cut, step, medium, choice, files)
            continue
        files = beside.now()
        for stored, image in zip(parts(killed_in.length), half_stored(medium, killed_in), strict=True):
            yield (image.digest, done, tuple(files.items())), partial(Crash, "kill", step, image.data, files, stored)


def _cut(step: int, medium: PowerCutModel, choice: Choice, files: Files) -> Crash:
    return Crash("cut", step, build(medium, choice).data, files)


def count(recording: Recording, samples: int, seed: int) -> int:
    """How many states there are."""
    return len({key for key, _ in crashes(recording, samples, seed)})


def chosen(recording: Recording, samples: int, seed: int, total: int, limit: int) -> Iterator[Crash]:
    """The states in the order of their steps; if there are more than ``limit`` (0: no limit), that many of them, chosen by seed."""
    places = set(Random(seed).sample(range(total), limit)) if 0 < limit < total else None
    seen = set[Key]()
    for key, make in crashes(recording, samples, seed):
        if key not in seen:
            seen.add(key)
            if places is None or len(seen) - 1 in places:
                yield make()
