"""Any value in the types that JSON has, whatever its objects do meanwhile, and a line cut to a size.

Invariants
----------
- Every call returns: a cycle, too much depth and too many items are cut, and an object whose code raises becomes a mark. Each cut
  leaves a mark where something is missing, a text in brackets that begins with "cut".
- An exception that is no ``Exception``, such as ``KeyboardInterrupt``, is kept for the caller to raise after storing the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

DEPTH_MAX = 64
ITEMS_MAX = 100_000
BYTES_PER_CHARACTER_MAX = 6
"""Of JSON in UTF-8: an escaped control character, or half of a surrogate pair."""

_UNLIMITED = 1e18
_ITEM = 8  # characters of punctuation that an item costs
_NUMBER = 24
_MARK = 32
_SHARE = 7 / 8  # of what is left, for one container
_DEPTH_OF_CUT_LINE = 8


class Plain:
    """The conversion of one document. ``cuts`` counts the marks, ``interrupt`` is the first exception that must be raised again.

    With ``characters``, the result is cut to about that length.

    >>> loop = {"a": 1}; loop["self"] = loop
    >>> plain = Plain()
    >>> plain.value(loop), plain.cuts
    ({'a': 1, 'self': '[cut: cycle]'}, 1)
    """

    def __init__(self, characters: int | None = None) -> None:
        self.cuts = self._cycles = 0
        self.interrupt: BaseException | None = None
        self._items = ITEMS_MAX
        self._room: float = _UNLIMITED if characters is None else characters
        self._depth = DEPTH_MAX if characters is None else _DEPTH_OF_CUT_LINE
        self._floor = (0.0, 0.0)  # of items and room: the container at hand leaves this much to the values after it
        self._above: set[int] = set()  # the containers that contain the value at hand
        self._in_cycles: dict[int, Any] = {}  # containers in which a cycle was cut; kept, so that no other gets their ids

    def value(self, value: Any) -> Any:
        """The value in types that JSON has."""
        self._items -= 1
        self._room -= _ITEM
        try:
            return self._value(value)
        except BaseException as error:
            return self._caught(error)

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return self._number(value)
        if isinstance(value, float):
            self._room -= _NUMBER
            return float(value) if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return self._inside(value, self._mapping)
        if isinstance(value, (list, tuple, Set)):
            return self._inside(value, self._sequence)
        return self._text(shown(value))

    def _number(self, value: int) -> int | str:
        number = int(value)
        self._room -= _NUMBER
        try:
            str(number)
        except ValueError:  # more digits than the interpreter prints
            return self._text(hex(number))
        return number if number.bit_length() <= 64 or self._room > _UNLIMITED / 2 else self._text(str(number))

    def _inside(self, container: Any, convert: Any) -> Any:
        if id(container) in self._above or id(container) in self._in_cycles:
            # One that is in a cycle is converted once: the paths through it can be too many.
            return self._mark("cycle")
        if len(self._above) >= self._depth:
            return self._mark("depth")
        floor, cycles = self._floor, self._cycles
        self._floor = self._items - (self._items - floor[0]) * _SHARE, self._room - (self._room - floor[1]) * _SHARE
        self._above.add(id(container))
        try:
            return convert(container)
        finally:
            self._above.discard(id(container))
            self._floor = floor
            if self._cycles > cycles:
                self._in_cycles[id(container)] = container

    def _mapping(self, mapping: Mapping[Any, Any]) -> dict[str, Any]:
        # A copy of a dict is made in one step, so that nobody changes it meanwhile.
        pairs = dict(mapping).items() if type(mapping) is dict else mapping.items()
        found: dict[str, Any] = {}
        for key, inner in self._each(pairs):
            if key is _CUT:
                found[_free(found, "", "")] = inner
            else:
                found[_free(found, self._key(key), type(key).__name__)] = self.value(inner)
        return found

    def _sequence(self, sequence: Iterable[Any]) -> list[Any]:
        return [inner if key is _CUT else self.value(inner) for key, inner in self._each((None, inner) for inner in sequence)]

    def _each(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """The pairs as far as there is room and as their iterator gets; then a mark, with ``_CUT`` as its key."""
        iterator = iter(pairs)
        while True:
            try:
                pair = next(iterator)
            except StopIteration:
                return
            except BaseException as error:
                yield _CUT, self._caught(error)
                return
            if self._items <= self._floor[0] or self._room <= self._floor[1]:
                yield _CUT, self._mark("size")
                return
            yield pair

    def _key(self, key: Any) -> str:
        """As the libraries do it: ``null``, ``true`` and ``false``, and text for all others."""
        if key is None or isinstance(key, bool):
            return json.dumps(key)
        try:
            return self._text(str.__str__(key) if isinstance(key, str) else shown(key))
        except BaseException as error:
            return self._caught(error)

    def _text(self, text: str) -> str:
        """The text, or as much of it as half of the room that is left here. One that is no longer than a mark stays whole."""
        room = (self._room - self._floor[1]) / 2
        if len(text) > max(room, _MARK):
            kept = max(0, int(room))
            self.cuts += 1
            self._room -= kept + _MARK
            return f"{text[:kept]}[cut: {len(text) - kept} characters]"
        self._room -= len(text)
        return text

    def _caught(self, error: BaseException) -> str:
        if not isinstance(error, Exception) and self.interrupt is None:
            self.interrupt = error
        return self._mark(type(error).__name__)

    def _mark(self, why: str) -> str:
        self.cuts += 1
        self._cycles += why == "cycle"
        self._room -= _MARK
        return f"[cut: {why}]"


_CUT: Any = object()


def _free(found: Mapping[str, Any], key: str, kind: str) -> str:
    """The key, made different from those that are taken: 1 and "1" are one key in JSON."""
    if key not in found:
        return key
    key, number = f"{key} ({kind})", 2
    name = key
    while name in found:
        name, number = f"{key} {number}", number + 1
    return name


def shown(value: object) -> str:
    """``str`` of a value, as a plain ``str``. Raises what the object does."""
    # str() of bytes is an error under `python -bb`
    return str.__str__(repr(value) if isinstance(value, (bytes, bytearray)) else str(value))


def shortened(line: bytes, size: int) -> bytes:
    """A line cut to at most about ``size`` bytes, with a mark. An object in JSON stays one, with the shorter texts cut last.

    >>> shortened(b"x" * 100, 10)
    b'xxxxxxxxxx[cut: 90 bytes]'
    >>> json.loads(shortened(json.dumps({"level": "INFO", "message": "x" * 9000}).encode(), 1200))["level"]
    'INFO'
    """
    if line.startswith(b"{"):
        try:
            document = json.loads(line)
            return to_json(Plain(size // BYTES_PER_CHARACTER_MAX).value(document))
        except (ValueError, RecursionError):
            pass
    end = size
    while end > max(size - 4, 0) and line[end] & 0xC0 == 0x80:  # not in the middle of a character
        end -= 1
    return line[:end] + f"[cut: {len(line) - end} bytes]".encode()


def to_json(document: Any) -> bytes:
    """JSON by the standard library."""
    text = json.dumps(document, default=str, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes \\udc80, which is the same in JSON
