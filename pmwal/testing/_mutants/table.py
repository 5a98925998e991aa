"""The table of mutants: for each, the oracle that must notice it, and a history in which it does.

A simulator that lets one of them pass proves nothing about the code without it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pmwal.format.layout import LINE, PAGE
from pmwal.testing._mutants import beside, consumed, engine, recovery, repair, seam, search, slots, surroundings
from pmwal.testing._simulator.beside import explore_beside, explore_hidden, explore_spliced
from pmwal.testing._simulator.campaign import explore_chunk
from pmwal.testing._simulator.consuming import explore_consumed
from pmwal.testing._simulator.creation import explore_creation
from pmwal.testing._simulator.explore import Effort, History, start_of
from pmwal.testing._simulator.repairing import explore_repair
from pmwal.testing._simulator.session import Setting
from pmwal.testing._simulator.slots import explore_slots
from pmwal.testing._simulator.succession import explore_succession
from pmwal.testing._simulator.surroundings import explore_handlers, explore_names, explore_unlinkable
from pmwal.testing.process import scratch, using_engine
from pmwal.testing.violation import ORACLES, Violation
from pmwal.writing.checks import unchecked

PAGE_PIPELINED = Setting("page", "pipelined", "lapped")
PAGE_STRICT = Setting("page", "strict", "lapped")
PAGE_BRINK = Setting("page", "strict", "brink")
FOLIO_PIPELINED = Setting("folio-64k", "pipelined", "lapped", 128 * 1024)
PAGE_FULL = Setting("page", "strict", "full")
LINES = Setting("pmem", "strict", "lapped", 8192, 64)
LINES_STREAM = LINES._replace(stores="stream")
LINES_PACKED = Setting("pmem", "pipelined", "lapped", 8192, 8)
NEVER = 1 << 62
PLAIN = Effort(open_one_in=4, interrupt_one_in=NEVER, continue_one_in=NEVER, lose_one_in=NEVER, damages=12)
NESTED = PLAIN._replace(interrupt_one_in=1, continue_one_in=1)
LOST = PLAIN._replace(interrupt_one_in=1, lose_one_in=4)
GHOSTS = PLAIN._replace(continue_one_in=4, lose_one_in=2)


class Mutant(NamedTuple):
    """A deliberate bug: what it changes, the oracle that must notice it, and where. No operations: the creation of a log.

    ``explore`` is what the history is given to instead of the explorer of crash images.
    """

    what: str
    patches: Callable[[], list[seam.Patch]]
    oracle: str
    setting: Setting
    operations: str | None
    engine: str = "python"
    effort: Effort = PLAIN
    own_start: bool = False  # the log that the history starts from is made by the mutant, too
    explore: Callable[[Path, History], object] | None = None

    @property
    def history(self) -> History:
        """Where it must be noticed."""
        return History(self.setting, tuple((self.operations or "").split()), 1)


MUTANTS = {
    "drop_record_flush": Mutant(
        "no msync over records",
        lambda: seam.drop("flush", seam.of_records),
        "acknowledged",
        PAGE_PIPELINED,
        "append_small",
        "native",
    ),
    "drop_record_flush_strict": Mutant(
        "the same, where a slot names them",
        lambda: seam.drop("flush", seam.of_records),
        "verdict",
        PAGE_STRICT,
        "append_small",
        "native",
    ),
    "drop_slot_flush": Mutant(
        "no msync over slots", lambda: seam.drop("flush", seam.of_slots), "issued", PAGE_STRICT, "truncate", "native"
    ),
    "drop_record_write_back": Mutant(
        "no CLWB of records", lambda: seam.drop("write_back", seam.of_records), "verdict", LINES, "append_small", "native"
    ),
    "drop_slot_write_back": Mutant(
        "no CLWB of slots", lambda: seam.drop("write_back", seam.of_slots), "verdict", LINES, "truncate", "native"
    ),
    "cached_stream_records": Mutant(
        "records that stay in the cache",
        lambda: seam.cache_streams(seam.of_records),
        "verdict",
        LINES_STREAM,
        "append_small",
        "native",
    ),
    "cached_stream_slots": Mutant(
        "slots that stay in the cache", lambda: seam.cache_streams(seam.of_slots), "verdict", LINES_STREAM, "truncate", "native"
    ),
    "stream_without_fence": Mutant(
        "no fence after stores past the cache", seam.drop_fences, "acknowledged", LINES_STREAM, "append_small", "native"
    ),
    "no_fence": Mutant("no fence", seam.drop_fences, "acknowledged", LINES, "append_small", "native"),
    "drop_first_fence": Mutant(
        "one fence for records and slot", lambda: seam.drop_fences(second=True), "verdict", LINES, "append_small", "native"
    ),
    "write_back_after_fence": Mutant(
        "CLWB after the fence", seam.write_back_after_fence, "verdict", LINES, "append_small", "native"
    ),
    "round_flush_down": Mutant(
        "msync without the last page",
        lambda: seam.round_down("flush", PAGE),
        "acknowledged",
        PAGE_PIPELINED,
        "append_small",
        "native",
    ),
    "round_write_back_down": Mutant(
        "CLWB without the last line",
        lambda: seam.round_down("write_back", LINE),
        "verdict",
        LINES_PACKED,
        "append_small",
        "native",
    ),
    "creation_without_sync": Mutant("a name before the file is durable", lambda: seam.drop_sync(0), "creation", PAGE_STRICT, None),
    "creation_without_directory_sync": Mutant(
        "a name that is never durable", lambda: seam.drop_sync(1), "creation", PAGE_STRICT, None
    ),
    "failed_flush_ignored": Mutant("a failed msync counts", seam.ignore_failed_flush, "poisoned", PAGE_STRICT, "fail_kept"),
    "poison_skipped": Mutant("a failed msync is forgotten", engine.poison_skipped, "poisoned", PAGE_PIPELINED, "fail_kept"),
    "early_ack": Mutant("an append that does not wait", engine.commit_skipped, "promised", PAGE_PIPELINED, "append_small"),
    "barriers_overlap": Mutant("two barriers in flight", engine.barriers_overlap, "acknowledged", PAGE_PIPELINED, "fail_overtaken"),
    "gap_is_full": Mutant("no record ever wraps", engine.gap_is_full, "live", PAGE_BRINK, "append_large append_large"),
    "clean_flag_kept": Mutant("a clean end before the writer's", engine.clean_flag_kept, "verdict", PAGE_PIPELINED, "append_small"),
    "records_not_flushed": Mutant("no barrier over records", engine.records_not_flushed, "verdict", PAGE_STRICT, "append_small"),
    "slots_in_one_place": Mutant("each slot over the last", engine.slots_in_one_place, "slot", PAGE_STRICT, "truncate"),
    "slot_first": Mutant("the slot first", engine.slot_before_data, "verdict", PAGE_STRICT, "append_small"),
    "one_slot": Mutant("a tail in one slot", engine.one_slot, "slot", PAGE_STRICT, "truncate"),
    "same_slot_twice": Mutant("two slots in one place", engine.same_slot_twice, "slot", PAGE_STRICT, "truncate"),
    "tail_in_memory": Mutant("a tail in no slot", engine.tail_in_memory, "issued", PAGE_STRICT, "truncate"),
    "tail_late": Mutant("space used again before", engine.tail_late, "verdict", PAGE_FULL, "append_large"),
    "tail_past_commit": Mutant(
        "a tail past the pointer",
        engine.tail_past_commit,
        "promised",
        PAGE_STRICT,
        "truncate append_pending append_pending truncate",
    ),
    "epoch_kept": Mutant("no new epoch", engine.epoch_kept, "issued", PAGE_STRICT, "append_small append_small rollback"),
    "epoch_in_memory": Mutant("an epoch in no slot", engine.epoch_in_memory, "issued", PAGE_STRICT, "append_small rollback"),
    "epoch_without_flush": Mutant(
        "an epoch over records that are not durable",
        engine.epoch_without_flush,
        "verdict",
        PAGE_STRICT,
        "append_pending append_pending append_pending rollback",
    ),
    "strays_forgotten": Mutant(
        "an interrupted call", engine.strays_forgotten, "issued", PAGE_PIPELINED, "extend_aborted_late commit"
    ),
    "marks_of_published": Mutant(
        "marks ahead of barriers", engine.marks_of_published, "verdict", LINES_PACKED, "append_pending append_large"
    ),
    "marks_not_set_back": Mutant(
        "marks past a rollback", engine.marks_not_set_back, "verdict", PAGE_PIPELINED, "append_large rollback append_small"
    ),
    "newest_slot_overwritten": Mutant(
        "an open stores over the newest slot",
        engine.newest_slot_overwritten,
        "interrupted",
        LINES,
        "append_small truncate",
        effort=NESTED,
    ),
    "close_without_commit": Mutant(
        "a clean end that is none", engine.close_without_commit, "verdict", PAGE_PIPELINED, "append_pending close_reopen"
    ),
    "crc_over_source": Mutant("a buffer read twice", engine.crc_over_source, "verdict", PAGE_PIPELINED, "append_changing"),
    "restore_skipped": Mutant("a recovery that trusts the cache", recovery.restore_skipped, "verdict", PAGE_PIPELINED, "fail_kept"),
    "restore_without_barrier": Mutant(
        "a recovery that waits for nothing", recovery.restore_without_barrier, "verdict", PAGE_PIPELINED, "fail_kept"
    ),
    "whole_records_dropped": Mutant(
        "a recovery up to the pointer", recovery.whole_records_dropped, "kept", LINES, "append_pending kill_reopen"
    ),
    "torn_header_unexpected": Mutant("an undocumented error", recovery.torn_header_unexpected, "errors", LINES, "append_small"),
    "epoch_reused_after_fallback": Mutant(
        "an epoch used twice",
        recovery.epoch_reused_after_fallback,
        "slot",
        LINES_PACKED,
        "append_pending append_pending append_pending",
        effort=GHOSTS,
    ),
    "evidence_ignored": Mutant(
        "damage taken for a torn tail",
        recovery.evidence_ignored,
        "damage",
        PAGE_PIPELINED,
        "append_small append_small append_small",
        effort=PLAIN._replace(close_up_to=3),
    ),
    "restore_from_cache": Mutant(
        "a recovery that stores what comes back", recovery.restore_from_cache, "verdict", PAGE_PIPELINED, "fail_restoring"
    ),
    "lost_slot_left": Mutant("a lost slot stays lost", recovery.lost_slot_left, "slot", LINES, "truncate", effort=LOST),
    "epoch_unchecked": Mutant("records of any epoch", recovery.epoch_unchecked, "verdict", PAGE_STRICT, "append_small rollback"),
    "epoch_before_crc": Mutant("an epoch believed unchecked", recovery.epoch_before_crc, "damage", PAGE_STRICT, "append_small"),
    "batches_ignored": Mutant("half a batch", recovery.batches_ignored, "issued", LINES_PACKED, "extend"),
    "gap_not_crossed": Mutant("no look past the gap", recovery.gap_not_crossed, "verdict", PAGE_BRINK, "append_large append_large"),
    "gap_not_compared": Mutant(
        "an old record before the gap",
        recovery.gap_not_compared,
        "verdict",
        PAGE_BRINK,
        "append_small append_small append_small rollback append_large",
    ),
    "slot_crc_unchecked": Mutant("torn slots", recovery.slot_crc_unchecked, "verdict", LINES, "truncate"),
    "record_crc_unchecked": Mutant("torn records", recovery.record_crc_unchecked, "verdict", LINES, "append_small"),
    "crc_without_seed": Mutant(
        "records of another log", recovery.crc_without_seed, "damage", PAGE_STRICT, "append_small", own_start=True
    ),
    "longest_run_kept": Mutant(
        "a repair that prefers the longest run",
        repair.longest_run_kept,
        "repaired",
        PAGE_STRICT,
        "extend extend rollback append_small",
        explore=explore_repair,
    ),
    "truncated_kept": Mutant(
        "a repair of which truncated records come back",
        repair.truncated_kept,
        "repaired",
        PAGE_STRICT,
        "truncate append_small",
        explore=explore_repair,
    ),
    "discarded_kept": Mutant(
        "a repair of which discarded records come back",
        repair.discarded_kept,
        "repaired",
        PAGE_STRICT,
        "append_small append_small rollback",
        explore=explore_repair,
    ),
    "last_record_dropped": Mutant(
        "a repair that drops a live record",
        repair.last_record_dropped,
        "repaired",
        PAGE_STRICT,
        "append_small",
        explore=explore_repair,
    ),
    "slots_forgotten": Mutant(
        "a repair that believes no slot",
        repair.slots_forgotten,
        "repaired",
        PAGE_STRICT,
        "truncate append_small",
        explore=explore_repair,
    ),
    "oldest_slot_believed": Mutant(
        "a repair by an old slot",
        repair.oldest_slot_believed,
        "repaired",
        PAGE_STRICT,
        "append_small rollback append_small",
        explore=explore_repair,
    ),
    "superblock_left": Mutant(
        "a superblock that stays lost",
        repair.superblock_left,
        "repaired",
        PAGE_STRICT,
        "append_small",
        explore=explore_repair,
    ),
    "search_gives_up": Mutant(
        "a search that ends early",
        search.search_gives_up,
        "damage",
        PAGE_PIPELINED,
        "append_large append_large append_small append_small append_small",
        effort=PLAIN._replace(close_up_to=5, damages=60),
    ),
    "search_skips": Mutant(
        "a search that looks at one place in many",
        search.search_skips,
        "damage",
        PAGE_PIPELINED,
        "append_small append_small append_small",
        effort=PLAIN._replace(close_up_to=3),
    ),
    "headers_believed": Mutant(
        "a search that checks no checksum",
        search.headers_believed,
        "verdict",
        PAGE_PIPELINED,
        "append_small",
    ),
    "budget_decides": Mutant(
        "a search that gives up, and calls that damage",
        search.budget_decides,
        "verdict",
        FOLIO_PIPELINED,
        "append_small",
    ),
    "versions_first": Mutant(
        "a torn live page that passes for a whole one",
        beside.versions_first,
        "beside",
        PAGE_STRICT,
        "append_small rollback",
        explore=explore_beside,
    ),
    "second_copy_missing": Mutant(
        "a torn live page, and no second copy",
        beside.second_copy_missing,
        "beside",
        PAGE_PIPELINED,
        "append_small append_small",
        explore=explore_beside,
    ),
    "second_copy_first_half": Mutant(
        "a second copy that is torn with the first",
        beside.second_copy_first_half,
        "beside",
        PAGE_PIPELINED,
        "append_small append_small",
        explore=explore_beside,
    ),
    "unlocked_writer": Mutant(
        "a lock that is claimed and not taken",
        beside.unlocked_writer,
        "beside",
        PAGE_STRICT,
        "append_pending",
        explore=explore_beside,
    ),
    "byte_unclaimed": Mutant(
        "no lock: a writer that other namespaces cannot see",
        beside.byte_unclaimed,
        "beside",
        PAGE_STRICT,
        "append_pending",
        explore=explore_hidden,
    ),
    "writer_never_dies": Mutant(
        "a dead writer that counts as alive",
        beside.writer_never_dies,
        "beside",
        PAGE_PIPELINED,
        "append_pending",
        explore=explore_beside,
    ),
    "damage_not_looked_at_again": Mutant(
        "R4 for what the writer freed meanwhile",
        beside.damage_not_looked_at_again,
        "beside",
        PAGE_STRICT,
        "overwrite overwrite overwrite",
        explore=explore_beside,
    ),
    "open_id_kept": Mutant(
        "two opens with one id",
        beside.open_id_kept,
        "beside",
        PAGE_PIPELINED,
        "",
        explore=explore_spliced,
    ),
    "verdict_not_looked_at_again": Mutant(
        "what a new writer stores during a verdict",
        beside.verdict_not_looked_at_again,
        "beside",
        PAGE_STRICT,
        "",
        explore=explore_succession,
    ),
    "end_from_an_older_view": Mutant(
        "a follow that ends before the last record",
        beside.end_from_an_older_view,
        "beside",
        PAGE_PIPELINED,
        "",
        "native",
        explore=explore_succession,
    ),
    "loss_unnoticed": Mutant(
        "a lost name that nobody notices",
        surroundings.loss_unnoticed,
        "named",
        PAGE_STRICT,
        "",
        explore=explore_names,
    ),
    "replacement_unnoticed": Mutant(
        "another file with the log's name",
        surroundings.replacement_unnoticed,
        "named",
        PAGE_STRICT,
        "",
        explore=explore_names,
    ),
    "name_taken_over": Mutant(
        "a creation over another file",
        surroundings.name_taken_over,
        "creation",
        PAGE_STRICT,
        "",
        explore=explore_unlinkable,
    ),
    "healthy_set_aside": Mutant(
        "a healthy log set aside",
        surroundings.healthy_set_aside,
        "aside",
        PAGE_STRICT,
        "append_small",
        explore=explore_handlers,
    ),
    "slot_begun_anew": Mutant(
        "a dead process's slot taken without its records",
        slots.slot_begun_anew,
        "slots",
        PAGE_STRICT,
        "append_small",
        explore=explore_slots,
    ),
    "pruned_without_lock": Mutant(
        "a slot removed under its process",
        slots.pruned_without_lock,
        "slots",
        PAGE_STRICT,
        "append_small",
        explore=explore_slots,
    ),
    "pruned_as_seen": Mutant(
        "a slot removed with what was stored since it was looked at",
        slots.pruned_as_seen,
        "slots",
        PAGE_STRICT,
        "append_small",
        explore=explore_slots,
    ),
    "freed_before_position": Mutant(
        "consumed records freed before the position is durable",
        consumed.freed_before_position,
        "consumed",
        PAGE_STRICT,
        "",
        explore=explore_consumed,
    ),
    "durable_ack_unsynced": Mutant(
        "a durable acknowledgement without a sync",
        consumed.durable_ack_unsynced,
        "consumed",
        PAGE_STRICT,
        "",
        "native",
        explore=explore_consumed,
    ),
    "acknowledged_before_durable": Mutant(
        "a position durable before the record that it names",
        lambda: seam.drop("flush", seam.of_records),
        "consumed",
        PAGE_PIPELINED,
        "",
        explore=explore_consumed,
    ),
}
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
        with unchecked():  # the oracle must notice it
            yield
    finally:
        for patch, original in zip(patches, originals, strict=True):
            setattr(patch.target, patch.name, original)
        if mutant.own_start:
            start_of.cache_clear()


def noticed_by(mutant: Mutant) -> tuple[str, str] | None:
    """The oracle that notices this bug and what it says; None when it survives."""
    with applied(mutant):
        if mutant.operations is None or mutant.explore is not None:
            return explored(mutant)
        failure = explore_chunk(mutant.effort, (mutant.engine, (mutant.history,))).failure
        return None if failure is None else (failure[1].oracle, failure[1].detail)


def explored(mutant: Mutant) -> tuple[str, str] | None:
    """The oracle that is violated where the mutant is not noticed in crash images, and what it says; None if none is."""
    try:
        with using_engine(mutant.engine), tempfile.TemporaryDirectory(prefix="pmwal-crash-", dir=scratch()) as name:
            if mutant.explore is not None:
                mutant.explore(Path(name), mutant.history)
            else:
                explore_creation(Path(name), mutant.setting)
    except Violation as violation:
        return violation.oracle, violation.detail
    return None
