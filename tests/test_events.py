"""Events: what a call stores, what is read back, and that the log always has the definition of each event in it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pmwal
from marks import first_fast
from pmwal import events
from pmwal.cli import main
from pmwal.events.arguments import pack, unpack
from pmwal.events.definition import Definition
from pmwal.writing.wal import Wal
from processes import child
from support import SMALL_RING, BarrierRecorder, Crash, Step, kill, open_small

pytestmark = pytest.mark.both_engines

FORMAT = "order {id} filled {qty} @ {px}"


def texts(source: Any, *bounds: int) -> list[str]:
    """The events of a log as text."""
    return [event.text for event in events.read(source, *bounds)]


def unexplained(source: Any) -> list[int]:
    """Numbers of the events that the log itself does not explain to somebody who reads it now."""
    return [event.seq for event in events.read(source) if event.definition is None]


def definitions(source: Any) -> list[int]:
    """Numbers of the definitions in a log."""
    return [record.seq for record in source.read() if record.kind == events.DEFINITION_KIND]


# -- calls


def test_call_stores_its_arguments_and_reading_makes_the_text(shm_dir: Path) -> None:
    """By position, by name and mixed: one record each, its number returned, and what was given comes back."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        fill = events.Logger(wal, name="orders").event(FORMAT, level=30)
        assert [fill(17, 5, 1.25), fill(18, qty=6, px=2.5), fill(px=None, id="x", qty=True)] == [2, 3, 4]
        expected = ["order 17 filled 5 @ 1.25", "order 18 filled 6 @ 2.5", "order x filled True @ None"]
        assert expected == texts(wal)
        with pmwal.open(shm_dir / "a.wal", "r") as reader:
            event = list(events.read(reader))[1]
    assert (event.name, event.level, event.format) == ("orders", 30, FORMAT)
    assert event.arguments == {"id": 18, "qty": 6, "px": 2.5}
    assert abs(datetime.now(UTC) - event.time) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("format", "args", "keywords", "text"),
    [
        ("nothing", (), {}, "nothing"),
        ("{} and {}", (1, "b"), {}, "1 and b"),
        ("{1} and {0}", (1, "b"), {}, "b and 1"),
        ("{} of {n}", (1,), {"n": 2}, "1 of 2"),
        ("{x} twice {x!r:>5} {{braces}}", ("a",), {}, "a twice   'a' {braces}"),
        ("{x:.2f} {y:06d} {t:%H:%M}", (1, 2, datetime(2026, 11, 22, 13, 5)), {}, "1.00 000002 13:05"),
        ("{x:.2f} {t:%H:%M}", ("no number", None), {}, "no number None"),
        ("{b} {i:d}", (b"raw", b"\0"), {}, r"b'raw' b'\x00'"),
    ],
)
def test_format_is_filled_in_as_by_str_format(
    shm_dir: Path, format: str, args: tuple[Any, ...], keywords: dict[str, Any], text: str
) -> None:
    """Fields, conversions and specifications; and a value that a specification does not suit is shown plainly."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        events.Logger(wal).event(format)(*args, **keywords)
        assert [text] == texts(wal)


@pytest.mark.parametrize("call", ["first", "later"])
@pytest.mark.parametrize(
    ("args", "keywords", "says"),
    [
        ((1, 2), {}, "misses px"),
        ((), {}, "misses id, qty, px"),
        ((1, 2, 3, 4), {}, r"takes 3 arguments \(id, qty, px\), and 4 were given"),
        ((1, 2), {"price": 3}, "no parameter 'price'"),
        ((1, 2, 3), {"id": 1}, "two values for id"),
        ((1, 2, [3]), {}, "px is of type list"),
        ((1, bytearray(b"2"), 3), {}, "qty is of type bytearray"),
        ((1, 2, 1j), {}, "px is of type complex"),
    ],
)
def test_wrong_arguments_are_a_type_error_that_names_the_event(
    shm_dir: Path, call: str, args: tuple[Any, ...], keywords: dict[str, Any], says: str
) -> None:
    """As for any function, before anything is stored; the call stays usable."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        fill = events.Logger(wal).event(FORMAT)
        if call == "later":
            fill(1, 2, 3)
        before = wal.next_seq
        with pytest.raises(TypeError, match=rf"event 'order {{id}} filled.*{says}"):
            fill(*args, **keywords)
        assert before == wal.next_seq
        fill(4, 5, 6)
        assert texts(wal)[-1] == "order 4 filled 5 @ 6"


