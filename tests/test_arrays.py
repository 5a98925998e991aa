"""Arrays: each row a record and back, the same bytes with both engines, and nothing that is not what was stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.reading.arrays
from conftest import Place
from pmwal.format.rows import as_rows
from pmwal.native import native
from pmwal.native.choice import ENGINES
from support import BarrierRecorder, contents, file_offset, flip, image, kill, open_small, payloads, superblock, whole_records

pytestmark = pytest.mark.both_engines

TICK = np.dtype([("id", "<u4"), ("side", "S1"), ("price", "<f8"), ("when", "<M8[ns]")])
LARGE = 8 * 1024 * 1024


def ticks(count: int) -> np.ndarray[Any, Any]:
    """Structured rows, each another one."""
    rows = np.zeros(count, TICK)
    rows["id"] = np.arange(count)
    rows["side"] = b"B"
    rows["price"] = np.arange(count) / 8
    rows["when"] = np.arange(count).astype("M8[ns]")
    return rows


ARRAYS = {
    "structured": ticks(50),
    "big-endian": ticks(9).astype(TICK.newbyteorder(">")),
    "bytes": np.arange(60, dtype=np.uint8).reshape(12, 5),
    "floats": np.linspace(0, 1, 21, dtype=">f4").reshape(7, 3),
    "datetimes": np.arange(6).astype("M8[s]").reshape(3, 2),
    "text": np.array([["a", "bc"], ["", "d"]]),
    "structured rows": ticks(12).reshape(4, 3),
    "opaque": ticks(5).view("V21"),
    "every second": ticks(40)[::2],
    "backwards": np.arange(60, dtype="<i8").reshape(12, 5)[::-1],
    "by columns": np.asfortranarray(np.arange(60, dtype="<i8").reshape(12, 5)),
    "a column": np.arange(60, dtype="<i8").reshape(12, 5)[:, 2:3],
    "read-only": np.frombuffer(bytes(range(32)), dtype=np.uint8).reshape(4, 8),
    "one row": np.arange(5.0)[None, :],
    "no bytes": np.zeros((3, 0)),
    "no fields": np.zeros(4, dtype=[]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_are_records_and_records_are_rows(name: str, place: Place) -> None:
    """The payload of each record is the bytes of its row; read back they are equal, also in a reader."""
    array = ARRAYS[name]
    dtype = array.dtype if array.ndim == 1 else np.dtype((array.dtype, array.shape[1:]))
    with open_small(place.path, **place.options) as wal:
        wal.append(b"before")
        first, last = wal.extend_array(array, kind=7)
        wal.append(b"after")
        assert (first, last) == (2, len(array) + 1)
        assert [row.tobytes() for row in array] == [record.data for record in wal.read(first, last + 1)]
        assert {record.kind for record in wal.read(first, last + 1)} == {7}
        with pmwal.open(place.path, "r") as reader:
            for handle in (wal, reader):
                found = handle.read_array(dtype, first, last + 1)
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                assert found.tobytes() == array.tobytes()


def test_it_is_one_batch_and_one_commit(place: Place) -> None:
    """And what is returned is durable, by policy."""
    with open_small(place.path, **place.options) as wal:
        before = wal.stats().commits
        wal.extend_array(ticks(30))
        assert (wal.stats().commits, wal.committed_seq, wal.stats().appends) == (before + 1, 30, 30)
    assert {(found.header.batch_index, found.header.batch_count) for found in whole_records(place.path).values()} == {
        (place, 30) for place in range(30)
    }
    with open_small(place.path, commit="manual", **place.options) as wal:
        wal.extend_array(ticks(3))
        assert (wal.next_seq, wal.committed_seq) == (34, 30)


@pytest.mark.skipif(native is None, reason="needs the native engine")
@pytest.mark.native_engine
def test_both_engines_and_extend_leave_the_same_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several laps of the ring, with gaps of every kind at its end."""

    def run(engine: str, *, arrays: bool) -> bytes:
        monkeypatch.setenv("PMWAL_ENGINE", engine)
        path = place.path.with_name(f"{engine}-{arrays}")
        with open_small(path, commit="manual", **place.options) as wal:
            for lap in range(40):
                rows = np.frombuffer(np.random.default_rng(lap).bytes(20 * (7 * lap + 1)), np.uint8).reshape(20, -1)
                first, _ = wal.extend_array(rows, kind=lap) if arrays else wal.extend(list(rows), kind=lap)
                if lap % 3 == 0:
                    wal.commit()
                wal.truncate(before=first)
        stored = image(path)
        path.unlink()
        return stored

    expected = run("python", arrays=False)
    for engine in ENGINES:
        assert expected == run(engine, arrays=True)


