"""The tables: bandwidths, latency by medium, throughput by size, threads, pauses, recovery by size, peers, loggers.

Each also adds the data of its charts to the series.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from benchmark import frames as frame_table
from benchmark import loggers
from benchmark.checks import queues as queue_checks
from benchmark.checks.large import measure_laps
from benchmark.checks.pauses import thread_pauses
from benchmark.checks.recovery import mapped
from benchmark.context import CONTROL_SIZE, MIB, Context
from benchmark.peers import PEERS
from benchmark.peers.base import DURABLE_APPEND, PROCESS_APPEND, READ, WORKLOADS
from benchmark.report import LATENCY_COLUMNS, Table, latency_row, latency_table, tail_texts
from pmwal.storage.medium import MediumName
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE, Area, Loop, PageBuffer
from pmwal.testing.bench.stats import Latency, median, merge, percentile, rate_text, time_text
from pmwal.testing.bench.workloads import BATCH, BATCH_OF_PAYLOADS, PAYLOAD
from pmwal.testing.machine import Site

Series = dict[str, Any]
_SIZE_PEERS = ("pmwal", "plain file", "lmdb", "rocksdict", "plyvel", "libpmemlog")
_THREAD_COUNTS = (1, 2, 4, 8)


class Way(NamedTuple):
    """One way to do some work: a loop that is timed as a whole, and one whose calls are timed."""

    name: str
    whole: Callable[[], Loop]
    each: Callable[[], Loop]


def in_turns(context: Context, ways: list[Way]) -> list[tuple[str, Latency]]:
    """Measure all ways in turns, after a warm-up turn. Rates are medians over rounds, percentiles are over all calls."""
    whole: dict[str, list[Loop]] = {way.name: [] for way in ways}
    each: dict[str, list[Loop]] = {way.name: [] for way in ways}
    for turn in range(context.scale.rounds + 1):
        for way in ways:
            loops = way.each(), way.whole()
            if turn:
                each[way.name].append(loops[0])
                whole[way.name].append(loops[1])
    found = []
    for way in ways:
        latency = Latency.of(merge([loop.each for loop in each[way.name]]))
        found.append((way.name, replace(latency, rate=1e9 / median([loop.mean for loop in whole[way.name]]))))
    return found


def _same(name: str, loop: Callable[[], Loop]) -> Way:
    """A way whose calls are so slow that clock reads do not matter: one loop gives both figures."""
    last: list[Loop] = []

    def each() -> Loop:
        last[:] = [loop()]
        return last[0]

    return Way(name, lambda: last[0], each)


def _keep(series: Series, medium: str, rows: list[tuple[str, Latency]]) -> None:
    """Keep the data of the latency chart."""
    series.setdefault("latency", {})[medium] = {name: latency.as_dict()["tail"] for name, latency in rows}


def latency_memory(context: Context, series: Series) -> list[Table]:
    """Appends in memory, and the C loop."""
    scale, floors = context.scale, context.floors
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory") as wal,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory", commit="manual") as manual,
    ):
        rows = in_turns(
            context,
            [
                Way(
                    "C loop",
                    lambda: floors.append(area, PAYLOAD, scale.memory_calls),
                    lambda: floors.append(area, PAYLOAD, scale.memory_timed, each=True),
                ),
                Way(
                    "append(commit=False)",
                    lambda: workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=False),
                    lambda: workloads.append_each(wal, PAYLOAD, scale.memory_timed, commit=False),
                ),
                Way(
                    "append",
                    lambda: workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=True),
                    lambda: workloads.append_each(wal, PAYLOAD, scale.memory_timed, commit=True),
                ),
            ],
        )
        batches = in_turns(
            context,
            [
                _same("C loop", lambda: floors.extend(area, BATCH_OF_PAYLOADS, scale.extends, each=True)),
                _same("extend", lambda: workloads.extend_each(manual, BATCH_OF_PAYLOADS, scale.extends)),
            ],
        )
    rows_of_timers = [
        ("two clock reads in C", Latency.of(floors.timer(scale.memory_timed).each)),
        ("two clock reads in Python", Latency.of(workloads.timer(scale.memory_timed))),
    ]
    _keep(series, "memory", rows)
    note = context.memory.note
    return [
        latency_table("Memory: one record of 128 B", rows + rows_of_timers, note),
        latency_table('Memory: extend of 1,000 x 128 B, commit="manual"; the rate is of batches', batches, note),
    ]


def latency_dax(context: Context, series: Series) -> list[Table]:
    """Durable appends on emulated persistent memory, and the raw stores."""
    scale, floors = context.scale, context.floors
    ways = []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        Area(context.memory_dir / "control", CONTROL_SIZE) as control,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="emulated-dax", ordering="strict") as strict,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="emulated-dax", ordering="pipelined") as pipelined,
    ):

        def raw(is_strict: bool, non_temporal: bool) -> Way:
            def loop(count: int, each: bool) -> Loop:
                return floors.dax(area, control, PAYLOAD, count, strict=is_strict, non_temporal=non_temporal, each=each)

            kind = "non-temporal" if non_temporal else floors.flush
            name = f"raw store, {kind}, " + ("two fences" if is_strict else "CRC, one fence")
            return Way(name, lambda: loop(scale.memory_calls, False), lambda: loop(scale.memory_timed, True))

        def ours(name: str, wal: Any) -> Way:
            return Way(
                f"append, {name}",
                lambda: workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=True),
                lambda: workloads.append_each(wal, PAYLOAD, scale.memory_timed, commit=True, whole=True),
            )

        for is_strict, name, wal in ((True, "strict", strict), (False, "pipelined", pipelined)):
            ways += [raw(is_strict, False), raw(is_strict, True), ours(name, wal)]
        rows = in_turns(context, ways)
    _keep(series, "emulated-dax", rows)
    return [latency_table("Emulated persistent memory: one durable record of 128 B", rows, context.memory.note)]


def latency_disk(context: Context, series: Series) -> list[Table]:
    """Durable appends on a disk, and the kernel's ways to write a page durably."""
    scale, floors, directory = context.scale, context.floors, context.disk_dir
    data = bytes(BATCH * workloads.record_size(len(PAYLOAD), 8))
    page = PageBuffer()
    with (
        Area(directory / "floor", scale.ring) as area,
        Area(directory / "direct", scale.ring, flags=os.O_DIRECT | os.O_DSYNC) as direct,
        workloads.new_log(directory, size=scale.ring, ordering="pipelined") as wal,
        workloads.new_log(directory, size=scale.ring, ordering="strict") as strict,
    ):
        count = scale.disk_calls
        rows = in_turns(
            context,
            [
                _same("O_DIRECT|O_DSYNC pwrite 4 KiB", lambda: floors.pwrite(direct, page.address, PAGE, count, sync=False)),
                _same("store + msync of the page", lambda: floors.msync(area, bytes(176), count)),
                _same("pwrite 128 B + fdatasync", lambda: floors.pwrite(area, PAYLOAD, len(PAYLOAD), count, sync=True)),
                _same("append, pipelined", lambda: workloads.append_each(wal, PAYLOAD, count, commit=True)),
                _same("append, strict", lambda: workloads.append_each(strict, PAYLOAD, count, commit=True)),
            ],
        )
        batches = in_turns(
            context,
            [
                _same(
                    "pwrite of the same bytes + fdatasync",
                    lambda: floors.pwrite(area, data, len(data), scale.disk_extends, sync=True),
                ),
                _same("extend, pipelined", lambda: workloads.extend_each(wal, BATCH_OF_PAYLOADS, scale.disk_extends)),
            ],
        )
    _keep(series, "disk", rows)
    title = "Disk: durable extend of 1,000 x 128 B; the rate is of batches"
    return [
        latency_table("Disk: one durable record of 128 B", rows, context.disk.note),
        latency_table(title, batches, context.disk.note),
    ]


