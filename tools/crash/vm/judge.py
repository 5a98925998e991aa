"""The logs that a power cut may leave, and whether those that were found are among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crash.vm.guest.workload import EMPTY, State, allowed, final, life, log_name

Ack = tuple[int, int]  # the number of a life, and of a step
CASES = ("R1", "R2", "R3", "R7")  # the rows of docs/recovery.md to which a crash can lead


def expected(seed: int, ack: Ack | None, first_life: int) -> dict[str, tuple[set[State], bool]]:
    """For each log that may exist: the allowed states, and whether it must exist."""
    if ack is None:
        return {log_name(first_life): ({EMPTY}, False)}
    number, done = ack
    this = life(seed, number)
    logs = {this.name: (allowed(this, done), True)}
    if number > first_life:  # removed after this life's creation, but removals are not synced
        logs[log_name(number - 1)] = ({final(life(seed, number - 1))}, False)
    if done == len(this.steps) - 1:
        logs[log_name(number + 1)] = ({EMPTY}, False)
    return logs


def violations(seed: int, ack: Ack | None, first_life: int, found: Mapping[str, dict[str, Any]], medium: str) -> list[str]:
    """The violations in what the examiner found."""
    logs = expected(seed, ack, first_life)
    lost = [name for name, (_, must) in logs.items() if must and name not in found]
    wrong = [f"{name}: its creation was acknowledged, but it is missing" for name in lost]
    for name, answer in found.items():
        if name not in logs:
            wrong.append(f"{name}: removed long ago, but it is back")
        elif "error" in answer:
            wrong.append(f"{name}: {answer['error']}")
        else:
            wrong += [f"{name}: {problem}" for problem in _problems(answer, logs[name][0], medium)]
    return wrong


def _problems(answer: dict[str, Any], states: set[State], medium: str) -> list[str]:
    wrong = []
    state = State(answer["first_seq"], tuple(answer["digests"]))
    if answer["numbers"] != [*range(state.first_seq, state.next_seq)]:
        wrong.append(f"the sequence numbers are not consecutive: {answer['numbers']}")
    if state not in states:
        wrong.append(f"records {bounds(state)} are not an allowed state: {difference(state, states)}")
    if answer["case"] not in CASES:
        wrong.append(f"case {answer['case']} is not one that a crash can cause")
    if answer["case"] != answer["verified_case"]:
        wrong.append(f"verify says {answer['verified_case']}, but recovery {answer['case']}")
    if not answer["takes_more"]:
        wrong.append("after recovery, three more appends and a close, not all records are there")
    if answer["medium"] != medium:
        wrong.append(f"the medium is {answer['medium']}, not {medium}")
    return wrong


def bounds(state: State) -> str:
    """The first and the last sequence number."""
    return f"{state.first_seq} to {state.next_seq - 1}"


def difference(state: State, states: set[State]) -> str:
    """How a state differs from the allowed ones."""
    for one in states:
        if bounds(one) == bounds(state):
            pairs = zip(one.digests, state.digests, strict=True)
            other = next(seq for seq, (want, got) in enumerate(pairs, one.first_seq) if want != got)
            return f"the payload of record {other} is wrong"
    least = min(one.next_seq for one in states)
    if state.next_seq < least:
        return f"{least - state.next_seq} acknowledged records are missing, from {state.next_seq} on"
    return f"allowed are {' or '.join(sorted(map(bounds, states)))}"
