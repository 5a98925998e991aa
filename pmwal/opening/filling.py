"""A new log with records that come from elsewhere, which keep their numbers, kinds and times.

Invariants
----------
- The records are consecutive, each in a batch of its own, from position 0 on. The log was closed cleanly, in an epoch after theirs.
- The file gets its name when all is in it, durably: a crash leaves nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pmwal.format.control import closing_slot
from pmwal.format.layout import (
    ALIGN_DEFAULT,
    APPLICATION_SIZE,
    CAPACITY_MIN,
    HEADER,
    TIME_MAX,
    TIME_MIN,
    Header,
    Superblock,
    geometry_problem,
    record_size,
)
from pmwal.format.payload import as_capacity
from pmwal.format.relocation import PIECE, Relocation
from pmwal.opening.options import Options
from pmwal.records import Bound, CopyReport, Record
from pmwal.storage.create import make_file, needing_room, write_ring, write_structures
from pmwal.storage.medium import check_mappable, detect
from pmwal.storage.platform import check_platform
from pmwal.storage.seam import SYSTEM, Seam

_EPOCH = 1


def capacity_for(count: int, size: int, longest: int, alignment: int) -> int:
    """A ring that holds that many records with that many bytes of payload, and as much as a quarter of them again."""
    used = count * (HEADER + alignment - 1) + size
    return as_capacity(max(used + used // 4, 4 * record_size(longest, alignment), CAPACITY_MIN))


def fill_new(
    path: str | os.PathLike[str],
    records: Callable[[], Iterable[Record]],
    first_seq: int,
    *,
    size: int | str,
    file_mode: int | str = 0o600,
    label: str | None = None,
    seam: Seam = SYSTEM,
) -> CopyReport:
    """Create a log of these records, the first of which has the number ``first_seq``. They may be asked for again.

    Raises ``FileExistsError`` if there is something at ``path``, ``ValueError`` if the records do not fit, ``OSError``, and what
    ``records`` raises. Then nothing is left at ``path``.
    """
    check_platform()
    options = Options("x", size=size, file_mode=file_mode, label=label)
    name = os.fsdecode(path)
    assert options.capacity is not None
    block = Superblock(
        uuid=seam.new_uuid(),
        control_size=seam.control_size,
        capacity=options.capacity,
        alignment=ALIGN_DEFAULT,
        created_ns=min(max(seam.now_ns(), TIME_MIN), TIME_MAX),
        application=options.application.ljust(APPLICATION_SIZE, b"\0"),
    )
    problem = geometry_problem(block)
    if problem is not None:
        raise ValueError(f"{name}: a log cannot have {problem}; use another size")
    filling = _Filling(name, records, first_seq, block, seam)
    make_file(name, filling.fill, seam, mode=options.mode_of_file).release()
    return filling.report()


class _Filling:
    def __init__(self, path: str, records: Callable[[], Iterable[Record]], first_seq: int, block: Superblock, seam: Seam) -> None:
        self._path = path
        self._records = records
        self._first_seq = first_seq
        self._block = block
        self._seam = seam
        self._end = Bound(0, first_seq)

    def fill(self, fd: int) -> None:
        """Write the new file and sync it."""
        with needing_room(self._path, self._block.file_size):
            self._seam.allocate(fd, self._block.file_size)
            found = detect(fd, "auto", self._path)
            check_mappable(fd, self._path)
            self._block = block = replace(self._block, alignment=found.alignment)
            self._end = Bound(0, self._first_seq)
            zeroed = found.allocates_zeros or self._seam.zero(fd, block.file_size)
            write_ring(fd, block, self._pages(), zeroed=zeroed, single=False, seam=self._seam, progress=None)
            slot = closing_slot(Bound(0, self._first_seq), self._end, _EPOCH, block)
            write_structures(fd, block, slot, single=False, seam=self._seam)

    def _pages(self) -> Iterator[bytes]:
        """The ring up to its last record."""
        block = self._block
        relocation = Relocation(block, None)
        for record in self._records():
            length = len(record.data)
            size = record_size(length, block.alignment)
            if relocation.pending + size > PIECE:
                yield relocation.take()
            if record.seq != self._end.next_seq or length > block.payload_max or relocation.end + size > block.capacity:
                raise self._refusal(record)
            header = Header(0, length, record.seq, 0, record.time_ns, _EPOCH, record.kind, 0, 0, 1)
            relocation.add(header, record.data)
            self._end = Bound(relocation.end, record.seq + 1)
        yield relocation.take(rest=True)

    def _refusal(self, record: Record) -> ValueError:
        if record.seq != self._end.next_seq:
            return ValueError(f"{self._path}: record {record.seq} follows record {self._end.next_seq - 1}: records are missing")
        return ValueError(
            f"{self._path}: record {record.seq} with {len(record.data)} bytes does not fit into a ring of {self._block.capacity}; "
            "use a larger size"
        )

    def report(self) -> CopyReport:
        """What was written."""
        after = self._end.next_seq
        return CopyReport(self._path, self._block.capacity, self._end.position, self._first_seq, after - 1, after - self._first_seq)
