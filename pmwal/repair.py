"""Making a damaged log usable again, with the damaged file kept beside it.

Invariants
----------
- The damaged file is never written to. The repaired copy is judged, then written without a name and made durable. Only then the
  damaged file gets its backup name, and the copy takes the log's name in one rename. A crash leaves the damaged file or the
  repaired one.
- uuid, positions and sequence numbers stay, and a new epoch starts: nothing that was left out can validate again.
- The kept records are one unbroken run, chosen by ``pmwal.recovery.rebuild``: a log cannot have a hole.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pmwal.errors import CorruptWal
from pmwal.format.control import closing_slot, find_pointer, whole_structures
from pmwal.format.layout import PAGE
from pmwal.format.ring import Load, overlay
from pmwal.format.scan import scan_for
from pmwal.opening.files import backup_for, inspect, is_free, lock_existing, resolved
from pmwal.records import Progress, RecoveryReport, restore
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.rebuild import rebuild
from pmwal.recovery.superblock import identify
from pmwal.storage.create import make_file, needing_room
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import SYSTEM, Seam


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did, or with ``dry_run`` would do.

    ``before`` and ``after`` are the verdicts. ``kept_records``: how many are in the repaired log. ``lost_records``: how many whole
    ones the damage separates from these, and are left in ``backup`` only. ``lost_first_seq`` to ``lost_last_seq``: the sequence
    numbers that are gone, at least: of records stored after the last one that anything whole names, nothing is known. ``actions``:
    the steps, in words. ``doubtful_records``: how many of the kept ones may have been truncated or rolled back before, because
    the slots that would say so are lost; 0 if all kept ones belong to the log.
    ``unreadable``: byte ranges of the damaged file that could not be read, or were cut off.
    """

    path: str
    backup: str
    dry_run: bool
    before: RecoveryReport
    after: RecoveryReport
    kept_records: int
    lost_records: int
    lost_first_seq: int | None
    lost_last_seq: int | None
    actions: tuple[str, ...]
    doubtful_records: int = 0
    unreadable: tuple[tuple[int, int], ...] = ()

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)


def repair(
    path: str | os.PathLike[str],
    *,
    backup: str | None = None,
    dry_run: bool = False,
    seam: Seam = SYSTEM,
    progress: Progress | None = None,
) -> RepairReport:
    """Build a repaired copy of a damaged log and put it in the log's place; the damaged file is kept under another name.

    ``backup``: that name, in the same directory and not yet taken; ``PATH.damaged`` (or ``.damaged-2`` and so on) when None.
    ``dry_run`` only reports what would be done. A log that needs no repair is left alone. Raises ``FormatError`` if both
    superblocks are damaged, ``CorruptWal`` if the repaired log would be damaged too, ``WalLocked`` if a writer has the log open,
    ``OSError``.

    >>> import pmwal
    >>> from pmwal.repair import repair
    >>> pmwal.open(path, size="64KiB").close()
    >>> repair(path).actions
    ('nothing: the log needs no repair',)
    """
    name = resolved(os.fspath(path))
    lock = None if dry_run else lock_existing(name, seam, shortened=True)
    if lock is None and not dry_run:
        raise FileNotFoundError(f"{name}: another file took its name while it was opened; try again")
    try:
        with inspect(name, seam, progress, around=True) as (mapping, judgement):
            plan = _Plan(judgement, mapping)
            target = _backup_name(name, backup) if plan.needed else ""
            after = judge(plan.load, identify(plan.load, mapping.size, name)).report if plan.needed else judgement.report
            if after.outcome == "corrupt":
                raise CorruptWal(
                    f"{name}: the rebuilt log would be damaged too: {after.reason}; "
                    'copy what pmwal.open(path, "r", recover="salvage") reads into a new log',
                    reason=after.reason,
                )
            if plan.needed and lock is not None:
                fill = partial(_write_copy, path=name, plan=plan, size=mapping.size, seam=seam, progress=progress)
                make_file(name, fill, seam, over=lock.fd, keep=os.path.basename(target)).release()
            return replace(plan.report(name, target, dry_run, after), unreadable=mapping.unreadable)
    finally:
        if lock is not None:
            lock.release()


