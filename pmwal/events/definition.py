"""Definitions of events: a format, a level and a name, stored once and referred to by a number computed from them.

Invariants
----------
- The number is a checksum of the stored definition: the same definition has the same number in every process and at any time, and
  any copy of it, anywhere in the log, explains all its events.
- A format is data. It names parameters and field widths; it cannot reach attributes or items, or ask for much memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from string import Formatter
from typing import Any, NamedTuple

from pmwal.events.arguments import Value
from pmwal.format.layout import KIND_APPLICATION_MAX

DEFINITION_KIND = KIND_APPLICATION_MAX + 1
"""The kind of records that hold a definition."""
EVENT_KIND = KIND_APPLICATION_MAX + 2
"""The kind of records that hold an event."""

NUMBER_SIZE = 8
PARAMETERS_MAX = 64
_DIGITS_MAX = 3  # of a width or precision

_WIDE = re.compile(rf"\d{{{_DIGITS_MAX + 1}}}")


class _Piece(NamedTuple):
    """Text, and the parameter that follows it, if one does."""

    text: str
    parameter: int | None
    conversion: str | None
    spec: str


class Definition:
    """The meaning of an event. ``parameters`` are the names of its arguments; those that are digits are positional only.

    >>> definition = Definition("order {id} filled {qty} @ {px:.2f}", 20, "orders")
    >>> definition.parameters, definition.text((17, 5, 1.25))
    (('id', 'qty', 'px'), 'order 17 filled 5 @ 1.25')
    >>> Definition.decode(definition.payload).number == definition.number
    True
    """

    def __init__(self, format: str, level: int, name: str) -> None:
        self.format = format
        self.level = level
        self.name = name
        self._pieces, self.parameters = _parse(format)
        self.payload = json.dumps(
            {"format": format, "level": level, "name": name}, ensure_ascii=False, separators=(",", ":"), sort_keys=True
        ).encode("utf-8", "surrogatepass")
        self.number = int.from_bytes(blake2b(self.payload, digest_size=NUMBER_SIZE).digest(), "little")

    @classmethod
    def decode(cls, payload: bytes) -> Definition | None:
        """The definition in a record; None when there is none."""
        try:
            fields = json.loads(payload.decode("utf-8", "surrogatepass"))
            definition = cls(*(_typed(fields, name, kind) for name, kind in (("format", str), ("level", int), ("name", str))))
        except (ValueError, RecursionError):
            return None
        return definition if definition.payload == payload else None

    @property
    def positional(self) -> int:
        """How many of the parameters have no name."""
        return sum(name.isdigit() for name in self.parameters)

    def bind(self, args: Sequence[object], keywords: Mapping[str, object]) -> list[object]:
        """The arguments of a call in the order of the parameters. ``TypeError`` when they do not match."""
        names = self.parameters
        if len(args) > len(names):
            raise TypeError(f"{self} takes {len(names)} arguments{self._listed()}, and {len(args)} were given by position")
        values = dict(zip(names, args, strict=False))
        for name, value in keywords.items():
            if name in values:
                raise TypeError(f"{self} got two values for {name}")
            if name not in names or name.isdigit():
                raise TypeError(f"{self} has no parameter {name!r} to be given by name{self._listed()}")
            values[name] = value
        missing = [name for name in names if name not in values]
        if missing:
            raise TypeError(f"{self} misses {', '.join(missing)}")
        return [values[name] for name in names]

    def _listed(self) -> str:
        return f" ({', '.join(self.parameters)})" if self.parameters else ""

    def text(self, values: Sequence[Value]) -> str:
        """The format filled in. A value that its field cannot format is shown plainly: no event is lost to its format."""
        parts: list[str] = []
        for piece in self._pieces:
            parts.append(piece.text)
            if piece.parameter is not None:
                parts.append(_shown(values[piece.parameter], piece.conversion, piece.spec))
        return "".join(parts)

    def __eq__(self, other: object) -> bool:
        return self.payload == other.payload if isinstance(other, Definition) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.payload)

    def __str__(self) -> str:
        return f"event {self.format!r}"


def plain(value: Value) -> str:
    """A value as text."""
    try:
        return repr(value) if isinstance(value, bytes) else str(value)
    except ValueError:
        return hex(value) if isinstance(value, int) else repr(value)  # an int with more digits than the interpreter prints


def _shown(value: Value, conversion: str | None, spec: str) -> str:
    shown: Any = plain(value) if isinstance(value, bytes) or (isinstance(value, int) and not spec) else value
    try:
        if conversion is not None:
            shown = {"r": repr, "s": plain, "a": ascii}[conversion](value)
        return format(shown, spec)
    except (ValueError, TypeError, OverflowError):
        return plain(value)


def _typed(fields: Any, name: str, kind: type) -> Any:
    value = fields.get(name) if isinstance(fields, dict) else None
    if type(value) is not kind:
        raise ValueError(f"no definition: {name}")
    return value


def _parse(format: str) -> tuple[tuple[_Piece, ...], tuple[str, ...]]:
    """The pieces of a format, and the names of its parameters: positions first, then names as they appear."""
    fields = list(Formatter().parse(format))
    names = [name for _, name, _, _ in fields if name is not None]
    automatic = "" in names
    if automatic and any(name.isdigit() for name in names):
        raise ValueError(f"{format!r} mixes {{}} and numbered fields")
    count = names.count("") if automatic else max((int(name) + 1 for name in names if _is_number(name)), default=0)
    named = list(dict.fromkeys(name for name in names if name and not _is_number(name)))
    if max(len(names), count + len(named)) > PARAMETERS_MAX:  # fields, too: each may show a large argument once more
        raise ValueError(f"an event has at most {PARAMETERS_MAX} fields and parameters")
    parameters = (*map(str, range(count)), *named)
    pieces, next_automatic = [], 0
    for text, name, spec, conversion in fields:
        index = None
        if name is not None:
            _check_field(format, name, spec or "", conversion)
            index = parameters.index(name or str(next_automatic))
            next_automatic += not name
        pieces.append(_Piece(text, index, conversion, spec or ""))
    return tuple(pieces), parameters


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name[: _DIGITS_MAX + 1]))


def _check_field(format: str, name: str, spec: str, conversion: str | None) -> None:
    if name and not name.isidentifier() and not _is_number(name):
        raise ValueError(f"{format!r}: {{{name}}} is no parameter; fields are names or positions, without attributes or items")
    if "{" in spec or _WIDE.search(spec):
        raise ValueError(f"{format!r}: {spec!r} may hold no field, and no number of more than {_DIGITS_MAX} digits")
    if conversion not in (None, "r", "s", "a"):
        raise ValueError(f"{format!r}: !{conversion} is no conversion; there are !r, !s and !a")
