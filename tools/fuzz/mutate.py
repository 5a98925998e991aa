"""Mutations of log files: damage as a medium makes it, and lies with a right checksum, which damage alone never reaches."""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

from pmwal.format.layout import (
    HEADER,
    LINE,
    PAGE,
    RECORD,
    SLOT,
    Header,
    Superblock,
    decode_header,
    decode_slot,
    decode_superblock,
    encode_header,
    encode_slot,
    encode_superblock,
    geometry_problem,
    place_record,
    record_size,
    slot_index,
    slot_offset,
)

_INTERESTING = (0, 1, 2, 7, 8, 47, 48, 49, 63, 64, 4095, 4096, (1 << 16) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WORD = (1 << 64) - 1
_HUGE = ((1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)


class Image:
    """A log file under mutation. Its slots and records are found in the undamaged image."""

    def __init__(self, images: list[bytes], random: Random) -> None:
        self.random = random
        self.images = images
        base = random.choice(images)
        self.raw = bytearray(base)
        block = decode_superblock(base[:PAGE], 0)
        assert block is not None
        self.block: Superblock = block
        self.slots = self._slots(base)
        self.records = self._records(base)

    def _slots(self, base: bytes) -> list[int]:
        """Indexes of the slots written since creation, newest first."""
        found = []
        for index in range(self.block.turn):
            offset = slot_offset(index)
            slot = decode_slot(base[offset : offset + SLOT.size], self.block.uuid, index)
            if slot is not None and slot.generation:
                found.append((slot.generation, index))
        return [index for _, index in sorted(found, reverse=True)]

    def _records(self, base: bytes) -> list[int]:
        """Positions of possible records of the newest slot's lap."""
        if not self.slots:
            return []
        block, found = self.block, []
        offset = slot_offset(self.slots[0])
        slot = decode_slot(base[offset : offset + SLOT.size], block.uuid, self.slots[0])
        assert slot is not None
        for position in range(slot.tail_position, slot.tail_position + block.capacity - HEADER + 1, block.alignment):
            at = block.ring_offset + position % block.capacity
            if len(base) - at >= HEADER and self._plausible(decode_header(base, at)):
                found.append(position)  # no header begins where less than one fits
        return found

    def _plausible(self, header: Header) -> bool:
        return 0 < header.seq < 1 << 32 and 0 < header.epoch < 1000 and header.batch_index < header.batch_count < 100

    def number(self, near: int, bits: int) -> int:
        """A number that may cause trouble in place of ``near``."""
        random = self.random
        kind = random.randrange(6)
        if kind < 3:
            value = near + random.choice((-1, 1, -2, 2, -8, 8, -64, 64, self.block.alignment, self.block.capacity))
        elif kind == 3:
            value = random.choice(_INTERESTING)
        elif kind == 4:
            value = random.choice(_HUGE)
        else:
            value = random.getrandbits(random.randint(1, bits))
        return value & ((1 << bits) - 1)

    # -- damage

    def flip(self) -> None:
        """Flip some bits."""
        for _ in range(self.random.choice((1, 1, 2, 5))):
            self.raw[self.random.randrange(len(self.raw))] ^= 1 << self.random.randrange(8)

    def flip_record(self) -> None:
        """Flip a bit of a record."""
        if self.records:
            at = self.block.ring_offset + self.random.choice(self.records) % self.block.capacity
            at = min(at + self.random.randrange(HEADER + 8), len(self.raw) - 1)
            self.raw[at] ^= 1 << self.random.randrange(8)

    def fill(self) -> None:
        """Fill a range with zeros, ones or noise."""
        length = self.random.choice((1, 8, 48, 64, 512, PAGE))
        at = self.random.randrange(max(len(self.raw) - length, 1)) // 8 * 8
        length = min(length, len(self.raw) - at)
        self.raw[at : at + length] = self.random.choice((bytes(length), b"\xff" * length, self.random.randbytes(length)))

    def tear(self) -> None:
        """Replace pages or lines by those of another time."""
        other = self.random.choice(self.images)
        unit = self.random.choice((PAGE, LINE, 512))
        share = self.random.random()
        for at in range(0, min(len(self.raw), len(other)), unit):
            if self.random.random() < share:
                self.raw[at : at + unit] = other[at : at + unit]

    def copy(self) -> None:
        """Copy a block of the ring to another place in it."""
        block, random = self.block, self.random
        length = random.choice((HEADER, LINE, 512, PAGE))
        source, target = (block.ring_offset + random.randrange(0, block.capacity, block.alignment) for _ in range(2))
        data = bytes(self.raw[source : min(source + length, block.file_size)])
        data = data[: max(block.file_size - target, 0)]
        self.raw[target : target + len(data)] = data

    def resize(self) -> None:
        """Cut the file off, or make it longer than its geometry."""
        if self.random.random() < 0.5:
            del self.raw[self.random.randrange(len(self.raw)) :]
        else:
            self.raw += bytes(self.random.choice((1, PAGE)))

    # -- lies with a right checksum

    def _seal(self, position: int, header: Header) -> None:
        """Store a header with the right checksum over the bytes that follow it."""
        block = self.block
        at = block.ring_offset + position % block.capacity
        payload = bytes(self.raw[at + HEADER : at + HEADER + min(header.length, block.capacity)])
        if block.capacity - position % block.capacity >= HEADER:
            self.raw[at : at + HEADER] = encode_header(header, payload, block.uuid, position)

    def lie_record(self) -> None:
        """Change a field of a record."""
        if not self.records:
            return
        position = self.random.choice(self.records)
        at = self.block.ring_offset + position % self.block.capacity
        header = decode_header(bytes(self.raw), at)
        name = self.random.choice(("length", "seq", "durable", "time_ns", "epoch", "kind", "flags", "batch_index", "batch_count"))
        bits = 8 * RECORD.field_size(name)
        value = self.number(getattr(header, name) & ((1 << bits) - 1), bits)
        if name == "time_ns":
            value -= 1 << 63
        self._seal(position, header._replace(**{name: value}))

    def forge_records(self) -> None:
        """Add a run of nearly right records after one that is there, or after the newest slot."""
        block, random = self.block, self.random
        if not self.slots:
            return
        index = self.slots[0]
        slot = decode_slot(bytes(self.raw[slot_offset(index) : slot_offset(index) + SLOT.size]), block.uuid, index)
        if slot is None:
            return
        position, seq, epoch = slot.commit_position, slot.commit_seq + 1, slot.epoch
        if self.records and random.random() < 0.6:
            position = random.choice(self.records)
            header = decode_header(bytes(self.raw), block.ring_offset + position % block.capacity)
            seq, epoch = header.seq, header.epoch
        batch = random.choice((1, 1, 2, 3, 7))
        for number in range(random.choice((1, 2, 5, 30))):
            length = random.choice((0, 1, 8, 16, 100, block.capacity // 4, block.payload_max))
            size = record_size(length, block.alignment)
            position = place_record(position, size, block.capacity)
            header = Header(
                crc=0,
                length=length,
                seq=seq,
                durable=max(position - random.choice((0, 0, 64, 4096, block.capacity)), 0),
                time_ns=number,
                epoch=epoch,
                kind=0,
                flags=0,
                batch_index=number % batch,
                batch_count=batch,
            )
            if random.random() < 0.05:
                name = random.choice(("seq", "epoch", "batch_index", "batch_count", "durable"))
                header = header._replace(**{name: self.number(getattr(header, name), 8 * RECORD.field_size(name))})
            if seq > _WORD:
                return
            self._seal(position, header)
            position, seq = position + size, seq + 1
            epoch = min(epoch + (random.random() < 0.03), (1 << 32) - 1)

    def lie_slot(self) -> None:
        """Change a field of one of the newest slots, or add a slot after the newest."""
        if not self.slots:
            return
        block, random = self.block, self.random
        index = random.choice(self.slots[:3])
        slot = decode_slot(bytes(self.raw[slot_offset(index) : slot_offset(index) + SLOT.size]), block.uuid, index)
        if slot is None:
            return
        if random.random() < 0.3:
            slot = slot._replace(generation=slot.generation + 1)
        if random.random() < 0.5 and self.records:
            # A pointer or a tail where a record begins.
            position = random.choice(self.records)
            header = decode_header(bytes(self.raw), block.ring_offset + position % block.capacity)
            if random.random() < 0.5:
                slot = slot._replace(tail_position=position, tail_seq=header.seq)
            else:
                slot = slot._replace(commit_position=position, commit_seq=max(header.seq - 1, 0))
        else:
            name = random.choice(slot._fields)
            slot = slot._replace(**{name: self.number(getattr(slot, name), 8 * SLOT.field_size(name))})
        index = slot_index(slot.generation, block.control_pages) if slot.generation else index
        self.raw[slot_offset(index) : slot_offset(index) + SLOT.size] = encode_slot(slot, block.uuid, index)

    def lie_superblock(self) -> None:
        """State a geometry that the file does not have, in one copy or both."""
        random, block = self.random, self.block
        match random.randrange(4):
            case 0:
                other = replace(block, alignment=random.choice((8, 16, 64, 512, 4096)))
            case 1:
                other = replace(block, capacity=random.choice((PAGE, block.capacity - PAGE, block.capacity + PAGE, 1 << 46)))
            case 2:
                other = replace(block, control_size=random.choice((2, 3, 256)) * PAGE)
            case _:
                other = replace(block, compatible=random.getrandbits(1), incompatible=random.getrandbits(1))
        if geometry_problem(other):
            return
        self.raw[:PAGE] = encode_superblock(other, 0)
        if random.random() < 0.7 and other.copy_offset + PAGE <= len(self.raw):
            self.raw[other.copy_offset : other.copy_offset + PAGE] = encode_superblock(other, 1)

    def move_up(self) -> None:
        """Shift all positions and numbers alike, to the limits of the format or anywhere."""
        block, random = self.block, self.random
        if not self.slots or max(self.records, default=0) > 1 << 61:
            return
        laps = random.choice((1, (1 << 62) // block.capacity, ((1 << 63) - 1) // block.capacity - random.randint(1, 3)))
        shift = laps * block.capacity
        numbers = random.choice((0, 1 << 40, (1 << 64) - 2 - random.randint(0, 300)))
        raw = bytes(self.raw)
        for position in self.records:
            header = decode_header(raw, block.ring_offset + position % block.capacity)
            moved = header._replace(seq=header.seq + numbers & _WORD, durable=header.durable + shift & _WORD)
            self._seal(position + shift, moved)
        for index in self.slots:
            slot = decode_slot(raw[slot_offset(index) : slot_offset(index) + SLOT.size], block.uuid, index)
            if slot is None:
                continue
            changes = {name: getattr(slot, name) + shift & _WORD for name in ("commit_position", "tail_position")}
            changes |= {name: getattr(slot, name) + numbers & _WORD for name in ("commit_seq", "tail_seq", "epoch_first_seq")}
            moved_slot = slot._replace(**changes)
            self.raw[slot_offset(index) : slot_offset(index) + SLOT.size] = encode_slot(moved_slot, block.uuid, index)
        self.records = [position + shift for position in self.records]

    def lie_live_bounds(self) -> None:
        """Change the live page of a process that is not alive."""
        words = [self.random.choice((*_INTERESTING, *_HUGE)) for _ in range(16)]
        self.raw[PAGE : PAGE + 128] = struct.pack("<16Q", *words)


MUTATIONS = (
    *(Image.flip, Image.flip_record, Image.fill, Image.tear, Image.copy),
    *(Image.lie_record, Image.lie_record, Image.lie_record, Image.forge_records, Image.forge_records),
    *(Image.lie_slot, Image.lie_slot, Image.lie_superblock, Image.move_up, Image.lie_live_bounds),
)


def mutated(images: list[bytes], random: Random) -> bytes:
    """One of the images with a few mutations, which may overlap."""
    image = Image(images, random)
    if random.random() < 0.15:
        image.move_up()
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        random.choice(MUTATIONS)(image)
    if random.random() < 0.03:
        image.resize()
    return bytes(image.raw)
