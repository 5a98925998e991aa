"""What a writer frees for its consumers: ``truncate(consumed=True)``, ``on_full="consumed"``, and what holds everything back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import Call, until
from conftest import Place
from pmwal.errors import PersistError, RecordTooLarge, WalClosed, WalFull
from pmwal.format.layout import PAGE
from support import BarrierRecorder, image, open_small, overwrite, payloads

pytestmark = pytest.mark.both_engines


def acknowledge(path: Path, seq: int, name: str = "nats", **options: Any) -> None:
    """As another process would."""
    with pmwal.open(path, "r") as reader, reader.consumer(name) as consumer:
        consumer.ack(seq, **options)


def fill(wal: pmwal.Wal, data: bytes = bytes(1000)) -> str:
    """Append until the log is full; why it is."""
    try:
        for _ in range(wal.capacity):
            wal.append(data)
    except WalFull as error:
        return str(error)
    raise AssertionError("it takes more than it has room for")


@pytest.fixture
def wal(path: Path) -> Iterator[pmwal.Wal]:
    """A log with the records a to e."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d", b"e"])
        yield wal


# -- truncate(consumed=True)


def test_what_all_consumers_have_acknowledged_is_freed(place: Place) -> None:
    """The slowest one decides, on every medium."""
    with open_small(place.path, **place.options) as wal:
        wal.extend([b"a", b"b", b"c", b"d"])
        acknowledge(place.path, 3, "fast")
        acknowledge(place.path, 1, "slow")
        assert wal.truncate(consumed=True) == 2
        acknowledge(place.path, 4, "slow")
        assert wal.truncate(consumed=True) == 4
        acknowledge(place.path, 4, "fast")
        assert wal.truncate(consumed=True) == 5
        assert len(wal) == 0
        wal.append(b"e")
        assert wal.truncate(consumed=True) == 5
    with open_small(place.path, **place.options) as wal:
        assert payloads(wal) == [b"e"]


def test_number_bounds_what_is_freed(path: Path, wal: pmwal.Wal) -> None:
    """The lesser of the two counts; the number must be in the log."""
    acknowledge(path, 3)
    assert wal.truncate(before=2, consumed=True) == 2
    assert wal.truncate(before=6, consumed=True) == 4
    with pytest.raises(ValueError, match="before=7 is outside 4 to 6"):
        wal.truncate(before=7, consumed=True)
    with pytest.raises(TypeError, match="needs before=NUMBER, consumed=True, or both"):
        wal.truncate()


def test_only_what_is_released_is_freed(path: Path, wal: pmwal.Wal) -> None:
    """A consumer may want records again that it has acknowledged."""
    acknowledge(path, 4, released=2)
    assert wal.truncate(consumed=True) == 3


def test_without_consumers_nothing_is_freed(path: Path, wal: pmwal.Wal) -> None:
    """Nobody says what is needed; also in an empty directory."""
    assert wal.truncate(consumed=True) == 1
    os.mkdir(f"{path}.consumers")
    assert wal.truncate(consumed=True) == 1


def test_named_consumer_that_has_not_begun_holds_everything_back(path: Path) -> None:
    """``consumers=`` says for whom the writer keeps records from the start."""
    with open_small(path, consumers=("late", "nats")) as wal:
        wal.extend([b"a", b"b"])
        acknowledge(path, 2)
        assert wal.truncate(consumed=True) == 1
        acknowledge(path, 1, "late")
        assert wal.truncate(consumed=True) == 2


def _of_another_log(path: Path) -> None:
    other = path.with_name("other.wal")
    with open_small(other, seam=BarrierRecorder(uuid=b"another log....!")) as wal:
        wal.extend([b"x"] * 5)
        acknowledge(other, 5)
    shutil.copy(f"{other}.consumers/nats", f"{path}.consumers/bad")


def _damaged(path: Path) -> None:
    shutil.copy(f"{path}.consumers/nats", f"{path}.consumers/bad")
    for page in range(2):
        overwrite(Path(f"{path}.consumers/bad"), page * PAGE + 40, b"damage")


def _empty(path: Path) -> None:
    Path(f"{path}.consumers/bad").touch()


def _no_file(path: Path) -> None:
    os.mkdir(f"{path}.consumers/bad")


def _a_link(path: Path) -> None:
    os.symlink("nats", f"{path}.consumers/bad")


