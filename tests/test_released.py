"""A released 0.1, installed in an environment of its own, and this version use the same logs, closed and beside a living writer."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from crc32c import crc32c

import pmwal
from pmwal.format.control import read_control
from pmwal.format.layout import LIVE_FOLLOWERS_OFFSET, PAGE, RECORD, SLOT, decode_superblock, seed_crc, slot_index, slot_offset
from processes import PATIENCE
from released import Peer, PeerError, install, packed, peers, unpacked
from support import overwrite, superblock, whole_records

pytestmark = [pytest.mark.rigs, pytest.mark.both_engines, pytest.mark.usefixtures("hints_first")]

STEPS = 50
Items = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment of 0.1."""
    return install(request.config, tmp_path_factory.getbasetemp())


class Conversation:
    """One log: ``writer`` changes it, ``reader`` looks at it after each change, and the test knows what is in it."""

    def __init__(self, path: Path, writer: Peer, reader: Peer, options: dict[str, Any]) -> None:
        self.path = path
        self.writer = writer
        self.reader = reader
        self.options = options
        self.first_seq = 1
        self.items: Items = []
        self.committed_seq = 0
        self.issued = 0

    def open(self, peer: Peer, *, size: str | None = None) -> None:
        """Open for writing by this process: it finds what is there, by a verdict to which a crash may lead."""
        mode = {"mode": "x", "size": size} if size else {"mode": "r+"}
        first_seq, records, case, _ = peer.call("open", str(self.path), {**self.options, **mode})
        self.writer = peer
        assert (first_seq, unpacked(records)) == (self.first_seq, self.items)
        assert case in ("R1", "R2", "R3")
        self.committed_seq = self.first_seq - 1 + len(self.items)

    def payloads(self, count: int, size: int) -> list[bytes]:
        """New payloads."""
        self.issued += count
        return [b"%d." % (self.issued - place) + b"x" * size for place in range(count)]

    @property
    def next_seq(self) -> int:
        """The number of the next record."""
        return self.first_seq + len(self.items)

    def took(self, bounds: list[int], added: list[bytes] = []) -> None:  # noqa: B006 (never changed)
        """A call has returned these bounds."""
        self.items += list(enumerate(added, self.next_seq))
        self.first_seq, self.committed_seq, next_seq = bounds
        self.items = [item for item in self.items if self.first_seq <= item[0] < next_seq]
        assert next_seq == self.next_seq

    @property
    def durable(self) -> Items:
        """What readers in other processes may see."""
        return [item for item in self.items if item[0] <= self.committed_seq]

    def store(self, added: list[bytes], method: str, *arguments: Any) -> None:
        """A call that stores records; where there is no space, the log is emptied first."""
        try:
            self.took(self.writer.call(method, *arguments), added)
        except PeerError as error:
            if error.name != "WalFull":
                raise
            self.took(self.writer.call("truncate", self.next_seq))

    def change(self, random: Random) -> None:
        """One random call of the writer, sometimes with a follower that waits for its records."""
        match random.choice(["append", "append", "pending", "extend", "commit", "truncate", "rollback"]):
            case "append":
                (payload,) = self.payloads(1, random.choice((0, 10, 300)))
                if random.random() < 0.5:
                    self.follow_while(payload)
                else:
                    self.store([payload], "append", packed(payload), True)
            case "pending":
                (payload,) = self.payloads(1, 100)
                self.store([payload], "append", packed(payload), False)
            case "extend":
                payloads = self.payloads(random.randint(2, 5), 60)
                self.store(payloads, "extend", [packed(payload) for payload in payloads])
            case "commit":
                self.took(self.writer.call("commit"))
            case "truncate":
                self.took(self.writer.call("truncate", random.randint(self.first_seq, self.next_seq)))
            case "rollback":
                after = random.randint(self.first_seq - 1, self.next_seq - 1)
                bounds = self.writer.call("rollback", after)
                self.items = [item for item in self.items if item[0] <= after]
                self.took(bounds)

    def follow_while(self, payload: bytes) -> None:
        """A reader waits for the next record; the writer appends it, and the reader is woken."""
        self.took(self.writer.call("truncate", self.next_seq))  # so there is space, and nothing is pending
        start = self.next_seq
        self.reader.say("follow", start, 1, PATIENCE)
        self.took(self.writer.call("append", packed(payload), True), [payload])
        assert unpacked(self.reader.hear()) == [(start, payload)]

    def check(self, *, living: bool) -> None:
        """The other version shows what is in the log, and finds nothing wrong with it."""
        expected = self.durable if living else self.items
        first_seq, records = self.reader.call("read", str(self.path))
        assert (first_seq, unpacked(records)) == (self.first_seq, expected)
        self.look_until(expected)
        report = self.reader.call("verify", str(self.path))
        assert report["outcome"] in ("clean", "recovered"), report
        assert (report["slots_lost"], report["superblocks_lost"]) == (0, 0)
        assert report["first_seq"] == self.first_seq
        assert max(expected[-1][0] if expected else 0, self.first_seq - 1) <= report["last_seq"] < self.next_seq
        followed = self.reader.call("follow", self.first_seq, len(expected) + 1, 0)
        assert unpacked(followed) == expected
        with pmwal.open(self.path, "r") as reader:  # of this version, by the hints of either one's writer
            for seq, payload in expected[::-7] if living else ():
                assert reader[seq].data == payload

    def look_until(self, expected: Items) -> None:
        """The reader that stays shows this. A dead writer of 0.1 may count as alive for a second, as one in another pid namespace
        could be: until then only what it had shown as durable is there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            first_seq, records = self.reader.call("look")
            shown = unpacked(records)
            if (first_seq, shown) == (self.first_seq, expected) or time.monotonic() > deadline:
                break
            assert first_seq < self.first_seq or shown == expected[: len(shown)]
            time.sleep(0.05)
        assert (first_seq, shown) == (self.first_seq, expected)

    def kill_in_a_call(self, random: Random) -> None:
        """SIGKILL while an extend is under way: it has taken effect or not, and all else is there."""
        payloads = self.payloads(3, 200)
        with_them = self.items + list(enumerate(payloads, self.next_seq))
        if random.random() < 0.7:
            self.writer.say("extend", [packed(payload) for payload in payloads])
        self.writer.kill()
        first_seq, records = self.reader.call("read", str(self.path))
        found = unpacked(records)
        assert first_seq >= self.first_seq  # greater where space was freed for them
        kept = [[item for item in items if item[0] >= first_seq] for items in (self.items, with_them)]
        assert found in kept
        self.first_seq, self.items = first_seq, found
        self.committed_seq = max(self.committed_seq, first_seq - 1)


@pytest.mark.parametrize("on_full", ["raise", "overwrite"])
@pytest.mark.parametrize(("ordering", "medium"), [("strict", "memory"), ("strict", "file"), ("pipelined", "file")])
@pytest.mark.parametrize("released_writes", [False, True], ids=["this-writes", "released-writes"])
def test_released_version_and_this_one_understand_each_other(
    released_writes: bool, ordering: str, medium: str, on_full: str, engine: str, released: Path, shm_dir: Path
) -> None:
    """Appends, rollbacks, truncates, overwriting, closes, kills and reopens by either version, each seen rightly by the other."""
    writing, reading = (released, sys.executable) if released_writes else (sys.executable, released)
    random = Random(f"{ordering} {medium} {on_full}")
    options = {"ordering": ordering, "medium": medium, "on_full": on_full}
    with peers([writing, reading, writing, reading, writing, reading], engine) as (first, reader, *others):
        files = {writing: first.file, reading: reader.file}
        assert files[sys.executable] == pmwal.__file__
        assert files[released].startswith(str(released.parents[1]))
        talk = Conversation(shm_dir / "shared.wal", first, reader, options)
        talk.open(first, size="64KiB")
        reader.call("attach", str(talk.path))
        for following in [*others, None]:
            talk.check(living=True)
            for _ in range(STEPS):
                talk.change(random)
                talk.check(living=True)
            if random.random() < 0.5:
                talk.writer.call("close")
                talk.check(living=False)
                talk.open(talk.writer)
            else:
                talk.kill_in_a_call(random)
                talk.check(living=False)
                if following is not None:
                    talk.open(following)
        reader.call("detach")


# -- controls


def _change_slot(path: Path) -> None:
    """The newest slot with a one in its reserved bytes, and the right checksum."""
    raw, block = path.read_bytes(), superblock(path)
    newest = read_control(raw[block.control_offset : block.control_offset + block.control_size], block).newest
    assert newest is not None
    index = slot_index(newest.generation, block.control_pages)
    body = SLOT.struct.pack(0, *newest, 1)[4:]
    overwrite(path, slot_offset(index), struct.pack("<I", crc32c(body, seed_crc(block.uuid, index))) + body)


def _change_record(path: Path) -> None:
    """A record with a flag that 0.1 does not know, and the right checksum."""
    raw, block = bytearray(path.read_bytes()), superblock(path)
    found = whole_records(path)[2]
    at, end = (block.ring_offset + position for position in (found.position, found.position + RECORD.size + found.header.length))
    raw[at + RECORD.offsets["flags"]] = 1
    crc = crc32c(bytes(raw[at + 4 : end]), seed_crc(block.uuid, found.position))
    overwrite(path, at, struct.pack("<I", crc) + bytes(raw[at + 4 : end]))


def _change_superblock(path: Path) -> None:
    """A compatible flag in one copy only: 0.1 counts a copy as lost."""
    block = superblock(path)
    page = path.read_bytes()[block.copy_offset : block.copy_offset + PAGE]
    assert decode_superblock(page, 1) == block
    changed = page[:16] + b"\1" + page[17:-4]
    overwrite(path, block.copy_offset, changed + struct.pack("<I", crc32c(changed, seed_crc(block.uuid, 1))))


@pytest.mark.parametrize("change", [None, _change_slot, _change_record, _change_superblock])
def test_planted_incompatibility_is_noticed(change: Any, engine: str, released: Path, shm_dir: Path) -> None:
    """Negative control: what a later version might have put into reserved places is refused, or not believed, by 0.1."""
    with peers([sys.executable, released], engine) as (writer, reader):
        talk = Conversation(shm_dir / "shared.wal", writer, reader, {"ordering": "strict", "medium": "file"})
        talk.open(writer, size="64KiB")
        for number in range(3):
            payload = b"%d" % number
            talk.store([payload], "append", packed(payload), True)
        writer.call("close")
        if change is not None:
            change(talk.path)
        try:
            reader.call("attach", str(talk.path))
            talk.check(living=False)
        except (AssertionError, PeerError):
            assert change is not None
        else:
            assert change is None, "0.1 accepts it"


@pytest.mark.parametrize("action", ["copy", "resize"])
def test_released_version_uses_what_was_copied_or_resized(action: str, engine: str, released: Path, shm_dir: Path) -> None:
    """It reads and writes the new file. Its follow of a resized log, whose writer was killed, ends with the old file."""
    path, items = shm_dir / "shared.wal", [(seq, b"record %d" % seq) for seq in range(1, 8)]
    with peers([sys.executable, released], engine) as (writer, reader):
        talk = Conversation(path, writer, reader, {"ordering": "pipelined", "medium": "file"})
        talk.open(writer, size="64KiB")
        talk.store([payload for _, payload in items], "extend", [packed(payload) for _, payload in items])
        reader.call("attach", str(path))
        reader.say("follow", 1, 8, PATIENCE)
        while not path.read_bytes()[LIVE_FOLLOWERS_OFFSET]:
            time.sleep(0.01)  # until it has met the writer, and waits for it
        writer.kill()
        if action == "resize":
            pmwal.resize(path, "32KiB")
            assert unpacked(reader.hear()) == items
        else:
            pmwal.copy(path, shm_dir / "copy.wal", size="32KiB")
            path = shm_dir / "copy.wal"
            reader.kill()
    with peers([released], engine) as (old,):
        assert unpacked(old.call("read", str(path))[1]) == items
        assert old.call("verify", str(path))["case"] == "R1"
        talk.path = path
        talk.open(old)
        talk.store([b"8"], "append", packed(b"8"), True)
        old.call("close")
    with pmwal.open(path) as wal:
        assert [(record.seq, record.data) for record in wal] == [*items, (8, b"8")]


def test_clone_without_the_release_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason says what to do; where all rigs are required it is a failure."""
    monkeypatch.setattr("released.RELEASE", "0" * 40)
    monkeypatch.delenv("PMWAL_REQUIRE_RIGS", raising=False)
    config = SimpleNamespace()
    with pytest.raises(pytest.skip.Exception, match="git fetch --unshallow"):
        install(config, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("PMWAL_REQUIRE_RIGS", "1")
    with pytest.raises(pytest.fail.Exception, match="PMWAL_REQUIRE_RIGS=1"):
        install(config, tmp_path)  # type: ignore[arg-type]
