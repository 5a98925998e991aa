"""Records of one ring laid anew in another, one after another from position 0. Pure.

Invariants
----------
- Number, kind, time, epoch, and place in a batch stay. The position is another one, and so is the checksum, which it seeds.
- ``durable`` is where the record's batch begins, or the part of it that is laid. It names only records before it, and all of them
  are durable before the file has a name. It is never inside a batch, and never before the end of an older epoch's records.
- Nothing is laid past one lap, so the new ring has no gap.
- Where records are left out, those before are truncated in the new log.
"""

from __future__ import annotations

from pmwal.format.layout import HEADER, PAGE, Header, Superblock, encode_header, record_size
from pmwal.format.ring import Laid, RingReader, Rules, Scan
from pmwal.records import Bound

PIECE = 1 << 20  # bytes that are gathered before they are written; a longer record is gathered whole


class Relocation:
    """Lays records in a ring of this geometry. With ``scan``, which is for that ring, the native engine lays the ordinary ones."""

    def __init__(self, block: Superblock, scan: Scan | None, piece: int = PIECE) -> None:
        self.block = block
        self._scan = scan
        self._laid = Laid()
        self._buffer = bytearray(piece)
        self.pending = 0
        """Bytes that are laid and not taken yet."""

    @property
    def end(self) -> int:
        """Where the next record goes."""
        return self._laid.position

    @property
    def longest(self) -> int:
        """The longest payload."""
        return self._laid.longest

    def lay(self, ring: RingReader, at: Bound, rules: Rules) -> Bound:
        """Lay records of ``ring`` from ``at`` on, as far as the native engine takes them and there is room; where it stopped."""
        if self._scan is None:
            return at
        before = self._laid.position
        at, self._laid = ring.relocate(at, rules, self._laid, self._scan.scanner, self._buffer, self.pending)
        self.pending += self._laid.position - before
        return at

    def add(self, header: Header, payload: bytes) -> None:
        """Lay one record. This is the reference for what the native engine does."""
        position, batch, longest = self._laid
        size = record_size(len(payload), self.block.alignment)
        if header.batch_index == 0:
            batch = position
        moved = encode_header(header._replace(durable=batch), payload, self.block.uuid, position)
        end = self.pending + size
        self._buffer[self.pending : end] = moved + payload + bytes(size - HEADER - len(payload))
        self.pending = end
        self._laid = Laid(position + size, batch, max(longest, len(payload)))

    def begin_again(self) -> None:
        """The next record does not follow the last one: it begins the log, and those before it are of no use."""
        self._laid = self._laid._replace(batch=self._laid.position)

    def take(self, *, rest: bool = False) -> bytes:
        """The whole pages of what is pending; with ``rest`` all of it, filled up with zeros to whole pages."""
        taken = self.pending if rest else self.pending // PAGE * PAGE
        data = bytes(memoryview(self._buffer)[:taken])
        self._buffer[: self.pending - taken] = self._buffer[taken : self.pending]
        self.pending -= taken
        return data + bytes(-len(data) % PAGE)