@pytest.mark.parametrize("spoil", [_of_another_log, _damaged, _empty, _no_file, _a_link])
def test_position_that_says_nothing_holds_everything_back_and_is_named(path: Path, spoil: Any) -> None:
    """Nothing is freed that a consumer may not have had."""
    with open_small(path, on_full="consumed", timeout=0) as wal:
        wal.extend([b"a", b"b"])
        acknowledge(path, 2)
        spoil(path)
        assert wal.truncate(consumed=True) == 1
        assert "consumer 'bad': its position " in fill(wal)
        assert wal.first_seq == 1


def test_place_of_positions_that_cannot_be_read_holds_everything_back(path: Path) -> None:
    """The handle stays usable."""
    with open_small(path, on_full="consumed", timeout=0) as wal:
        wal.append(b"a")
        Path(f"{path}.consumers").touch()
        assert wal.truncate(consumed=True) == 1
        assert "where positions are, cannot be read: Not a directory" in fill(wal)
        assert wal.commit() == wal.next_seq - 1


def test_position_of_a_record_that_was_rolled_back_holds_everything_back(path: Path, wal: pmwal.Wal) -> None:
    """Other records have its number, and nobody has had them."""
    acknowledge(path, 4)
    wal.rollback(after=2)
    assert wal.truncate(consumed=True) == 1
    wal.extend([b"C", b"D", b"E"])
    assert wal.truncate(consumed=True) == 1
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        consumer.seek(3)
    assert wal.truncate(consumed=True) == 3


def test_position_of_an_older_copy_of_the_log_holds_everything_back(path: Path) -> None:
    """A log that was restored beside newer positions."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    with open_small(path) as wal:
        wal.extend([b"c", b"d"])
        acknowledge(path, 4)
    os.replace(copy, path)
    with open_small(path) as wal:
        assert wal.truncate(consumed=True) == 1
        wal.extend([b"C", b"D", b"E"])
        assert wal.truncate(consumed=True) == 1


def test_hard_links_are_refused_at_open_and_hold_everything_back_later(path: Path, wal: pmwal.Wal) -> None:
    """A consumer under the other name would not be seen."""
    acknowledge(path, 3)
    second = path.with_name("second.wal")
    os.link(path, second)
    assert wal.truncate(consumed=True) == 1
    wal.close()
    for options in ({"consumers": ["nats"]}, {"on_full": "consumed"}):
        with pytest.raises(ValueError, match="2 names"):
            open_small(path, **options)
    second.unlink()
    with open_small(path, consumers=["nats"]) as again:
        assert again.truncate(consumed=True) == 4


def test_symbolic_link_finds_the_same_consumers(path: Path, wal: pmwal.Wal) -> None:
    """The writer looks beside the real path."""
    wal.close()
    link = path.with_name("link.wal")
    link.symlink_to(path)
    acknowledge(path, 2)
    with open_small(link) as again:
        assert again.truncate(consumed=True) == 3


def test_rollback_between_the_look_and_the_truncate_is_noticed(path: Path, wal: pmwal.Wal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positions are synced without a lock, so another thread may discard what they name."""
    acknowledge(path, 4)
    original, looks = wal._consumed.limit, []

    def limit() -> Any:
        found = original()
        looks.append(found.next_seq)
        if len(looks) == 1:
            Call(lambda: (wal.rollback(after=2), wal.extend([b"C", b"D"]))).result()
        return found

    monkeypatch.setattr(wal._consumed, "limit", limit)
    assert wal.truncate(consumed=True) == 1
    assert looks == [5, 1]


def test_positions_are_synced_before_the_tail_moves(shm_place: Place) -> None:
    """And only those that let it move."""
    seam = BarrierRecorder()
    with open_small(shm_place.path, seam=seam, **shm_place.options) as wal:
        wal.extend([b"a", b"b", b"c"])
        acknowledge(shm_place.path, 2)
        seam.events.clear()
        wal.truncate(consumed=True)
        names = [step.name for step in seam.events if step.name in ("sync position", "store", "flush") and step.offset >= 0]
        assert names[0] == "sync position"
        assert "store" in names
        seam.events.clear()
        assert wal.truncate(consumed=True) == 3
        assert [step.name for step in seam.events] == []


def test_position_that_cannot_be_synced_holds_everything_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be lost in a power cut, with the records freed. The log itself is sound."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam, on_full="consumed", timeout=0) as wal:
        wal.append(b"a")
        acknowledge(path, 1)

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(seam, "sync_data", fail)
        assert wal.truncate(consumed=True) == 1
        assert "its position cannot be relied on: Input/output error" in fill(wal)
        monkeypatch.undo()
        assert wal.truncate(consumed=True) == 2