@pytest.mark.parametrize(
    "format",
    [
        "{", "{x.__class__}", "{x[0]}", "{x:{width}}", "{x:9999}", "{x:.1000000f}", "{x!z}", "{} {0}", "{a b}", "{100}", "{-1}",
        "{00}", "{" + "9" * 5000 + "}", "{}" * 65,
    ],
)  # fmt: skip
def test_format_that_reaches_further_than_its_arguments_is_refused(shm_dir: Path, format: str) -> None:
    """Attributes, items, nested fields and huge widths: a format in a log is data from elsewhere, and is filled in later."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal, pytest.raises(ValueError):
        events.Logger(wal).event(format)
    payload = json.dumps({"format": format, "level": 20, "name": ""}, separators=(",", ":")).encode()
    assert Definition.decode(payload) is None


class Side(IntEnum):
    """A subclass of int, as programs have them."""

    BUY = 1


class Text(str):
    """A subclass of str."""


class Number(float):
    """A subclass of float."""


ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(seconds=-3601, microseconds=7))])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([(1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1, 0, -1, Side.BUY])
    | st.floats()
    | st.floats().map(Number)
    | st.text()
    | st.text(st.characters(max_codepoint=127), max_size=1100)
    | st.characters(categories=["Cs"])
    | st.text().map(Text)
    | st.binary(max_size=1100)
    | st.datetimes()
    | st.datetimes(timezones=ZONES)
)


@pytest.mark.native_engine
@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, max_size=12), st.booleans())
def test_both_engines_store_the_same_bytes(values: list[Any], by_name: bool) -> None:
    """Whatever the arguments, C or Python packs them: the same payload, and what comes back is what was given."""
    names = [f"a{number}" for number in range(len(values))]
    format = "".join(f"{{{name}}}" for name in names)
    number = Definition(format, 20, "").number.to_bytes(8, "little")
    expected = number + b"".join(map(pack, values))
    with pytest.MonkeyPatch.context() as patch:
        for engine in ("native", "python") if pmwal.native.native is not None else ("python",):
            patch.setenv("PMWAL_ENGINE", engine)
            path = Path(f"/dev/shm/pmwal-test-events-{os.getpid()}.wal")
            try:
                with pmwal.open(path, size="64KiB", commit="manual") as wal:
                    call = events.Logger(wal).event(format)
                    for _ in range(2):  # the first one stores the definition and goes the Python way
                        call(**dict(zip(names, values, strict=True))) if by_name else call(*values)
                    stored = [record.data for record in wal.read() if record.kind == events.EVENT_KIND]
                    read = [event.values for event in events.read(wal)]
            finally:
                path.unlink()
            assert [expected, expected] == stored, engine
            for found in read:
                assert list(map(repr, found)) == list(map(repr, map(plain_value, values)))


def plain_value(value: Any) -> Any:
    """A value as it comes back: without what its subclass adds, and a time without ``fold``."""
    if isinstance(value, datetime):
        return value.replace(fold=0)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def test_integers_of_numpy_are_stored_as_integers(shm_dir: Path) -> None:
    """A hot loop over arrays has them; floats of numpy are floats anyway."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        call = events.Logger(wal).event("{} {}")
        call(np.int64(7), np.float64(0.5))
        call(np.uint64(2**64 - 1), np.float64(0.5))
        assert [event.values for event in events.read(wal)] == [(7, 0.5), (2**64 - 1, 0.5)]


