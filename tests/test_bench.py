"""The benchmark: its arithmetic, its verdicts, and that every workload runs. No figure is judged here."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import re
import shutil
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pmwal

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench  # noqa: E402
from benchmark import charts, checks, loggers, sections  # noqa: E402
from benchmark.checks.disk import Refill, take_turns  # noqa: E402
from benchmark.context import FULL, QUICK, TINY, Context  # noqa: E402
from benchmark.gate import BARS, Row, absolute, broken, compare, exit_code, skipped  # noqa: E402
from benchmark.native_floors import build  # noqa: E402
from benchmark.peers import PEERS  # noqa: E402
from benchmark.peers.base import PAYLOAD, WORKLOADS, Peer, payload_of  # noqa: E402
from benchmark.peers.run import Round, run  # noqa: E402
from benchmark.report import Results, Table, gate_lines, gate_table, latency_table, tail_texts  # noqa: E402
from pmwal.testing import machine  # noqa: E402
from pmwal.testing.bench import workloads  # noqa: E402
from pmwal.testing.bench.floors import Floors, FloorsUnavailable, load  # noqa: E402
from pmwal.testing.bench.stats import Latency, median, percentile, rate_text, time_text  # noqa: E402

PERFORMANCE = (TOOLS.parent / "docs" / "performance.md").read_text()
HAS_COMPILER = shutil.which("gcc") is not None
needs_floors = pytest.mark.skipif(not HAS_COMPILER, reason="the floors need gcc")


@pytest.fixture
def context(shm_dir: Path, tmp_path: Path) -> Context:
    """The smallest run, of pmwal and one peer; its figures are worthless."""
    said: list[str] = []
    return Context(machine.look(shm_dir), machine.look(tmp_path), TINY, said.append, ("pmwal", "plain file"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure peers without a child process, which takes long to start."""

    def measure(name: str, workload: str, directory: Path, count: int, size: int = 128) -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as inner:
            return run(name, workload, Path(inner), count, size)

    monkeypatch.setattr("benchmark.context.measure", measure)


# -- arithmetic


def test_percentile_is_a_call_that_happened() -> None:
    """The smallest time that this share of the calls did not exceed."""
    times = list(range(1, 1001))
    found = [percentile(times, q) for q in (50, 99, 99.9, 99.99)]
    assert found == [500, 990, 999, 1000]
    assert percentile([1, 100], 50) == 1


def test_latency_takes_its_rate_from_the_loop() -> None:
    """Calls divided by the time of the loop or, without that, by the sum of the calls."""
    assert Latency.of([10, 10], 1000.0).rate == 2e6
    assert Latency.of([10, 10]).rate == 1e8


def test_latency_of_nothing_is_refused() -> None:
    """No percentile is made up."""
    with pytest.raises(ValueError, match="no call"):
        Latency.of([])


def test_percentile_that_no_call_stands_for_is_not_shown() -> None:
    """p99.9 of 100 calls would be their maximum under another name."""
    assert tail_texts(Latency.of(range(1, 101))) == ["50 ns", "99 ns", "-", "-", "100 ns"]


def test_figures_are_written_with_units() -> None:
    """Three digits and a unit."""
    assert [time_text(value) for value in (17, 1234, 2.5e6, 3e9)] == ["17 ns", "1.23 µs", "2.5 ms", "3 s"]
    assert rate_text(2.5e9, "B/s") == "2.5 GB/s"
    assert median([1, 9, 2]) == 2


def test_linear_fit_finds_the_line() -> None:
    """Intercept and slope of points on a line."""
    intercept, slope = charts.fit([1, 2, 10], [5, 7, 23])
    assert math.isclose(intercept, 3)
    assert math.isclose(slope, 2)


# -- the gate


