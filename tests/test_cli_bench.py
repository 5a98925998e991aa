"""``pmwal bench`` and ``pmwal crashsim``: what they print, what they compare, and that they can fail."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from commands import Cli
from pmwal.cli.exit_status import FAILED, OK, UNREADABLE, USAGE
from pmwal.native import native
from pmwal.testing._mutants.table import MUTANTS
from pmwal.testing.bench import measure
from pmwal.testing.bench.floors import FloorsUnavailable, load
from pmwal.testing.bench.results import Results, Row, Threads, compare, limit, lines


def has_floors() -> bool:
    """Whether the floors were built with the package."""
    try:
        load()
    except FloorsUnavailable:
        return False
    return True


needs_floors = pytest.mark.skipif(not has_floors(), reason="the floors in C were not built")


# -- bench


@needs_floors
@pytest.mark.parametrize(
    ("medium", "floors"), [("auto", {"copy"}), ("emulated-dax", {"copy", "strict flushed", "pipelined streamed"})]
)
def test_bench_in_memory_has_floors_modes_and_threads(medium: str, floors: set[str], shm_dir: Path, cli: Cli) -> None:
    """Every figure is a positive number, every ratio is to a floor that was measured, and nothing is left."""
    if medium == "emulated-dax" and native is None:
        pytest.skip("the Python engine flushes no cache lines")
    found = cli("bench", shm_dir, "--seconds", 0.2, "--medium", medium, "--json")
    assert found.status == OK, found.err
    values = found.json
    rows = {row["key"]: row for row in values["rows"]}
    assert len(rows) == len(values["rows"])
    assert floors <= {key for key, row in rows.items() if row["kind"] == "floor"}
    for row in rows.values():
        assert row["calls"] >= 2
        assert 0 < row["fastest"] <= row["cost"] <= row["slowest"] < math.inf
        assert 0 < row["p50"] <= row["p99"] <= row["max"]
        if row["floor"] is not None:
            assert rows[row["floor"]]["kind"] == "floor"
            assert row["ratio"] > 0
    assert rows["append strict"]["ratio"] is not None
    assert [one["threads"] for one in values["threads"]] == list(measure.THREADS)
    assert "the processor limits it" in values["limit"]
    assert {"date", "host", "processor", "kernel", "load"} <= set(values["environment"])
    assert list(shm_dir.iterdir()) == []


@needs_floors
def test_bench_of_a_file_compares_with_flushes_of_the_disk(tmp_path: Path, cli: Cli) -> None:
    """The floors of a disk, threads in C beside those in Python, and the file written for a comparison."""
    written = tmp_path / "new.json"
    found = cli("bench", tmp_path, "--seconds", 0.3, "--medium", "file", "--json", written)
    assert found.status == OK, found.err
    values = json.loads(written.read_text())
    keys = {row["key"] for row in values["rows"] if row["kind"] == "floor"}
    assert {"msync", "sequential", "copy"} <= keys
    assert all(one["floor_rate"] > 0 for one in values["threads"])
    assert found.lines[-1] == values["limit"]
    again = cli("bench", tmp_path, "--seconds", 0.3, "--medium", "file", "--compare", written)
    assert again.status == OK, again.err
    assert f"compared with {written}" in again.text
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]


def test_bench_without_floors_says_so(shm_dir: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor or an installation without them: the modes are measured, and no ratio is made up."""

    def none() -> None:
        raise FloorsUnavailable("the reason")

    monkeypatch.setattr(measure, "load", none)
    found = cli("bench", shm_dir, "--seconds", 0.2)
    assert found.status == OK, found.err
    assert "no floors and no ratios: the reason" in found.text
    assert "floors: the same work" not in found.text
    assert found.lines[-1] == "There is no floor to compare with, so nothing can be said about what limits it."


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["/nowhere"], UNREADABLE, "/nowhere: No such file"),
        (["/dev/null"], UNREADABLE, "/dev/null: Not a directory"),
        (["DIR", "--medium", "dax"], USAGE, "MAP_SYNC"),
        (["DIR", "--seconds", "0"], USAGE, "'0' is no length of a run; give a number above 0 and at most 86,400"),
        (["DIR", "--seconds", "nan"], USAGE, "'nan' is no length of a run"),
        (["DIR", "--seconds", "1e6"], USAGE, "'1e6' is no length of a run"),
        (["DIR", "--compare", "/nowhere"], UNREADABLE, "/nowhere: No such file"),
        (["DIR", "--compare", "OTHER"], USAGE, "no results of pmwal bench"),
        (["DIR", "--compare", "OTHER", "--json"], USAGE, "give --json a FILE"),
    ],
)
def test_wrong_use_of_bench_is_refused_before_it_measures(
    arguments: list[str], status: int, message: str, shm_dir: Path, tmp_path: Path, cli: Cli
) -> None:
    """Also a file of other JSON to compare with."""
    other = tmp_path / "other.json"
    other.write_text("{}")
    found = cli("bench", *[{"DIR": str(shm_dir), "OTHER": str(other)}.get(each, each) for each in arguments])
    assert found.status == status
    assert message in found.err
    assert found.out == b""
    assert list(shm_dir.iterdir()) == []


