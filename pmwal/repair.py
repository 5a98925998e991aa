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

import contextlib
import errno
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from pmwal.errors import CorruptWal, FormatError
from pmwal.format.control import filled_region
from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    LIVE_OFFSET,
    PAGE,
    SLOT_CLEAN,
    SUPERBLOCK_OFFSET,
    Slot,
    encode_superblock,
)
from pmwal.format.ring import Load, overlay
from pmwal.format.scan import scan_for
from pmwal.opening.files import inspect, lock_existing
from pmwal.records import Progress, RecoveryReport, restore
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.rebuild import rebuild
from pmwal.recovery.superblock import identify
from pmwal.storage.create import NO_LINK, hidden_name, inherit, remove_orphans, unnamed_file
from pmwal.storage.descriptors import open_descriptor
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
    name = os.fspath(path)
    if os.path.islink(name):  # the copy and the backup go where the log is
        name = os.path.realpath(name)
    directory, base = os.path.split(name)
    lock = None if dry_run else lock_existing(name, seam, shortened=True)
    if lock is None and not dry_run:
        raise FileNotFoundError(f"{name}: another file took its name while it was opened; try again")
    try:
        with inspect(name, seam, progress, around=True) as (mapping, judgement):
            plan = _Plan(judgement, mapping)
            target = _backup_name(directory, base, backup) if plan.needed else ""
            after = judge(plan.load, identify(plan.load, mapping.size, name)).report if plan.needed else judgement.report
            if after.outcome == "corrupt":
                raise CorruptWal(
                    f"{name}: the rebuilt log would be damaged too: {after.reason}; "
                    'copy what pmwal.open(path, "r", recover="salvage") reads into a new log',
                    reason=after.reason,
                )
            if plan.needed and not dry_run:
                _replace(directory, base, target, plan, mapping.size, seam, progress)
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
            self.tail, self.end, epoch, newest = judgement.tail, judgement.end, judgement.epoch_max, judgement.control.newest
        else:
            self.tail, self.end, epoch, newest = self.rebuilt.tail, self.rebuilt.end, self.rebuilt.epoch_max, self.rebuilt.slot
        self.load: Load = overlay(mapping.load, self._control(epoch, newest) if self.needed else [])  # bytes of the repaired file

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

    def _control(self, epoch: int, newest: Slot | None) -> list[tuple[int, bytes]]:
        """Both superblocks, an empty live page, and a control region with the due slot in every place; as (file offset, bytes)."""
        block = self.block
        if epoch >= EPOCH_MAX:
            raise FormatError("the log has used up its epochs; start a new one and copy the records into it")
        generation = 0 if newest is None else newest.generation
        if generation > GENERATION_MAX // 2:
            generation = 0  # no log gets there; all slots are written again, so the numbers may start again
        slot = Slot(
            epoch=epoch + 1,
            generation=(generation // block.turn + 2) * block.turn,
            epoch_first_seq=self.end.next_seq,
            commit_position=self.end.position,
            commit_seq=self.end.next_seq - 1,
            tail_position=self.tail.position,
            tail_seq=self.tail.next_seq,
            flags=SLOT_CLEAN,
        )
        return [
            (SUPERBLOCK_OFFSET, encode_superblock(block, 0)),
            (LIVE_OFFSET, bytes(PAGE)),
            (block.control_offset, filled_region(slot, block)),
            (block.copy_offset, encode_superblock(block, 1)),
        ]


def _backup_name(directory: str, base: str, backup: str | None) -> str:
    """The name for the damaged file. One that it has already, since a repair that was killed, is used again."""
    damaged = os.path.join(directory, base)
    if backup is not None:
        if os.path.realpath(os.path.dirname(os.path.abspath(backup))) != os.path.realpath(directory):
            raise ValueError(f"backup must lie in {os.path.realpath(directory)}, because the damaged file is kept by a hard link")
        if not _is_free(backup, damaged):
            raise FileExistsError(f"{backup}: it exists; name another backup")
        return os.path.join(directory, os.path.basename(backup))
    number = 1
    while True:
        name = f"{damaged}.damaged" + (f"-{number}" if number > 1 else "")
        if _is_free(name, damaged):
            return name
        number += 1


def _is_free(name: str, damaged: str) -> bool:
    return not os.path.lexists(name) or (name != damaged and os.path.samestat(os.lstat(name), os.stat(damaged)))


def _replace(directory: str, base: str, backup: str, plan: _Plan, size: int, seam: Seam, progress: Progress | None) -> None:
    """Write the repaired file, link the damaged one to its backup name, and rename the repaired one over it."""
    where = directory or os.curdir
    directory_fd = open_descriptor(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_orphans(where, directory_fd, base, seam)
        with unnamed_file(where, directory_fd, base, seam) as (fd, source):
            inherit(fd, os.stat(base, dir_fd=directory_fd))
            _write_copy(fd, os.path.join(directory, base), plan, size, seam, progress)
            hidden = hidden_name(base)
            if not os.path.lexists(backup):
                _keep(base, backup, directory_fd, seam)
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


def _keep(base: str, backup: str, directory_fd: int, seam: Seam) -> None:
    """Give the damaged file its backup name, as a second one."""
    try:
        seam.link(base, os.path.basename(backup), directory_fd)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        message = (
            f"{os.strerror(error.errno)}: there are no hard links here, so a repair could not keep the damaged file. Nothing was "
            "changed; copy the log to another file system, repair the copy, and move it back"
        )
        raise OSError(error.errno, message, os.path.join(os.path.dirname(backup), base)) from error


def _write_copy(fd: int, path: str, plan: _Plan, size: int, seam: Seam, progress: Progress | None) -> None:
    """Write the repaired file, and make it durable."""
    try:
        seam.allocate(fd, size)
        for offset in range(0, size, PAGE):
            seam.write(fd, plan.load(offset, min(PAGE, size - offset)), offset)
            if progress is not None:
                progress(offset + PAGE, size)
        seam.sync_file(fd)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}: no room for the repaired copy of {size} bytes beside it; nothing was changed",
            path,
        ) from error