@given(st.binary(max_size=60))
def test_any_bytes_unpack_or_are_a_value_error(data: bytes) -> None:
    """A record that claims to be an event is data from anywhere; what unpacks packs to what unpacks the same."""
    try:
        values = unpack(data)
    except ValueError:
        return
    assert list(map(repr, values)) == list(map(repr, unpack(b"".join(map(pack, values)))))


def test_records_that_only_look_like_events_are_passed_over(shm_dir: Path) -> None:
    """Reserved kinds with other bytes in them end nothing; an event without a definition still shows its arguments."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        for data in (b"", b"short", bytes(8) + b"\xff", bytes(8) + b"\x06\xff\xff\xff\xff", bytes(8) + b"\x08" + b"\x7f" * 8):
            wal.append(data, kind=events.EVENT_KIND)
        for data in (b"", b"{}", b"[" * 30000, b"\xff", b'{"format": "spaced", "level": 20, "name": ""}'):
            wal.append(data, kind=events.DEFINITION_KIND)
        wal.append(bytes(8) + pack(7) + pack("x"), kind=events.EVENT_KIND)
        events.Logger(wal).event("{x}")(1)
        event, other = events.read(wal)
    assert event.text == "event 0000000000000000, which the log does not define: 7, x"
    assert (event.arguments, event.format, event.name, event.level) == ({"0": 7, "1": "x"}, None, "", 0)
    assert other.text == "1"


def test_event_too_large_for_the_short_way_is_stored_whole(shm_dir: Path) -> None:
    """Beyond what fits on the stack, and beyond what fits into a record."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        say = events.Logger(wal).event("{}{}")
        for length in (1000, 1010, 1024, 5000):
            say("a" * length, "é" * length)
            assert "a" * length + "é" * length == texts(wal)[-1]
        with pytest.raises(pmwal.RecordTooLarge):
            say("a" * 40000, "")


# -- the handle


def test_events_commit_as_the_log_was_opened_to(shm_place: Any) -> None:
    """With "each" a call returns durable; with "manual" a commit makes it so."""
    with open_small(shm_place.path, commit="each", **shm_place.options) as wal:
        fill = events.Logger(wal).event(FORMAT)
        assert fill(1, 2, 3) == wal.committed_seq == 2
        assert fill(4, 5, 6) == wal.committed_seq == 3
    with open_small(shm_place.path, commit="manual", **shm_place.options) as wal:
        fill = events.Logger(wal).event(FORMAT)
        seq = fill(1, 2, 3)
        assert seq > wal.committed_seq
        assert seq == wal.commit()


def test_call_of_a_closed_log_says_so(shm_dir: Path) -> None:
    """A call outlives its log, and then raises what append raises."""
    wal = pmwal.open(shm_dir / "a.wal", size="64KiB")
    fill = events.Logger(wal).event(FORMAT)
    fill(1, 2, 3)
    wal.close()
    with pytest.raises(pmwal.WalClosed):
        fill(1, 2, 3)
    with pytest.raises(pmwal.WalClosed):
        events.Logger(wal)


