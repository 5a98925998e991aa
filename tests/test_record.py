"""Record is a value: compared, hashed, copied, pickled and matched alike with and without the extension."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import pmwal
from pmwal.records import _PlainRecord


class PythonRecord(_PlainRecord):
    """What Record is without the extension."""

    __slots__ = ()
    __match_args__ = ("seq", "kind", "time_ns", "data")
    __repr__ = pmwal.Record.__repr__


PythonRecord.__name__ = PythonRecord.__qualname__ = "Record"
RECORDS = {"native": pmwal.Record, "python": PythonRecord}


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_a_value(name: str) -> None:
    """Equal, hashed, shown, matched and copied by value, and it cannot be changed."""
    make: Any = RECORDS[name]
    record = make(seq=1, kind=2, time_ns=-3, data=b"four")
    same = make(1, 2, -3, b"four")
    assert record == same
    assert hash(record) == hash(same) == hash((1, 2, -3, b"four"))
    assert record == same
    for other in ((2, 2, -3, b"four"), (1, 3, -3, b"four"), (1, 2, 3, b"four"), (1, 2, -3, b"five")):
        assert record != make(*other)
    assert record != (1, 2, -3, b"four")
    assert record != "x"
    with pytest.raises(TypeError):
        assert record < same
    assert repr(record) == "Record(seq=1, kind=2, time_ns=-3, data=b'four')"
    match record:
        case make(seq, kind, time_ns, data):
            assert (seq, kind, time_ns, data) == (1, 2, -3, b"four")
        case _:
            pytest.fail("no match")
    assert copy.copy(record) == copy.deepcopy(record) == record
    assert {record: 1}[same] == 1
    for change in (lambda: setattr(record, "seq", 2), lambda: setattr(record, "new", 2), lambda: delattr(record, "data")):
        with pytest.raises((AttributeError, TypeError)):
            change()
    assert not hasattr(record, "__dict__")


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(
    ("length", "shown"),
    [(0, "b''"), (80, repr(b"x" * 80)), (81, f"{b'x' * 64!r} and 17 bytes more"), (1 << 20, "and 1048512 bytes more")],
)
def test_repr_of_a_record_is_short(name: str, length: int, shown: str) -> None:
    """A payload of a megabyte in a traceback or a notebook hides all else."""
    make: Any = RECORDS[name]
    text = repr(make(2**64 - 1, 65535, -(2**63), b"x" * length))
    assert text.endswith(shown + ")")
    assert text.startswith("Record(seq=18446744073709551615, kind=65535, time_ns=-9223372036854775808, data=b'")
    assert len(text) < 200


def test_time_of_a_record_is_aware() -> None:
    """It compares with the aware datetimes of a program, and does not depend on the time zone of the machine."""
    time = pmwal.Record(1, 0, 1_700_000_000_123_456_789, b"").time
    assert time == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert time.utcoffset() == timedelta(0)
    assert pmwal.Record(1, 0, -1, b"").time == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def test_record_goes_through_pickle() -> None:
    """Every protocol gives back an equal record of the same class."""
    record = pmwal.Record(seq=2**64 - 1, kind=65535, time_ns=-(2**63), data=bytes(range(256)))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(record, protocol))
        assert type(again) is pmwal.Record
        assert again == record


@pytest.mark.parametrize(
    "values",
    [(-1, 0, 0, b""), (2**64, 0, 0, b""), (1, -1, 0, b""), (1, 65536, 0, b""), (1, 2**40, 0, b""), (1, 0, 2**63, b""),
     ("1", 0, 0, b""), (1, "0", 0, b""), (1, 0, 0.5, b""), (1, 0, 0, "text"), (1, 0, 0, None), (1, 0, 0)],
)  # fmt: skip
def test_impossible_record_is_refused(values: tuple[Any, ...]) -> None:
    """A number that no record can have is an ordinary exception."""
    with pytest.raises((ValueError, TypeError, OverflowError)):
        pmwal.Record(*values)


def test_subclass_of_record_compares_with_its_own() -> None:
    """A user's subclass keeps its class through a copy, and is equal to its own kind only, as with a dataclass."""

    class Mine(pmwal.Record):
        """A user's record."""

    assert Mine(1, 2, 3, b"x") == Mine(1, 2, 3, b"x")
    assert Mine(1, 2, 3, b"x") != pmwal.Record(1, 2, 3, b"x")
    assert type(copy.copy(Mine(1, 2, 3, b"x"))) is Mine
