"""What the writer in the guest does, by a seed, and which states of the log a crash may leave after each of its steps.

Writer and judge compute the same steps from the same seed, so an acknowledgement is no more than the number of a life and of a
step. A life is one log: step 0 creates it, the last step closes it, and then the next life begins.
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
_RECORD_COST = 48 + 64  # header and padding, at most
_CALLS = ("append",) * 10 + ("extend",) * 3 + ("store",) * 3 + ("batch", "reserve", "commit", "truncate", "rollback")


class Step(NamedTuple):
    """One call on the log. ``bound`` is the number that truncate and rollback keep."""

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
    """The records of a log: the number of the first, and digests of all."""

    first_seq: int
    digests: tuple[str, ...]

    @property
    def next_seq(self) -> int:
        """The number that follows the last."""
        return self.first_seq + len(self.digests)

    def since(self, seq: int) -> State:
        """Without the records below this number."""
        return State(max(seq, self.first_seq), self.digests[max(0, seq - self.first_seq) :])


EMPTY = State(1, ())


def digest(data: bytes) -> str:
    """What stands for a payload."""
    return blake2b(data, digest_size=8).hexdigest()


def log_name(number: int) -> str:
    """The file of a life."""
    return f"{number}.wal"


def life(seed: int, number: int) -> Life:
    """The life with this number."""
    rng = random.Random(f"{seed}/{number}")
    size = rng.choice(RING_SIZES)
    ordering, engine = rng.choice(ORDERINGS), rng.choice(ENGINES)
    steps = [Step("create"), *_steps(rng, size, rng.randrange(STEPS_MIN, STEPS_MAX)), Step("close")]
    return Life(log_name(number), size, ordering, engine, steps)


def _steps(rng: random.Random, size: int, count: int) -> Iterator[Step]:
    """Calls that never need more than half of the ring, so that a gap at its end never makes it full."""
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
    """Whether everything before it and of it is durable when this step returns."""
    return step.call != "store"


def between(old: State, new: State) -> set[State]:
    """What a crash inside one step may leave: the old or the new bound at either end, nothing else."""
    return {state.since(first_seq) for state in (old, new) for first_seq in (old.first_seq, new.first_seq)}


def final(of: Life) -> State:
    """The state in which a life was closed."""
    return [*accumulate(of.steps, follow, initial=EMPTY)][-1]


def allowed(of: Life, done: int) -> set[State]:
    """The states that a crash may leave when this step is the last one that was acknowledged."""
    states = [*accumulate(of.steps[: done + 2], follow, initial=EMPTY)][1:]
    durable = max(number for number in range(done + 1) if durable_after(of.steps[number]))
    return {states[durable]}.union(*(between(old, new) for old, new in pairwise(states[durable:])))
