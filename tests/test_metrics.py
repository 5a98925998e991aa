"""Metrics: what a handle counts, how long its commits take, and what another process can watch."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

import pmwal
from commands import Cli, between_looks
from pmwal.format.layout import LIVE_LATENCY, LIVE_LATENCY_OFFSET, LIVE_OFFSET, PAGE
from pmwal.latency import COARSE, FINE, NS_MAX, SAMPLE_STEP, LatencyHistogram, LatencyRecorder, LiveLatency, Scale
from pmwal.storage.live_page import read_latency
from support import BarrierRecorder, fail_flush, kill, open_small, overwrite

pytestmark = pytest.mark.both_engines

SEED = 5
EDGES = [0, 1, 127, 128, 255, 256, 257, 258, 511, 512, 1023, 65535, 65536, NS_MAX - 1, NS_MAX, NS_MAX + 1, 1 << 40]


class Stopwatch(BarrierRecorder):
    """A monotonic clock: between two calls, the next of these durations passes."""

    def __init__(self, durations: list[int]) -> None:
        super().__init__()
        looks = (time for start in accumulate(durations, initial=0) for time in (start, start))
        next(looks)
        self.looks = looks

    def monotonic_ns(self) -> int:
        """The time at this call."""
        return next(self.looks)


def recorded(durations: list[int]) -> LatencyHistogram:
    """A histogram of these durations, filled by the counters in Python."""
    recorder = LatencyRecorder()
    for ns in durations:
        recorder.add(ns)
    return recorder.snapshot(1)


def random_durations(count: int) -> list[int]:
    """Durations of every magnitude that a histogram can hold."""
    random = Random(SEED)
    return [random.getrandbits(random.randrange(1, 38)) for _ in range(count)]


# -- the histogram


@pytest.mark.parametrize("scale", [FINE, COARSE])
def test_counters_follow_one_another_without_a_gap(scale: Scale) -> None:
    """The longest duration of each counter belongs to it, and one nanosecond more to the next."""
    for counter in range(scale.counters - 1):
        longest = scale.longest_in(counter)
        assert (scale.counter_of(longest), scale.counter_of(longest + 1)) == (counter, counter + 1)
    assert scale.longest_in(scale.counters - 1) == NS_MAX


def test_percentiles_are_those_of_hdrhistogram() -> None:
    """HdrHistogram with two digits gives the same percentiles, except the last, for which pmwal knows the exact maximum."""
    durations = random_durations(5000)
    ours, theirs = recorded(durations), HdrHistogram(1, NS_MAX, 2)
    for ns in durations:
        theirs.record_value(ns)
    for percent in (0.1, 1, 10, 25, 50, 75, 90, 99, 99.9):
        assert theirs.get_value_at_percentile(percent) == ours.percentile(percent), f"{percent}, seed {SEED}"
    assert theirs.get_total_count() == ours.count
    assert ours.percentile(100) == ours.max_ns == max(durations)


def test_percentile_is_at_most_a_128th_too_high_and_never_too_low() -> None:
    """A percentile of the histogram agrees with the sorted durations."""
    durations = sorted(random_durations(1000))
    histogram = recorded(durations)
    for place in range(1, 1001):
        exact, said = durations[place - 1], histogram.percentile(place / 10)
        assert exact <= said <= exact + exact // 128, f"{place}, seed {SEED}"


def test_histogram_becomes_one_of_hdrhistogram() -> None:
    """as_hdr() has every count, and encodes to what HdrHistogram's tools read."""
    ours = recorded(random_durations(1000))
    theirs = ours.as_hdr()
    assert (theirs.get_total_count(), theirs.get_value_at_percentile(50)) == (1000, ours.p50)
    assert HdrHistogram.decode(theirs.encode()).get_value_at_percentile(99) == ours.p99


def test_histogram_of_nothing_is_all_zero() -> None:
    """An empty histogram divides and searches nothing."""
    for empty in (LatencyHistogram(), recorded([])):
        assert (empty.count, empty.mean, empty.p50, empty.p999, empty.max_ns, empty.buckets()) == (0, 0.0, 0, 0, 0, [])


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan")])
def test_percentile_refuses_what_is_none(percent: float) -> None:
    """A percentile is from 0 to 100."""
    with pytest.raises(ValueError, match="0 to 100"):
        recorded([1]).percentile(percent)


