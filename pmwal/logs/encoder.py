"""JSON for structured log records, by the fastest library that is installed: orjson, msgspec, or the standard one.

No value makes a record impossible: a value without a JSON form is stored as text, NaN and the infinities as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from importlib import import_module
from typing import Any

LIBRARIES = ("orjson", "msgspec")
"""In order of preference; the standard library is the last resort."""

Encode = Callable[[dict[str, Any]], bytes]


def encoder(libraries: Sequence[str] = LIBRARIES) -> Encode:
    """A function from a dict to one line of JSON in UTF-8, by the first of these libraries that can be imported.

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
            fast = partial(module.dumps, default=str, option=module.OPT_NON_STR_KEYS)
        else:
            fast = module.json.Encoder(enc_hook=str).encode
        return partial(_encode, fast)
    return partial(_encode, _by_standard_library)


def _encode(fast: Encode, document: dict[str, Any]) -> bytes:
    try:
        return fast(document)
    except (TypeError, ValueError, OverflowError):  # large integers, lone surrogates, keys, NaN: the limits differ by library
        return _by_standard_library(_plain(document))


def _by_standard_library(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, default=str, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes \udc80, which is the same in JSON


def _plain(value: Any) -> Any:
    """The value in types that JSON has, as the standard library does it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, Set)):
        return [_plain(inner) for inner in value]
    return str(value)
