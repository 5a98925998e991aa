"""What the stress harness says about a place, its lives without space, and the drawings of its report."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.native import native
from pmwal.testing import machine
from pmwal.testing.process import using_engine
from pmwal.testing.stress import page, plan
from pmwal.testing.stress import run as stress_run
from pmwal.testing.stress.controls import CONTROLS
from pmwal.testing.stress.cost import CommitCost
from pmwal.testing.stress.full_disk import filled, limit_files, refuse_creation
from pmwal.testing.stress.interrupt import Interruption
from pmwal.testing.stress.journal import Journal, Op
from pmwal.testing.stress.processes import Child
from pmwal.testing.stress.results import Results
from pmwal.testing.stress.run import NotPossible, Request, perform
from pmwal.testing.stress.scope import scope
from pmwal.testing.stress.svg import Chart
from pmwal.testing.stress.violation import Violation
from processes import on_tmpfs

# -- drawings


def test_line_breaks_where_the_engine_did_not_run() -> None:
    """No line crosses an interval without data; a single one is a line of its length, with the dashes of its series."""
    chart = Chart(6, 0, 10, "unit")
    chart.line("name", [(1, 5), (2, 6), (5, 7)], 0, dash="6 3", gap=1.5)
    drawn = chart.svg("label")
    lines = re.findall(r'<polyline points="(\S+) (\S+)" class="l0" stroke-dasharray="6 3"', drawn)
    ends = [[tuple(map(float, end.split(","))) for end in line] for line in lines]
    assert [line[1][0] - line[0][0] for line in ends] == pytest.approx([122, 122], abs=0.2)  # one second of six
    assert ends[1][0][1] == ends[1][1][1]


def test_single_point_of_a_line_without_breaks_is_a_dot() -> None:
    """It is a moment, and not an interval."""
    chart = Chart(6, 0, 10, "unit")
    chart.line("name", [(5, 7)], 0)
    assert len(re.findall("<circle", chart.svg("label"))) == 1


@pytest.mark.parametrize("counted", [True, False])
def test_costs_of_a_commit_have_columns_for_what_was_counted(counted: bool) -> None:
    """Where no device counts, as on tmpfs, there are no empty columns, and the caption says so."""
    cost = CommitCost("file", "pipelined", 300, 1e5, 1.0, 8.0 if counted else None, 1.0 if counted else None)
    results = Results({}, 1, "pmwal stress", costs=[cost])
    table = page.render(results.as_dict()).partition("What a commit costs")[2].partition("</figure>")[0]
    assert ("<th class=n>sectors</th>" in table) == counted
    assert ("No device counts" in table) == (not counted)
    assert table.count("<td") == table.count("<th") == (7 if counted else 5)
    assert cost.text.startswith("a durable append of 128 bytes, file, pipelined: 100 µs, 1 barrier")
    assert cost.text.endswith("8 sectors and 1 flush of the device" if counted else "1 barrier")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (3, 3), (0.5, 123456), (1e3, 2e9)])
def test_axis_has_round_ticks_within_the_plot(low: float, high: float, log: bool) -> None:
    """From two to a dozen, also for a single value."""
    drawn = Chart(10, low, high, "unit", log=log).svg("label")
    heights = [float(y) for y in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="[\d.]+" class="grid"', drawn)]
    assert 2 <= len(heights) <= 12
    assert heights == sorted(heights, reverse=True)
    assert 0 <= min(heights) < max(heights) <= 300


# -- the place


def site_of(filesystem: str, disk: machine.Device | None) -> machine.Site:
    """A directory on this file system and disk."""
    return machine.Site(Path(), machine.Mount("/", filesystem, "/dev/vda", "rw"), "", disk)


def device(cache: str, fua: str = "no") -> machine.Device:
    """A disk that describes its cache so."""
    return machine.Device("vda", "model", "solid state", cache, fua, "no", "none", Path("/nowhere"), Path("/nowhere"))


@pytest.mark.parametrize(
    ("site", "media", "durability", "claims"),
    [
        (site_of("tmpfs", None), ("memory",), ("process",), ["nothing survives"]),
        (site_of("ext4", device("write back")), ("file",), ("power",), ["cuts no power", "volatile", "(it has no FUA)"]),
        (site_of("ext4", device("write back", "yes")), ("file",), ("power",), ["volatile", "or a FUA write"]),
        (site_of("xfs", device("write through")), ("file",), ("power",), ["has no volatile write cache"]),
        (site_of("fuse.sshfs", None), ("file",), ("unknown",), ["Nothing below fuse.sshfs", "does not know"]),
        (site_of("overlay", None), ("file",), ("process",), ["not a power cut (stats"]),
        (site_of("ext4", device("write through")), ("dax", "file"), ("power", "power"), ["MAP_SYNC", "cuts no power"]),
    ],
)  # fmt: skip
def test_scope_says_what_a_place_cannot_prove(
    site: machine.Site, media: tuple[str, ...], durability: tuple[str, ...], claims: list[str]
) -> None:
    """By file system, write cache and FUA; and always that processes are killed, no power is cut."""
    said = scope(site, media, durability)
    assert "kills processes, not the kernel" in said[0]
    for claim in claims:
        assert any(claim in sentence for sentence in said), said
    assert len(set(said)) == len(said)


def test_device_is_described_by_its_files_in_sys(tmp_path: Path) -> None:
    """A partition has counters of its own for sectors, and those of its disk for flushes; what is not there is unknown."""
    disk = tmp_path / "sda"
    for name, text in {
        "queue/write_cache": "write back", "queue/fua": "1", "queue/dax": "0", "queue/rotational": "0",
        "queue/scheduler": "none [mq-deadline] kyber", "device/model": "MODEL", "sda1/partition": "1",
        "stat": " ".join(map(str, range(17))), "sda1/stat": " ".join(map(str, range(100, 117))),
    }.items():  # fmt: skip
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        (disk / name).write_text(f"{text}\n")
    found = machine.device_at(disk / "sda1")
    assert found is not None
    assert (found.name, found.model, found.write_cache, found.fua, found.dax) == ("sda1", "MODEL", "write back", "yes", "no")
    assert found.scheduler == "mq-deadline"
    assert found.written() == (106, 15)
    (disk / "stat").unlink()
    assert found.written() is None
    bare = machine.device_at(tmp_path)
    assert bare is not None
    assert (bare.write_cache, bare.fua, bare.scheduler) == ("unknown", "unknown", "unknown")
    assert machine.device_at(tmp_path / "none") is None


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("medium", ["memory", "file", "emulated-dax"])
def test_log_is_used_under_a_limit_on_the_size_of_files(medium: str, engine: str, shm_dir: Path) -> None:
    """The kernel refuses writes as on a full disk: a creation fails and leaves nothing, a log that is there takes every call."""
    if engine == "native" and native is None:
        pytest.skip("the native engine was not built")
    path = shm_dir / "a.wal"

    def write() -> None:
        with using_engine(engine), pmwal.open(path, medium=medium) as wal:
            wal.extend([b"a" * 4000] * 100)
            wal.append(b"last")

    def short() -> None:
        limit_files()
        refuse_creation(shm_dir / "new.wal")
        write()

    with using_engine(engine):
        pmwal.open(path, size="1MiB", medium=medium).close()
    child = Child("short", shm_dir, short)
    child.wait()
    child.check()
    assert list(shm_dir.glob("new*")) == []
    with pmwal.open(path, "r") as reader:
        assert [record.data for record in reader][-1] == b"last"
        assert len(reader) == 101


def test_creation_that_finds_space_or_leaves_a_file_is_a_violation(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the check above."""
    with pytest.raises(Violation, match="there was no space"):
        refuse_creation(shm_dir / "a.wal")

    def refused(path: Path, *args: object, **options: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space")

    monkeypatch.setattr(pmwal, "open", refused)
    with pytest.raises(Violation, match="left a file"):
        refuse_creation(shm_dir / "b.wal")


def test_full_disk_is_full_and_empty_again(tmp_path: Path) -> None:
    """While it is filled no log can be created, and one that is there takes every call; afterwards all space is back."""

    def body() -> tuple[int, int, bool]:
        path = tmp_path / "a.wal"
        pmwal.open(path, size="1MiB", medium="file").close()
        before = os.statvfs(tmp_path).f_bavail
        with filled(tmp_path):
            least = os.statvfs(tmp_path).f_bavail
            refuse_creation(tmp_path / "new.wal")
            with pmwal.open(path, medium="file") as wal:
                wal.extend([b"a" * 4000] * 100)
        return before - os.statvfs(tmp_path).f_bavail, least, (tmp_path / "new.wal").exists()

    assert on_tmpfs(tmp_path, "size=8m", body) == (0, 0, False)


def test_run_fills_the_disk_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every life of a log that is there meets a full disk, and the verdict is the usual one."""
    pytest.importorskip("psutil")

    def body() -> dict[str, Any]:
        monkeypatch.setattr(plan, "SPACES", {"plenty": 0.0, "file size limit": 0.0, "full disk": 1.0})
        for seconds in (3.0, 30.0, 300.0):  # longer where the machine is slow
            request = Request(tmp_path, seconds, 1, "memory", ("python",), 2, 1, 0, 0, False, True, None)
            request.check()
            found = perform(request, Interruption(), lambda now, results: None, lambda results: None).as_dict()
            if found["violation"] or found["short_of_space"]:
                break
        return found

    found = on_tmpfs(tmp_path, "size=64m", body)
    assert found["violation"] is None
    assert found["short_of_space"].get("full disk", 0) > 0
    assert "--fill-disk" in found["command"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"records_checked": 5}, "SOUND: no violation (1 kill, 5 records compared, in 2 s)"),
        ({}, "NOTHING PROVED: no record was compared"),
        ({"records_checked": 5, "interrupted": "SIGINT"}, "INTERRUPTED by SIGINT, no violation until then"),
        ({"violation": ("torn-batch", "first line\nsecond line")}, "VIOLATION torn-batch: first line ("),
        (
            {"control": "early-ack", "violation": ("missing-record", "text")},
            "NOTICED the planted mistake early-ack: missing-record",
        ),
        ({"control": "early-ack", "records_checked": 5}, "NOT NOTICED: the planted mistake early-ack"),
        ({"interrupted": "SIGINT", "violation": ("torn-batch", "text")}, "VIOLATION torn-batch: text"),
    ],
)
def test_verdict_is_one_line_and_says_what_was_proved(values: dict[str, Any], verdict: str) -> None:
    """A violation before an interruption, and no soundness without a record that was compared."""
    found = Results({}, 1, "command", seconds=2.0, kills=[(0.5, "work")], **values).verdict
    assert found.startswith(verdict)
    assert "\n" not in found


def test_summary_counts_one_and_none_in_words() -> None:
    """A run of a moment."""
    found = Results({}, 1, "command", seconds=1.0, kills=[(0.5, "work")], closes=[0.7], lives=1, logs=1, records_checked=1)
    assert found.summary().splitlines()[:5] == [
        "1.0 s: 1 life of 1 log; 1 writer killed (0 while opening), 0 readers killed, 1 close",
        "0 calls returned, 1 record compared",
        "calls under way at a kill: none",
        "readers: none",
        "verdicts: none",
    ]


@pytest.mark.parametrize("violation", [("corrupt-log", "record 3 is damaged"), ("torn-batch", "half of it"), None])
def test_mistake_noticed_as_something_else_is_told_with_its_seed(
    violation: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found, what was expected, what was kept, and the same plan again: whoever looks into it needs all of these."""
    said: list[str] = []

    def perform(request: Request, *_: object) -> Results:
        kept = None if violation is None else tmp_path / "kept"
        if kept is not None:
            kept.mkdir()
        found = Results({}, request.seed, request.command, control=request.control, violation=violation)
        found.kept = None if kept is None else str(kept)
        return found

    monkeypatch.setattr(stress_run, "perform", perform)
    monkeypatch.setattr(stress_run, "CONTROLS", {"lost-record": CONTROLS["lost-record"]})
    request = Request(tmp_path, 3.0, 4711, "file", ("python",), 2, 1, 0, 0, False, False, None)
    missed = stress_run.perform_controls(request, Interruption(), lambda *_: None, said.append)
    text = "\n".join(said)
    right = violation is not None and violation[0] == "torn-batch"
    assert missed == (not right)
    assert said[0].startswith("lost-record ")
    assert ("the same plan again: pmwal stress" in text and "--seed 4711" in text and "--control lost-record" in text) == (
        not right
    )
    assert (tmp_path / "kept").exists() == (violation is not None and not right)
    if violation is not None and not right:
        assert "NOTICED AS SOMETHING ELSE: corrupt-log" in said[0]
        assert "record 3 is damaged, but this mistake is to be noticed as missing-record or torn-batch" in text
        assert f"judge it again: pmwal stress --replay {tmp_path / 'kept'}" in text
        assert "the mistake was planted, so what was kept may be removed" in text


def test_every_durable_call_is_in_the_heat_map_and_every_record_in_the_throughput() -> None:
    """Percentiles, heat map and rates are of the same calls; calls that are not durable have a rate only."""
    journal, start = Journal(), time.perf_counter_ns()
    lane = journal.lane(0)
    for number in range(6):
        lane.intend(Op.EXTEND, 0, durable=number < 4, ticket=number * 16, count=3)
        lane.done(3 * number + 1, 3 * number + 3)
    found = Results({}, 1, "command", seconds=1.0)
    found.count_calls(journal.entries(), "native", start)
    heat = found.heat()
    assert sum(sum(counts) for counts in heat["counts"]["native"].values()) == 4
    assert all(len(counts) == len(heat["bounds_ns"]) - 1 for counts in heat["counts"]["native"].values())
    assert sum(point["calls"] for point in found.latency()["native"]) == 4
    assert [(sum(point[name] for point in found.throughput())) for name in ("calls", "durable", "records")] == [6, 4, 18]


def test_file_system_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a log does not fit would be called a violation."""
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(NotPossible, match="has 0 MiB free, and a run needs 32"):
        Request(tmp_path, 3.0, 1, "file", ("python",), 2, 1, 0, 0, False, False, None).check()
    Request(tmp_path, 3.0, 1, "file", ("python",), 2, 1, 0, 0, False, True, None).check()
