"""``pmwal.Store``: changes are logged, applied and replayed; checkpoints; what does not belong together is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pmwal
from conftest import Place
from pmwal.storage.seam import Seam
from pmwal.store import base
from processes import Died, child

SIZE = "16KiB"


class Notes(pmwal.Store):
    """A list of all changes."""

    def __init__(self, log: Any, **options: Any) -> None:
        self.notes: list[Any] = []
        super().__init__(log, **options)

    def apply(self, change: Any) -> None:
        if change == "refused":
            raise LookupError(change)
        self.notes.append(change)

    def save(self) -> list[Any]:
        return self.notes

    def load(self, state: list[Any]) -> None:
        self.notes = list(state)


class Last(Notes):
    """The last change only, so that the state stays small."""

    def apply(self, change: Any) -> None:
        self.notes = [change]


def fill(store: Notes) -> None:
    """Log more than the log can hold."""
    for number in range(1000):
        store.log([number, "x" * 50])


def notes_in(path: Path, kind: type[Notes] = Notes, **options: Any) -> list[Any]:
    """What a replay gives."""
    with kind(path, **options) as store:
        return store.notes


def test_changes_survive_on_every_medium(place: Place) -> None:
    """What ``log`` returned for is there again, several changes at once too."""
    with Notes(place.path, size=SIZE, **place.options) as store:
        store.log("a")
        store.log({"b": [1, None]}, "c")
        store.log()
        expected = list(store.notes)
    assert notes_in(place.path, **place.options) == expected == ["a", {"b": [1, None]}, "c"]


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("engine", ["native", "python"])
def test_state_is_saved_before_the_log_is_full(engine: str, in_file: bool, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of changes fits, and the log stays short."""
    monkeypatch.setenv("PMWAL_ENGINE", engine)
    options = {"snapshot": shm_dir / "state"} if in_file else {}
    path = shm_dir / "log.wal"
    with Last(path, size=SIZE, **options) as store:
        for number in range(500):
            store.log([number, "x" * 100])
        assert store.wal.first_seq > 300
    assert notes_in(path, Last, **options) == [[499, "x" * 100]]
    assert (shm_dir / "state").exists() == in_file
    assert sorted(each.name for each in shm_dir.iterdir()) == ["log.wal", *(["state"] if in_file else [])]


def test_checkpoint_leaves_what_is_needed(shm_dir: Path) -> None:
    """Without a snapshot one record is left, the state; with one the last change, which shows that both belong together."""
    with Notes(shm_dir / "a.wal", size=SIZE) as store:
        store.log("a", "b")
        store.checkpoint()
        assert [record.kind for record in store.wal] == [base.CHECKPOINT]
    with Notes(shm_dir / "b.wal", size=SIZE, snapshot=shm_dir / "state") as store:
        store.checkpoint()  # there is nothing to save
        assert not (shm_dir / "state").exists()
        store.log("a", "b")
        store.checkpoint()
        assert [record.data for record in store.wal] == [b'"b"']
        store.log("c")
    assert notes_in(shm_dir / "b.wal", snapshot=shm_dir / "state") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("encode", "decode"),
    [(pickle.dumps, pickle.loads), (msgspec.msgpack.encode, msgspec.msgpack.decode), (repr, str)],
    ids=["pickle", "msgpack", "text"],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_codec_is_the_users(encode: Callable[[Any], Any], decode: Callable[[Any], Any], in_file: bool, shm_dir: Path) -> None:
    """Changes and states go through ``encode`` and ``decode``; a codec that gives no bytes changes nothing."""
    options: dict[str, Any] = {"encode": encode, "decode": decode}
    if in_file:
        options["snapshot"] = shm_dir / "state"
    with Notes(shm_dir / "log.wal", size=SIZE, **options) as store:
        if encode is repr:
            with pytest.raises(TypeError, match="str"):
                store.log("a")
            assert (store.notes, store.wal.next_seq) == ([], 1)
            return
        store.log([b"\0" if encode is not pickle.dumps else {1, 2}])
        store.checkpoint()
        expected = store.notes
    assert notes_in(shm_dir / "log.wal", **options) == expected


