"""The run-time checks: each one notices a bug made for it, and with checks off none of them runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from pmwal import events
from pmwal.format.index import SparseIndex
from pmwal.format.layout import SLOT_CLEAN
from pmwal.native import native
from pmwal.records import START, Bound
from pmwal.writing import checks
from pmwal.writing import engine as engine_module
from pmwal.writing.batch import Batch
from pmwal.writing.engine import Engine, Need
from pmwal.writing.retained import Retained
from pmwal.writing.space import Space
from processes import run_script
from support import kill, open_small


class Bug(NamedTuple):
    """A method to break, what replaces it (made from the original), a call that runs into it, and what was done before."""

    target: Any
    name: str
    make: Callable[[Any], Any]
    call: Callable[[pmwal.Wal], object]
    before: Callable[[pmwal.Wal], object] = lambda wal: None
    options: dict[str, Any] = {}  # noqa: RUF012


def past(bound: Bound) -> Bound:
    """A bound one record further on."""
    return Bound(bound.position + 64, bound.next_seq + 1)


def append(wal: pmwal.Wal) -> None:
    """One record more."""
    wal.append(b"x" * 100)


def leave_pending(wal: pmwal.Wal) -> None:
    """Two records that are not durable."""
    wal.extend([b"x" * 100] * 2)


def fill(wal: pmwal.Wal) -> None:
    """More than fits in the ring."""
    for _ in range(10):
        wal.append(b"x" * 3000)


def store_directly(wal: pmwal.Wal) -> None:
    """Store a record without asking for space."""
    with wal._engine.writing, wal._engine.guard:
        wal._engine.store([b"x" * 100], [0])


def stage(wal: pmwal.Wal) -> None:
    """A batch of one."""
    with wal.batch() as batch:
        batch.append(b"x")


def emit(wal: pmwal.Wal) -> None:
    """An event and its definition."""
    events.Logger(wal).event("{}")(1)


def emit_and_copy(wal: pmwal.Wal) -> None:
    """An event whose definition has been stored again after it."""
    emit(wal)
    wal.truncate(before=wal.next_seq - 1)


def becomes(change: Callable[[Engine], dict[str, Any]]) -> Callable[[Any], Any]:
    """Instead of what it should do, a method lets the state become another one."""
    return lambda original: lambda self, *_: self._become(self.state._replace(**change(self)))


def changes(change: Callable[[Engine, Bound], dict[str, Any]]) -> Callable[[Any], Any]:
    """The same, by way of two slots."""
    return lambda original: lambda self, at: self._change(self.state._replace(**change(self, at)))


def stores_header(**wrong: Callable[[Any, int], Any]) -> Callable[[Any], Any]:
    """A field of the header is another one."""

    def make(original: Any) -> Any:
        def store_record(self: Engine, position: int, header: Any, payload: bytes) -> None:
            original(self, position, header._replace(**{name: field(header, position) for name, field in wrong.items()}), payload)

        return store_record

    return make


def slot_first(original: Any) -> Any:
    """The slot before the barrier."""

    def flush_records(self: Engine) -> None:
        self._write_slot(self.state._replace(durable=self.state.head))
        original(self)

    return flush_records


def commit_without_slot(original: Any) -> Any:
    """A strict commit that leaves the pointer where it is."""

    def commit(self: Engine) -> None:
        self._flush_records()
        self._become(self.state._replace(durable=self.state.head))

    return commit


def same_epoch(original: Any) -> Any:
    """An epoch that begins with the number of the last one."""

    def start_epoch(self: Engine, end: Bound) -> None:
        self._flush_records()
        self._become(self.state)

    return start_epoch


def same_slot_twice(original: Any) -> Any:
    """The second slot in the place of the first."""

    def change(self: Engine, state: Any) -> None:
        self._write_slot(state)
        self.generation -= 1
        self._write_slot(state)

    return change


def one_slot(original: Any) -> Any:
    """A change that takes effect after one slot."""

    def change(self: Engine, state: Any) -> None:
        self._write_slot(state)
        self._become(state)

    return change


def generation_kept(original: Any) -> Any:
    """A slot that does not count."""

    def write_slot(self: Engine, state: Any, flags: int = 0) -> None:
        original(self, state, flags)
        self.generation -= 1

    return write_slot


def other_epoch_in_slot(original: Any) -> Any:
    """A slot that says something else."""
    return lambda self, state, flags=0: original(self, state._replace(epoch=state.epoch + 1), flags)


def headroom_lost(original: Any) -> Any:
    """A definition for which no space is reserved."""

    def add(self: Retained, record: Any) -> None:
        original(self, record)
        self._engine.headroom = 8

    return add


def copy_elsewhere(original: Any) -> Any:
    """The number of a copy, far off."""

    def stored(self: Retained, record: Any, seq: int) -> None:
        record.seq = seq + 100

    return stored


def copy_still_owed(original: Any) -> Any:
    """A copy that is stored and owed."""

    def stored(self: Retained, record: Any, seq: int) -> None:
        record.seq, record.owed = seq, True

    return stored


def copy_forgotten(original: Any) -> Any:
    """A copy that goes, and that nobody owes."""

    def lose(self: Retained, record: Any, *, needed: bool) -> None:
        record.seq, record.owed = 0, False

    return lose


def kind_twice(original: Any) -> Any:
    """A staged record with two kinds."""

    def staged(self: Batch, data: Any, *, kind: int = 0) -> int:
        self._kinds.append(kind)
        return int(original(self, data, kind=kind))

    return staged


def truncate(wal: pmwal.Wal) -> None:
    """All but the last record."""
    wal.truncate(before=wal.next_seq - 1)


def truncate_all(wal: pmwal.Wal) -> None:
    """All records."""
    wal.truncate(before=wal.next_seq)


def roll_back(wal: pmwal.Wal) -> None:
    """The last record."""
    wal.rollback(after=wal.next_seq - 2)


def roll_back_all(wal: pmwal.Wal) -> None:
    """All records."""
    wal.rollback(after=wal.first_seq - 1)


MANUAL = {"commit": "manual"}
LARGE = {"size": "256KiB"}
BUGS = {
    # states
    "tail <= durable <= head, in position and number": Bug(
        Engine, "move_tail", becomes(lambda engine: {"tail": past(engine.state.head)}), truncate
    ),
    "the log is not longer than the ring": Bug(
        Engine,
        "commit",
        becomes(lambda engine: {"head": Bound(engine.state.head.position + 16384, engine.state.head.next_seq)}),
        append,
    ),
    "bounds are aligned": Bug(
        Engine,
        "commit",
        becomes(lambda engine: {"head": Bound(engine.state.head.position + 1, engine.state.head.next_seq)}),
        append,
    ),
    "the tail only moves forwards": Bug(Engine, "move_tail", changes(lambda engine, tail: {"tail": START}), truncate_all, truncate),
    "epochs only grow": Bug(
        Engine, "start_epoch", changes(lambda engine, end: {"epoch": 0, "head": end, "durable": end}), roll_back
    ),
    "the head only moves back with a new epoch": Bug(
        Engine, "start_epoch", changes(lambda engine, end: {"head": end, "durable": end}), roll_back
    ),
    "what is durable stays durable within an epoch": Bug(
        Engine, "commit", becomes(lambda engine: {"durable": engine.state.tail}), append
    ),
    "outside _become only the head changes": Bug(
        Engine,
        "_flush_records",
        lambda original: lambda self: setattr(self, "state", self.state._replace(durable=self.state.head)),
        append,
    ),
    # commits and slots
    "what was stored before a commit is durable after it": Bug(Engine, "commit", lambda original: lambda self: None, append),
    "the pointer lags by POINTER_LAG_MAX at most": Bug(Engine, "commit", commit_without_slot, append),
    "durable is only what a completed barrier covered": Bug(
        Engine, "commit", becomes(lambda engine: {"durable": engine.state.head}), append
    ),
    "a slot names only what a completed barrier made durable": Bug(Engine, "_flush_records", slot_first, append),
    "the tail of a slot is not past its commit": Bug(
        Engine, "move_tail", changes(lambda engine, tail: {"tail": tail}), truncate_all, leave_pending, MANUAL
    ),
    "a clean end names all that is stored": Bug(
        Engine,
        "close",
        lambda original: lambda self: self._write_slot(self.state, SLOT_CLEAN),
        lambda wal: wal.close(),
        leave_pending,
        MANUAL,
    ),
    "each slot's generation is one more": Bug(Engine, "_write_slot", generation_kept, append),
    "generations never go back": Bug(Engine, "_change", same_slot_twice, truncate),
    "the slot on the medium says what the state says": Bug(Engine, "_write_slot", other_epoch_in_slot, append),
    "a tail or an epoch takes effect when the two newest slots carry it": Bug(Engine, "_change", one_slot, truncate),
    # epochs, the tail, rollbacks
    "a new epoch begins at the head or before it": Bug(
        Engine, "roll_back", lambda original: lambda self, end: self.start_epoch(past(self.state.head)), roll_back
    ),
    "a new epoch is greater than the last one": Bug(Engine, "start_epoch", same_epoch, roll_back),
    "a new epoch begins where the log ends": Bug(
        Engine,
        "start_epoch",
        changes(lambda engine, end: {"head": end, "durable": end, "epoch": engine.state.epoch + 1}),
        roll_back,
    ),
    "a new tail lies between the old one and the head": Bug(
        Retained,
        "move_tail",
        lambda original: lambda self, tail, may_store: self._engine.move_tail(past(self._engine.state.head)),
        truncate,
    ),
    "the tail is where it was moved to": Bug(Engine, "move_tail", lambda original: lambda self, tail: self.commit(), truncate),
    "the log ends where it was rolled back to": Bug(
        Engine, "roll_back", lambda original: lambda self, end: self.start_epoch(self.state.head), roll_back
    ),
    # the index
    "index entries ascend": Bug(
        SparseIndex,
        "add",
        lambda original: lambda self, start: self._entries.insert(0, start),
        lambda wal: wal.extend([b"x" * 40000] * 2),
        options=LARGE,
    ),
    "the index names records of the log only": Bug(
        Engine, "roll_back", lambda original: lambda self, end: self.start_epoch(end), roll_back_all
    ),
    # storing
    "the numbers of a batch lead up to the head": Bug(
        Engine, "store", lambda original: lambda self, *batch: (original(self, *batch)[0], 99), append
    ),
    "records are aligned": Bug(
        engine_module, "place_record", lambda original: lambda position, size, capacity: position + 1, store_directly
    ),
    "a record does not run over the ring's end": Bug(
        engine_module, "place_record", lambda original: lambda position, size, capacity: capacity - 8, store_directly
    ),
    "nothing is stored over the records between tail and head": Bug(
        Engine, "need_of", lambda original: lambda self, sizes: Need(1, 1, 1, self.state.head.position), fill
    ),
    "a record says durable of what was so before its store began": Bug(
        Engine, "_store_record", stores_header(durable=lambda header, position: position), append, leave_pending, MANUAL
    ),
    "a place in a batch is below the batch's count": Bug(
        Engine, "_store_record", stores_header(batch_index=lambda header, position: header.batch_count), append
    ),
    "a record has the epoch of the state": Bug(
        Engine, "_store_record", stores_header(epoch=lambda header, position: header.epoch + 1), append
    ),
    "numbers follow one another": Bug(Engine, "_store_record", stores_header(seq=lambda header, position: header.seq + 1), append),
    "what was made room for fits, and the headroom stays free": Bug(
        Space, "make", lambda original: lambda self, sizes, may_store: None, fill
    ),
    # retained records
    "a copy that the tail passes is stored again, or owed": Bug(Retained, "_lose", copy_forgotten, truncate, emit),
    "a copy that a rollback discards is stored again, or owed": Bug(Retained, "_lose", copy_forgotten, roll_back, emit_and_copy),
    "the headroom has space for one copy of each retained record": Bug(Retained, "_add", headroom_lost, emit),
    "the copy of a retained record lies between tail and head": Bug(Retained, "stored", copy_elsewhere, emit),
    "a copy is owed only while there is none": Bug(Retained, "stored", copy_still_owed, emit),
    # batches
    "a batch tells the numbers that its records will have": Bug(
        Batch, "last", lambda original: property(lambda self: self.first + len(self)), stage
    ),
    "a staged record has one kind": Bug(Batch, "append", kind_twice, stage),
}
"""Each sentence of the checks, and a bug that makes it false."""

SHARED = [
    "the tail only moves forwards",
    "the tail of a slot is not past its commit",
    "a tail or an epoch takes effect when the two newest slots carry it",
    "a new epoch is greater than the last one",
    "a new epoch begins where the log ends",
    "a new tail lies between the old one and the head",
    "the tail is where it was moved to",
    "the log ends where it was rolled back to",
    "the index names records of the log only",
    "a copy that the tail passes is stored again, or owed",
    "a batch tells the numbers that its records will have",
]
"""Some that hold for the native engine, too, in what it does in Python, and that its C does not check first."""


def notices(sentence: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check raises when its bug is run into, and not without it."""
    bug = BUGS[sentence]
    options = {"ordering": "strict", **bug.options}
    wal = open_small(path, **options)
    wal.extend([b"a" * 100, b"b" * 100, b"c" * 100])
    bug.before(wal)
    monkeypatch.setattr(bug.target, bug.name, bug.make(bug.target.__dict__[bug.name]))
    try:
        with pytest.raises(AssertionError, match=": " + re.escape(sentence)):
            bug.call(wal)
    finally:
        monkeypatch.undo()
        kill(wal)