def test_rows_go_around_the_end_of_the_ring(place: Place) -> None:
    """Wherever it lies between them, and are read from both sides of it at once."""
    with open_small(place.path, **place.options) as wal:
        for lap in range(30):
            wal.append(bytes(37 * lap))
            rows = ticks(60 + lap)
            first, last = wal.extend_array(rows)
            assert wal.read_array(TICK, first).tobytes() == rows.tobytes()
            assert wal.read_array(TICK, first + 1, last).tobytes() == rows[1:-1].tobytes()
            with pmwal.open(place.path, "r") as reader:
                assert reader.read_array(TICK, first).tobytes() == rows.tobytes()
            wal.truncate(before=wal.next_seq)


@pytest.mark.native_engine
@pytest.mark.parametrize("medium", ["memory", "file"])
def test_many_rows_are_read_by_several_threads(shm_dir: Path, tmp_path: Path, medium: str) -> None:
    """Every row is in its place, and a damaged one is found wherever it is."""
    path = (shm_dir if medium == "memory" else tmp_path) / "log"
    rows = np.arange(60_000, dtype="<u8")[:, None].repeat(6, axis=1)
    wal = pmwal.open(path, size=LARGE, medium=medium)
    first, last = wal.extend_array(rows)
    found = wal.read_array(np.dtype(("<u8", 6)))
    assert np.array_equal(rows, found)
    assert wal[last].data == rows[-1].tobytes()
    places = whole_records(path)
    for seq in (first, first + 1, len(rows) // 2, last - 1, last):
        offset = file_offset(superblock(path), places[seq].position) + 50
        flip(path, offset)
        with pytest.raises(pmwal.CorruptWal) as caught:
            wal.read_array("V48")
        assert caught.value.first_seq == seq
        flip(path, offset)
    assert len(wal.read_array("V48", 5, 11)) == 6
    wal.close()


def test_kill_keeps_all_rows_or_none(place: Place) -> None:
    """As for every batch: here all, because they were acknowledged."""
    wal = open_small(place.path, **place.options)
    wal.extend_array(ticks(40))
    kill(wal)
    with open_small(place.path, **place.options) as wal:
        assert wal.read_array(TICK).tobytes() == ticks(40).tobytes()


# -- what is refused


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        ([b"x"], TypeError, "extend()"),
        (b"x", TypeError, "numpy array"),
        (np.array([[object()]]), TypeError, "objects"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", object)]), TypeError, "objects"),
        (np.zeros(3), ValueError, "a[:, None]"),
        (np.array(3.0), ValueError, "reshape"),
        (np.zeros((2, 2, 2)), ValueError, "reshape"),
        (np.zeros((2, 9000), np.uint8), pmwal.RecordTooLarge, "9000"),
        (np.zeros((2000, 1), np.uint8), pmwal.RecordTooLarge, "2000 records"),
        (np.zeros((10**6, 0)), pmwal.RecordTooLarge, "1000000 records"),
    ],
)
def test_what_has_no_rows_to_store_is_refused(array: Any, error: type[Exception], words: str, shm_dir: Path) -> None:
    """Before anything is stored, and in words that say what to do."""
    with open_small(shm_dir / "log") as wal:
        with pytest.raises(error) as caught:
            wal.extend_array(array)
        assert words in str(caught.value)
        with pytest.raises(ValueError, match="kind"):
            wal.extend_array(ticks(1), kind=1 << 16)
        assert (len(wal), wal.append(b"x")) == (0, 1)


def test_no_rows_are_no_records(shm_dir: Path) -> None:
    """As extend of nothing."""
    with open_small(shm_dir / "log") as wal:
        wal.append(b"x")
        assert wal.extend_array(ticks(0)) == (2, 1)
        assert wal.read_array(TICK, 2).shape == (0,)
        assert wal.stats().commits == 1


