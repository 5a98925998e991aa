"""JSON for structured log records, by the fastest library that is installed: orjson, msgspec, or the standard one.

No value makes a record impossible: a value without a JSON form is stored as text, NaN and the infinities as null, and what a
library refuses (cycles, depth, objects whose methods raise) is cut by ``pmwal.logs.plain``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from enum import Enum
from functools import lru_cache, partial
from gc import get_referents
from importlib import import_module
from typing import Any

from pmwal.logs.plain import Plain, to_json

LIBRARIES = ("orjson", "msgspec")
"""In order of preference; the standard library is the last resort."""

_SCALARS = frozenset({str, int, float, bool, type(None), bytes, datetime, date})
_ORJSON_DEPTH = 200  # it refuses 255 dicts or lists
_SHORT = 16

Encode = Callable[[dict[str, Any]], bytes]


class Interrupted(BaseException):
    """An exception such as ``KeyboardInterrupt`` came out of an object; ``line`` is the record, with a mark in that object's place.

    The exception is the cause. Store the line and raise the cause.
    """

    def __init__(self, line: bytes) -> None:
        super().__init__("interrupted while a record was encoded")
        self.line = line


def _uncounted() -> None:
    pass


def encoder(
    libraries: Sequence[str] = LIBRARIES, on_cut: Callable[[], None] = _uncounted, open_fields: Sequence[str] = ("extra",)
) -> Encode:
    """A function from a dict to one line of JSON in UTF-8, by the first of these libraries that can be imported.

    ``open_fields`` of a document may have values of any type; all others are known to be shallow. The function raises only
    ``Interrupted``, and calls ``on_cut`` for each record of which something was cut.

    >>> encoder(())({"level": "INFO", "extra": {"order": 7}})
    b'{"level":"INFO","extra":{"order":7}}'
    """
    for library in libraries:
        try:
            module = import_module(library)
        except ImportError:
            continue
        fast: Encode
        if library == "orjson":
            dumps = partial(module.dumps, default=str, option=module.OPT_NON_STR_KEYS)
            fast = partial(_within_depth, dumps, tuple(open_fields))
        else:
            fast = module.json.Encoder(enc_hook=str).encode
        return partial(_encode, fast, on_cut)
    return partial(_encode, to_json, on_cut)


def _within_depth(dumps: Encode, open_fields: tuple[str, ...], document: dict[str, Any]) -> bytes:
    """Encode by orjson, which does not count tuples: a cycle through one, or thousands of them, would end the process."""
    for name in open_fields:
        value = document.get(name)
        if value is not None and _is_too_deep(value.values() if type(value) is dict else (value,), _ORJSON_DEPTH):
            raise RecursionError("more depth than orjson can count")
    return dumps(document)


def _is_too_deep(values: Iterable[Any], depth: int) -> bool:
    """Whether containers are nested deeper than this. It runs no code of the objects."""
    for value in values:
        kind = type(value)
        if kind in _SCALARS:
            continue
        inner: Iterable[Any]
        if kind is dict:
            inner = value.values()
        elif kind is list or kind is tuple:
            if len(value) > _SHORT and _SCALARS.issuperset(map(type, value)):  # in C
                continue
            inner = value
        elif _is_container(kind):  # type: ignore[arg-type]
            inner = get_referents(value)
        else:
            continue
        if not depth or _is_too_deep(inner, depth - 1):
            return True
    return False


@lru_cache(maxsize=256)
def _is_container(kind: Any) -> bool:
    """Whether orjson encodes objects of this type with what they contain; all others it passes to ``str``."""
    return issubclass(kind, (dict, list, tuple, Enum)) or hasattr(kind, "__dataclass_fields__")


def _encode(fast: Encode, on_cut: Callable[[], None], document: dict[str, Any]) -> bytes:
    try:
        return fast(document)
    except BaseException as error:  # large integers, lone surrogates, keys, NaN, cycles: the limits differ by library
        plain = Plain()
        line = to_json(plain.value(document))
        if plain.cuts:
            on_cut()
        interrupt = plain.interrupt or _interrupt_in(error)
        if interrupt is not None:
            raise Interrupted(line) from interrupt
        return line


def _interrupt_in(error: BaseException | None) -> BaseException | None:
    """What a library made an error of its own out of: orjson does so with every exception of an object's method."""
    for _ in range(16):
        if error is None or not isinstance(error, Exception):
            return error
        error = error.__cause__ or error.__context__
    return None