@pytest.mark.parametrize(
    ("sense", "floor", "ours", "passed"),
    [("at most", 100, 199, True), ("at most", 100, 201, False), ("at least", 100, 200, True), ("at least", 100, 199, False)],
)
def test_row_fails_on_the_wrong_side_of_its_bar(sense: str, floor: float, ours: float, passed: bool) -> None:
    """A time over its bar fails, and a rate below it."""
    assert sense in ("at most", "at least")
    row = compare("x", "what", "floor", (floor, ours), "ns", "at most" if sense == "at most" else "at least", 2.0)
    assert (row.passed, row.ratio) == (passed, ours / floor)
    assert exit_code([row]) == (0 if passed else 1)


@pytest.mark.parametrize("figures", [(0, 1), (1, 0), (math.nan, 1), (1, math.nan), (-1, -1)])
def test_row_without_figures_never_passes(figures: tuple[float, float]) -> None:
    """Missing or impossible figures prove nothing."""
    assert compare("x", "what", "floor", figures, "ns", "at most", 2.0).passed is False
    assert compare("x", "what", "floor", figures, "/s", "at least", 2.0).passed is False


def test_one_failed_row_fails_the_gate_and_a_skipped_one_does_not() -> None:
    """1 if a row failed, 3 if nothing was measured."""
    good, bad = absolute("x", "what", 1, "", "at most", 2), absolute("x", "what", 3, "", "at most", 2)
    none = skipped("x", "why")
    assert [exit_code(rows) for rows in ([good], [good, bad], [good, none], [none], [])] == [0, 1, 0, 3, 3]
    assert exit_code([good, broken("x", "why")]) == 1


def test_row_says_figures_ratio_bar_and_verdict() -> None:
    """As text and in the table."""
    row = compare("append memory", "append", "C loop", (100, 300), "ns", "at most", BARS["append memory"])
    for text in (gate_lines(row), gate_table([row]).text()):
        for part in ("append memory", "C loop", "100 ns", "300 ns", "3.000", f"at most {BARS['append memory']:g}", "FAIL"):
            assert part in text
    assert "why" in gate_lines(skipped("x", "why"))
    assert "FAIL" in gate_lines(broken("x", "why"))


def test_check_that_raises_is_a_failed_row(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception does not just remove a check."""

    def check(_: Context) -> Iterator[Row]:
        yield absolute("x", "what", 1, "", "at most", 2)
        raise OSError("no")

    monkeypatch.setitem(checks.CHECKS, "x", check)
    assert [row.passed for row in checks.run_check("x", context)] == [True, False]


def test_check_without_floors_is_skipped(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the row says so."""

    def no_floors() -> None:
        raise FloorsUnavailable("no gcc")

    monkeypatch.setattr("benchmark.native_floors.build", no_floors)
    rows = checks.run_check("append memory", context)
    assert [(row.passed, row.note) for row in rows] == [(None, "no gcc")]


# -- results


def example() -> Results:
    """Results with one of everything."""
    compared, figure = compare("x", "what", "floor", (1, 2), "ns", "at most", 2.0), absolute("z", "what", 1, "", "at most", 2)
    rows = [compared, skipped("y", "why"), figure]
    table = latency_table("title", [("name", Latency.of([1, 2, 3]))], machine.TMPFS_NOTE)
    return Results({"engine": "x"}, [table], rows, {"recovery": [{"bytes": 1, "seconds": 2.0, "crc": 0.5}]})


def test_results_come_back_from_json() -> None:
    """The results are read as they were written, and the JSON has no NaN."""
    text = example().as_json()
    back = Results.from_json(text)
    assert back.as_json() == text
    assert "NaN" not in text
    assert (back.environment, back.tables, back.series) == (example().environment, example().tables, example().series)
    assert [row.verdict for row in back.gate] == ["pass", "skipped", "pass"]


def test_results_of_another_version_are_refused() -> None:
    """No charts are drawn from figures with another meaning."""
    with pytest.raises(ValueError, match="version"):
        Results.from_json('{"version": 0}')


def test_table_carries_its_note_as_text_and_as_markdown() -> None:
    """Where it was measured is part of a table."""
    table = Table("title", ["a", "b"], [["1", "2"]], machine.TMPFS_NOTE)
    assert machine.TMPFS_NOTE in table.text()
    assert machine.TMPFS_NOTE in table.markdown()


def test_cell_of_a_markdown_table_stays_one_cell() -> None:
    """Some names contain the separator of cells."""
    assert Table("title", ["a"], [["O_DIRECT|O_DSYNC"]], "").markdown().splitlines()[-1] == "| O_DIRECT\\|O_DSYNC |"


# -- surroundings


def test_deepest_mount_is_found() -> None:
    """Of nested mounts the inner one, and of two on one mount point the later one."""
    text = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:1 / /dev/shm rw - tmpfs first rw\n"
        "3 1 0:2 / /dev/shm rw - tmpfs second rw\n4 1 0:3 / /with\\040space rw - xfs /dev/b rw\n"
    )
    mounts = machine.parse_mounts(text)
    assert machine.find_mount(Path("/dev/shm"), mounts).source == "second"
    assert machine.find_mount(Path("/devices"), mounts).filesystem == "ext4"
    assert mounts[-1].point == "/with space"


