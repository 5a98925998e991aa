"""The soak: a short run passes, each mistake is noticed, and the verdict tells growth from noise."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import soak  # noqa: E402
from crash.needs import require  # noqa: E402
from soaking import verdict  # noqa: E402
from soaking.board import Board, Series  # noqa: E402
from soaking.processes import CONTROLS, NS  # noqa: E402
from soaking.run import Settings  # noqa: E402
from soaking.verdict import Freeze, Window  # noqa: E402

HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine
SHORT = ["--seconds", "14", "--window", "1", "--rate", "100", "--freeze-every", "14", "--freeze-for", "2", "--seed", "1"]
TRIES = 3


def soaked(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the soak; its exit status, JSON and output."""
    require("root", "loop", "ext4", "mkfs.ext4")
    pytest.importorskip("psutil")
    report = directory / "report.json"
    command = [sys.executable, str(TOOLS / "soak.py"), *SHORT, "--path", str(directory), "--json", str(report), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING)
    assert report.exists(), ended.stderr
    return ended.returncode, json.loads(report.read_text()), ended.stdout + ended.stderr


@pytest.mark.rigs
def test_short_run_passes_and_leaves_nothing(shm_dir: Path) -> None:
    """Every record is acknowledged, shown to each reader and in the log, and everything was judged.

    A barrier may keep the interpreter for 50 ms after late returns, and meet the freeze then, so another run may be needed.
    """
    for _ in range(TRIES):
        status, found, said = soaked(shm_dir, "--computing", "0")
        if status == 0:
            break
    assert (status, found["failures"]) == (0, []), said
    assert found["records"] == found["compared"] == 1400
    assert found["seen"] == [1400, 1400]
    assert len(found["windows"]) == 14
    assert [each["frozen"] for each in found["windows"]].count(True) >= 2
    assert {each["name"] for each in found["trends"]} >= {"p50 from the due", "p99.9 from the call", "sectors a barrier"}
    assert None not in [rise for each in found["growths"].values() for rise in each.values()]
    (freeze,) = found["freezes"]
    assert freeze["waited"] > 0
    assert found["command"] in said
    assert [path.name for path in shm_dir.iterdir()] == ["report.json"]


@pytest.mark.rigs
def test_interrupted_run_tells_what_it_did_and_leaves_nothing(shm_dir: Path) -> None:
    """The writer stops, the readers see its last record, and the log is compared."""
    require("root", "loop", "ext4", "mkfs.ext4")
    pytest.importorskip("psutil")
    command = [
        sys.executable,
        str(TOOLS / "soak.py"),
        "--seconds",
        "3600",
        "--window",
        "1",
        "--rate",
        "100",
        "--path",
        str(shm_dir),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        while (line := run.stdout.readline()).split()[:1] != ["1"]:  # the second window
            assert line
        os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=HANGING)
    assert run.returncode in (128 + signal.SIGINT, 1)  # a few windows on a busy machine may fail
    found = re.search(r"(\d+) records acknowledged, (\d+) compared", said)
    assert found is not None
    assert int(found[1]) == int(found[2]) >= 100
    assert f"readers were shown {found[1]}, {found[1]} records" in said
    assert "interrupted by SIGINT" in said
    assert list(shm_dir.iterdir()) == []