# -- on_full="consumed"


def test_full_log_frees_what_is_consumed(place: Place) -> None:
    """Endlessly, and never anything else."""
    with open_small(place.path, on_full="consumed", timeout=0, **place.options) as wal:
        acknowledge(place.path, 0)
        for turn in range(10):
            assert f"consumer 'nats' has acknowledged {'record' if turn else 'nothing'}" in fill(wal)
            newest = wal.next_seq - 1
            acknowledge(place.path, newest - 3)
            wal.append(bytes(1000))
            assert wal.first_seq == newest - 2
        assert wal.stats().overwritten == 0


def test_full_log_without_consumers_says_how_to_make_one(path: Path) -> None:
    """Nothing is freed."""
    with open_small(path, on_full="consumed", timeout=0) as wal:
        assert "no consumer has begun; the first one is made by reader.consumer(NAME)" in fill(wal)


def test_append_waits_for_a_consumer(path: Path) -> None:
    """In any process: the writer looks at the positions from time to time."""
    with open_small(path, on_full="consumed", consumers=["nats"]) as wal:
        stored = Call(lambda: wal.extend([bytes(4000)] * 3) and wal.extend([bytes(4000)] * 3))
        until(lambda: wal.stats().waits > 0)
        acknowledge(path, 3)
        stored.result()
        assert wal.first_seq == 4
        assert wal.stats().waits == 1


def test_wait_ends_after_its_time_and_names_the_slowest(path: Path) -> None:
    """The error says who holds the records, and what to do."""
    with open_small(path, on_full="consumed", timeout=0.01) as wal:
        wal.append(b"a")
        acknowledge(path, 1, "fast")
        acknowledge(path, 0, "slow")
        message = fill(wal)
        assert "still full after 0.01 seconds" in message
        assert "consumer 'slow' has acknowledged nothing. Let the consumers acknowledge" in message
        assert "'fast'" not in message
        assert wal.stats().dropped == 1


def test_wait_ends_when_the_handle_is_closed(path: Path) -> None:
    """As a wait for a truncate does."""
    wal = open_small(path, on_full="consumed", consumers=["nats"])
    stored = Call(lambda: wal.extend([bytes(4000)] * 3) and wal.extend([bytes(4000)] * 3))
    until(lambda: wal.stats().waits > 0)
    closing = Call(wal.close)
    with pytest.raises(WalClosed):
        stored.result()
    closing.result()


def test_record_that_never_fits_is_refused_at_once(path: Path) -> None:
    """No consumer could help."""
    with open_small(path, on_full="consumed") as wal, pytest.raises(RecordTooLarge):
        wal.append(bytes(20000))


def test_failed_medium_ends_a_wait(path: Path) -> None:
    """Freeing moves the tail, which takes barriers."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam, medium="file", on_full="consumed", commit="manual", timeout=0) as wal:
        fill(wal)
        wal.commit()
        acknowledge(path, 3)

        def fail(step: Any) -> None:
            if step.name == "flush":
                raise OSError(5, "Input/output error")

        seam.before = fail
        with pytest.raises(PersistError):
            wal.append(bytes(1000))
        seam.before = None


@pytest.mark.parametrize("consumers", [["-x"], ["a/b"], [""]])
def test_consumers_must_be_names(path: Path, consumers: list[str]) -> None:
    """Nothing is created."""
    with pytest.raises(ValueError, match="cannot be the name of a consumer"):
        open_small(path, consumers=consumers)
    assert not path.exists()


def test_consumers_is_a_list_and_for_writers(path: Path) -> None:
    """A text would be taken for its letters."""
    with pytest.raises(TypeError, match="list of names, such as"):
        open_small(path, consumers="nats")
    with pytest.raises(TypeError):
        open_small(path, consumers=[1])
    open_small(path).close()
    with pytest.raises(ValueError, match="a reader begins one with"):
        pmwal.open(path, "r", consumers=["nats"])


@pytest.mark.native_engine
def test_both_engines_free_alike(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls leave the same bytes."""
    images = []
    for engine in ("python", "native"):
        monkeypatch.setenv("PMWAL_ENGINE", engine)
        path = shm_dir / f"{engine}.wal"
        with open_small(path, on_full="consumed", timeout=0) as wal:
            wal.extend([b"a"] * 20)
            acknowledge(path, 5)
            wal.truncate(consumed=True)
            wal.extend([bytes(700)] * 10)
            acknowledge(path, 25)
            fill(wal)
        images.append(image(path))
    assert images[0] == images[1]
