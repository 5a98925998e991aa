"""The steps of the writer in the guest, generated from a seed, and the states of the log that a crash may leave after each.

Writer and judge generate the same steps from the same seed, so an acknowledgement is just the number of a life and of a step. A
life is one log: step 0 creates it, the last step closes it, and the next life begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import NamedTuple

RING_SIZES = (64 << 10, 256 << 10, 1 << 20)
ORDERINGS = ("auto", "strict", "pipelined")
ENGINES = ("native", "native", "python")
STEPS_MIN, STEPS_MAX = 50, 400
_ITEM_MAX = 6000
_RECORD_COST = 48 + 64  # header and padding at most
_CALLS = ("append",) * 10 + ("extend",) * 3 + ("store",) * 3 + ("batch", "reserve", "commit", "truncate", "rollback")


class Step(NamedTuple):
    """One call on the log. ``bound`` is the argument of truncate and rollback, a record that they keep."""

    call: str
    items: tuple[bytes, ...] = ()
    bound: int = 0


class Life(NamedTuple):
    """One log from its creation to its close."""

    name: str
    size: int
    ordering: str
    engine: str
    steps: list[Step]  # the first is "create", the last "close"


class State(NamedTuple):
    """The contents of a log: its first sequence number, and the digests of all payloads."""

    first_seq: int
    digests: tuple[str, ...]

    @property
    def next_seq(self) -> int:
        """The number after the last."""
        return self.first_seq + len(self.digests)

    def since(self, seq: int) -> State:
        """The state without records below this number."""
        return State(max(seq, self.first_seq), self.digests[max(0, seq - self.first_seq) :])


EMPTY = State(1, ())


def digest(data: bytes) -> str:
    """A hash of a payload."""
    return blake2b(data, digest_size=8).hexdigest()


def log_name(number: int) -> str:
    """The file name of a life's log."""
    return f"{number}.wal"


def life(seed: int, number: int) -> Life:
    """The life with this number."""
    rng = random.Random(f"{seed}/{number}")
    size = rng.choice(RING_SIZES)
    ordering, engine = rng.choice(ORDERINGS), rng.choice(ENGINES)
    steps = [Step("create"), *_steps(rng, size, rng.randrange(STEPS_MIN, STEPS_MAX)), Step("close")]
    return Life(log_name(number), size, ordering, engine, steps)


def _steps(rng: random.Random, size: int, count: int) -> Iterator[Step]:
    """Calls that never use more than half of the ring, so that a gap at its end never fills it."""
    first_seq, sizes = 1, list[int]()
    room = size // 2 - (_ITEM_MAX + _RECORD_COST)
    for _ in range(count):
        call = rng.choice(_CALLS)
        items: tuple[bytes, ...] = ()
        if call in ("append", "store", "reserve", "extend", "batch"):
            several = rng.randrange(2, 8) if call in ("extend", "batch") else 1
            items = tuple(rng.randbytes(_item_size(rng, room // several)) for _ in range(several))
            if sum(sizes) + sum(map(_cost, items)) > room:
                call, items = "truncate", ()
        if call == "truncate":
            bound = rng.randrange(first_seq + len(sizes) // 2, first_seq + len(sizes) + 1)
            yield Step("truncate", bound=bound)
            del sizes[: bound - first_seq]
            first_seq = bound
        elif call == "rollback":
            bound = first_seq + len(sizes) - 1 - rng.randrange(0, min(4, len(sizes) + 1))
            yield Step("rollback", bound=bound)
            del sizes[bound + 1 - first_seq :]
        else:
            yield Step(call, items)
            sizes += map(_cost, items)


def _item_size(rng: random.Random, most: int) -> int:
    kind = rng.random()
    size = rng.randrange(0, 200) if kind < 0.7 else rng.randrange(200, 2000) if kind < 0.95 else rng.randrange(2000, _ITEM_MAX)
    return min(size, most - _RECORD_COST)


def _cost(item: bytes) -> int:
    return len(item) + _RECORD_COST


def follow(state: State, step: Step) -> State:
    """The state after a step."""
    if step.call == "truncate":
        return state.since(step.bound)
    if step.call == "rollback":
        return State(state.first_seq, state.digests[: step.bound + 1 - state.first_seq])
    return State(state.first_seq, state.digests + tuple(map(digest, step.items)))


def durable_after(step: Step) -> bool:
    """Whether this step and all before it are durable when it returns."""
    return step.call != "store"


def between(old: State, new: State) -> set[State]:
    """The states that a crash during one step may leave: the old or the new bound at either end."""
    return {state.since(first_seq) for state in (old, new) for first_seq in (old.first_seq, new.first_seq)}


def final(of: Life) -> State:
    """The state at the close of a life."""
    return [*accumulate(of.steps, follow, initial=EMPTY)][-1]


def allowed(of: Life, done: int) -> set[State]:
    """The states that a crash may leave if this step is the last acknowledged one."""
    states = [*accumulate(of.steps[: done + 2], follow, initial=EMPTY)][1:]
    durable = max(number for number in range(done + 1) if durable_after(of.steps[number]))
    return {states[durable]}.union(*(between(old, new) for old, new in pairwise(states[durable:])))