def test_call_inside_a_batch_says_so(shm_dir: Path) -> None:
    """The batch has promised its numbers; like append, an event cannot take one of them."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        fill = events.Logger(wal).event(FORMAT)
        fill(1, 2, 3)
        with wal.batch() as batch:
            batch.append(b"x")
            with pytest.raises(pmwal.ReentrantCall):
                fill(1, 2, 3)


def log_until_killed(pipe: Any, path: str) -> None:
    """Log without end, and say how far it is."""
    with pmwal.open(path, "r+", commit="manual") as wal:
        fill = events.Logger(wal).event(FORMAT)
        for number in range(10**9):
            fill(number, number * 2, 0.5)
            if number % 1000 == 0:
                pipe.send(number)


def test_events_survive_a_kill(shm_dir: Path) -> None:
    """Whatever a call has returned for is there after SIGKILL, without any commit, and explained."""
    path = shm_dir / "a.wal"
    pmwal.open(path, size="64MiB").close()
    with child(log_until_killed, str(path)) as process:
        while (told := process.hear()) < 3000:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with pmwal.open(path, "r") as reader:
        found = [event.values for event in events.read(reader)]
    assert len(found) > told
    assert [(number, number * 2, 0.5) for number in range(len(found))] == found


# -- definitions


def test_definition_is_stored_once_before_its_first_event(shm_dir: Path) -> None:
    """By the first call, not by making it; two loggers of one name, and the next process, share it."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        events.Logger(wal).event("never called {}")
        calls = [events.Logger(wal).event(FORMAT) for _ in range(2)]
        assert len(wal) == 0
        assert [call(1, 2, 3) for call in calls * 2] == [2, 3, 4, 5]
        assert definitions(wal) == [1]
    with pmwal.open(path) as wal:
        assert events.Logger(wal).event(FORMAT)(1, 2, 3) == 6
        assert events.Logger(wal).event(FORMAT, level=10)(1, 2, 3) == 8
        assert definitions(wal) == [1, 7]
        assert unexplained(wal) == []


def test_truncate_stores_definitions_again_that_are_still_needed(shm_dir: Path) -> None:
    """Those of events that stay; not those of events that go, and none in a log that it empties."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        log = events.Logger(wal)
        first, second = log.event("first {}"), log.event("second {}")
        first(1)  # 1, 2
        second(2)  # 3, 4
        second(3)  # 5
        assert wal.truncate(before=4) == 4
        assert (definitions(wal), texts(wal)) == ([6], ["second 2", "second 3"])
        with pmwal.open(path, "r") as reader:
            assert texts(reader) == ["second 2", "second 3"]
        first(4)  # 7, 8
        second(5)  # 9
        assert texts(wal) == ["second 2", "second 3", "first 4", "second 5"]
        assert wal.truncate(before=10) == 10
        assert (len(wal), wal.next_seq) == (0, 10)
        assert second(6) == 11
        assert texts(wal) == ["second 6"]


def test_rollback_that_discards_a_definition_leaves_every_event_explained(shm_dir: Path) -> None:
    """One that only discarded events needed is stored by the next call; one that older events need, by the rollback."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        call = events.Logger(wal).event("{}")
        keep = wal.append(b"x")
        call(1)
        assert keep + 1 == wal.rollback(after=keep)
        assert [call(2), call(3)] == [3, 4]
        wal.truncate(before=3)
        assert definitions(wal) == [5]
        assert call(4) == 6
        assert wal.rollback(after=4) == 6
        assert definitions(wal) == [5]
        assert call(5) == 6
        assert texts(wal) == ["2", "3", "5"]


@pytest.mark.parametrize("seed", first_fast(range(3)))
@pytest.mark.parametrize("known", [True, False], ids=["defined-again", "forgotten"])
def test_overwriting_log_explains_whatever_it_holds(shm_dir: Path, seed: int, known: bool) -> None:
    """Laps of a small ring, by events of different kinds and by plain records of different sizes, beside events that a process
    before has left: after each call every event that is left has its definition."""
    rng, when = random.Random(seed), "before" if known else "now"
    path = shm_dir / "a.wal"
    with open_small(path) as wal:
        log = events.Logger(wal)
        for number in range(5):
            log.event(f"event {number} of before {{x}}")(number)
    with open_small(path, on_full="overwrite", commit="manual") as wal:
        log = events.Logger(wal)
        calls: list[Callable[..., int]] = [log.event(f"event {number} of {when} {{x}}") for number in range(5)]
        for step in range(400):
            size = rng.choice([0, 20, 20, 20, 300, 300, 3000])
            if rng.random() < 0.7:
                rng.choice(calls[: 1 + step % 5])(size * "x")
            else:
                wal.extend([bytes(size)] * rng.randint(1, 3))
            if rng.random() < 0.02:
                wal.truncate(before=rng.randint(wal.first_seq, wal.next_seq))
            if rng.random() < 0.02:
                wal.rollback(after=rng.randint(wal.first_seq - 1, wal.next_seq - 1))
            assert unexplained(wal) == [], (seed, step)
        assert wal.stats().overwritten > 50