class _Plan:
    """The records that are kept, and the bytes of the repaired file."""

    def __init__(self, judgement: Judgement, mapping: Mapping) -> None:
        self.judgement = judgement
        self.block = judgement.identity.block
        row = judgement.row
        self.unreadable = len(mapping.unreadable) > 0
        self.missing = mapping.missing
        self.needed = (
            row.outcome == "corrupt" or judgement.identity.copies < 2 or judgement.report.slots_lost > 0 or self.unreadable
        )
        self.rebuilt = rebuild(mapping.load, judgement, scan_for(self.block)) if row.outcome == "corrupt" else None
        if self.rebuilt is None:
            self.tail, self.end, epoch = judgement.tail, judgement.end, judgement.epoch_max
        else:
            self.tail, self.end, epoch = self.rebuilt.tail, self.rebuilt.end, self.rebuilt.epoch_max
        patches: list[tuple[int, bytes]] = []
        if self.needed:
            pointer = find_pointer(mapping.load(self.block.control_offset, self.block.control_size), self.block)
            history = () if pointer is None else pointer.history
            slot = closing_slot(self.tail, self.end, epoch, self.block, history)
            patches = whole_structures(slot, self.block, history)
        self.load: Load = overlay(mapping.load, patches)  # bytes of the repaired file

    def report(self, path: str, backup: str, dry_run: bool, after: RecoveryReport) -> RepairReport:
        before, rebuilt = self.judgement.report, self.rebuilt
        kept, lost_first, lost_last, left_out, doubtful = self.end.next_seq - self.tail.next_seq, None, None, 0, 0
        if rebuilt is not None:
            last = max(rebuilt.last_seq, before.lost_last_seq or 0)
            if last >= self.end.next_seq:
                lost_first, lost_last = self.end.next_seq, last
            left_out = len(rebuilt.before) + len(rebuilt.after)
            doubtful = kept if rebuilt.doubtful else 0
        return RepairReport(
            path=path,
            backup=backup,
            dry_run=dry_run,
            before=before,
            after=replace(after, seconds=before.seconds + after.seconds),
            kept_records=kept,
            lost_records=left_out,
            lost_first_seq=lost_first,
            lost_last_seq=lost_last,
            actions=self._actions(backup, kept, complete=lost_first is None and not left_out),
            doubtful_records=doubtful,
        )

    def _actions(self, backup: str, kept: int, *, complete: bool) -> tuple[str, ...]:
        """The steps, each of which begins with its verb; ``complete``: all records are kept."""
        if not self.needed:
            return ("nothing: the log needs no repair",)
        actions = [f"keep the damaged file as {backup}"]
        if self.judgement.identity.copies < 2:
            actions.append("rewrite the damaged superblock copy from the whole one")
        if self.rebuilt is not None:
            count = f"{kept} record{'s' if kept != 1 else ''}"
            numbers = f"{self.tail.next_seq} to {self.end.next_seq - 1}"
            which = f"{'all' if complete else 'only'} {count}, {numbers}" if kept else "no records"
            actions.append(f"keep {which}")
            if self.rebuilt.of_batch:
                actions.append(f"leave the last {self.rebuilt.of_batch} in, though the rest of their batch is not there")
            if self.rebuilt.slot is None:
                actions.append("rebuild the commit pointer from the records")
            elif not self.judgement.row.by_pointer:
                actions.append(f"use the commit slot of generation {self.rebuilt.slot.generation}, the newest that can be believed")
        if self.missing:
            actions.append(f"write {self.missing} zeros in place of what was cut off")
        elif self.unreadable:
            actions.append("write zeros in place of what cannot be read")
        actions.append("write all commit slots again, in a new epoch")
        return tuple(actions)


def _backup_name(path: str, backup: str | None) -> str:
    """The name for the damaged file. One that it has already, since a repair that was killed, is used again."""
    if backup is not None:
        return backup_for(path, backup)
    number = 1
    while True:
        name = f"{path}.damaged" + (f"-{number}" if number > 1 else "")
        if is_free(name, path):
            return name
        number += 1


def _write_copy(fd: int, path: str, plan: _Plan, size: int, seam: Seam, progress: Progress | None) -> None:
    """Write the repaired file, and make it durable."""
    with needing_room(path, size):
        seam.allocate(fd, size)
        for offset in range(0, size, PAGE):
            seam.write(fd, plan.load(offset, min(PAGE, size - offset)), offset)
            if progress is not None:
                progress(offset + PAGE, size)
        seam.sync_file(fd)