def test_change_that_cannot_be_stored_changes_nothing(shm_dir: Path) -> None:
    """Neither the log nor the state, and the store can be used."""
    with Notes(shm_dir / "log.wal", size=SIZE) as store:
        store.log("a")
        with pytest.raises(pmwal.RecordTooLarge):
            store.log("b", "x" * 20_000)
        with pytest.raises(TypeError, match="JSON"):
            store.log("b", object())
        store.log("c")
        assert store.notes == ["a", "c"]
    assert notes_in(shm_dir / "log.wal") == ["a", "c"]


def test_state_that_outgrows_the_log_is_refused(shm_dir: Path) -> None:
    """With what to do; log and state are as before, and the advice helps."""
    path = shm_dir / "log.wal"
    with Notes(path, size=SIZE) as store:
        with pytest.raises(pmwal.RecordTooLarge, match="snapshot="):
            fill(store)
        kept = list(store.notes)
        with pytest.raises(pmwal.RecordTooLarge):
            store.checkpoint()
    assert notes_in(path) == kept
    with Notes(path, snapshot=shm_dir / "state") as store:
        fill(store)
        expected = list(store.notes)
    assert notes_in(path, snapshot=shm_dir / "state") == expected


def test_store_whose_state_lacks_a_change_refuses_every_call(shm_dir: Path) -> None:
    """The log is right: a replay meets the same change, so the mistake is not hidden."""
    path = shm_dir / "log.wal"
    store = Notes(path, size=SIZE)
    with pytest.raises(LookupError):
        store.log("a", "refused", "b")
    for call in (lambda: store.log("c"), store.checkpoint):
        with pytest.raises(pmwal.StaleStore, match="open it again"):
            call()
    store.close()
    with pytest.raises(LookupError):
        Notes(path)
    assert notes_in(path, Last) == ["b"]  # the replay that failed let go of the log


@pytest.mark.parametrize("umask", [0o022, 0])
def test_snapshot_is_as_private_as_the_log(umask: int, shm_dir: Path) -> None:
    """It contains the whole state. A mode that its owner gave it stays."""
    state = shm_dir / "state"
    before = os.umask(umask)
    try:
        with Notes(shm_dir / "log.wal", size=SIZE, snapshot=state) as store:
            store.log("a")
            store.checkpoint()
            assert stat.S_IMODE(state.stat().st_mode) == 0o600
            state.chmod(0o640)
            (shm_dir / "state.new").symlink_to(shm_dir / "elsewhere")  # what is under the new name is not written through
            store.log("b")
            store.checkpoint()
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.stat().st_mode) == 0o640
    assert not (shm_dir / "elsewhere").exists()
    assert notes_in(shm_dir / "log.wal", snapshot=state) == ["a", "b"]


def test_snapshot_that_cannot_be_is_refused_at_the_start(shm_dir: Path) -> None:
    """Not at the first checkpoint."""
    for path, error in ((shm_dir / "none" / "state", FileNotFoundError), (shm_dir, pmwal.FormatError)):
        with pytest.raises(error, match=str(path.parent if error is FileNotFoundError else path)):
            Notes(shm_dir / "log.wal", size=SIZE, snapshot=path)


class LogsInSave(Notes):
    """A store that logs while its state is saved."""

    def save(self) -> list[Any]:
        self.log("saved")
        return super().save()


def test_change_that_is_logged_while_the_state_is_saved_is_refused(shm_dir: Path) -> None:
    """The checkpoint would free it, and not include it."""
    with LogsInSave(shm_dir / "log.wal", size=SIZE) as store:
        store.log("a")
        with pytest.raises(pmwal.ReentrantCall, match="save"):
            store.checkpoint()
        store.log("b")
    assert notes_in(shm_dir / "log.wal") == ["a", "b"]