def test_tmpfs_says_so(context: Context) -> None:
    """The note that every table of tmpfs carries."""
    assert context.memory.in_memory
    assert context.memory.note == machine.TMPFS_NOTE
    assert set(machine.describe(context.memory, context.disk)) >= {"memory", "disk", "processor", "kernel", "python", "engine"}


def test_names_are_chosen_by_their_beginning_and_a_whole_name_alone() -> None:
    """--only "disk append" runs three checks, --only "threads" one."""
    names = [*checks.CHECKS]
    assert bench.chosen(names, ["disk append"]) == [f"disk append {case}" for case in ("fresh", "reopened", "wrapped")]
    assert bench.chosen(names, ["read"]) == ["read"]
    assert bench.chosen(names, []) == names


def test_only_with_an_unknown_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A gate without rows does not pass."""
    assert bench.main(["--gate", "--only", "no such check"]) == bench.USAGE
    assert "no such check" in capsys.readouterr().err


def test_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    """Checks and tables."""
    assert bench.main(["--list"]) == 0
    listed = capsys.readouterr().out.split("\n")
    assert {f"  {name}" for name in (*checks.CHECKS, *sections.SECTIONS)} <= set(listed)


def test_charts_without_matplotlib_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before anything is measured."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.main(["--charts", str(tmp_path)]) == bench.USAGE
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_charts_are_drawn(tmp_path: Path) -> None:
    """A file for each chart for which there are results."""
    assert [path.name for path in charts.draw_all(example(), tmp_path)] == ["recovery.png", "gate.png"]


def test_labels_of_the_gate_are_unique_and_short() -> None:
    """Every row of the gates in docs/performance.md can be told from the others in the picture."""
    cells = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ((?:[^|]|\\\|)+) \| .* \| (?:pass|FAIL)[^|]* \|$", PERFORMANCE, re.MULTILINE)
    rows = {}
    for check, what, floor in cells:
        figures = (math.nan if floor == "-" else 100.0, 100.0)
        rows[check, what, floor] = compare(check, what, floor.rpartition(", ")[0], figures, "ns", "at most", 1.0, "")
    labels = charts.labels_of(list(rows.values()))
    assert len(labels) > 50
    assert [label for label, count in Counter(labels).items() if count > 1] == []
    assert max(map(len, labels)) <= 100


def test_figure_with_two_bars_is_drawn_once() -> None:
    """Beside the nearer one."""
    least, most = (
        absolute("x", "sectors", 9.5, "sectors", sense, bar, "") for sense, bar in (("at least", 8.0), ("at most", 10.0))
    )
    assert charts.nearest([least, most]) == [most]


def test_ordering_has_one_colour_in_all_pictures() -> None:
    """And no floor beside it has the same."""
    disk = charts.colours_of(["a floor", "append, pipelined", "append, strict"])
    dax = charts.colours_of(["one", "two", "append, strict", "three", "four", "append, pipelined"])
    assert [disk[name] for name in charts.LINES if name in disk] == [dax[name] for name in charts.LINES if name in dax]
    assert [len(set(found.values())) for found in (disk, dax)] == [3, 6]


# -- peers


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.ours])
def test_rows_of_pmwal_call_the_log_itself(name: str, shm_dir: Path) -> None:
    """functools.partial around an append of 0.1 µs took another 0.1 µs."""
    session = PEERS[name].open(shm_dir, "process append", 1 << 16)
    try:
        assert isinstance(session.append, types.BuiltinMethodType)
    finally:
        session.close()


def test_missing_peer_is_skipped_with_a_message(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the others are measured."""
    peer = replace(PEERS["lmdb"], name="nothing", module="no_such_module")
    monkeypatch.setitem(PEERS, "nothing", peer)
    context = replace(context, peer_names=("nothing", "plain file"))
    assert list(context.peers("process append")) == ["plain file"]
    assert context.unavailable == {"nothing": "nothing: skipped, the Python module no_such_module is not installed"}


