"""The states that a crash may leave of a recorded program: all of them, or a share of them that a seed chooses.

A power cut is looked at before each step that takes a possibility away, and at the end; a kill in each store; both as in
``pmwal.testing.images``. Equal files with equal acknowledgements count once. Before the log has its name, a crash leaves none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from pmwal.testing.images import Choice, build, choices, digest_after, half_stored, parts, points
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.programs.recording import Recording


@dataclass(frozen=True)
class Crash:
    """A state that a crash leaves: the bytes of the log (None: there is no log), and the number of steps before it.

    ``kind``: "cut" or "kill". ``stored``: after a kill, how many bytes of the store under way are there.
    """

    kind: str
    step: int
    data: bytes | None
    stored: int = 0


def crashes(recording: Recording, samples: int, seed: int) -> Iterator[tuple[tuple[int, int], Callable[[], Crash]]]:
    """A key of each state, and a function that builds it, to be called before the next one is taken.

    States with equal keys are equal.
    """
    random = Random(seed)
    if not recording.existed:
        yield (-1, 0), partial(Crash, "kill", -1, None)
    for step, medium, killed_in in points(PowerCutModel(recording.medium, recording.base), recording.steps):
        done = recording.counts[step]
        if killed_in is None:
            for choice in choices(medium, random, samples):
                yield (digest_after(medium, choice), done), partial(_cut, step, medium, choice)
            continue
        for stored, image in zip(parts(killed_in.length), half_stored(medium, killed_in), strict=True):
            yield (image.digest, done), partial(Crash, "kill", step, image.data, stored)


def _cut(step: int, medium: PowerCutModel, choice: Choice) -> Crash:
    return Crash("cut", step, build(medium, choice).data)


def count(recording: Recording, samples: int, seed: int) -> int:
    """How many states there are."""
    return len({key for key, _ in crashes(recording, samples, seed)})


def chosen(recording: Recording, samples: int, seed: int, total: int, limit: int) -> Iterator[Crash]:
    """The states in the order of their steps; if there are more than ``limit`` (0: no limit), so many of them by seed."""
    places = set(Random(seed).sample(range(total), limit)) if 0 < limit < total else None
    seen = set[tuple[int, int]]()
    for key, make in crashes(recording, samples, seed):
        if key not in seen:
            seen.add(key)
            if places is None or len(seen) - 1 in places:
                yield make()