def test_change_that_cannot_be_decoded_is_not_stored(shm_dir: Path) -> None:
    """Or the log could not be replayed any more."""
    with Notes(shm_dir / "log.wal", size=SIZE, encode=lambda change: b"{") as store:
        with pytest.raises(ValueError, match="Expecting"):
            store.log("a")
        assert store.wal.next_seq == 1


def test_buffer_that_encode_uses_again_is_copied(shm_dir: Path) -> None:
    """Each change is stored as it was encoded."""
    buffer = bytearray()

    def encode(change: Any) -> bytearray:
        buffer[:] = base._to_json(change)
        return buffer

    with Notes(shm_dir / "log.wal", size=SIZE, encode=encode) as store:  # type: ignore[arg-type]
        store.log("a", "bb", "c")
    assert notes_in(shm_dir / "log.wal") == ["a", "bb", "c"]


class LogsMore(Notes):
    """A store whose changes log others."""

    def apply(self, change: Any) -> None:
        super().apply(change)
        if change == "more":
            self.log("caused")


def test_change_that_logs_another_is_refused(shm_dir: Path) -> None:
    """A replay would log it again each time."""
    path = shm_dir / "log.wal"
    with LogsMore(path, size=SIZE) as store:
        with pytest.raises(pmwal.ReentrantCall, match="in one call"):
            store.log("more")
        with pytest.raises(pmwal.StaleStore):
            store.log("other")
    with pytest.raises(pmwal.ReentrantCall):
        LogsMore(path)
    assert notes_in(path) == ["more"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_interrupt_leaves_a_store_that_is_right_or_refuses(where: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the change is in the log the store goes on; after that only a replay knows."""
    store = Notes(shm_dir / "log.wal", size=SIZE)
    shipped = pmwal.Wal.extend

    def interrupted(wal: pmwal.Wal, *args: Any, **options: Any) -> tuple[int, int]:
        if where == "after":
            shipped(wal, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store.wal), "extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.log("a")
    if where == "before":
        store.log("b")
    else:
        with pytest.raises(pmwal.StaleStore):
            store.log("b")
    store.close()
    assert notes_in(shm_dir / "log.wal") == (["b"] if where == "before" else ["a"])


def test_no_log_is_begun_beside_the_snapshot_of_another(shm_dir: Path) -> None:
    """The missing log had changes that the snapshot lacks: nothing is created, and a log that is put back is replayed."""
    path, state, aside = shm_dir / "log.wal", shm_dir / "state", shm_dir / "aside"
    with Notes(path, size=SIZE, snapshot=state) as store:
        store.log("a")
        store.checkpoint()
        store.log("b")
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(pmwal.CorruptWal, match=r"log\.wal: the log is missing, and its snapshot .*state is there") as caught:
            Notes(path, size=SIZE, snapshot=state)
        assert caught.value.reason == "the log is missing"
        assert sorted(each.name for each in shm_dir.iterdir()) == ["aside", "state"]
    aside.rename(path)
    assert notes_in(path, snapshot=state) == ["a", "b"]
    path.unlink()
    state.unlink()
    assert notes_in(path, snapshot=state, size=SIZE) == []


def test_log_and_snapshot_that_do_not_belong_together_are_refused(shm_dir: Path) -> None:
    """Another log, an older copy of the log, a snapshot that is not given, a damaged one, another file: the log is unchanged."""
    path, state = shm_dir / "log.wal", shm_dir / "state"
    with Notes(path, size=SIZE, snapshot=state) as store:
        store.log("a")
        old = path.read_bytes()
        store.log("b", "c")
        store.checkpoint()
        store.log("d")
    whole, content = path.read_bytes(), state.read_bytes()

    def refused(error: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            Notes(path, **options)

    refused(pmwal.CorruptWal, "give its path as snapshot=")
    path.write_bytes(old)
    refused(pmwal.CorruptWal, "does not continue .*state", snapshot=state)
    path.unlink()
    Notes(path, size=SIZE).close()
    refused(pmwal.CorruptWal, "does not continue .*state", snapshot=state, size=SIZE)
    path.write_bytes(whole)
    for place in range(len(content)):
        state.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(pmwal.FormatError, "snapshot", snapshot=state)
        state.write_bytes(content[:place])
        refused(pmwal.FormatError, "snapshot", snapshot=state)
    state.write_bytes(content)
    assert notes_in(path, snapshot=state) == ["a", "b", "c", "d"]


def test_other_log_and_wrong_options_are_refused(shm_dir: Path) -> None:
    """A log with other kinds of records, one that overwrites, options of a log that is open."""
    path = shm_dir / "log.wal"
    with pmwal.open(path, size=SIZE) as wal:
        wal.append(b'"a"', kind=9)
        with pytest.raises(ValueError, match="kind 9"):
            Notes(wal)
        with pytest.raises(ValueError, match="size: give options of the log where it is opened"):
            Notes(wal, size=SIZE)
    with pytest.raises(ValueError, match="without on_full"):
        Notes(shm_dir / "other.wal", size=SIZE, on_full="overwrite")
    with pytest.raises(TypeError, match="abstract"):
        pmwal.Store(path)  # type: ignore[abstract]


def test_given_log_stays_open_and_its_changes_are_durable(shm_dir: Path) -> None:
    """Also where the log leaves commits to its user."""
    with pmwal.open(shm_dir / "log.wal", size=SIZE, commit="manual") as wal:
        with Notes(wal) as store:
            store.log("a")
            assert wal._engine.state.durable.next_seq == 2
        assert not wal.closed


def full(*_: Any) -> None:
    """A system call on a full disk."""
    raise OSError(errno.ENOSPC, "no space left on device")


def test_snapshot_that_cannot_be_written_loses_nothing(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the write fails in turn: the old snapshot stays, nothing is freed, and the next one works."""
    path, state = shm_dir / "log.wal", shm_dir / "state"
    for step in ("write", "sync_file", "replace"):
        with Notes(path, size=SIZE, snapshot=state) as store:
            store.log(step)
            first = store.wal.first_seq

            with monkeypatch.context() as patch:
                patch.setattr(Seam, step, full)
                with pytest.raises(OSError, match="no space"):
                    store.checkpoint()
            assert store.wal.first_seq == first
            store.log(step)
            store.checkpoint()
            expected = list(store.notes)
        assert notes_in(path, snapshot=state) == expected


def log_numbers(pipe: Connection, path: Path, snapshot: Path | None) -> None:
    """Log numbers, and report each once it is durable."""
    store = Last(path, size=SIZE, snapshot=snapshot)
    number = store.notes[0][0] if store.notes else 0
    while True:
        number += 1
        store.log([number, "x" * 200])
        pipe.send(number)


@pytest.mark.parametrize("in_file", [False, True])
def test_kill_loses_nothing_that_was_acknowledged(in_file: bool, shm_dir: Path) -> None:
    """One process after another logs and is killed; each goes on where the one before was."""
    snapshot = shm_dir / "state" if in_file else None
    for turn in range(5):
        with child(log_numbers, shm_dir / "log.wal", snapshot) as writer:
            for _ in range(50 + turn):
                acknowledged = writer.hear()
            writer.kill()
            with contextlib.suppress(Died):
                while True:
                    acknowledged = writer.hear()
        [[last, _]] = notes_in(shm_dir / "log.wal", Last, snapshot=snapshot)
        assert last - acknowledged in (0, 1)


def add_from(store: Notes, name: str) -> None:
    """Log many changes."""
    for number in range(100):
        store.log([name, number])


def test_threads_share_a_store(shm_dir: Path) -> None:
    """The state is what a replay gives, in the same order."""
    with Last(shm_dir / "log.wal", size="64KiB") as store:
        threads = [threading.Thread(target=add_from, args=(store, name)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = list(store.notes)
    assert notes_in(shm_dir / "log.wal", Last) == expected