@pytest.mark.parametrize("command", ["bench", "stress"])
def test_directory_that_cannot_be_written_to_is_named(
    command: str, shm_dir: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the place that is wrong and not the usage, with both commands."""
    pytest.importorskip("psutil")
    asked: list[str] = []

    def no_access(path: str, mode: int) -> bool:
        asked.append(path)
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", no_access)
    found = cli(command, shm_dir)
    assert (found.status, found.out) == (UNREADABLE, b"")
    assert found.err == f"pmwal: {shm_dir}: cannot be written to; name another directory\n"
    assert asked == [str(shm_dir)]


def row(
    key: str, cost: float, *, kind: str = "pmwal", floor: str | None = None, ratio: float | None = None, noise: float = 0
) -> Row:
    """A row of these figures."""
    low, high = cost * (1 - noise / 2), cost * (1 + noise / 2)
    return Row(key, f"name of {key}", kind, 1, 10, cost, low, high, cost, cost, cost, cost, floor, ratio)


def results(medium: str = "file", *rows: Row, rates: tuple[float, ...] = ()) -> Results:
    """Results with these rows, and these rates of 1, 2, 4 ... threads."""
    threads = [Threads(1 << at, rate, 1.0, 1.0, None) for at, rate in enumerate(rates)]
    return Results({"kernel": "6.1"}, medium, "strict", "power", "native", "msync", 1.0, list(rows), threads)


@pytest.mark.parametrize(
    ("medium", "ratio", "rates", "claims"),
    [
        ("file", 1.1, (1.0, 1.5, 3.6), ["the disk limits it", "4 threads that share flushes store 3.6 times as much"]),
        ("file", 1.1, (1.0, 9.0), ["the disk limits it", "cannot be told from this run"]),  # a flush serves each thread once
        ("file", 1.1, (1.0, 1.2), ["the disk limits it", "gain only 1.2 times"]),
        ("file", 3.0, (), ["the file system costs more than the disk"]),
        ("memory", 1.3, (), ["no medium is waited for", "the processor limits it"]),
        ("dax", 1.3, (), ["the stores and fences", "the processor limits it"]),
    ],
)
def test_sentence_says_what_limits(medium: str, ratio: float, rates: tuple[float, ...], claims: list[str]) -> None:
    """The disk, the file system, or the processor; and what threads gain."""
    said = limit(
        results(medium, row("floor", 100, kind="floor"), row("append strict", 100 * ratio, floor="floor", ratio=ratio), rates=rates)
    )
    for claim in claims:
        assert claim in said, said
    assert "name of floor: 100 ns" in said


@pytest.mark.parametrize(("durability", "disk"), [("process", False), ("power", True), ("unknown", True)])
def test_sentence_speaks_of_a_disk_only_where_there_may_be_one(durability: str, disk: bool) -> None:
    """A log on tmpfs can be used as a file is; its calls wait for no disk."""
    rows = row("floor", 100, kind="floor"), row("append strict", 110, floor="floor", ratio=1.1)
    said = limit(replace(results("file", *rows), durability=durability))
    assert ("the disk limits it" in said) == disk
    assert ("no disk is waited for here, so the processor limits it" in said) == (not disk)


def test_floors_that_vary_are_told_before_the_sentence() -> None:
    """What else ran shows in the floors, and the ratios are worth little then."""
    steady = results("file", row("floor", 100, kind="floor", noise=0.5), row("append strict", 100, noise=1.9))
    varying = results("file", row("floor", 100, kind="floor", noise=1.5))
    assert not any(line.startswith("UNSTEADY") for line in lines(steady))
    assert list(lines(varying))[-2].startswith("UNSTEADY: of the same work without a log, the slowest round took 7.0 times")


def test_comparison_marks_what_changed_by_more_than_the_rounds_differ() -> None:
    """Faster and slower, not what is within the noise of either run; the environment, and rows that only one of them has."""
    old = results(
        "file", row("same", 100), row("faster", 100), row("slower", 100), row("noisy", 100, noise=0.5), row("gone", 1), rates=(1, 2)
    )
    new = results("file", row("same", 104), row("faster", 50), row("slower", 150), row("noisy", 130), row("new", 1), rates=(1, 1))
    old = replace(old, environment={"kernel": "6.1", "date": "2026-01-01", "host": "a", "load": "1"})
    new = replace(new, environment={"kernel": "6.18", "date": "2026-01-02", "host": "b", "load": "2"}, flush="pwritev2")
    said = "\n".join(compare(old, new))
    marks = {line.split()[2]: line.split()[-1] for line in said.splitlines() if line.startswith("name of")}
    assert marks["faster"] == "faster"
    assert marks["slower"] == "SLOWER"
    assert marks["same"].endswith("%")
    assert marks["noisy"].endswith("%")
    assert "new" not in marks
    assert "kernel: 6.1 -> 6.18" in said
    assert "host: a -> b" in said
    assert not any(line.startswith(("date:", "load:")) for line in said.splitlines())
    assert "flush: msync -> pwritev2" in said
    assert "measured only in the old run: name of gone" in said
    assert next(line for line in said.splitlines() if line.startswith("2 threads")).endswith("SLOWER")


@pytest.mark.parametrize(
    ("new", "change"),
    [(100, "+0.0%"), (50, "-50.0%  faster"), (999, "+899.0%  SLOWER"), (1000, "x10  SLOWER"), (1e8, "x1,000,000  SLOWER")],
)
def test_change_that_is_manifold_is_a_multiple(new: float, change: str) -> None:
    """Another medium may take a thousand times as long; a percentage of six digits would run into the figures beside it."""
    said = list(compare(results("file", row("a", 100)), results("file", row("a", new))))
    line = next(line for line in said if line.startswith("name of a"))
    assert line.endswith(f" {change}")


@pytest.mark.parametrize("bare", [None, 5.0])
def test_rate_of_threads_in_c_has_a_column_where_it_was_measured(bare: float | None) -> None:
    """In memory there is no such floor."""
    found = replace(results("file", row("append strict", 1)), threads=[Threads(1, 2.0, 1.0, 1.0, bare)])
    head = next(line for line in lines(found) if line.startswith("threads"))
    assert head.endswith("in C") == (bare is not None)


def test_results_are_the_same_after_json() -> None:
    """Nothing that a comparison or the text needs is lost; another version is refused."""
    found = results("memory", row("copy", 10, kind="floor"), row("append strict", 20, floor="copy", ratio=2.0), rates=(1.0, 2.0))
    values = json.loads(json.dumps(found.as_dict()))
    assert Results.from_dict(values) == found
    assert list(lines(Results.from_dict(values))) == list(lines(found))
    with pytest.raises(ValueError, match="version 99"):
        Results.from_dict({**values, "version": 99})


# -- crashsim


HISTORY = "python:page:strict:lapped:4096:8:write-back:1:append_small"


def test_replay_of_a_sound_history_says_how_many_images_were_judged(cli: Cli) -> None:
    """Every image of the history and of its beginnings."""
    found = cli("crashsim", "--replay", HISTORY)
    assert found.status == OK, found.err
    assert found.text.startswith("SOUND: no violation in ")


@pytest.mark.parametrize("option", ["--control", "--mutant"])
def test_planted_mistake_is_noticed_by_name(option: str, cli: Cli) -> None:
    """Exit status 1, as with ``pmwal stress``; the old name of the option works with a warning."""
    found = cli("crashsim", option, "early-ack" if option == "--control" else "early_ack")
    assert found.status == FAILED
    assert found.text.startswith("early-ack ")
    assert "noticed by promised" in found.text
    assert ("warning: --mutant" in found.err) == (option == "--mutant")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "no-such"], "choose one of drop-record-flush, "),
        (["--control", "early_akc"], "did you mean 'early-ack'?"),
        (["--seconds", "0"], "'0' is no length of a run"),
        (["--replay", "nonsense"], "--replay nonsense: "),
        (["--quick", "--full"], "not allowed with"),
        (["--images", "0"], "whole number from 1"),
        (["--processes", "0"], "whole number from 1"),
    ],
)
def test_wrong_use_of_crashsim_is_refused(arguments: list[str], message: str, cli: Cli) -> None:
    """Before anything is explored."""
    found = cli("crashsim", *arguments)
    assert (found.status, found.out) == (USAGE, b"")
    assert message in found.err


def test_campaign_that_ends_with_too_few_images_is_no_success(cli: Cli) -> None:
    """A run cut short says how many it has."""
    found = cli("crashsim", "--engine", "python", "--seconds", 0.01, "--processes", 1, "--seed", 1, "--length", 0)
    assert found.status == USAGE
    assert "distinct images in" in found.err


def test_names_of_mistakes_are_the_same_in_all_rigs() -> None:
    """The simulator has underscores where the command line has hyphens; no two names differ in that alone."""
    shown = {name.replace("_", "-") for name in MUTANTS}
    assert len(shown) == len(MUTANTS)
    assert {"early-ack", "no-fence", "slot-first"} <= shown