@pytest.mark.rigs
@pytest.mark.parametrize("name", CONTROLS)
def test_mistake_is_noticed(name: str, shm_dir: Path) -> None:
    """Each control ends the run with exit status 1 and the right kind of failure."""
    status, found, said = soaked(shm_dir, "--computing", "0", "--control", name)
    assert status == 1, said
    assert CONTROLS[name].kind in [each["kind"] for each in found["failures"]], said
    assert f"FAILED {CONTROLS[name].kind}: " in said


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "10"], "--seconds must be at least 8 times"),
        (["--window", "0"], "more than 0"),
        (["--freeze-for", "1"], "--freeze-for must be at least 1.5"),
        (["--freeze-every", "3"], "--freeze-every twice that"),
        (["--rate", "0"], "at least 1"),
        (["--readers", "0"], "at least 1"),
        (["--computing", "1.5"], "from 0 to 1"),
        (["--control", "no-such"], "invalid choice"),
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before anything starts."""
    with pytest.raises(SystemExit) as ended:
        soak.main(arguments)
    assert ended.value.code == soak.USAGE
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Root is needed for a disk of its own."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert soak.main([]) == soak.USAGE
    assert "root: run as root (sudo)" in capsys.readouterr().err


def test_directory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the image is made in it."""
    monkeypatch.setattr("crash.needs.missing", lambda *names: [])
    pytest.importorskip("psutil")
    assert soak.main(["--path", "/nowhere"]) == soak.USAGE
    assert "/nowhere is not a directory" in capsys.readouterr().err


def test_freezes_are_at_the_start_of_windows() -> None:
    """In the middle of each period, so that a freeze spoils one window."""
    hour = Settings(3600, 1000, 60, 600, 3, 2, 1, "native", 1, None)
    assert hour.freezes() == [300, 900, 1500, 2100, 2700, 3300]
    short = Settings(14, 100, 1, 14, 2, 2, 1, "native", 1, None)
    assert short.freezes() == [7]
    assert Settings(14, 100, 1, 100, 2, 2, 1, "native", 1, None).freezes() == []


# -- what is noted


def test_full_series_notes_no_more() -> None:
    """A run that ends late writes nowhere else."""
    series = Series(2)
    for number in range(3):
        series.note(number, number + 10)
    assert series.rows().tolist() == [[0, 10], [1, 11]]