def bandwidths(context: Context, series: Series) -> list[Table]:
    """The bandwidths at which one thread copies memory and computes checksums."""
    size, path = context.scale.large_ring, context.memory_dir / "bytes"
    stride = workloads.record_size(len(PAYLOAD), 8)
    figures: dict[str, list[float]] = {"memcpy": [], "CRC32C, three chains": [], "CRC32C of each 128 B payload": []}
    with path.open("wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(os.urandom(1 << 20))
    try:
        with mapped(path) as (address, length):
            for _ in context.rounds:
                figures["memcpy"].append(length / context.floors.memcpy(address, length))
                figures["CRC32C, three chains"].append(length / context.floors.crc(address, length))
                payloads = length // stride * len(PAYLOAD)
                took = context.floors.crc_each(address, length, stride, len(PAYLOAD))
                figures["CRC32C of each 128 B payload"].append(payloads / took)
    finally:
        path.unlink()
    rows = [[name, rate_text(median(values) * 1e9, "B/s")] for name, values in figures.items()]
    return [Table(f"Bandwidth of one thread over {size >> 20} MiB of memory", ["what", "rate"], rows, context.memory.note)]


def sizes(context: Context, series: Series) -> list[Table]:
    """Throughput by record size: pmwal, the floor, the best peer."""
    return [
        *_sizes(context, series, context.memory, "memory, each record in shared memory", PROCESS_APPEND),
        *_sizes(context, series, context.memory, "emulated-dax, each record flushed (strict)", None),
        *_sizes(context, series, context.disk, "disk, each record durable", DURABLE_APPEND),
    ]


class Sized(NamedTuple):
    """Records per second of one size: of pmwal and of the floor, which has a name, on later laps.

    ``first_lap`` is the rate of pmwal on the first lap of a new ring, divided by that of the floor, for which no lap is the first.
    """

    ours: float
    floor: float
    floor_name: str
    first_lap: float


def _sizes(context: Context, series: Series, site: Site, title: str, workload: str | None) -> list[Table]:
    rows, points = [], []
    for size in context.scale.sizes:
        found = _size_of_memory(context, bytes(size), workload) if site.in_memory else _size_of_disk(context, size)
        peer, beside = ("-", 0.0), 0.0
        if workload is not None:
            figures = context.peers(workload, [name for name in _SIZE_PEERS if name in context.peer_names], size)
            beside = figures["pmwal"].rate if "pmwal" in figures else 0.0
            others = {name: found.rate for name, found in figures.items() if not PEERS[name].ours}
            peer = max(others.items(), key=lambda item: item[1], default=peer)
        ours, floor = found.ours, found.floor
        points.append({"size": size, "pmwal": ours, "floor": floor, "beside": beside, "peer": peer[1], "peer name": peer[0]})
        ratios = [f"{ours / floor:.2f}", f"{found.first_lap:.2f}"]
        shown = [rate_text(ours), rate_text(floor), found.floor_name, *ratios, rate_text(ours * size, "B/s")]
        others_text = [rate_text(beside) if beside else "-", f"{rate_text(peer[1])} ({peer[0]})" if peer[1] else "-"]
        rows.append([str(size), *shown, *others_text])
    series.setdefault("sizes", {})[title.partition(",")[0]] = points
    columns = ["bytes", "pmwal", "floor", "which", "pmwal/floor", "first lap", "payload", "pmwal beside the peers", "best peer"]
    return [Table(f"Records per second by size: {title}", columns, rows, site.note)]


def _size_of_memory(context: Context, payload: bytes, workload: str | None) -> Sized:
    """The rates of pmwal and of the floor: in memory if there is a workload, else on emulated persistent memory."""
    scale, dax = context.scale, workload is None
    count = max(20, min(scale.memory_calls, (256 << 20) // (len(payload) + 48)) // 4)
    ours, floor, first = [], [], []
    medium: MediumName = "emulated-dax" if dax else "memory"
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        Area(context.memory_dir / "control", CONTROL_SIZE) as control,
        workloads.new_log(context.memory_dir, size=scale.ring, medium=medium, ordering="strict") as wal,
    ):
        for turn in range(scale.rounds + 1):
            if dax:
                _, bare = context.floors.best_dax(area, control, payload, count, strict=True)
            else:
                bare = context.floors.append(area, payload, count)
            loop = workloads.append_loop(wal, payload, count, commit=dax)
            with workloads.new_log(context.memory_dir, size=scale.ring, medium=medium, ordering="strict", warmed=False) as new:
                fits = max(1, min(count, workloads.room(new, len(payload))))
                lap = workloads.append_loop(new, payload, fits, commit=dax)
            if turn:
                floor.append(1e9 / bare.mean)
                ours.append(1e9 / loop.mean)
                first.append(1e9 / lap.mean)
    return Sized(median(ours), median(floor), "raw store" if dax else "C loop", median(first) / median(floor))


def _size_of_disk(context: Context, size: int) -> Sized:
    """The rates of pmwal and of the faster floor, from the medians of the calls on later laps, and the ratio on the first lap."""
    scale = context.scale
    ring = min(scale.ring, max(MIB, scale.lap_calls * workloads.record_size(size, PAGE)))
    first, later = measure_laps(context, size, ring, scale.rounds, scale.lap_calls)
    ratio = percentile(first.floor[1], 50) / percentile(first.ours, 50)
    name, floor = later.floor
    return Sized(1e9 / percentile(later.ours, 50), 1e9 / percentile(floor, 50), name, ratio)


def pauses(context: Context, series: Series) -> list[Table]:
    """The longest pauses of a thread beside each call, on each medium."""
    tables = []
    for site, medium in ((context.memory, "memory"), (context.disk, "file")):
        found = thread_pauses(context, site)
        rows = []
        for call, each in found.items():
            ours, bare = zip(*each, strict=True)
            rows.append([call, *(f"{value:.2f} ms" for value in (median(ours), max(ours), median(bare), max(bare)))])
        title = f"Longest pause of a thread that sleeps 1 ms at a time, beside one call: {medium}"
        tables.append(Table(title, ["call", "median of the rounds", "longest", "a thread in C", "longest in C"], rows, site.note))
    return tables


def threads(context: Context, series: Series) -> list[Table]:
    """One to eight threads on each medium."""
    tables = []
    media: tuple[tuple[Site, MediumName], ...] = (
        (context.memory, "memory"),
        (context.memory, "emulated-dax"),
        (context.disk, "file"),
    )
    for site, medium in media:
        rows = []
        with workloads.new_log(site.directory, size=context.scale.ring, medium=medium) as wal:
            for count in _THREAD_COUNTS:
                each_thread = max(1, context.scale.each_thread)
                workloads.append_threads(wal, PAYLOAD, count, max(1, each_thread // 10))
                fenced = medium == "emulated-dax"
                runs = [workloads.append_threads(wal, PAYLOAD, count, each_thread, whole=fenced) for _ in context.rounds]
                latency = Latency.of(merge([run.each for run in runs]))
                rate = median([run.rate for run in runs])
                shared = median([run.barriers_per_record for run in runs])
                rows.append([str(count), rate_text(rate), f"{shared:.3f}", *tail_texts(latency)])
        columns = ["threads", "records", "barriers/record", "p50", "p99", "p99.9", "p99.99", "max"]
        tables.append(Table(f"Threads, each append acknowledged: {medium}", columns, rows, site.note))
    return tables


def recovery(context: Context, series: Series) -> list[Table]:
    """Time to open after a kill, by the size of the log, beside one CRC32C for each payload."""
    rows, points = [], []
    copy = context.memory_dir / "recover.wal"
    for ring in context.scale.recovery_rings:
        image = workloads.make_image(context.memory_dir, capacity=ring, length=len(PAYLOAD))
        ours, floor = [], []
        try:
            with mapped(image.path) as (address, _):
                for turn in range(context.scale.rounds + 1):
                    used = image.records * image.stride
                    took = context.floors.crc_each(address + image.ring_offset, used, image.stride, image.length)
                    shutil.copyfile(image.path, copy)
                    recovered = workloads.recover(image, copy, medium="memory")
                    if turn:
                        floor.append(float(took))
                        ours.append(recovered)
        finally:
            image.path.unlink()
        seconds, bare = median(ours), median(floor)
        points.append({"bytes": image.payload_bytes, "seconds": seconds / 1e9, "crc": bare / 1e9})
        rate = rate_text(image.payload_bytes / seconds * 1e9, "B/s")
        records = rate_text(image.records / seconds * 1e9)
        rows.append([str(image.records), f"{ring / (1 << 20):g} MiB", time_text(seconds), time_text(bare), rate, records])
    series["recovery"] = points
    columns = ["records", "ring", "open", "CRC32C of each payload", "payload", "records"]
    return [Table("Recovery after a kill, 128 B records, memory, warm", columns, rows, context.memory.note)]


def peers(context: Context, series: Series) -> list[Table]:
    """Every peer in every workload."""
    tables = []
    for workload in WORKLOADS:
        site = context.site_for(workload)
        figures = context.peers(workload)
        if "pmwal" not in figures:
            continue
        ours = figures["pmwal"].rate
        rows = []
        for name, found in figures.items():
            said = "" if PEERS[name].ours else "pmwal ahead" if ours >= found.rate else "pmwal behind"
            ratio = f"{ours / found.rate:.2f}"
            rows.append([name, *tail_texts(found.latency), rate_text(found.rate), ratio, said, PEERS[name].settings[workload]])
        series.setdefault("peers", {})[workload] = {
            name: {"p50": found.latency.p50, "rate": found.rate, "ours": PEERS[name].ours} for name, found in figures.items()
        }
        what = {READ: "read all records of 128 B (a call is the whole pass)"}.get(workload, f"{workload}, 128 B")
        columns = ["peer", "p50", "p99", "p99.9", "p99.99", "max", "records", "pmwal/peer", "", "settings"]
        tables.append(Table(f"Peers: {what}", columns, rows, site.note))
    for message in context.unavailable.values():
        context.say(message)
    return tables


def log_calls(context: Context, series: Series) -> list[Table]:
    """Every logger, compared with ``logging`` and a ``FileHandler``."""
    found = loggers.measure(context)
    reference = found[loggers.FILE].rate
    rows = []
    for name, latency in found.items():
        logger = loggers.LOGGERS[name]
        figures = [time_text(1e9 / latency.rate), f"{reference / latency.rate:.3f}", *tail_texts(latency)]
        rows.append([name, *figures, logger.kept, logger.settings])
    series["loggers"] = {name: {"ns": 1e9 / latency.rate, "p50": latency.p50} for name, latency in found.items()}
    columns = ["logger", "a call", "/ FileHandler", "p50", "p99", "p99.9", "p99.99", "max", "after SIGKILL", "settings"]
    title = "Loggers: an event with three values; a call from the time of the loop, percentiles with two clock reads"
    return [Table(title, columns, rows, context.memory.note)]


def durable_log_calls(context: Context, series: Series) -> list[Table]:
    """Loggers that wait for the disk with each line."""
    found = loggers.measure(context, synced=True)
    rows = [[*latency_row(name, latency), loggers.LOGGERS[name].settings] for name, latency in found.items()]
    return [Table("Disk: a log line with three values, durable", [*LATENCY_COLUMNS, "settings"], rows, context.disk.note)]


def queues(context: Context, series: Series) -> list[Table]:
    """Durable queues, on the disk and in memory."""
    return [queue_checks.table(context, durable=durable) for durable in (True, False)]


def frames(context: Context, series: Series) -> list[Table]:
    """Frames, made and taken apart."""
    return [frame_table.table(context)]


Section = Callable[[Context, Series], list[Table]]

SECTIONS: dict[str, Section] = {
    "bandwidths": bandwidths,
    "latency memory": latency_memory,
    "latency dax": latency_dax,
    "latency disk": latency_disk,
    "sizes": sizes,
    "thread counts": threads,
    "pause tables": pauses,
    "recovery sizes": recovery,
    "peer tables": peers,
    "queues": queues,
    "frame": frames,
    "loggers": log_calls,
    "loggers disk": durable_log_calls,
}
"""Sections by name, in the order of the run."""