def test_difference_of_two_snapshots_is_what_came_between() -> None:
    """since() leaves out earlier, slow commits."""
    early, late = [10**9, 50], [1000, 2000, 3000]
    between = recorded(early + late).since(recorded(early))
    assert (between.count, between.total_ns, between.p50) == (3, 6000, recorded(late).p50)
    assert 3000 <= between.max_ns <= 3000 + 3000 // 128
    assert recorded(late).since(LatencyHistogram()).buckets() == recorded(late).buckets()


# -- what a handle counts


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_each_commit_on_a_disk_is_counted_where_its_duration_belongs(ordering: str, path: Path) -> None:
    """Both engines count each duration as the counters in Python do, to the nanosecond at the edges."""
    durations = EDGES + random_durations(150)
    with open_small(path, medium="file", ordering=ordering, on_full="overwrite", seam=Stopwatch([1] * 99 + durations)) as wal:
        for _ in range(99):
            wal.append(b"")
        before = wal.stats().commit_latency
        for turn in range(len(durations)):
            wal.append(b"x") if turn % 2 else wal.extend([b"x", b"y"])
        latency = wal.stats().commit_latency
    assert latency.since(before).buckets() == recorded(durations).buckets(), f"seed {SEED}"
    assert latency.total_ns - before.total_ns == sum(durations)
    assert (latency.max_ns, latency.step) == (max(durations), 1)


@pytest.mark.parametrize("call", ["append", "extend", "batch", "commit", "wait_durable", "append, then commit"])
def test_every_way_to_commit_is_counted_once(call: str, tmp_path: Path) -> None:
    """On a disk the histogram has as many commits as the commit counter, also where one system call stores and syncs."""
    with open_small(tmp_path / "test.wal", medium="file", on_full="overwrite") as wal:
        for turn in range(100):
            match call:
                case "append":
                    wal.append(b"x")
                case "extend":
                    wal.extend([b"x", b"y"])
                case "batch":
                    with wal.batch() as batch:
                        batch.append(b"x")
                case "commit" | "append, then commit":
                    wal.append(b"x", commit=call == "append, then commit" and turn % 2 == 0)
                    wal.commit()
                case "wait_durable":
                    assert wal.wait_durable(wal.append(b"x", commit=False))
        stats = wal.stats()
        assert (stats.commit_latency.count, stats.commits) == (100, 100)
        assert 0 < stats.commit_latency.p50 <= stats.commit_latency.max_ns <= stats.commit_latency.total_ns