def test_peer_that_fails_is_a_message_and_not_the_end(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child does not know this one, so it fails there."""
    monkeypatch.setitem(PEERS, "fails", Peer("fails", PEERS["plain file"].open, PEERS["plain file"].settings))
    context = replace(context, peer_names=("fails",))
    assert context.peers("process append") == {}
    assert "KeyError" in context.unavailable["fails, process append"]


def test_missing_library_is_named() -> None:
    """A missing C library is reported too."""
    peer = Peer("x", PEERS["plain file"].open, {}, library="no-such-library")
    assert peer.missing() == "x: skipped, the library no-such-library is not installed"


def test_payloads_have_their_size_and_are_json_lines() -> None:
    """One payload for all peers, including one that accepts only JSON."""
    assert [len(payload_of(size)) for size in (0, 1, 2, 3, 128, 4096)] == [0, 1, 2, 3, 128, 4096]
    assert payload_of(128) == PAYLOAD


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.missing() is None])
def test_installed_peers_give_back_what_they_stored(name: str, shm_dir: Path) -> None:
    """Every installed adapter, in this process: append, extend, read, close."""
    peer = PEERS[name]
    for workload in peer.settings:
        directory = shm_dir / workload
        directory.mkdir()
        session = peer.open(directory, workload, 1 << 16)
        session.extend([PAYLOAD] * 3)
        if name != "plain file":  # its read knows what extend wrote only
            session.append(PAYLOAD)
        assert len(list(session.read())) == (3 if name == "plain file" else 4)
        session.close()


def test_every_workload_has_settings_for_pmwal_and_a_peer() -> None:
    """No workload is measured without a peer."""
    for workload in WORKLOADS:
        assert workload in PEERS["pmwal"].settings
        assert any(workload in peer.settings for peer in PEERS.values() if not peer.ours)


# -- loggers


@pytest.mark.parametrize("name", [name for name, logger in loggers.LOGGERS.items() if logger.missing() is None])
def test_installed_loggers_do_log(name: str, shm_dir: Path) -> None:
    """Each call leaves its event in a file or a queue: only the logger that is meant to drop events drops them."""
    session = loggers.LOGGERS[name].open(shm_dir)
    lead = () if session.template is None else (session.template,)
    for number in range(3):
        session.call(*lead, number, 100, 99.5)
    waiting = 0 if session.queue is None else session.queue.qsize()
    session.close()
    stored = b"".join(path.read_bytes() for path in shm_dir.iterdir())
    written = sum(stored.count(b"order %d filled 100" % number) for number in range(3))
    if name == loggers.EVENT:  # packed: it has a format and no text
        (path,) = shm_dir.iterdir()
        with pmwal.open(path, "r") as reader:
            assert len(reader) >= 3
    else:
        assert waiting + written == (0 if name == loggers.DROP else 3)


# -- everything runs


@needs_floors
@pytest.mark.parametrize("make", [load, build])
def test_floors_compute_what_they_claim(make: Callable[[], Floors]) -> None:
    """The check value of CRC32C, and equal results of all three loops, as they are in a wheel and as built for this processor."""
    crc32c = pytest.importorskip("crc32c")
    floors = make()
    assert floors.crc32c(b"123456789") == 0xE3069283
    for size in (0, 7, 1535, 1536, 24575, 24576, 100_003):
        data = bytes(index * 7 % 256 for index in range(size))
        assert floors.crc32c(data) == crc32c.crc32c(data)


@needs_floors
def test_floor_of_a_wake_up_sleeps_and_is_woken() -> None:
    """Each figure is of one wake-up, after one pause."""
    pause, count = 0.001, 5
    loop = load().wake(pause, count)
    assert len(loop.each) == count
    assert all(loop.each > 0)
    assert loop.total > count * pause * 1e9


@needs_floors
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", checks.CHECKS)
def test_every_check_of_the_gate_runs(name: str, context: Context) -> None:
    """Rows with figures, or a reason why there are none; never an exception."""
    rows = list(checks.CHECKS[name](context))
    assert rows
    assert all(row.note for row in rows if not row.what)
    maybe_none = ("%", "ticks/s")  # on a busy machine a sleeper may not wake up in so short a run
    assert all((row.ours or row.unit in maybe_none) and math.isfinite(row.ours) and row.check == name for row in rows if row.what)


@needs_floors
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", sections.SECTIONS)
def test_every_table_is_made_and_says_where_it_was_measured(name: str, context: Context) -> None:
    """A table of tmpfs says that no power cut was measured; one of the disk names the disk."""
    if context.disk.in_memory and name in ("latency disk", "sizes"):
        pytest.skip("the directory of temporary files is on tmpfs, which may know no O_DIRECT")
    series: sections.Series = {}
    tables = sections.SECTIONS[name](context, series)
    assert tables
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        on_disk = table.title.startswith(("Disk", "Peers: durable")) or table.title.endswith((": file", "record durable"))
        assert table.note == (context.disk.note if on_disk else machine.TMPFS_NOTE)
    assert Results(series=series).series == Results.from_json(Results(series=series).as_json()).series


@pytest.mark.parametrize("count", [1, 2, 3])
def test_calls_take_turns_in_every_order(count: int) -> None:
    """None always follows the same one, and each gets its own time."""
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        return 100 + number

    calls = [functools.partial(call, number) for number in range(count)]
    orders = math.factorial(count)
    for turn in range(2 * orders):
        assert take_turns(turn, calls) == [100 + number for number in range(count)], "each time belongs to its call"
    turns = [tuple(made[at : at + count]) for at in range(0, len(made), count)]
    assert {turn: turns.count(turn) for turn in turns} == dict.fromkeys(itertools.permutations(range(count)), 2)


@pytest.mark.parametrize("records", [1, 7])
def test_log_that_takes_turns_never_fills_up(records: int, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is emptied when it is full, though nobody asks before each turn."""
    emptied, empty = [], workloads.empty
    monkeypatch.setattr(workloads, "empty", lambda wal: (emptied.append(wal.next_seq), empty(wal)))
    with pmwal.open(shm_dir / "small.wal", size="64KiB") as wal:
        refill = Refill(wal, records)
        for _ in range(1000):
            refill.before_turn()
            wal.extend([workloads.PAYLOAD] * records)
        assert wal.next_seq == 1000 * records + 1
        laps = 1000 * records * workloads.record_size(len(workloads.PAYLOAD), 8) / wal.capacity
    assert laps - 1 <= len(emptied) <= 1.5 * laps, "it was emptied when it was full, and not before"


def test_scales_differ_in_size_only() -> None:
    """A quick run measures no more than a full one, and a tiny one no more than that."""
    numbers = [name for name in FULL._fields if isinstance(getattr(FULL, name), int)]
    assert all(getattr(TINY, name) <= getattr(QUICK, name) <= getattr(FULL, name) for name in numbers)