def test_full_log_takes_no_row(shm_dir: Path) -> None:
    """Not one of them; overwrite makes room, wait waits."""
    with open_small(shm_dir / "log") as wal:
        wal.extend_array(ticks(150))
        with pytest.raises(pmwal.WalFull, match="truncate"):
            wal.extend_array(ticks(100))
        assert wal.next_seq == 151
    with open_small(shm_dir / "log", on_full="wait", timeout=0.01) as wal, pytest.raises(pmwal.WalFull, match="still full"):
        wal.extend_array(ticks(100))
    with open_small(shm_dir / "log", on_full="overwrite") as wal:
        assert wal.extend_array(ticks(100)) == (151, 250)
        assert wal.read_array(TICK, 151).tobytes() == ticks(100).tobytes()
        assert wal.stats().overwritten > 0


def test_rows_take_what_as_many_records_take(shm_dir: Path) -> None:
    """With the gap at the ring's end, wherever the log ends; also when they cannot fit."""
    with open_small(shm_dir / "log", commit="manual") as wal:
        for lap in range(60):
            for count, length in ((1, 0), (1, 8000), (2, 8000), (3, 5000), (50, 111), (40, 320), (150, 61), (300, 0)):
                rows = as_rows(np.zeros((count, length), np.uint8), wal._engine.block)
                assert wal._engine.need_of([length] * count)[:3] == wal._engine.need_of(rows)[:3]
                if wal._engine.need_of(rows).stored_bytes <= wal.capacity:
                    assert wal._engine.need_of([length] * count) == wal._engine.need_of(rows)
            wal.append(bytes(97 * lap))
            wal.truncate(before=wal.next_seq)


