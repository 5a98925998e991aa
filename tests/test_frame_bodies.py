"""The body of a frame: what is packed comes out again, and a body that was cut gives no record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmwal.format.frame import ENTRY, pack, unpack, unpack_in_python
from pmwal.format.layout import KIND_MAX, TIME_MAX, TIME_MIN
from pmwal.native import native
from pmwal.records import Record

UNPACK = [unpack_in_python, *(() if native is None else (native.unpack_frame,))]

records = st.lists(
    st.builds(
        Record,
        st.just(1),
        st.integers(0, KIND_MAX),
        st.integers(TIME_MIN, TIME_MAX),
        st.binary(max_size=60) | st.just(b"x" * 70000),
    ),
    max_size=12,
)


def test_body_is_length_kind_time_and_payload() -> None:
    """The bytes of a body, for those who write one or read one in another language."""
    body = pack([Record(1, 0x0102, 0x0B0A090807060504, b"ab"), Record(2, 0, -1, b"")])
    assert body == bytes.fromhex("02000000 0201 0405060708090a0b 6162  00000000 0000 ffffffffffffffff")
    assert ENTRY.size == 14


@settings(deadline=None)
@given(records)
def test_what_is_packed_is_unpacked(several: list[Record]) -> None:
    """Kinds, times and payloads, the empty one too, from bytes, a bytearray and a view."""
    expected = [(each.kind, each.time_ns, each.data) for each in several]
    body = pack(iter(several))
    for form in (body, bytearray(body), memoryview(body)):
        assert [way(form) for way in UNPACK] == [expected] * len(UNPACK)


@settings(deadline=None)
@given(records.filter(bool), st.data())
def test_body_that_was_cut_gives_no_record(several: list[Record], data: st.DataObject) -> None:
    """A body that ends anywhere but after a record is an error that names where that record begins."""
    ends = [0]
    for each in several:
        ends.append(ends[-1] + ENTRY.size + len(each.data))
    body = pack(several)
    cut = data.draw(st.integers(0, len(body)).filter(lambda at: at not in ends))
    begins = max(end for end in ends if end < cut)
    for way in UNPACK:
        with pytest.raises(ValueError, match=f"a frame's body of {cut} bytes ends inside the record at byte {begins}: it was cut"):
            way(body[:cut])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_unpack_alike(body: bytes) -> None:
    """In both engines: the same records, or an error of the same text."""
    found: list[object] = []
    for way in UNPACK:
        try:
            found.append(way(body))
        except ValueError as error:
            found.append(str(error))
    assert found == [found[0]] * len(UNPACK)
    assert unpack(b"") == []


@pytest.mark.parametrize("more", [b"\0", bytes(13), b"\1" + bytes(13)], ids=["a byte", "less than a header", "a header"])
def test_bytes_after_the_last_record_are_an_error(more: bytes) -> None:
    """None of the records before them is handed out."""
    for way in UNPACK:
        with pytest.raises(ValueError, match=r"ends inside the record at byte 15: .* something follows its last record"):
            way(pack([Record(1, 0, 0, b"a")]) + more)