def test_pause_counts_where_it_overlaps() -> None:
    """One that began before a freeze, or ended after it, too."""
    pauses = np.array([[0, NS], [2 * NS, 5 * NS], [6 * NS, 7 * NS]])
    assert verdict.longest(pauses, 3 * NS, 4 * NS) == 3
    assert verdict.longest(pauses, NS // 2, NS) == 1
    assert verdict.longest(pauses, NS, 2 * NS) == 0


def test_window_has_the_records_that_were_due_in_it() -> None:
    """A late record counts from when it was due, and separately from its call."""
    board = Board(100, 10, 1)
    board["start_ns"] = NS
    for number in range(20):  # ten a second; the second ten are 3 s late, and each takes 10 ms
        due = NS + number * NS // 10
        called = due + (3 * NS if number >= 10 else 0)
        board.appends.note(called, called + NS // 100)
    counters = verdict.Counters(0, 0, 0), verdict.Counters(500, 10, 80)
    first, second = (verdict.window(board, 10, at * NS, (at + 1) * NS, [], counters) for at in (1, 2))
    assert (first.records, first.returned, first.latency["due"]["p50"]) == (10, 10, 0.01)
    assert (second.records, second.returned) == (10, 0)
    assert second.latency["due"]["p50"] == pytest.approx(3.01)
    assert second.latency["call"]["max"] == pytest.approx(0.01)
    assert (first.ticks, first.barriers, first.sectors) == (500, 10, 80)
    assert not first.frozen
    assert verdict.window(board, 10, NS, 2 * NS, [Freeze(0.5, 0.7, 1)], counters).frozen


# -- the verdict

NOISE = np.random.default_rng(1).normal(1, 0.1, 60)


def windows(due: Callable[[int], float], *, floor: Callable[[int], float] = lambda at: 1, cost: float = 0, count: int = 60) -> Any:
    """Windows whose latency from the due follows a function of time, as the floor's does; barriers cost more with each."""
    made = []
    for at in range(count):
        values = {"due": due(at) * NOISE[at], "call": NOISE[-at], "floor": floor(at) * NOISE[at]}
        each = {what: dict.fromkeys(("p50", "p99", "p99.9", "max"), value) for what, value in values.items()}
        made.append(Window(at, 1, False, 100, 100, each, 0, 900, 100, int(800 + at * cost)))
    return made


def grown(made: Sequence[Window]) -> set[str]:
    """The names of what grows."""
    return {trend.name for trend in verdict.trends(made) if trend.grows}


def test_noise_is_not_growth() -> None:
    """Nor is one slow window, nor a latency that falls."""
    assert grown(windows(lambda at: 1)) == set()
    assert grown(windows(lambda at: 1000 if at == 50 else 1)) == set()
    assert grown(windows(lambda at: 10 - at / 10)) == set()


def test_growth_is_noticed() -> None:
    """A steady one, and a step; each percentile by its own factor."""
    due = {f"{name} from the due" for name in verdict.FACTORS}
    assert grown(windows(lambda at: 1 + at / 5)) == due
    assert grown(windows(lambda at: 1 if at < 30 else 5)) == due
    assert grown(windows(lambda at: 1 if at < 30 else 2.5)) == {"p50 from the due", "p99 from the due"}
    assert grown(windows(lambda at: 1, cost=30)) == {"sectors a barrier"}


def test_growth_of_the_floor_is_allowed_for() -> None:
    """A disk that is slower for a plain write is slower for the log; a log that grows more is noticed."""
    assert grown(windows(lambda at: 1 + at / 5, floor=lambda at: 1 + at / 5)) == set()
    assert grown(windows(lambda at: 1 + at, floor=lambda at: 1 + at / 60)) != set()


def test_windows_with_a_freeze_are_not_judged() -> None:
    """Nor are too few others."""
    made = windows(lambda at: 1000 if at > 50 else 1)
    for each in made[51:]:
        each.frozen = True
    assert grown(made) == set()
    assert len(verdict.trends(made)) > 0
    assert verdict.trends(made[-10:]) == []


@pytest.mark.parametrize(
    ("freeze", "kinds"),
    [
        (Freeze(1, 4, rounds=9, pause=0.01, waited=3), []),
        (Freeze(1, 4, rounds=9, pause=3.0, waited=3), ["held-interpreter"]),
        (Freeze(1, 4, rounds=9, pause=3.0, floor_pause=2.6, waited=3), []),
        (Freeze(1, 4, rounds=0, pause=0.01, waited=3), ["held-interpreter"]),
        (Freeze(1, 4, rounds=9, pause=0.01, waited=0), ["freeze-without-effect"]),
        (Freeze(1, 4, rounds=9, pause=0.01, waited=3, stored=1), ["freeze-without-effect"]),
    ],
)
def test_freeze_is_judged_by_who_ran(freeze: Freeze, kinds: list[str]) -> None:
    """The sleeper and the computing thread must run, and the appends must not."""
    assert [failure.kind for failure in verdict.failures_of([freeze], computing=True)] == kinds


def test_freeze_is_examined_by_what_was_noted() -> None:
    """Appends that were made in spite of it, those that waited, and the pauses of both sleepers."""
    board = Board(10, 10, 1)
    board["start_ns"] = 0
    for called, returned in ((0, 1), (1, 4), (2, 3), (5, 6)):  # due each second
        board.appends.note(called * NS, returned * NS)
    board.pauses.note(2 * NS, 2 * NS + NS // 2)
    board.floor_pauses.note(NS, 3 * NS)
    freeze = Freeze(1.5, 3.5, 1)
    verdict.examine(freeze, board, 1)
    assert (freeze.stored, freeze.waited, freeze.pause, freeze.floor_pause) == (1, 2, 0.5, 2.0)


def test_row_has_a_cell_for_each_heading() -> None:
    """Also where nothing was noted."""
    made = windows(lambda at: 1, count=1)[0]
    made.latency["seek"] = {}
    made.memory = {"writer": 1 << 20, "reader 1": 2 << 20, "floor": 5}
    made.descriptors = {"writer": 14, "reader 1": 16, "floor": 5}
    shown = soak.row(made)
    assert shown.endswith("1.0/2.0     14/16")
    assert len(shown) >= len(soak._HEAD) * (soak._WIDTH + 1) - 1