@pytest.mark.skipif(native is None, reason="needs the native engine")
@pytest.mark.native_engine
@pytest.mark.parametrize("change", ["rollback", "truncate"])
def test_rows_that_go_meanwhile_are_not_handed_out(change: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may discard them between two pieces, and their bytes stand there still."""
    with pmwal.open(shm_dir / "log", size="64KiB") as wal:
        wal.extend_array(ticks(100))
        calls = 0

        def meanwhile(source: Any, scan: Any, at: Any, *rest: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                wal.rollback(after=50) if change == "rollback" else wal.truncate(before=90)
            return take(source, scan, at, *rest)

        take = pmwal.reading.arrays._copy_run
        monkeypatch.setattr("pmwal.reading.arrays._IN_PLACE", 1)
        monkeypatch.setattr("pmwal.reading.arrays._copy_run", meanwhile)
        with pytest.raises(pmwal.Overrun):
            wal.read_array(TICK)


def test_record_of_another_length_is_named(place: Place) -> None:
    """The first damaged one, wherever it is; records before it can be read."""
    with open_small(place.path, **place.options) as wal:
        wal.extend_array(ticks(20))
        wal.append(bytes(TICK.itemsize + 1))
        wal.append(b"")
        wal.extend_array(ticks(20))
        with pmwal.open(place.path, "r") as reader:
            for handle in (wal, reader):
                with pytest.raises(ValueError, match=f"record 21 has {TICK.itemsize + 1} bytes"):
                    handle.read_array(TICK)
                with pytest.raises(ValueError, match="record 22 has 0 bytes"):
                    handle.read_array(TICK, 22)
                with pytest.raises(ValueError, match="record 1 has 21 bytes"):
                    handle.read_array("V9000")
                assert len(handle.read_array(TICK, stop=21)) == len(handle.read_array(TICK, 23)) == 20


def test_dtype_of_objects_is_refused(shm_dir: Path) -> None:
    """Bytes from a file are no addresses; and a dtype says how long its items are."""
    with open_small(shm_dir / "log") as wal:
        for dtype in ("O", [("a", "i4"), ("b", "O")]):
            with pytest.raises(TypeError, match="objects"):
                wal.read_array(dtype)
        with pytest.raises(TypeError, match="S16"):
            wal.read_array("S")
        with pytest.raises(TypeError):
            wal.read_array("no such dtype")


def test_start_before_the_first_is_overrun(place: Place) -> None:
    """As in read; a stop after the end means the end."""
    with open_small(place.path, **place.options) as wal:
        wal.extend_array(ticks(20))
        wal.truncate(before=5)
        with pmwal.open(place.path, "r") as reader:
            for handle in (wal, reader):
                with pytest.raises(pmwal.Overrun) as caught:
                    handle.read_array(TICK, 1)
                assert caught.value.missed == 4
                bounds = ((), (5, 6), (7, 7), (9, 3), (20, 99))
                assert [len(handle.read_array(TICK, *some)) for some in bounds] == [16, 1, 0, 0, 1]


def test_rolled_back_rows_are_not_read_again(shm_dir: Path) -> None:
    """A reader that had them is told so, as in read."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.extend_array(ticks(20))
        assert len(reader.read_array(TICK)) == 20
        wal.rollback(after=10)
        wal.extend_array(ticks(30)[20:])
        assert wal.read_array(TICK)["id"].tolist() == [*range(10), *range(20, 30)]
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            reader.read_array(TICK, 21)
        assert reader.read_array(TICK)["id"].tolist() == [*range(10), *range(20, 30)]


def test_shortened_file_is_an_error(shm_dir: Path) -> None:
    """Not a crash of the interpreter."""
    wal = open_small(shm_dir / "log", medium="memory")
    wal.extend_array(ticks(100))
    os.truncate(shm_dir / "log", 20_000)
    with pytest.raises(pmwal.PersistError):
        wal.read_array(TICK)
    with pytest.raises(pmwal.PersistError):
        wal.extend_array(ticks(10))
    wal.close()


def test_closed_handle_and_salvage_are_refused(shm_dir: Path) -> None:
    """As for every other call."""
    wal = open_small(shm_dir / "log")
    wal.extend_array(ticks(2))
    wal.close()
    with pytest.raises(pmwal.WalClosed):
        wal.extend_array(ticks(2))
    with pytest.raises(pmwal.WalClosed):
        wal.read_array(TICK)
    with pmwal.open(shm_dir / "log", "r", recover="salvage") as reader, pytest.raises(ValueError, match="salvage"):
        reader.read_array(TICK)
    reader = pmwal.open(shm_dir / "log", "r")
    reader.close()
    with pytest.raises(pmwal.WalClosed):
        reader.read_array(TICK)


def test_exception_while_rows_are_stored_leaves_none_of_them(shm_dir: Path) -> None:
    """The next store begins an epoch in which they are nothing."""
    seam = BarrierRecorder()
    with open_small(shm_dir / "log", seam=seam) as wal:
        wal.append(b"a")
        stores = 0

        def interrupt(event: Any) -> None:
            nonlocal stores
            stores += event.name == "store"
            if stores == 5:
                raise KeyboardInterrupt

        seam.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            wal.extend_array(ticks(20))
        seam.before = None
        wal.append(b"b")
        assert contents(wal) == [(1, b"a"), (2, b"b")]
    with open_small(shm_dir / "log") as wal:
        assert payloads(wal) == [b"a", b"b"]


def test_array_belongs_to_the_caller(shm_dir: Path) -> None:
    """It may be changed, and outlives the log."""
    with open_small(shm_dir / "log") as wal:
        wal.extend_array(ticks(20))
        rows = wal.read_array(TICK)
        rows["id"] = 0
        assert wal.read_array(TICK)["id"].tolist() == [*range(20)]
    assert rows["id"].sum() == 0


def test_array_to_read_into_is_filled_from_its_front(place: Place) -> None:
    """Bytes after it are left alone; an array that does not fit is refused."""
    out = np.full(30, -1, dtype="<i8")
    with open_small(place.path, **place.options) as wal:
        wal.extend_array(np.arange(20)[:, None])
        with pmwal.open(place.path, "r") as reader:
            for handle in (wal, reader):
                found = handle.read_array("<i8", 3, out=out)
                assert found.base is out
                assert out.tolist() == [*range(2, 20), *[-1] * 12]
        assert wal.read_array(np.dtype(("<i4", 2)), out=np.zeros((20, 2), "<i4"))[7].tolist() == [7, 0]
        read_only = np.zeros(30, dtype="<i8")
        read_only.flags.writeable = False
        for wrong in (out[:19], out[::-1], np.zeros(30), np.zeros((30, 1), "<i8"), np.array(0), read_only):
            with pytest.raises(ValueError, match="out "):
                wal.read_array("<i8", out=wrong)
        with pytest.raises(TypeError):
            wal.read_array("<i8", out=bytearray(1000))  # type: ignore[arg-type]