def test_one_commit_in_64_is_timed_where_a_barrier_is_no_system_call(path: Path) -> None:
    """The first commit is timed, so that a log with few commits has a figure at all."""
    with open_small(path, medium="memory", on_full="overwrite") as wal:
        for commits in range(1, 3 * SAMPLE_STEP):
            wal.append(b"x")
            assert wal.stats().commit_latency.count == -(-commits // SAMPLE_STEP)
        wal.append(b"y", commit=False)
        wal.commit()
        wal.append(b"z", commit=False)
        wal.commit()
        latency = wal.stats().commit_latency
    assert (latency.count, latency.step) == (4, SAMPLE_STEP)


def test_commit_that_failed_is_not_counted(path: Path) -> None:
    """The duration of a failure says nothing about commits."""
    seam = BarrierRecorder()
    wal = open_small(path, medium="file", seam=seam)
    wal.append(b"x")
    seam.before = fail_flush()
    with pytest.raises(pmwal.PersistError):
        wal.append(b"y")
    assert (wal.stats().commit_latency.count, wal.stats().errors) == (1, 1)
    wal.close()


def test_commit_with_nothing_pending_is_not_counted(path: Path) -> None:
    """It has nothing to wait for, and would make the percentiles look too good."""
    with open_small(path, medium="file") as wal:
        wal.append(b"x")
        for _ in range(5):
            wal.commit()
        assert (wal.stats().commit_latency.count, wal.stats().commits) == (1, 1)


def test_records_that_a_full_log_refused_are_counted(path: Path) -> None:
    """dropped counts records, not calls; a record that can never fit is a mistake and does not count."""
    with open_small(path) as wal:
        wal.append(bytes(8000))
        wal.append(bytes(8000))
        with pytest.raises(pmwal.WalFull):
            wal.append(bytes(1000))
        with pytest.raises(pmwal.WalFull):
            wal.extend([bytes(1000), bytes(1000)])
        with pytest.raises(pmwal.RecordTooLarge):
            wal.append(bytes(9000))
        assert (wal.stats().dropped, wal.stats().appends) == (3, 2)


def test_stats_say_what_the_open_found(path: Path) -> None:
    """The recovery report is part of the figures, also as plain values."""
    wal = open_small(path)
    wal.extend([b"a", b"b"])
    kill(wal)
    with open_small(path) as wal:
        stats = wal.stats()
        assert stats.recovery == wal.recovery
        assert stats.as_dict()["recovery"]["records"] == 2
        assert stats.as_dict()["commit_latency"]["count"] == 0
        with pmwal.open(path, "r") as reader:
            assert (reader.stats().recovery, reader.stats().commit_latency.count) == (None, 0)


# -- latencies in the live page


def live_latency(path: Path) -> LiveLatency | None:
    """The latencies that another process reads from the file."""
    raw = path.read_bytes()
    return read_latency(lambda offset, length: raw[offset : offset + length])


def coarse(histogram: LatencyHistogram) -> LiveLatency:
    """The live page's figures for a handle's."""
    counts: Counter[int] = Counter()
    for longest, count in histogram.buckets():
        counts[COARSE.counter_of(longest)] += count
    return LiveLatency(histogram.step, np.array([counts[place] for place in range(COARSE.counters)], "<u4").tobytes())


def show(path: Path, step: int, counters: bytes) -> None:
    """Store this histogram in the live page."""
    overwrite(path, LIVE_LATENCY_OFFSET, struct.pack("<Q", step) + counters)


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_live_page_has_each_duration_that_the_handle_has(ordering: str, path: Path) -> None:
    """Every counter agrees after every commit, for durations of all magnitudes and at the edges."""
    durations = EDGES + random_durations(100)
    with open_small(path, medium="file", ordering=ordering, on_full="overwrite", seam=Stopwatch(durations)) as wal:
        for turn in range(len(durations)):
            wal.append(b"x") if turn % 2 else wal.extend([b"x", b"y"])
            assert live_latency(path) == coarse(wal.stats().commit_latency), f"{turn}, seed {SEED}"


@pytest.mark.parametrize("medium", ["file", "memory", "emulated-dax", "disk"])
def test_live_page_agrees_with_the_handle_however_it_commits(medium: str, shm_dir: Path, tmp_path: Path) -> None:
    """Without a seam: a record with its commit in one step, batches, a separate commit."""
    path = (tmp_path if medium == "disk" else shm_dir) / "test.wal"
    with pmwal.open(path, size="64KiB", medium="file" if medium == "disk" else medium, on_full="overwrite") as wal:
        for turn in range(3 * SAMPLE_STEP):
            wal.append(b"x") if turn < 2 * SAMPLE_STEP else wal.extend([b"x", b"y"])
            wal.append(b"x", commit=False)
            wal.commit()
        latency = wal.stats().commit_latency
        assert latency.count == (6 * SAMPLE_STEP if latency.step == 1 else 6)
        assert live_latency(path) == coarse(latency)


def test_figures_of_the_live_page_are_at_most_an_eighth_too_high_and_never_too_low() -> None:
    """This holds for any durations."""
    for count in (1, 2, 10, 1000):
        durations = sorted(random_durations(count))
        figures = coarse(recorded(durations)).as_dict()
        assert figures["count"] == count
        for name, percent in (("p50_ns", 50), ("p99_ns", 99), ("max_ns", 100)):
            exact = durations[-(-count * percent // 100) - 1]
            assert exact <= figures[name] <= exact + exact // 8, f"{name} of {count}, seed {SEED}"


def test_open_of_a_writer_clears_the_latencies(path: Path) -> None:
    """They are cleared after a clean close, a kill, and damage to the page; a reader clears nothing."""
    for end in (pmwal.Wal.close, kill):
        wal = open_small(path, medium="file")
        assert live_latency(path) == coarse(wal.stats().commit_latency) == LiveLatency(1, bytes(4 * COARSE.counters))
        wal.append(b"x")
        end(wal)
        with pmwal.open(path, "r"):
            shown = live_latency(path)
        assert shown is not None
        assert shown.as_dict()["count"] == 1
    show(path, 3, b"\xff" * (4 * COARSE.counters))
    with open_small(path, medium="memory"):
        assert live_latency(path) == LiveLatency(SAMPLE_STEP, bytes(4 * COARSE.counters))


def test_live_page_is_stored_to_only_for_a_commit_that_is_timed(path: Path) -> None:
    """Each such commit stores one counter of four bytes, and the open stores all of them once."""
    seam = BarrierRecorder()
    end = LIVE_LATENCY_OFFSET + LIVE_LATENCY.size
    with open_small(path, medium="memory", on_full="overwrite", seam=seam) as wal:
        for _ in range(2 * SAMPLE_STEP):
            wal.append(b"x")
    stores = [event.length for event in seam.events if event.name == "store" and LIVE_LATENCY_OFFSET <= event.offset < end]
    assert stores == [LIVE_LATENCY.size, 4, 4]


def test_no_barrier_includes_the_latencies(path: Path) -> None:
    """Latencies are as volatile as the rest of the live page."""
    seam = BarrierRecorder()
    with open_small(path, medium="file", seam=seam) as wal:
        wal.append(b"x")
    flushes = [range(event.offset, event.offset + event.length) for event in seam.events if event.name == "flush"]
    assert flushes
    assert not [flush for flush in flushes if flush.start < LIVE_OFFSET + PAGE and flush.stop > LIVE_OFFSET]


def test_counter_that_wrapped_counts_on(path: Path) -> None:
    """A watcher takes the difference modulo 2^32."""
    place, last = COARSE.counter_of(1000), (1 << 32) - 1
    before, after = np.zeros((2, COARSE.counters), "<u4")
    before[place], after[place], after[place + 1] = last - 2, 4, 1
    between = LiveLatency(1, after.tobytes()).since(LiveLatency(1, before.tobytes())).as_dict()
    assert (between["count"], between["p50_ns"], between["max_ns"]) == (8, 1023, 1151)


@pytest.mark.python_engine
def test_writer_lets_a_counter_wrap(path: Path) -> None:
    """In C an unsigned integer of 32 bits wraps anyway; Python must do the same."""
    with open_small(path, medium="file", seam=Stopwatch([1000, 1000])) as wal:
        wal._engine._live._counters[COARSE.counter_of(1000)] = (1 << 32) - 1
        wal.append(b"x")
        assert live_latency(path) == LiveLatency(1, bytes(4 * COARSE.counters))
        wal.append(b"x")
        assert live_latency(path) == coarse(recorded([1000]))


def test_damage_to_the_live_page_does_not_reach_the_handle(path: Path) -> None:
    """The handle has its own counters, and each counter that it stores is right again."""
    with open_small(path, medium="file", seam=Stopwatch([100, 1000])) as wal:
        wal.append(b"x")
        show(path, 1, b"\xff" * (4 * COARSE.counters))
        wal.append(b"x")
        assert wal.stats().commit_latency.buckets() == recorded([100, 1000]).buckets()
        shown = live_latency(path)
        assert shown is not None
        counters = np.frombuffer(shown.counters, "<u4")
        assert [counters[COARSE.counter_of(ns)] for ns in (100, 1000)] == [(1 << 32) - 1, 1]


# -- pmwal stat


def test_stat_shows_the_latency_of_the_interval_and_since_the_open(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits that were slow before the first look appear only in the second figure."""
    durations = [10**9] * 3 + [2_000] * 98 + [50_000, 3_000_000]
    with open_small(path, medium="file", on_full="overwrite", seam=Stopwatch(durations)) as wal:

        def commits(count: int) -> None:
            for _ in range(count):
                wal.append(b"x")

        commits(3)
        between_looks(monkeypatch, lambda: commits(98), lambda: commits(2), lambda: None)
        lines = cli("stat", path, "--watch", "--json").lines
        steady, last, nothing = (json.loads(line)["commit_latency"] for line in lines)
        assert steady["interval"] == {"count": 98, "p50_ns": 2047, "p99_ns": 2047, "max_ns": 2047, "step": 1}
        assert last["interval"] == {"count": 2, "p50_ns": 53247, "p99_ns": 3145727, "max_ns": 3145727, "step": 1}
        assert last["since_open"] == {"count": 103, "p50_ns": 2047, "p99_ns": 1006632959, "max_ns": 1006632959, "step": 1}
        assert nothing == {"interval": None, "since_open": last["since_open"]}


def test_stat_says_the_latencies_in_words(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latencies appear on a page, and in a line for a pipe."""
    with open_small(path, medium="file", seam=Stopwatch([2_000, 1_200_000, 2_000])) as wal:
        wal.append(b"x")
        between_looks(monkeypatch, lambda: wal.append(b"x"))
        lines = cli("stat", path).lines
        assert lines[-2:] == [
            "latency     p50 1.31 ms, p99 1.31 ms, max 1.31 ms, 1 timed",
            "since open  p50 2.05 µs, p99 1.31 ms, max 1.31 ms, 2 timed",
        ]
        between_looks(monkeypatch, lambda: wal.append(b"x"), lambda: None)
        busy, idle = cli("stat", path, "--watch").lines
        assert "commits/s; latency p50 2.05 µs, p99 2.05 µs, max 2.05 µs, 1 timed; last commit: newest store" in busy
        assert "commits/s; latency -; last commit: newest store" in idle


def test_stat_says_how_many_commits_are_timed(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On memory one commit in 64 is timed, so the longest timed is not the longest of all."""
    with open_small(path, medium="memory") as wal:
        wal.append(b"x")
        between_looks(monkeypatch, lambda: None)
        last = cli("stat", path).lines[-1]
    assert last.startswith("since open  p50 ")
    assert last.endswith(", 1 timed, 1 in 64")


def test_stat_of_a_new_writer_has_no_interval(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new writer's counters start at zero: a difference to another writer's would be nonsense."""
    wals = [open_small(path, medium="file")]
    wals[0].append(b"x")

    def again() -> None:
        wals[0].close()
        wals[0] = open_small(path, medium="file")
        wals[0].append(b"y")

    between_looks(monkeypatch, again)
    latency = cli("stat", path, "--json").json["commit_latency"]
    wals[0].close()
    assert (latency["interval"], latency["since_open"]["count"]) == (None, 1)


def test_stat_shows_the_latencies_of_a_writer_that_was_killed(cli: Cli, path: Path) -> None:
    """Another process counted them, without being asked to."""
    script = "import pmwal, os, sys; wal = pmwal.open(sys.argv[1], medium='file'); wal.append(b'z'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    latency = cli("stat", path, "--json").json["commit_latency"]
    assert (latency["interval"], latency["since_open"]["count"]) == (None, 1)


def test_stat_of_a_writer_that_shows_no_latency_is_a_dash(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version left zeros there; a writer that shows latencies shows a step that is a power of two."""
    with open_small(path, medium="file") as wal:
        for step, counters in ((0, 0), (0, 255), (3, 1), ((1 << 64) - 1, 255)):
            wal.append(b"x")
            show(path, step, bytes([counters]) * (4 * COARSE.counters))
            between_looks(monkeypatch, lambda: None)
            assert [line.split() for line in cli("stat", path).lines[-2:]] == [["latency", "-"], ["since", "open", "-"]]
            between_looks(monkeypatch, lambda: None)
            facts = cli("stat", path, "--json").json
            assert (facts["rates"] is None, facts["commit_latency"]) == (False, {"interval": None, "since_open": None})


def test_stat_takes_any_bytes_for_counters(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At worst a figure is wrong; there is never an error."""
    random = Random(SEED)
    with open_small(path, medium="file") as wal:
        wal.append(b"x")

        def scribble() -> None:
            show(path, 1 << random.randrange(64), random.randbytes(4 * COARSE.counters))

        for arguments in ((), ("--json",)):
            between_looks(monkeypatch, *[scribble] * 10)
            ran = cli("stat", path, "--watch", *arguments)
            assert (ran.err, len(ran.lines)) == ("", 10), f"seed {SEED}"