@pytest.mark.parametrize("sentence", BUGS)
def test_each_check_notices_the_bug_made_for_it(sentence: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One method is broken; the check meant for it is the one that fails."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    notices(sentence, shm_dir / "test.wal", monkeypatch)


@pytest.mark.skipif(native is None, reason="the native engine was not built")
@pytest.mark.parametrize("sentence", SHARED)
def test_checks_of_what_both_engines_share_run_for_the_native_one(
    sentence: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tail, epochs and rollbacks are Python in both."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    notices(sentence, shm_dir / "test.wal", monkeypatch)


def test_every_check_has_a_bug() -> None:
    """A check that cannot fail is a defect."""
    calls = [node for node in ast.walk(ast.parse(Path(checks.__file__).read_text())) if isinstance(node, ast.Call)]
    sentences = [ast.literal_eval(call.args[1]) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check"]
    assert sorted(sentences) == sorted(BUGS)


@pytest.mark.parametrize("engine", ["python", "native"])
def test_without_the_variable_no_check_is_there(engine: str, shm_dir: Path) -> None:
    """The classes are the plain ones, and nothing in the module of the checks runs while a log is used."""
    if engine == "native" and native is None:
        pytest.skip("the native engine was not built")
    script = """
        import os, sys
        path = sys.argv[1]
        os.environ.pop("PMWAL_CHECK")
        os.environ["PMWAL_ENGINE"] = sys.argv[2]
        import pmwal
        from pmwal.writing import checks
        from pmwal.writing.batch import Batch

        wal = pmwal.open(path, size="64KiB", on_full="overwrite")
        called = []
        sys.setprofile(lambda frame, *_: frame.f_code.co_filename == checks.__file__ and called.append(frame.f_code.co_name))
        for number in range(50):
            wal.append(b"x" * 3000)
        with wal.batch() as batch:
            batch.append(b"y")
        wal.truncate(before=wal.next_seq)
        wal.rollback(after=wal.next_seq - 1)
        wal.close()
        sys.setprofile(None)
        plain = [type(thing).__bases__ for thing in (wal._engine, wal._space, wal._retained, batch)]
        print(called, any("Checks" in base.__name__ for bases in plain for base in bases))
    """
    result = run_script(script, shm_dir / "test.wal", engine)
    assert result.stdout.split("\n")[0] == "[] False", result.stderr


def test_without_checks_the_same_bug_passes_them(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``unchecked`` is for tests of what else must notice a bug."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    with checks.unchecked(), open_small(shm_dir / "test.wal") as wal:
        monkeypatch.setattr(Engine, "_flush_records", lambda self: setattr(self, "state", self.state))
        assert wal.append(b"x") == wal.committed_seq
    assert checks.checked(Engine) is not Engine
