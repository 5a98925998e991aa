"""Levels of log records: the ranges of them that ``--level`` and ``-p`` select.

A level is a number as in ``logging``. The priorities of syslog, 0 to 7, and their names are the bands of levels that Python's
handlers for syslog make of them (RFC 5424, section 6.2.1).
"""

from __future__ import annotations

import argparse
import logging
from typing import NamedTuple

from pmwal.events.definition import DEFINITION_KIND, EVENT_KIND
from pmwal.format.layout import KIND_APPLICATION_MAX


class Levels(NamedTuple):
    """A range of levels, both ends included."""

    low: int
    high: int

    def __contains__(self, level: object) -> bool:
        return isinstance(level, int) and self.low <= level <= self.high

    @property
    def kinds(self) -> frozenset[int]:
        """The kinds of records that may have these levels.

        An event has its level in its definition, and a record of kind 0 may be a document that names one.
        """
        return frozenset(range(self.low, self.high + 1)) | {0, DEFINITION_KIND, EVENT_KIND}


_BANDS = {
    "debug": Levels(1, logging.INFO - 1),
    "info": Levels(logging.INFO, 24),
    "notice": Levels(25, logging.WARNING - 1),
    "warning": Levels(logging.WARNING, logging.ERROR - 1),
    "err": Levels(logging.ERROR, logging.CRITICAL - 1),
    "crit": Levels(logging.CRITICAL, logging.CRITICAL),
    "alert": Levels(logging.CRITICAL + 1, KIND_APPLICATION_MAX),
    "emerg": Levels(logging.CRITICAL + 1, KIND_APPLICATION_MAX),
}
"""From the least to the most severe; syslog counts from the other end."""

_NAMES = {"warn": "warning", "error": "err", "critical": "crit", "fatal": "crit", "panic": "emerg"}
_PRIORITIES = tuple(reversed(_BANDS))


def levels_option(text: str) -> Levels:
    """The levels that ``LEVEL`` (this one and the more severe ones) or ``FROM..TO`` names, for argparse.

    >>> levels_option("warning").low, levels_option("info..error"), levels_option("3").low
    (30, Levels(low=20, high=49), 40)
    """
    first, dots, last = text.partition("..")
    low = _band(first, text).low
    high = _band(last, text).high if dots else KIND_APPLICATION_MAX
    if low > high:  # syslog's numbers fall where the severity rises
        low, high = _band(last, text).low, _band(first, text).high
    return Levels(low, high)


def _band(name: str, text: str) -> Levels:
    word = name.strip().lower()
    if word.isascii() and word.isdigit():
        number = int(word)
        if number < len(_PRIORITIES):
            return _BANDS[_PRIORITIES[number]]
        if number <= KIND_APPLICATION_MAX:
            return Levels(number, number)
    band = _BANDS.get(_NAMES.get(word, word))
    if band is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no level: use {', '.join(_BANDS)}, a priority from 0 (emerg) to 7 (debug), or a number as in logging, "
            f"up to {KIND_APPLICATION_MAX}; FROM..TO for a range"
        )
    return band


def priority_of(level: int) -> int:
    """The priority of syslog for a level, 0 to 7.

    >>> [priority_of(level) for level in (10, 20, 30, 40, 50)]
    [7, 6, 4, 3, 2]
    """
    for name, band in _BANDS.items():
        if level <= band.high:
            return _PRIORITIES.index(name)
    return 0
