"""How the records of a log are laid out in its archives: as ``pmwal export`` writes them, with all payloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from pmwal.cli.formats.columns import Layout, PayloadLayout, Survey, row_of
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import as_json
from pmwal.cli.formats.tables import batch_of, schema_of
from pmwal.events.entries import Entries
from pmwal.reading.reader import Reader
from pmwal.records import Record

_SAMPLE = 1000  # records that decide whether there are columns for fields


class ArchiveTable:
    """The rows of one file."""

    def __init__(self, layout: Layout[Any], row: Callable[[Record], Any]) -> None:
        self.schema = schema_of(layout)
        self._layout = layout
        self._row = row

    def batch(self, records: list[Record]) -> Any:
        """The rows of these records."""
        return batch_of(self.schema, self._layout, list(map(self._row, records)))


def table_for(reader: Reader, records: Iterable[Record]) -> ArchiveTable:
    """A table for these records: with a column for each field if one of the first is an event, or a JSON object with a message."""
    entries, rest = Entries(reader), iter(records)
    sample = list(islice(rest, _SAMPLE))
    if not any(map(entries.is_structured, sample)):
        return ArchiveTable(PayloadLayout(several=False), lambda record: record)
    survey = Survey()
    for record in chain(sample, rest):
        survey.add(row_of(entries.entry(record)))
    return ArchiveTable(survey.layout(several=False, payloads=True), lambda record: row_of(entries.entry(record)))


def line_for(reader: Reader) -> Callable[[Record], bytes]:
    """Makes the lines of the records of this log."""
    return EventForms(reader).form(as_json)
