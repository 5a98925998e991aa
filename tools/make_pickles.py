"""Make the golden file tests/data/v0.1-pickles.zip: a pickle of each kind of object that pmwal hands out, made by version 0.1.

    python tools/make_pickles.py FILE

Run it with an interpreter in which pmwal 0.1 is installed. Beside each NAME.pickle there is a NAME.json with the class and the
attributes as 0.1 saw them. The committed file is never made anew: a test loads it with every later version.
"""

from __future__ import annotations

import errno
import json
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pmwal
from pmwal import events
from pmwal.latency import LatencyHistogram
from pmwal.repair import RepairReport

TIME_NS = 1_700_000_000_000_000_000
MADE = (2026, 11, 29, 0, 0, 0)


def describe(value: Any) -> Any:
    """A value as JSON: of what is not plain, its class and its public attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, tuple | list):
        return [describe(each) for each in value]
    if isinstance(value, dict):
        return {name: describe(each) for name, each in value.items()}
    kind = type(value)
    if not kind.__module__.startswith("pmwal"):
        return repr(value)
    names = [name for name in dir(value) if not name.startswith("_") and hasattr(value, name)]
    attributes = {name: describe(getattr(value, name)) for name in names if not callable(getattr(value, name))}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "attributes": attributes}


def _reports() -> Iterator[tuple[str, Any]]:
    report = pmwal.RecoveryReport(
        outcome="corrupt",
        case="R7",
        epoch=3,
        first_seq=4,
        last_seq=90,
        records=87,
        kept_past_pointer=5,
        dropped_records=6,
        dropped_bytes=777,
        maybe_acknowledged=True,
        slots_lost=1,
        superblocks_lost=2,
        reason="a record's checksum",
        damage=(139264, 139328),
        lost_first_seq=91,
        lost_last_seq=93,
        bytes_scanned=123456,
        seconds=0.125,
    )
    latency = LatencyHistogram(counters=(b"\x05" + bytes(7)) * 3968, total_ns=987654321, max_ns=1 << 36, step=64)
    yield "recovery-report", report
    yield "recovery-report-defaults", pmwal.RecoveryReport("created", "R1")
    yield "latency-histogram", latency
    yield "latency-histogram-empty", LatencyHistogram()
    yield (
        "wal-stats",
        pmwal.WalStats(
            engine="native",
            medium="file",
            durability="power",
            filesystem="ext4",
            flush="msync",
            ordering="pipelined",
            capacity=65536,
            used=4096,
            appends=11,
            bytes=1111,
            commits=7,
            barriers=8,
            overwritten=9,
            waits=10,
            errors=1,
            slots_written=12,
            epoch=3,
            generation=99,
            alignment=8,
            assumptions=("one", "two"),
            dropped=13,
            commit_latency=latency,
            recovery=report,
        ),
    )
    yield (
        "repair-report",
        RepairReport(
            path="/logs/app.wal",
            backup="/logs/app.wal.damaged",
            dry_run=True,
            before=report,
            after=pmwal.RecoveryReport("clean", "R1"),
            kept_records=87,
            lost_records=2,
            lost_first_seq=91,
            lost_last_seq=93,
            actions=("keep", "write"),
        ),
    )


def _errors() -> Iterator[tuple[str, Any]]:
    yield "error-locked", pmwal.WalLocked("locked", 17)
    yield (
        "error-corrupt",
        pmwal.CorruptWal("damaged", first_seq=7, last_seq=9, start=139264, end=139328, reason="checksum"),
    )
    yield "error-persist", pmwal.PersistError(errno.EIO, "msync failed", committed_seq=41)
    yield "error-overrun", pmwal.Overrun("gone", 3)
    for kind in (
        pmwal.PmwalError,
        pmwal.WalClosed,
        pmwal.ReentrantCall,
        pmwal.WalFull,
        pmwal.RecordTooLarge,
        pmwal.FormatError,
        pmwal.ForkedWal,
        pmwal.UnsupportedMedium,
    ):
        yield f"error-{kind.__name__}", kind("what went wrong")


def _from_a_log(directory: Path) -> Iterator[tuple[str, Any]]:
    yield "record", pmwal.Record(seq=5, kind=7, time_ns=TIME_NS, data=b"payload")
    with pmwal.open(directory / "events.wal", size="64KiB") as wal:
        events.Logger(wal, name="orders").event("order {id} filled {qty} @ {px:.2f}", level=30)(17, qty=5, px=1.25)
        (event,) = events.read(wal)
    yield "event", replace(event, time_ns=TIME_NS)
    handler = pmwal.LogHandler(directory / "app.wal", size="64KiB")
    handler.close()
    yield "sink-stats", replace(handler.stats(), written=1, overwritten=2, dropped=3, errors=4)


def main(target: str) -> int:
    """Write the file."""
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
        for name, thing in (*_reports(), *_errors(), *_from_a_log(Path(directory))):
            archive.writestr(zipfile.ZipInfo(f"{name}.pickle", MADE), pickle.dumps(thing), zipfile.ZIP_DEFLATED)
            archive.writestr(zipfile.ZipInfo(f"{name}.json", MADE), json.dumps(describe(thing)), zipfile.ZIP_DEFLATED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
