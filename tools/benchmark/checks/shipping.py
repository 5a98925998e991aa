"""Checks of shippers to NATS JetStream, against bare nats-py and a server on the same machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark import jetstream, shippers
from benchmark.context import MIB, Context
from benchmark.gate import BARS, Row, absolute, compare, skipped
from pmwal.testing.bench.stats import median, percentile
from pmwal.testing.bench.workloads import PAYLOAD

_FRAMES = 64  # in one round
_MESSAGES = 4  # of one record, for each record that is followed
_LATENCIES = 4  # records that are followed, for each whose latency is measured


def ship(context: Context) -> Iterator[Row]:
    """Processor time of a record, the time until it is acknowledged, and the idle cost."""
    problem = jetstream.missing()
    if problem is not None:
        yield skipped("ship", problem)
        return
    scale = context.scale
    amount = shippers.Amount(
        scale.rounds,
        scale.ring,
        min(_FRAMES, scale.ring // MIB),
        scale.follows * _MESSAGES,
        max(1, scale.follows // _LATENCIES),
        scale.idle,
    )
    with tempfile.TemporaryDirectory(dir=context.memory_dir) as inner:
        directory = Path(inner)
        with jetstream.server(directory) as url:
            found = shippers.measure(url, directory, amount)
    size = len(PAYLOAD)
    what = f"processor time a record, frames of {shippers.RECORDS} x {size} B, median of {scale.rounds} rounds"
    ours = median(found.shipper)
    rows = {
        "ship floor": ("nats-py, bodies of that size", found.bodies),
        "ship single": (f"nats-py, a message of {size} B a record", found.single),
    }
    for bar, (floor, rounds) in rows.items():
        note = f"rounds of pmwal {_range(found.shipper)} ns, of nats-py {_range(rounds)} ns"
        yield compare("ship", what, floor, (median(rounds), ours), "ns", "at most", BARS[bar], note)
    middle, high = ([percentile(times, q) / 1e3 for times in (found.bare, found.acked)] for q in (50.0, 99.0))
    what = f"from the call of append of {size} B until the stream has acknowledged it, median of {len(found.acked)}"
    note = f"p99 of pmwal {high[1]:.0f} µs, of nats-py {high[0]:.0f} µs"
    floor = f"nats-py, a message of {size} B, in turns"
    yield compare("ship", what, floor, (middle[0], middle[1]), "µs", "at most", BARS["ship acknowledged"], note)
    for situation, shares in found.idle.items():
        what = f"processor time of an idle shipper, {situation}, median of {len(shares)} x {scale.idle:g} s"
        note = f"the most {100 * max(shares):.2f} %"
        yield absolute("ship", what, 100 * median(shares), "%", "at most", BARS["ship idle %"], note)


def _range(rounds: Sequence[float]) -> str:
    return f"{min(rounds):.0f} to {max(rounds):.0f}"
