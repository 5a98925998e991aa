"""Mutants: deliberate bugs, and for each the oracle that must notice it and a history in which it does.

A simulator that lets one of them pass proves nothing about the code without it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pmwal.layout import LINE, PAGE
from pmwal.testing import mutations as m
from pmwal.testing.campaign import explore_chunk
from pmwal.testing.creation import explore_creation
from pmwal.testing.explore import Effort, History, scratch, start_of
from pmwal.testing.operations import Setting
from pmwal.testing.oracles import ORACLES, Violation

PAGE_PIPELINED = Setting("page", "pipelined", "lapped")
PAGE_STRICT = Setting("page", "strict", "lapped")
PAGE_BRINK = Setting("page", "strict", "brink")
PAGE_FULL = Setting("page", "strict", "full")
LINES = Setting("pmem", "strict", "lapped", 8192, 64)
LINES_PACKED = Setting("pmem", "pipelined", "lapped", 8192, 8)
EFFORT = Effort(open_one_in=2, nest_one_in=1, damages=12)


class Mutant(NamedTuple):
    """A deliberate bug: what it changes, the oracle that must notice it, and where. No operations: the creation of a log."""

    what: str
    patches: Callable[[], list[m.Patch]]
    oracle: str
    setting: Setting
    operations: str | None
    engine: str = "python"
    own_start: bool = False  # the log that the history starts from is made by the mutant, too

    @property
    def history(self) -> History:
        """Where it must be noticed."""
        return History(self.setting, tuple((self.operations or "").split()), 1)


def _table() -> Iterator[tuple[str, Mutant]]:
    yield "drop_record_flush", Mutant(
        "no msync over records", lambda: m.drop("flush", m.of_records), "acknowledged", PAGE_PIPELINED, "append_small", "native"
    )
    yield "drop_record_flush_strict", Mutant(
        "the same, where a slot names them", lambda: m.drop("flush", m.of_records), "verdict", PAGE_STRICT, "append_small", "native"
    )
    yield "drop_slot_flush", Mutant(
        "no msync over slots", lambda: m.drop("flush", m.of_slots), "issued", PAGE_STRICT, "truncate", "native"
    )
    yield "drop_record_write_back", Mutant(
        "no CLWB of records", lambda: m.drop("write_back", m.of_records), "verdict", LINES, "append_small", "native"
    )
    yield "drop_slot_write_back", Mutant(
        "no CLWB of slots", lambda: m.drop("write_back", m.of_slots), "issued", LINES, "truncate", "native"
    )
    yield "drop_fence", Mutant("no fence", m.drop_fences, "acknowledged", LINES, "append_small", "native")
    yield "drop_first_fence", Mutant(
        "one fence for records and slot", lambda: m.drop_fences(second=True), "verdict", LINES, "append_small", "native"
    )
    yield "write_back_after_fence", Mutant(
        "CLWB behind the fence", m.write_back_after_fence, "acknowledged", LINES, "append_small", "native"
    )
    yield "round_flush_down", Mutant(
        "msync without the last page", lambda: m.round_down("flush", PAGE), "acknowledged", PAGE_PIPELINED, "append_small", "native"
    )
    yield "round_write_back_down", Mutant(
        "CLWB without the last line", lambda: m.round_down("write_back", LINE), "acknowledged", LINES_PACKED, "append_small", "native"
    )
    yield "creation_without_sync", Mutant(
        "a name before the file is durable", lambda: m.drop_sync(0), "creation", PAGE_STRICT, None
    )
    yield "creation_without_directory_sync", Mutant(
        "a name that is never durable", lambda: m.drop_sync(1), "creation", PAGE_STRICT, None
    )
    yield "failed_flush_ignored", Mutant("a failed msync counts", m.ignore_failed_flush, "poisoned", PAGE_STRICT, "fail_kept")
    yield "poison_skipped", Mutant("a failed msync is forgotten", m.poison_skipped, "poisoned", PAGE_PIPELINED, "fail_kept")
    yield "slot_before_data", Mutant("the slot first", m.slot_before_data, "verdict", PAGE_STRICT, "append_small")
    yield "one_slot", Mutant("a tail in one slot", m.one_slot, "slot", PAGE_STRICT, "truncate")
    yield "same_slot_twice", Mutant("two slots in one place", m.same_slot_twice, "slot", PAGE_STRICT, "truncate")
    yield "tail_in_memory", Mutant("a tail in no slot", m.tail_in_memory, "issued", PAGE_STRICT, "truncate")
    yield "tail_late", Mutant("space used again before", m.tail_late, "verdict", PAGE_FULL, "append_large")
    yield "tail_past_commit", Mutant(
        "a tail past the pointer", m.tail_past_commit, "verdict", PAGE_STRICT, "truncate append_pending append_pending truncate"
    )
    yield "epoch_kept", Mutant("no new epoch", m.epoch_kept, "issued", PAGE_STRICT, "append_small append_small rollback")
    yield "epoch_in_memory", Mutant("an epoch in no slot", m.epoch_in_memory, "issued", PAGE_STRICT, "append_small rollback")
    yield "epoch_without_flush", Mutant(
        "an epoch over records that are not durable",
        m.epoch_without_flush,
        "verdict",
        PAGE_STRICT,
        "append_pending append_pending append_pending rollback",
    )
    yield "strays_forgotten", Mutant("an interrupted call", m.strays_forgotten, "issued", PAGE_PIPELINED, "extend_aborted_late commit")
    yield "marks_of_published", Mutant(
        "marks ahead of barriers", m.marks_of_published, "verdict", PAGE_PIPELINED, "append_large append_pending append_large"
    )
    yield "marks_not_set_back", Mutant(
        "marks past a rollback", m.marks_not_set_back, "verdict", PAGE_PIPELINED, "append_large rollback append_small"
    )
    yield "newest_slot_overwritten", Mutant(
        "an open stores over the newest slot", m.newest_slot_overwritten, "interrupted", PAGE_STRICT, "append_small rollback"
    )
    yield "close_without_commit", Mutant(
        "a clean end that is none", m.close_without_commit, "verdict", PAGE_PIPELINED, "append_pending close_reopen"
    )
    yield "crc_over_source", Mutant("a buffer read twice", m.crc_over_source, "verdict", PAGE_PIPELINED, "append_changing")
    yield "restore_skipped", Mutant(
        "a recovery that trusts the cache", m.restore_skipped, "acknowledged", PAGE_PIPELINED, "append_pending kill_reopen"
    )
    yield "restore_without_barrier", Mutant(
        "a recovery that waits for nothing", m.restore_without_barrier, "acknowledged", PAGE_PIPELINED, "append_pending kill_reopen"
    )
    yield "restore_from_cache", Mutant(
        "a recovery that stores what comes back", m.restore_from_cache, "verdict", PAGE_PIPELINED, "fail_restoring"
    )
    yield "lost_slot_left", Mutant("a lost slot stays lost", m.lost_slot_left, "interrupted", LINES, "append_small truncate")
    yield "epoch_unchecked", Mutant("records of any epoch", m.epoch_unchecked, "issued", PAGE_STRICT, "append_small rollback")
    yield "epoch_before_crc", Mutant("an epoch believed unchecked", m.epoch_before_crc, "damage", PAGE_STRICT, "append_small")
    yield "batches_ignored", Mutant("half a batch", m.batches_ignored, "issued", LINES_PACKED, "extend")
    yield "gap_not_crossed", Mutant("no look behind the gap", m.gap_not_crossed, "verdict", PAGE_BRINK, "append_large append_large")
    yield "gap_not_compared", Mutant(
        "an old record before the gap",
        m.gap_not_compared,
        "verdict",
        PAGE_BRINK,
        "append_large append_small append_small append_small rollback append_large",
    )
    yield "slot_crc_unchecked", Mutant("torn slots", m.slot_crc_unchecked, "verdict", LINES, "truncate")
    yield "record_crc_unchecked", Mutant("torn records", m.record_crc_unchecked, "issued", LINES, "append_small")
    yield "crc_without_seed", Mutant(
        "records of another log", m.crc_without_seed, "damage", PAGE_STRICT, "append_small", own_start=True
    )


MUTANTS = dict(_table())
"""Every mutant by its name."""
assert all(mutant.oracle in ORACLES for mutant in MUTANTS.values())


@contextlib.contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The code with this bug."""
    start_of(mutant.setting)
    if mutant.own_start:
        start_of.cache_clear()
    patches = mutant.patches()
    originals = [patch.target.__dict__[patch.name] for patch in patches]
    try:
        for patch in patches:
            setattr(patch.target, patch.name, patch.value)
        yield
    finally:
        for patch, original in zip(patches, originals, strict=True):
            setattr(patch.target, patch.name, original)
        if mutant.own_start:
            start_of.cache_clear()


def noticed_by(mutant: Mutant) -> tuple[str, str] | None:
    """The oracle that notices this bug and what it says; None when it survives."""
    with applied(mutant):
        if mutant.operations is None:
            try:
                with tempfile.TemporaryDirectory(prefix="pmwal-crash-", dir=scratch()) as name:
                    explore_creation(Path(name), mutant.setting)
            except Violation as violation:
                return violation.oracle, violation.detail
            return None
        names = mutant.history.names
        histories = tuple(mutant.history._replace(names=names[:length]) for length in range(len(names) + 1))
        failure = explore_chunk(EFFORT, (mutant.engine, histories)).failure
        return None if failure is None else (failure[1].oracle, failure[1].detail)
