"""Make tools/fuzz/corpus, from which the fuzzer of ring.c starts: from the golden files, and a payload that imitates records.

    python tools/fuzz/make_corpus.py [DIRECTORY]

Each input is the struct parameters of ring_fuzz.c and the bytes of a ring. The same files come out every time.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from random import Random

from pmwal.format.control import read_control
from pmwal.format.layout import PAGE, SEQ_MAX, Header, Slot, Superblock, decode_superblock, encode_header, uuid_crc
from pmwal.records import Bound
from pmwal.testing.lookalikes import Place, lookalike

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).resolve().parent / "corpus"
GOLDEN = ("clean", "killed", "wrapped")

PARAMETERS = struct.Struct("<4BI11Q2I")
SEAL, CHAIN, RAW, ODD, BATCHES = 1, 2, 4, 8, 16
_CAPACITIES = (4096, 8192, 16384, 3 * 32768)


def parameters(
    block: Superblock, slot: Slot, *, position: int, seq: int, stop_seq: int, limit: int, mode: int, window: tuple[int, int]
) -> bytes:
    """The struct, for a run over this log."""
    return PARAMETERS.pack(
        block.alignment.bit_length() - 4,
        _CAPACITIES.index(block.capacity),
        0,
        mode,
        uuid_crc(block.uuid),
        position,
        seq,
        stop_seq,
        limit,
        slot.epoch_first_seq,
        0,
        512,
        0,
        0,
        *window,
        slot.epoch,
        1,
    )


def from_golden(image: bytes, mode: int, past_pointer: bool) -> bytes:
    """A run like recovery's: from the tail to the pointer, or from the pointer on."""
    block = decode_superblock(image[:PAGE], 0)
    assert block is not None
    slot = read_control(image[block.control_offset : block.control_offset + block.control_size], block).newest
    assert slot is not None
    ring = image[block.ring_offset : block.file_size].rstrip(b"\0")
    limit = slot.tail_position + block.capacity
    position, seq = (slot.commit_position, slot.commit_seq + 1) if past_pointer else (slot.tail_position, slot.tail_seq)
    head = parameters(
        block, slot, position=position, seq=seq, stop_seq=SEQ_MAX, limit=limit, mode=mode | RAW, window=(position % PAGE, 700)
    )
    return head + ring


def lookalikes() -> bytes:
    """A run over one record, whose payload imitates records of its log and repeats headers as densely as possible."""
    block = Superblock(bytes(range(16)), 2 * PAGE, 4096, 8, 0)
    slot = Slot(
        epoch=3, generation=9, epoch_first_seq=5, commit_position=8192, commit_seq=4, tail_position=8192, tail_seq=5, flags=0
    )
    place = Place(block, Bound(8192, 5), Bound(8192, 5), 8192, slot.epoch, slot.generation)
    random = Random(2)
    payload = b"".join(lookalike(random, place, 400) for _ in range(4))
    header = Header(0, len(payload), 5, 8192, 0, slot.epoch, 0, 0, 0, 1)
    head = parameters(block, slot, position=8192, seq=5, stop_seq=SEQ_MAX, limit=12288, mode=RAW, window=(0, 2000))
    return head + encode_header(header, payload, block.uuid, 8192) + payload


def inputs() -> dict[str, bytes]:
    """All inputs by name."""
    found = {}
    for name in GOLDEN:
        image = (ROOT / "tests" / "data" / f"v1-{name}.bin").read_bytes()
        found[f"{name}-from-tail"] = from_golden(image, 0, past_pointer=False)
        if name == "killed":
            found[f"{name}-past-pointer"] = from_golden(image, BATCHES, past_pointer=True)
            found[f"{name}-sealed"] = from_golden(image, SEAL, past_pointer=False)
    found["lookalikes"] = lookalikes()
    random = Random(1)
    for capacity, alignment in ((0, 0), (40, 3), (3, 0)):
        head = PARAMETERS.pack(alignment, capacity, 0, CHAIN, 7, 40960, 5, 200, 9000, 3, 0, 300, 0, 0, 64, 1000, 0, 0)
        found[f"chain-{capacity}-{alignment}"] = head + random.randbytes(250)
    return found


def main() -> None:
    """Write them, and remove all other files."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    directory.mkdir(exist_ok=True)
    made = inputs()
    for path in directory.iterdir():
        if path.name not in made:
            path.unlink()
    for name, data in made.items():
        (directory / name).write_bytes(data)
    print(f"{directory}: {len(made)} inputs, {sum(map(len, made.values()))} bytes")


if __name__ == "__main__":
    main()
