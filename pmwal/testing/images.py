"""Images: where in a run a crash is looked at, and which combinations of unit versions are built there.

All of them while at most ``EXHAUSTIVE_MAX`` units are open and there are at most ``_PRODUCT_MAX`` combinations (six units of three
versions make 729); of few units with more versions, at least every subset of the newest ones. Beyond that: nothing and everything
kept, each unit alone lost, each alone kept, each prefix in the order of the first stores, all pairs lost, each version of each unit
with the others lost and kept, units torn, and seeded samples of it all. A close look at more units is complete up to
``_PRODUCT_MAX``, too. A look that is not close leaves out the pairs and tears few units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import combinations, product
from math import prod
from random import Random
from typing import NamedTuple

from pmwal.format.layout import LINE, LIVE_OFFSET, PAGE
from pmwal.testing.power_cut import DIGEST_MASK, WORD, PowerCutModel, Version, digest_change
from pmwal.testing.recorder import Step

EXHAUSTIVE_MAX = 6
_PRODUCT_MAX = 1024
_TORN_MAX = 2  # units torn in a look that is not close
_MIXTURES = 2  # torn states of each unit by seed

Choice = dict[int, Version]
"""The version of some open units; each of the others has its oldest one."""


class Image(NamedTuple):
    """What a crash left: the whole file, and a digest of it without the live page."""

    data: bytes
    digest: int


def digest_after(medium: PowerCutModel, choice: Choice) -> int:
    """The digest of the image that ``build`` makes of this choice."""
    return (medium.digest + sum(version.delta for version in choice.values())) & DIGEST_MASK


def build(medium: PowerCutModel, choice: Choice) -> Image:
    """The image in which these units have these versions."""
    image = bytearray(medium.held)
    for unit, version in choice.items():
        image[unit * medium.size : unit * medium.size + len(version.data)] = version.data
    return Image(bytes(image), digest_after(medium, choice))


def cached(medium: PowerCutModel) -> Image:
    """What a kill leaves."""
    return Image(bytes(medium.cache), medium.cache_digest)


def parts(length: int) -> list[int]:
    """How many bytes of a store of this length are there when a kill is looked at in it."""
    return sorted({WORD, length // 2 // WORD * WORD, (length - 1) // WORD * WORD, length} - {0})


def half_stored(medium: PowerCutModel, step: Step) -> Iterator[Image]:
    """What a kill during this store leaves: some of its words, from the front, or all. The medium has not taken it yet."""
    if LIVE_OFFSET <= step.offset < LIVE_OFFSET + PAGE:
        return
    for cut in parts(step.length):
        start, end = step.offset // LINE * LINE, -(-(step.offset + cut) // LINE) * LINE
        image = bytearray(medium.cache)
        before = bytes(image[start:end])
        image[step.offset : step.offset + cut] = step.data[:cut]
        change = digest_change(start, before, bytes(image[start:end]))
        yield Image(bytes(image), (medium.cache_digest + change) & DIGEST_MASK)


def choices(medium: PowerCutModel, random: Random, samples: int, *, closely: bool = True) -> Iterator[Choice]:
    """The versions that the open units may have after a power cut now, as the head of this module says. Some come twice."""
    units, newest = list(medium.open), medium.newest()
    yield {}
    if not units:
        return
    yield dict(newest)
    few = len(units) <= EXHAUSTIVE_MAX
    if (few or closely) and prod(len(versions) for versions in medium.open.values()) <= _PRODUCT_MAX:
        for versions in product(*medium.open.values()):
            yield dict(zip(units, versions, strict=True))
    elif few:
        for count in range(1, len(units)):
            for kept in combinations(units, count):
                yield {unit: newest[unit] for unit in kept}
    else:
        yield from _beyond(units, newest, pairs=closely)
    yield from _versions(medium, newest)
    torn = units if closely else random.sample(units, min(len(units), _TORN_MAX))
    yield from _torn(medium, newest, torn, random)
    for _ in range(samples):
        yield sampled(medium, random)


def _beyond(units: list[int], newest: Choice, *, pairs: bool) -> Iterator[Choice]:
    for count, unit in enumerate(units):
        yield {unit: newest[unit]}
        yield {kept: version for kept, version in newest.items() if kept != unit}
        yield {kept: newest[kept] for kept in units[:count]}
    for pair in combinations(units, 2) if pairs else ():
        yield {kept: version for kept, version in newest.items() if kept not in pair}


def _versions(medium: PowerCutModel, newest: Choice) -> Iterator[Choice]:
    """Each version of each unit that is neither its oldest nor its newest."""
    for unit, versions in medium.open.items():
        for version in versions[1:-1]:
            yield {unit: version}
            yield {**newest, unit: version}


def _torn(medium: PowerCutModel, newest: Choice, units: list[int], random: Random) -> Iterator[Choice]:
    """Each of these units torn, the others lost and kept."""
    few = len(medium.open) <= EXHAUSTIVE_MAX
    for unit in units:
        if len(medium.open[unit]) < 2:
            continue
        torn = list(medium.prefixes(unit))
        if not few and len(torn) > _MIXTURES:
            torn = random.sample(torn, _MIXTURES)
        torn += [medium.mixture(unit, random) for _ in range(_MIXTURES)]
        if not medium.by_lines:  # else it is one of the prefixes
            torn.append(medium.interrupted(unit, random))
        for version in torn:
            yield {unit: version}
            yield {**newest, unit: version}


def sampled(medium: PowerCutModel, random: Random, *, torn: float = 0.1) -> Choice:
    """Any version of each unit; with this probability a torn one."""
    choice: Choice = {}
    for unit, versions in medium.open.items():
        if random.random() < torn and len(versions) > 1:
            choice[unit] = medium.torn(unit, random)
        else:
            choice[unit] = random.choice(versions)
    return choice


class Point(NamedTuple):
    """A place in a run where a crash is looked at: a power cut, or a kill while this store is made."""

    steps: int
    medium: PowerCutModel
    killed_in: Step | None


def points(medium: PowerCutModel, events: Sequence[Step], *, begin: int = 0, between: Set[int] = frozenset()) -> Iterator[Point]:
    """Where a crash of a run is looked at, from step ``begin`` on. The medium is as before the run, and follows it.

    Power cuts: before each step that takes a possibility away, between two calls (step numbers in ``between``), and at the end.
    A cut in between leaves nothing that a cut at the next of these points does not. Kills: in each store.
    """
    for steps, step in enumerate(events):
        if steps >= begin:
            if medium.settles(step) or steps in between:
                yield Point(steps, medium, None)
            if step.name in ("store", "stream"):
                yield Point(steps, medium, step)
        medium.take(step)
    yield Point(len(events), medium, None)