def test_rows_of_arrays_that_overwrite_leave_every_event_explained(shm_dir: Path) -> None:
    """They make room as other records do, and a definition's copy may take some of it."""
    with open_small(shm_dir / "log", on_full="overwrite", commit="manual") as wal:
        call = events.Logger(wal).event("{} " * 5)
        for number in range(60):
            call(*range(number, number + 5))
            wal.extend_array(np.full((number % 7 + 1, 300), number, np.uint8))
            assert [event.values[0] for event in events.read(wal)][-1] == number
            assert unexplained(wal) == []
        assert wal.stats().overwritten > 100


@pytest.mark.parametrize("operation", ["truncate", "overwrite"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_crash_anywhere_in_a_move_of_the_tail_leaves_every_event_explained(shm_dir: Path, operation: str, ordering: str) -> None:
    """The copy is durable before the tail moves: a kill before any step of the seam leaves the one or the other."""

    def prepared(path: Path, seam: BarrierRecorder) -> tuple[Wal, Callable[..., int]]:
        wal = open_small(path, seam=seam, medium="file", ordering=ordering, on_full="overwrite", commit="manual")
        call = events.Logger(wal).event("{x}")
        while wal.free > 200 + wal._engine.headroom:
            call("y" * 40)
        wal.commit()
        return wal, call

    steps = killed = 0
    while killed == steps:
        path = shm_dir / f"{steps}.wal"
        seam = BarrierRecorder()
        wal, call = prepared(path, seam)
        left = iter(range(steps))

        def hook(event: Step, left: Any = left) -> None:
            if next(left, None) is None:
                raise Crash

        seam.before = hook
        steps += 1
        try:
            if operation == "truncate":
                wal.truncate(before=wal.next_seq - 3)
            else:
                for _ in range(5):
                    call("z" * 40)
        except Crash:
            killed += 1
        kill(wal)
        with pmwal.open(path, "r") as reader:
            assert unexplained(reader) == [], steps
            assert list(events.read(reader)), steps
        path.unlink()
    assert killed > 5


def test_definition_owed_to_a_batch_is_stored_behind_it(shm_dir: Path) -> None:
    """The batch has promised its numbers, so a truncate inside it cannot store; the end of the batch does."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        call = events.Logger(wal).event("{}")
        call(1)
        with wal.batch() as batch:
            number = batch.append(b"x")
            wal.truncate(before=2)
            assert unexplained(wal) == [2]
        assert unexplained(wal) == []
        assert wal[number].data == b"x"
        assert [number + 1] == definitions(wal)


def give_up(wal: Wal) -> None:
    """Truncate inside a batch, and do not finish it."""
    with contextlib.suppress(Crash), wal.batch() as batch:
        batch.append(b"x")
        wal.truncate(before=2)
        raise Crash


def test_definition_owed_is_stored_at_the_latest_at_close(shm_dir: Path) -> None:
    """A truncate inside a batch that is given up."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        call = events.Logger(wal).event("{}")
        call(1)
        give_up(wal)
        assert unexplained(wal) == [2]
    with pmwal.open(path, "r") as reader:
        assert texts(reader) == ["1"]


def fill_up(wal: Wal) -> None:
    """Append until it raises."""
    while True:
        wal.append(bytes(16))


def define_without_end(log: events.Logger) -> None:
    """Define events until it raises."""
    for number in range(1000):
        log.event(f"event {number}")


def test_full_log_keeps_room_for_definitions(shm_dir: Path) -> None:
    """Plain records stop short of it, and say so; truncate then has room to store before it frees."""
    with open_small(shm_dir / "a.wal", commit="manual") as wal:
        call = events.Logger(wal).event("{}")
        call(1)
        with pytest.raises(pmwal.WalFull, match="kept for definitions of events"):
            fill_up(wal)
        assert 0 < wal._engine.headroom <= wal.free
        wal.truncate(before=2)
        assert unexplained(wal) == []
        assert [wal.next_seq - 1] == definitions(wal)


def test_definitions_may_not_fill_the_ring(shm_dir: Path) -> None:
    """A quarter of it at most; more is an error where the event is defined."""
    with open_small(shm_dir / "a.wal") as wal:
        log = events.Logger(wal)
        with pytest.raises(pmwal.WalFull, match=f"too many for a ring of {SMALL_RING} bytes"):
            define_without_end(log)


def test_log_that_defines_too_much_already_can_still_be_logged_to(shm_dir: Path) -> None:
    """The definitions used last are kept, and the others let go."""
    path = shm_dir / "a.wal"
    with open_small(path) as wal:
        for number in range(60):
            definition = Definition(f"event {number} {{}}", 20, "")
            wal.append(definition.payload, kind=events.DEFINITION_KIND)
            wal.append(definition.number.to_bytes(8, "little") + pack(number), kind=events.EVENT_KIND)
    with open_small(path, on_full="overwrite") as wal:
        events.Logger(wal).event("event 59 {}")("again")
        wal.truncate(before=wal.next_seq - 8)
        assert texts(wal) == [f"event {number} {number}" for number in (56, 57, 58, 59)] + ["event 59 again"]


def test_reader_takes_no_events(shm_dir: Path) -> None:
    """A logger needs the writer's handle."""
    pmwal.open(shm_dir / "a.wal", size="64KiB").close()
    with pmwal.open(shm_dir / "a.wal", "r") as reader, pytest.raises(TypeError, match="opened for writing"):
        events.Logger(reader)  # type: ignore[arg-type]


def test_decoder_finds_a_definition_behind_the_event(shm_dir: Path) -> None:
    """After a truncate the definition is a copy after the event: a reader of one record, and a follower, get its text."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        call = events.Logger(wal).event("{}")
        numbers = [call(value) for value in range(5)]
        wal.truncate(before=numbers[2])
        with pmwal.open(path, "r") as reader:
            assert texts(reader, numbers[3], numbers[4]) == ["3"]
            decoder = events.Decoder(reader)
            followed = [decoder.decode(record) for record in reader.follow(numbers[2], timeout=0)]
    assert [event and event.text for event in followed] == ["2", "3", "4", None]


# -- pmwal cat


def test_cat_shows_events_as_text_and_json(shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Level, name and text on one line; everything apart in JSON; --grep looks at the text; other records as ever."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        fill = events.Logger(wal, name="orders").event(FORMAT, level=30)
        wal.append(b"plain")
        fill(17, 5, 1.25)
        fill(b"\xff", datetime(2026, 11, 22, tzinfo=UTC), float("nan"))
        fill("two\nlines", "\udc80", 1 << 20000)
    assert main(["cat", "-n", "1", "-g", "order 17", str(path)]) == 0
    line = capsys.readouterr().out
    assert line.startswith("3  ")
    assert line.endswith("  WARNING  orders: order 17 filled 5 @ 1.25\n")
    assert main(["cat", "--from", "3", "-o", "json", str(path)]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["arguments"] == {"id": 17, "qty": 5, "px": 1.25}
    assert tuple(first[key] for key in ("format", "name", "level", "text")) == (FORMAT, "orders", 30, "order 17 filled 5 @ 1.25")
    assert second["arguments"] == {"id": {"base64": "/w=="}, "qty": "2026-11-22T00:00:00+00:00", "px": "nan"}
    assert third["arguments"]["id"] == "two\nlines"
    assert main(["cat", "--from", "1", "--to", "1", str(path)]) == 0
    assert "plain" in capsys.readouterr().out
    assert main(["cat", "--from", "5", str(path)]) == 0
    assert r"order two\x0alines filled \udc80 @ 0x1000" in capsys.readouterr().out
