"""Making a damaged log usable again, with the damaged file kept beside it.

Invariants
----------
- The damaged file is never written to. The repaired copy is judged, then written without a name and made durable. Only then the
  damaged file gets its backup name, and the copy takes the log's name in one rename. A crash leaves the damaged file or the
  repaired one.
- uuid, positions and sequence numbers stay, and a new epoch starts: nothing that was left out can validate again.
- The kept records are one unbroken run: those from the tail to the damage, or, if no slot can be trusted, the longest run of
  consecutive whole records. A log cannot have a hole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pmwal.errors import CorruptWal, FormatError
from pmwal.format.layout import (
    EPOCH_MAX,
    LIVE_OFFSET,
    PAGE,
    SLOT,
    SLOT_CLEAN,
    SUPERBLOCK_OFFSET,
    Slot,
    Superblock,
    encode_slot,
    encode_superblock,
    slot_index,
)
from pmwal.format.ring import Found, Load, RingReader, overlay
from pmwal.opening.files import inspect, lock_existing
from pmwal.records import START, Bound, Progress, RecoveryReport
from pmwal.recovery.evidence import belongs, rebuilt
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.salvage import salvage
from pmwal.recovery.superblock import identify
from pmwal.storage.create import hidden_name, remove_orphans, unnamed_file
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.seam import SYSTEM, Seam


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did, or with ``dry_run`` would do.

    ``before`` and ``after`` are the verdicts. ``kept_records``: how many are in the repaired log. ``lost_records``: how many whole
    ones lie after the damage and are left in ``backup`` only. ``lost_first_seq`` to ``lost_last_seq``: the sequence numbers that
    are gone. ``actions``: the steps, in words.
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
    name = os.path.realpath(os.fspath(path))
    directory, base = os.path.split(name)
    lock = None if dry_run else lock_existing(name, seam)
    if lock is None and not dry_run:
        raise FileNotFoundError(f"{name}: another file took its name while it was opened; try again")
    try:
        with inspect(name, seam, progress) as (mapping, judgement):
            plan = _Plan(judgement, mapping.load)
            target = _backup_name(directory, base, backup) if plan.needed else ""
            after = judge(plan.load, identify(plan.load, mapping.size, name)).report if plan.needed else judgement.report
            if after.outcome == "corrupt":
                raise CorruptWal(
                    f"{name}: the rebuilt log would be damaged too: {after.reason}; "
                    'copy what pmwal.open(path, "r", recover="salvage") reads into a new log',
                    reason=after.reason,
                )
            report = plan.report(name, target, dry_run, after)
            if plan.needed and not dry_run:
                _replace(directory, base, target, plan, mapping.size, seam, progress)
            return report
    finally:
        if lock is not None:
            lock.release()


class _Plan:
    """The records that are kept, and the bytes of the repaired file."""

    def __init__(self, judgement: Judgement, load: Load) -> None:
        self.judgement = judgement
        self.block = judgement.identity.block
        self._original = load
        row = judgement.row
        self.needed = row.outcome == "corrupt" or judgement.identity.copies < 2 or judgement.report.slots_lost > 0
        self.whole = len(list(salvage(load, judgement))) if row.outcome == "corrupt" else judgement.report.records
        self.tail, self.end, epoch = self._keep()
        self.load = overlay(load, self._control(epoch) if self.needed else [])  # bytes of the repaired file

    def report(self, path: str, backup: str, dry_run: bool, after: RecoveryReport) -> RepairReport:
        before = self.judgement.report
        kept = self.end.next_seq - self.tail.next_seq
        corrupt = self.judgement.row.outcome == "corrupt"
        last = before.lost_last_seq
        if corrupt and self.judgement.control.newest is not None:
            last = max(last or 0, self.judgement.control.newest.commit_seq) or None
        return RepairReport(
            path=path,
            backup=backup,
            dry_run=dry_run,
            before=before,
            after=replace(after, seconds=before.seconds + after.seconds),
            kept_records=kept,
            lost_records=max(0, self.whole - kept),
            lost_first_seq=self.end.next_seq if corrupt and last is not None and last >= self.end.next_seq else None,
            lost_last_seq=last if corrupt and last is not None and last >= self.end.next_seq else None,
            actions=self._actions(backup, kept),
        )

    def _actions(self, backup: str, kept: int) -> tuple[str, ...]:
        if not self.needed:
            return ("nothing: the log needs no repair",)
        actions = [f"keep the damaged file as {backup}"]
        if self.judgement.identity.copies < 2:
            actions.append("rewrite the damaged superblock copy from the whole one")
        if self.judgement.row.outcome == "corrupt":
            actions.append(f"keep {kept} records, {self.tail.next_seq} to {self.end.next_seq - 1}, and leave out the rest")
        if self._without_pointer():
            actions.append("rebuild the commit pointer from the records; truncated records may be among them")
        actions.append("write all commit slots again, in a new epoch")
        return tuple(actions)

    def _without_pointer(self) -> bool:
        return self.judgement.row.label in ("R8", "R9", "R9b")

    def _keep(self) -> tuple[Bound, Bound, int]:
        """Tail and end of the kept records, and the greatest epoch found."""
        judgement, epoch = self.judgement, self.judgement.epoch_max
        if judgement.row.outcome != "corrupt":
            return judgement.tail, judgement.end, epoch
        if self._without_pointer():
            records = rebuilt(self.block, self._original)
            epoch = max([epoch, *(found.header.epoch for found in records)])
            run = max(_runs(records, self.block), key=len, default=[])
        else:
            run = list(_follow(RingReader(self.block, self._original), judgement))
        while run and run[-1].header.batch_index + 1 < run[-1].header.batch_count:
            run.pop()  # the last batch is not whole
        if not run:
            start = START if self._without_pointer() else judgement.tail
            return start, start, epoch
        return Bound(run[0].position, run[0].header.seq), Bound(run[-1].end, run[-1].header.seq + 1), epoch

    def _control(self, epoch: int) -> list[tuple[int, bytes]]:
        """Both superblocks, an empty live page, and a control region with the due slot in every place; as (file offset, bytes)."""
        block = self.block
        if epoch >= EPOCH_MAX:
            raise FormatError("the log has used up its epochs; start a new one and copy the records into it")
        newest = self.judgement.control.newest
        generation = 0 if newest is None or self._without_pointer() else newest.generation
        last = (generation // block.turn + 2) * block.turn
        region = bytearray(block.control_size)
        for number in range(last - block.turn + 1, last + 1):
            index = slot_index(number, block.control_pages)
            slot = Slot(
                epoch=epoch + 1,
                generation=number,
                epoch_first_seq=self.end.next_seq,
                commit_position=self.end.position,
                commit_seq=self.end.next_seq - 1,
                tail_position=self.tail.position,
                tail_seq=self.tail.next_seq,
                flags=SLOT_CLEAN,
            )
            region[index * SLOT.size : (index + 1) * SLOT.size] = encode_slot(slot, block.uuid, index)
        return [
            (SUPERBLOCK_OFFSET, encode_superblock(block, 0)),
            (LIVE_OFFSET, bytes(PAGE)),
            (block.control_offset, bytes(region)),
            (block.copy_offset, encode_superblock(block, 1)),
        ]


def _follow(reader: RingReader, judgement: Judgement) -> Iterator[Found]:
    """The consecutive whole records from the tail that belong to the log; an epoch is never followed by an older one."""
    slot, tail = judgement.control.newest, judgement.tail
    assert slot is not None
    at, epoch = tail, 1
    while True:
        found = reader.numbered(*at)
        if found is None or found.end - tail.position > reader.block.capacity:
            return
        if found.header.epoch < epoch or not belongs(found, slot):
            return
        yield found
        at, epoch = Bound(found.end, found.header.seq + 1), found.header.epoch


def _runs(records: list[Found], block: Superblock) -> list[list[Found]]:
    """The records in order, split wherever one does not directly follow the one before."""
    runs: list[list[Found]] = []
    for found in records:
        if runs and _adjoins(runs[-1], found, block.capacity):
            runs[-1].append(found)
        else:
            runs.append([found])
    return runs


def _adjoins(run: list[Found], found: Found, capacity: int) -> bool:
    last = run[-1]
    gap = found.position - last.end
    at_next_lap = 0 < gap < capacity // 2 and found.position % capacity == 0
    follows = found.header.seq == last.header.seq + 1 and found.header.epoch >= last.header.epoch
    return follows and (gap == 0 or at_next_lap) and found.end - run[0].position <= capacity


def _backup_name(directory: str, base: str, backup: str | None) -> str:
    if backup is not None:
        if os.path.realpath(os.path.dirname(os.path.abspath(backup))) != directory:
            raise ValueError(f"backup must lie in {directory}, because the damaged file is kept by a hard link")
        if os.path.lexists(backup):
            raise FileExistsError(f"{backup}: it exists; name another backup")
        return os.path.join(directory, os.path.basename(backup))
    number = 1
    while True:
        name = os.path.join(directory, f"{base}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(name):
            return name
        number += 1


def _replace(directory: str, base: str, backup: str, plan: _Plan, size: int, seam: Seam, progress: Progress | None) -> None:
    """Write the repaired file, link the damaged one to its backup name, and rename the repaired one over it."""
    directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_orphans(directory, directory_fd, base, seam)
        with unnamed_file(directory, directory_fd, base, seam) as (fd, source):
            status = os.stat(base, dir_fd=directory_fd)
            with contextlib.suppress(PermissionError):
                os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, status.st_mode & 0o7777)
            seam.allocate(fd, size)
            for offset in range(0, size, PAGE):
                seam.write(fd, plan.load(offset, min(PAGE, size - offset)), offset)
                if progress is not None:
                    progress(offset + PAGE, size)
            seam.sync_file(fd)
            hidden = hidden_name(base)
            seam.link(base, os.path.basename(backup), directory_fd)
            seam.link(source, hidden, directory_fd)
            try:
                seam.sync_file(directory_fd)
                seam.replace(hidden, base, directory_fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    seam.unlink(hidden, directory_fd)
                raise
            seam.sync_file(directory_fd)
    finally:
        os.close(directory_fd)
