"""An account of a crash: when it came, what had been acknowledged, and which call of the program made each store in it.

Each store before the crash has one of four fates. "flushed": every crash from then on leaves it. "survived", "lost", "in part": it
was not flushed yet, and this crash left it, reverted it, or kept some of its bytes.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from pmwal.format.layout import CONTROL_OFFSET, HEADER, PAGE, SLOT, Slot, decode_header, decode_superblock
from pmwal.testing.images import Choice
from pmwal.testing.power_cut import PowerCutModel, Version
from pmwal.testing.programs.files import Beside, Files
from pmwal.testing.programs.judging import Failure, choice_of
from pmwal.testing.programs.recording import Frame, Recording
from pmwal.testing.recorder import Step

FLUSHED, SURVIVED, LOST, PARTLY = "flushed", "survived", "lost", "in part"
_RECORD, _SLOT = "record ", "commit slot: "
_SHOWN = 3  # groups of flushed stores
_VALUES = 8  # acknowledged values
_STEPS = {
    "store": "a store",
    "stream": "a store",
    "write": "a write",
    "write_back": "the write-back of lines",
    "fence": "a fence",
    "flush": "an msync",
    "sync": "an fsync",
    "acknowledged": "an acknowledgement",
}


class Store(NamedTuple):
    """One store: what it was, what became of it, and the frames of the program that led to it, the innermost first."""

    step: int
    what: str
    offset: int
    length: int
    fate: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Account:
    """What is told of a failing crash."""

    recording: Recording
    found: Failure
    least: Failure
    stores: tuple[Store, ...]

    def lines(self) -> Iterator[str]:
        """As text, the verdict last."""
        crash = self.least.crash
        yield _moment(self.recording, self.least)
        yield from shown(_under_way(self.recording, crash.step))
        yield f"acknowledged by then: {_values(self.recording.done(crash.step))}"
        yield f"check raised {self.least.message}"
        yield from shown(self.least.frames)
        yield from self._stores()
        fates = list(_fates_beside(self.recording.beside[max(crash.step, 0)], crash.files))
        if fates:
            yield "files beside the log:"
        for name, fate, length in fates:
            yield f"  {fate:<9} {name}: " + ("not there" if length is None else f"{length} bytes")
        yield self._reduction()

    def _stores(self) -> Iterator[str]:
        if not self.stores:
            yield "stores before the crash: none"
            return
        yield "stores before the crash, and what became of each:"
        groups = [
            (fate, frames, list(each)) for (fate, frames), each in groupby(self.stores, lambda store: (store.fate, store.frames))
        ]
        is_flushed = [fate == FLUSHED for fate, _, _ in groups]
        hidden = is_flushed.index(False) if False in is_flushed else len(groups)
        hidden = max(0, hidden - _SHOWN)
        if hidden:
            yield f"  {FLUSHED:<9} {sum(len(each) for _, _, each in groups[:hidden])} earlier stores"
        for fate, frames, each in groups[hidden:]:
            yield f"  {fate:<9} {_together(each)}"
            yield from shown(frames, " " * 12)

    def _reduction(self) -> str:
        least, found = self.least.crash, self.found.crash
        if least.kind == "kill":
            return "reduced: no earlier kill fails; a kill keeps everything that was stored"
        if least.data is None:
            return "reduced: there is no earlier crash"
        open_now, kept = self._survivors(least.step, least.data)
        _, kept_at_first = self._survivors(found.step, found.data)
        unit = "lines" if self.recording.medium == "pmem" else "pages"
        what = f"{kept} of {open_now} unflushed {unit} survived, {kept_at_first} when it was found"
        passes = "; without any one of them the check passes" if kept else ""
        return f"reduced: found before step {found.step + 1}, the earliest is before step {least.step + 1}; {what}{passes}"

    def _survivors(self, step: int, data: bytes | None) -> tuple[int, int]:
        """How many units had something that was not flushed, and in how many of them it is there."""
        medium = _followed(self.recording, step)[0]
        choice = choice_of(medium, data) if data is not None else {}
        return sum(len(versions) > 1 for versions in medium.open.values()), len(choice or {})

    def as_dict(self) -> dict[str, Any]:
        """As JSON, with every store."""
        crash = self.least.crash
        return {
            "kind": crash.kind,
            "medium": self.recording.medium,
            "step": crash.step,
            "steps": len(self.recording.steps),
            "found_at_step": self.found.crash.step,
            "log": crash.data is not None,
            "during": [frame._asdict() for frame in _under_way(self.recording, crash.step)],
            "acknowledged": [repr(value) for value in self.recording.done(crash.step)],
            "error": self.least.message,
            "raised_at": [frame._asdict() for frame in self.least.frames],
            "files": [
                {"name": name, "fate": fate, "length": length}
                for name, fate, length in _fates_beside(self.recording.beside[max(crash.step, 0)], crash.files)
            ],
            "stores": [{**store._asdict(), "frames": [frame._asdict() for frame in store.frames]} for store in self.stores],
        }


def account(recording: Recording, found: Failure, least: Failure) -> Account:
    """The account of a failure and its reduction."""
    crash = least.crash
    if crash.data is None:
        return Account(recording, found, least, ())
    medium, history = _followed(recording, crash.step)
    choice = {} if crash.kind == "kill" else choice_of(medium, crash.data) or {}
    stores = []
    for step in range(min(crash.step + (crash.kind == "kill"), len(recording.steps))):
        each = recording.steps[step]
        if each.name not in ("store", "stream", "write"):
            continue
        if crash.kind == "kill":
            if step == crash.step:
                fate = SURVIVED if crash.stored == each.length else PARTLY
            else:
                fate = FLUSHED if _is_flushed(medium, history, step) else SURVIVED
        else:
            fate = _fate(medium, history, choice, step, each)
        stores.append(Store(step, _what(recording.base, each), each.offset, each.length, fate, recording.stacks[step]))
    return Account(recording, found, least, tuple(stores))


# -- what became of a store

_History = dict[int, list[tuple[int, bytes]]]
"""For each store that the medium has taken, by step: the units it changed, and the bytes that each had then."""


def _followed(recording: Recording, step: int) -> tuple[PowerCutModel, _History]:
    """The medium after this many steps, and what each store made of its units."""
    medium, history = PowerCutModel(recording.medium, recording.base), _History()
    for number, each in enumerate(recording.steps[:step]):
        medium.take(each)
        if each.name in ("store", "stream", "write") and each.length:
            units = range(each.offset // medium.size, -(-(each.offset + each.length) // medium.size))
            history[number] = [(unit, medium.open[unit][-1].data) for unit in units if unit in medium.open]
    return medium, history


def _place(versions: list[Version], data: bytes) -> int:
    """Which of these versions is this very object; 0 if it is older than all."""
    return next((place for place, version in enumerate(versions) if version.data is data), 0)


def _is_flushed(medium: PowerCutModel, history: _History, step: int) -> bool:
    return all(unit not in medium.open or _place(medium.open[unit], data) == 0 for unit, data in history.get(step, ()))


def _fate(medium: PowerCutModel, history: _History, choice: Choice, step: int, store: Step) -> str:
    fates = set()
    for unit, data in history.get(step, ()):
        versions = medium.open.get(unit, [])
        place = _place(versions, data)
        if place:
            kept = versions[0].data if unit not in choice else choice[unit].data
            fates.add(_fate_in(versions, place, kept, unit * medium.size, store))
    if not fates:
        return FLUSHED
    return fates.pop() if len(fates) == 1 else PARTLY


def _fate_in(versions: list[Version], place: int, kept: bytes, start: int, store: Step) -> str:
    """What became of a store in one unit, of which this is left: compared with the versions, or if it is torn, byte by byte."""
    whole = next((number for number, version in enumerate(versions) if version.data == kept), None)
    if whole is not None:
        return SURVIVED if whole >= place else LOST
    before, after = versions[place - 1].data, versions[place].data
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    there = sum(kept[at] == after[at] for at in changed)
    return SURVIVED if there == len(changed) else PARTLY if there else LOST


def _fates_beside(beside: Beside, left: Files) -> Iterator[tuple[str, str, int | None]]:
    """Each file that was or is there, what became of what was written to it, and how long it is now."""
    now, synced = beside.now(), beside.after_a_cut()
    for name in sorted({*now, *synced, *left}):
        content = left.get(name)
        same_now, same_synced = content == now.get(name), content == synced.get(name)
        fate = FLUSHED if same_now and same_synced else SURVIVED if same_now else LOST if same_synced else PARTLY
        yield name, fate, None if content is None else len(content)


# -- in words


def _what(base: bytes, step: Step) -> str:
    """What a store is: a commit slot and the records that it makes the log have, a record by its number, or else bytes."""
    block = decode_superblock(base[:PAGE], 0)
    if block is not None and CONTROL_OFFSET <= step.offset < block.copy_offset and step.length == SLOT.size:
        slot = Slot._make(SLOT.struct.unpack(step.data)[1:-1])
        return f"{_SLOT}{_range(slot.tail_seq, slot.commit_seq)}"
    if block is not None and step.offset >= block.ring_offset and step.length >= HEADER:
        header = decode_header(step.data)
        if header.length <= step.length - HEADER:
            return f"{_RECORD}{header.seq}"
    return f"{step.length} bytes at offset {step.offset}"


def _range(first: int, last: int) -> str:
    if first > last:
        return "the log is empty"
    return f"the log is record {first}" if first == last else f"the log is records {first} to {last}"


def _together(stores: list[Store]) -> str:
    """The stores of one call: the records, the last of the slots, and all else."""
    records = [store.what.removeprefix(_RECORD) for store in stores if store.what.startswith(_RECORD)]
    slots = [store.what for store in stores if store.what.startswith(_SLOT)]
    words = [f"{_RECORD}{records[0]}"] if len(records) == 1 else [f"records {records[0]} to {records[-1]}"] if records else []
    if slots:
        words.append(slots[-1] if len(slots) == 1 else f"{len(slots)} commit slots, the last: {slots[-1].removeprefix(_SLOT)}")
    return ", ".join(words + [store.what for store in stores if not store.what.startswith((_RECORD, _SLOT))])


def _moment(recording: Recording, failure: Failure) -> str:
    crash, steps = failure.crash, len(recording.steps)
    if crash.data is None:
        return "a crash before the log was there"
    if crash.kind == "kill":
        store = recording.steps[crash.step]
        if crash.stored == store.length:
            return f"a kill (SIGKILL) right after step {crash.step + 1} of {steps}, a store"
        return f"a kill (SIGKILL) in step {crash.step + 1} of {steps}, after {crash.stored} of {store.length} bytes of a store"
    if crash.step == steps:
        return f"a power cut after the last of {steps} steps"
    step = recording.steps[crash.step]
    what = f"os.{step.data.decode()}" if step.name == "file" else _STEPS[step.name]
    return f"a power cut before step {crash.step + 1} of {steps}, {what}"


def _under_way(recording: Recording, step: int) -> tuple[Frame, ...]:
    """The call in which the crash came."""
    return recording.stacks[step] if 0 <= step < len(recording.steps) else ()


def shown(frames: Iterable[Frame], indent: str = "    ") -> Iterator[str]:
    """Frames with their lines of source, the innermost first."""
    for frame in frames:
        source = linecache.getline(frame.file, frame.line).strip()
        yield f"{indent}{_short(frame.file)}:{frame.line} in {frame.function}" + (f": {source}" if source else "")


def _short(file: str) -> str:
    """A path below the working directory without it."""
    return file.removeprefix(os.getcwd() + os.sep)


def _values(done: list[Any]) -> str:
    if not done:
        return "nothing"
    shown = ", ".join(map(repr, done[-_VALUES:]))
    return shown if len(done) <= _VALUES else f"{len(done)} values, the last of them {shown}"
