"""Check of a follower in another process, against a bare futex wake-up."""

from __future__ import annotations

from collections.abc import Iterator

from benchmark import followers
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute, compare
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import Times, merge, percentile
from pmwal.testing.bench.workloads import PAYLOAD
from pmwal.testing.machine import Site


def follow(context: Context) -> Iterator[Row]:
    """The time until a follower in another process has a record, with a bare wake-up for comparison, and its idle cost."""
    scale = context.scale
    for site in (context.disk, context.memory):
        found, wakes = _deliveries(context, site)
        warm = scale.follows  # the first round
        from_return, from_call, bare = found.from_return[warm:], found.from_call[warm:], wakes[warm:]
        middle, high = ([percentile(times, q) / 1e3 for times in (from_return, from_call, bare)] for q in (50.0, 99.0))
        where = site.mount.filesystem
        what = f"from the return of append to the record in another process that slept, {where}, median of {len(from_return)}"
        note = f"p99 {high[2]:.0f} and {high[0]:.0f} µs; from the call of append {middle[1]:.0f} and {high[1]:.0f} µs"
        floor = "a futex wake-up between two processes in C, in turns"
        yield compare("follow", what, floor, (middle[2], middle[0]), "µs", "at most", BARS["follow"], note)
        what = f"processor time of that follower while nothing is appended, {where}, {scale.idle:g} s"
        yield absolute("follow", what, 100 * found.idle_share, "%", "at most", BARS["follow idle %"])


def _deliveries(context: Context, site: Site) -> tuple[followers.Deliveries, Times]:
    """Deliveries to a follower of a log here, and wake-ups of the floor, in turns, of all rounds."""
    scale, wakes = context.scale, []

    def wake() -> None:
        wakes.append(context.floors.wake(followers.PAUSE, scale.follows).each)

    with workloads.new_log(site.directory, size=scale.ring) as wal:
        found = followers.measure(
            wal, PAYLOAD, rounds=scale.rounds + 1, each_round=scale.follows, idle=scale.idle, before_round=wake
        )
    return found, merge(wakes)
