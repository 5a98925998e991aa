"""The pure parts of shipping: headers, messages, what is held back, and which settings of a stream suit."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmwal
from documents import read_section, read_table
from pmwal.format.frame import pack
from pmwal.native.checksum import crc32c
from pmwal.ship import Folding, Gap, Rollback, records
from pmwal.ship.chain import HEADERS_MAX, Entry, Source, Stamp, as_uuid, check_body, entry_of, headers_for
from pmwal.ship.checks import matches, problems_of
from pmwal.ship.forms import FORMS, Form
from pmwal.ship.holding import Holding
from pmwal.ship.link import StreamState

SOURCE = Source("host", "/var/log/a.wal")
NUMBERS = st.integers(1, (1 << 64) - 2)


# -- headers


@given(
    first=NUMBERS,
    count=st.integers(0, 1000),
    prev=st.integers(0, 1 << 63),
    crc=st.integers(0, (1 << 32) - 1),
    cursor=st.sampled_from(["", "17-0badcafe"]),
    offset=st.integers(0, 1000),
    what=st.sampled_from(["records", "part", "gap", "rollback", "record", "in a batch"]),
    stamp=st.builds(Stamp, st.integers(0, 65535), st.integers(-(1 << 63) + 1, (1 << 63) - 1)),
)
def test_entry_survives_its_headers(
    first: int, count: int, prev: int, crc: int, cursor: str, offset: int, what: str, stamp: Stamp
) -> None:
    """What is said is what is read."""
    entry = Entry(first, first + count, prev, cursor, crc)
    if what == "part":
        entry = entry._replace(last=first, offset=offset, size=offset + 1)
    elif what == "gap":
        entry = entry._replace(gap=True)
    elif what == "rollback":
        entry = entry._replace(last=first - 1, rollback=True)
    elif what == "record":
        entry = entry._replace(last=first, stamp=stamp)
    elif what == "in a batch":
        entry = entry._replace(last=first, stamp=stamp, prev=None)
    headers = headers_for(entry, SOURCE, "LOGS")
    assert entry_of(headers) == entry
    assert headers.get("Nats-Expected-Last-Subject-Sequence") == (None if what == "in a batch" else str(prev))
    assert entry_of(headers).has_records == (what not in ("gap", "rollback"))


@given(host=st.text(), name=st.text(max_size=5000))
def test_headers_are_printable_and_short(host: str, name: str) -> None:
    """Whatever a machine or a path is called: a line break in it cannot become a header."""
    largest = (1 << 64) - 2
    entry = Entry(largest, largest, largest, f"{largest}-0badcafe", 0, largest, largest, stamp=Stamp(65535, -(1 << 63) + 1))
    headers = headers_for(entry, Source(host, name), "S" * 255)
    headers |= {"Nats-Batch-Id": "0" * 32, "Nats-Batch-Sequence": "1000", "Nats-Batch-Commit": "1"}
    wire = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert wire.isascii()
    assert all(value.isprintable() for value in headers.values())
    assert len(wire) + 14 <= HEADERS_MAX


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Pmwal-Version": None}, "no Pmwal-Version"),
        ({"Pmwal-Version": "2"}, "use a newer pmwal"),
        ({"Pmwal-First": "x"}, "Pmwal-First"),
        ({"Pmwal-First": "0"}, "cannot have"),
        ({"Pmwal-Last": "3"}, "cannot have"),
        ({"Pmwal-Prev": None}, "Pmwal-Prev"),
        ({"Pmwal-Kind": "7"}, "Pmwal-Time"),
        ({"Pmwal-Kind": "-1", "Pmwal-Time": "5"}, "Pmwal-Kind"),
        ({"Pmwal-Kind": "7", "Pmwal-Time": "5"}, "cannot have"),
        ({"Pmwal-Rollback": "9"}, "cannot have"),
    ],
)
def test_message_of_something_else_is_refused(change: dict[str, str | None], text: str) -> None:
    """Nothing is guessed."""
    headers = {**headers_for(Entry(5, 9, 4), SOURCE, "LOGS"), **change}
    with pytest.raises(ValueError, match=text):
        entry_of({name: value for name, value in headers.items() if value is not None})


def test_document_has_every_header() -> None:
    """docs/shipping-format.md lists what is written, and nothing else."""
    rows = read_table(read_section("shipping-format.md", "Headers"), "header")
    entries = [
        Entry(1, 2, 0, "2-0badcafe"),
        Entry(1, 1, 0, "1-0badcafe", 0, 5, 9),
        Entry(1, 1, 0, "1-0badcafe", stamp=Stamp(7, 5)),
        Entry(1, 2, 0, gap=True),
        Entry(3, 2, 0, rollback=True),
    ]
    written = {name for entry in entries for name in headers_for(entry, SOURCE, "LOGS")}
    assert {row[0].strip("`") for row in rows} == written


def test_uuid_is_taken_in_the_usual_forms() -> None:
    """With dashes and capitals, too."""
    assert as_uuid("0BADCAFE-0000-0000-0000-000000000001") == "0badcafe000000000000000000000001"
    with pytest.raises(ValueError, match="pmwal info"):
        as_uuid("0badcafe")


# -- messages


def message(entry: Entry, body: bytes = b"", subject: str = "one") -> Any:
    """A message as nats-py delivers it."""
    return SimpleNamespace(subject=subject, headers=headers_for(entry._replace(crc=crc32c(body)), SOURCE, "LOGS"), data=body)


RECORDS = [pmwal.Record(seq, seq * 3, 1000 + seq, b"x" * seq) for seq in range(5, 9)]


def test_body_is_the_documented_one() -> None:
    """``<IHq`` and the payload, one after another."""
    body = b"".join(struct.pack("<IHq", len(each.data), each.kind, each.time_ns) + each.data for each in RECORDS)
    assert pack(RECORDS) == body
    assert records(message(Entry(5, 8, 0), body)) == RECORDS


@pytest.mark.parametrize(("first", "last"), [(5, 7), (5, 9)])
def test_body_with_another_number_of_records_is_refused(first: int, last: int) -> None:
    """The headers and the body must agree."""
    with pytest.raises(ValueError, match="4 records"):
        records(message(Entry(first, last, 0), pack(RECORDS)))


def test_each_form_says_all_of_the_records() -> None:
    """Whether a message has many of them or one, its headers and its body are enough."""
    body = pack(RECORDS)
    frame = pmwal.Frame(5, 8, RECORDS[-1].cursor, body)
    for name, count in (("frame", 1), ("atomic", 4)):
        (shipped,) = FORMS[name](frame)
        assert len(shipped) == count
        first = [(entry._replace(prev=3), data) for entry, data in shipped[:1]]
        assert [each for entry, data in first + shipped[1:] for each in records(message(entry, data))] == RECORDS
        assert shipped[-1][0].cursor == frame.cursor
    assert [data for _, data in shipped] == [each.data for each in RECORDS]


def test_body_that_was_changed_is_refused() -> None:
    """By its checksum."""
    with pytest.raises(ValueError, match="another checksum"):
        check_body(Entry(5, 8, 0, crc=crc32c(b"a")), b"b")


def test_folding_keeps_logs_apart_and_puts_parts_together() -> None:
    """Parts may come twice, as where a message is delivered again, and between them messages of other logs."""
    folding = Folding()
    body = pack(RECORDS[:1])
    parts = [Entry(5, 5, at, offset=at, size=len(body)) for at in (0, 7, 14)]
    bodies = [body[:7], body[7:14], body[14:]]
    assert folding.add(message(parts[0], bodies[0])) == []
    assert folding.add(message(Entry(5, 8, 0), pack(RECORDS), "two")) == RECORDS
    assert folding.add(message(parts[1], bodies[1])) == []
    assert folding.add(message(parts[0], bodies[0])) == []
    assert folding.add(message(parts[2], bodies[2])) == RECORDS[:1]
    assert folding.add(message(Entry(6, 7, 20, gap=True))) == [Gap(6, 7)]
    assert folding.add(message(Entry(4, 3, 21, rollback=True))) == [Rollback(3)]


def test_folding_refuses_a_record_of_which_a_part_is_missing() -> None:
    """Who begins in the middle is told to begin earlier."""
    folding, body = Folding(), pack(RECORDS[:1])
    with pytest.raises(ValueError, match="begin with an earlier"):
        folding.add(message(Entry(5, 5, 0, offset=7, size=len(body)), body[7:14]))


# -- what is held back


def test_nothing_is_released_before_its_time() -> None:
    """Whenever it is acknowledged: each record is held for at least as long as was asked, and not much longer."""
    holding, released_at, added = Holding(16.0), dict[int, float](), dict[int, float]()
    for tick in range(4000):
        now = tick / 20
        if tick < 2000:
            holding.add(tick + 1, now)
            added[tick + 1] = now
        for seq in range(max(released_at, default=0) + 1, holding.release(now) + 1):
            released_at[seq] = now
    assert all(16.0 <= released_at[seq] - at <= 18.0 for seq, at in added.items())


def test_what_the_stream_has_lost_is_not_released() -> None:
    """It is forgotten, and held anew when it is shipped again."""
    holding = Holding(10.0)
    holding.add(100, 0.0)
    holding.add(200, 5.0)
    holding.forget_after(150)
    assert holding.release(20.0) == 100
    assert not holding.due(1000.0)


def test_without_a_time_all_is_released_at_once() -> None:
    """For servers that sync before they acknowledge."""
    holding = Holding(0.0)
    holding.add(7, 1.0)
    assert holding.release(1.0) == 7


# -- settings of streams


def found(version: tuple[int, int] = (2, 14), form: Form = "frame", **config: Any) -> list[str]:
    """The settings that do not suit a log."""
    state = StreamState({"name": "LOGS", "subjects": ["pmwal.*"], "discard": "new"} | config, 0, 0, 0)
    return [problem.setting for problem in problems_of(state, version, "pmwal." + "0" * 32, form)]


def test_settings_that_suit_have_no_problem() -> None:
    """Also with replicas, on a server that keeps their order."""
    assert found() == []
    assert found((2, 11), num_replicas=3) == []
    assert found(subjects=["other", ">"]) == []
    assert found((2, 12), "atomic", allow_atomic=True) == []


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({"num_replicas": 3, "version": (2, 10)}, "num_replicas"),
        ({"form": "atomic", "allow_atomic": True, "version": (2, 11)}, "form"),
        ({"form": "atomic"}, "allow_atomic"),
        ({"mirror": {"name": "S"}}, "mirror"),
        ({"sealed": True}, "sealed"),
        ({"allow_msg_counter": True}, "allow_msg_counter"),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject"),
        ({"subjects": ["pmwal.*.x"]}, "subjects"),
    ],
)
def test_setting_that_does_not_suit_is_found(config: dict[str, Any], setting: str) -> None:
    """Each of them by itself."""
    assert found(**config) == [setting]


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a", "a.b", False),
    ],
)
def test_subjects_match_as_the_server_matches_them(pattern: str, subject: str, expected: bool) -> None:
    """One token for a star, one or more at the end for an angle."""
    assert matches(pattern, subject) is expected
