"""The stress harness: short runs pass, each mistake is noticed and named correctly, and the check is exact."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import pmwal
from pmwal.cli.exit_status import UNREADABLE, USAGE
from pmwal.native import native

pytest.importorskip("psutil")

from pmwal.cli import main
from pmwal.testing.stress import isolation, kept, page, resources, results
from pmwal.testing.stress.check import Contents, Look, compare, expect, shown
from pmwal.testing.stress.controls import CONTROLS, RENAMED
from pmwal.testing.stress.journal import Entries, Journal, Op, Opened, State
from pmwal.testing.stress.judge import Case
from pmwal.testing.stress.payloads import STEP, Payloads, first_ticket, longest
from pmwal.testing.stress.processes import Child
from pmwal.testing.stress.resources import Sample
from pmwal.testing.stress.violation import Violation

pytestmark = pytest.mark.rigs

ENGINE = "both" if native is not None else "python"
SMALL = ["--engine", ENGINE, "--readers", "1", "--cpu-load", "0", "--io-load", "0", "--writers-threads", "3", "--seed", "1"]
PAYLOADS = Payloads(1)
HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine
TICKET = first_ticket(1, 0) | 3


def stressed(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the harness; its exit status, JSON and output."""
    report = directory / "report.json"
    command = [sys.executable, "-m", "pmwal", "stress", str(directory), "--json", str(report), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING)
    assert report.exists(), ended.stderr
    return ended.returncode, json.loads(report.read_text()), ended.stdout + ended.stderr


# -- runs


def until(seen: Callable[[dict[str, Any]], bool], directory: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run, on a slow machine again for longer, until something was seen; there must be no violation. Figures and output."""
    for seconds in ("4", "40", "400"):
        status, found, said = stressed(directory, *arguments, "--seconds", seconds)
        assert (status, found["violation"]) == (0, None), said
        if seen(found):
            break
    return found, said


def test_short_run_kills_checks_and_finds_nothing(shm_dir: Path) -> None:
    """Writers are killed, every log is compared, and the run leaves no files."""

    def seen(found: dict[str, Any]) -> bool:
        kills = found["kills"]["open"] + found["kills"]["work"]
        looked = min(found["looks"][what] for what in ("reads", "follows", "verdicts")) > 0
        return kills >= 2 and found["records_checked"] > 0 and len(found["resources"]["steady"]) > 0 and looked

    found, said = until(seen, shm_dir, *SMALL, "--medium", "any")
    assert seen(found), said
    assert [path.name for path in shm_dir.iterdir()] == ["report.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_tells_what_it_did_and_leaves_nothing(number: signal.Signals, shm_dir: Path) -> None:
    """Ctrl-C reaches all processes, SIGTERM often only the first: the log is checked, and all end without a traceback."""
    psutil = pytest.importorskip("psutil")
    report = shm_dir / "report.json"
    command = [sys.executable, "-m", "pmwal", "stress", str(shm_dir), "--json", str(report), *SMALL]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--seconds", "3600"], stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        children: list[Any] = []
        while len(children) < 3 or not list(shm_dir.glob("pmwal-stress-*/log-*.wal")):  # steady, a reader, a writer and its log
            assert run.poll() is None
            time.sleep(0.01)
            children = psutil.Process(run.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
        said, complaints = run.communicate(timeout=HANGING)
    assert (run.returncode, complaints) == (128 + number, "")
    assert f"interrupted by {number.name}; until then:" in said
    assert "records compared" in said
    found = json.loads(report.read_text())
    assert (found["interrupted"], found["violation"]) == (number.name, None)
    assert found["lives"] >= 1
    assert not any(child.is_running() for child in children)
    assert [path.name for path in shm_dir.iterdir()] == ["report.json"]


@pytest.mark.parametrize("name", CONTROLS)
def test_mistake_is_noticed(name: str, shm_dir: Path) -> None:
    """Each control ends the run with exit status 1 and the right kind of violation; log and journal are kept."""
    for seconds in ("6", "60", "600") if name.startswith("leak") else ("30", "300"):  # longer where the machine is slow
        status, found, said = stressed(shm_dir, *SMALL, "--seconds", seconds, "--control", name)
        if status != 0:
            break
    assert status == 1, said
    assert found["violation"]["kind"] in CONTROLS[name].kinds, said
    kept = Path(found["kept"])
    assert (kept / "journal.npy").exists()
    assert list(kept.glob("*.wal"))
    assert found["command"] in said
    assert said.splitlines()[-1].startswith(f"NOTICED the planted mistake {name}: {found['violation']['kind']}")


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--medium", "dax"], "MAP_SYNC"),
        (["--writers-threads", "0"], "from 1 to"),
        (["--readers", "0"], "from 1 to"),
        (["--control", "no-such"], "choose one of early-ack, "),
        (["--control", "early-akc"], "did you mean 'early-ack'?"),
        (["--control", "early-ack", "--controls"], "give one of them"),
        (["--controls", "--json"], "describe one run"),
        (["--seconds", "-1"], "'-1' is no length of a run; give a number above 0 and at most 10,000,000"),
        (["--minutes", "0"], "'0' is no length of a run"),
        (["--seconds", "1", "--minutes", "1"], "not allowed with"),
        (["--replay"], "keeps no violation"),
        (["--fill-disk"], "would fill the memory of this machine"),
    ],
)
def test_wrong_usage_is_its_exit_status(
    arguments: list[str], message: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is reported before anything is started."""
    monkeypatch.setattr("pmwal.testing.machine.available_memory", lambda: 0)
    assert main(["stress", str(shm_dir), "--engine", "python", *arguments]) == USAGE
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert list(shm_dir.iterdir()) == []


@pytest.mark.parametrize(("path", "message"), [("/nowhere", "No such file"), ("/dev/null", "Not a directory")])
def test_path_that_is_no_directory_is_named(path: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As with every command: the error of the operating system, and the path."""
    assert main(["stress", path]) == UNREADABLE
    assert f"{path}: {message}" in capsys.readouterr().err


def test_missing_psutil_is_named_with_its_extra(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything else is looked at."""
    monkeypatch.setattr("pmwal.cli.commands.stress.find_spec", lambda name: None)
    assert main(["stress", str(shm_dir)]) == USAGE
    assert "pip install 'pmwal[stress]'" in capsys.readouterr().err


def test_help_names_every_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those whose names have changed, which are not shown and still work."""
    assert main(["stress", "--help"]) == 0
    said = capsys.readouterr().out
    for name in CONTROLS:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", said), name
    assert "--mutant" not in said
    assert set(RENAMED.values()) <= set(CONTROLS)


def test_old_name_of_a_mistake_works_with_a_warning(shm_dir: Path) -> None:
    """``--mutant early-acknowledgement`` plants ``early-ack``."""
    status, found, said = stressed(shm_dir, *SMALL, "--seconds", "300", "--mutant", "early-acknowledgement")
    assert (status, found["control"]) == (1, "early-ack"), said
    assert "warning: --mutant and --mutants are now --control and --controls" in said


def test_violation_that_was_kept_is_judged_again(shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same violation, from log and journal alone; and none once the journal has no claim on the log."""
    status, found, said = stressed(shm_dir, *SMALL, "--seconds", "300", "--control", "early-ack")
    assert status == 1, said
    assert main(["stress", found["kept"], "--replay"]) == 1
    again = capsys.readouterr().out
    kind, message = found["violation"]["kind"], found["violation"]["message"]
    assert again.startswith(f"VIOLATION {kind}: ")
    assert again.split(": ", 1)[1].strip() in message


def test_log_that_is_as_its_journal_says_is_sound_when_it_is_judged_again(
    shm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The negative control of the check above: a replay says so, and that the violation came from something else."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        for number in range(3):
            wal.append(PAYLOADS.of(TICKET + number * STEP), kind=PAYLOADS.kind(TICKET))
    case = Case("a.wal", "python", 1, Contents(), after(appends(3)), Opened(1, 1, 0, 0, 0), False, True, [(1, TICKET)])
    kept.save(case, shm_dir)
    assert kept.load(shm_dir).before == Contents()
    assert main(["stress", str(shm_dir), "--replay"]) == 0
    assert capsys.readouterr().out.startswith("SOUND: ")
    kept.save(replace(case, entries=after(appends(4))), shm_dir)
    assert main(["stress", str(shm_dir), "--replay"]) == 1
    assert "record 4 is missing" in capsys.readouterr().out


def test_isolated_readers_where_they_are_not_permitted_are_refused(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, with what they need."""

    def refuse(call: str, *args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("pmwal.testing.stress.isolation._system", refuse)
    assert main(["stress", str(shm_dir), "--isolated-readers"]) == USAGE
    assert "--isolated-readers needs root" in capsys.readouterr().err


def test_isolated_readers_that_cannot_reach_the_logs_are_refused(shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which they see nothing would prove nothing."""
    if (problem := isolation.problem()) is not None:
        pytest.skip(problem)
    shm_dir.chmod(0o700)
    assert main(["stress", str(shm_dir), "--isolated-readers"]) == USAGE
    assert f"may not enter {shm_dir}: chmod o+x" in capsys.readouterr().err


@pytest.mark.parametrize("control", [None, "unlocked-writer"])
def test_isolated_readers_are_told_nothing_false(control: str | None, shm_dir: Path) -> None:
    """Another user in another pid namespace reads, follows and verifies beside the writer; a writer without its lock is noticed."""
    if (problem := isolation.problem()) is not None:
        pytest.skip(problem)
    shm_dir.chmod(0o755)
    if control is None:
        found, said = until(lambda found: found["looks"]["verdicts"] > 0, shm_dir, *SMALL, "--isolated-readers")
        assert found["looks"]["verdicts"] > 0, said
        assert found["looks"]["false verdicts"] == 0
    else:
        status, found, said = stressed(shm_dir, *SMALL, "--seconds", "300", "--isolated-readers", "--control", control)
        assert status == 1, said
        assert found["violation"]["kind"] == "unnoticed-writer", said


def test_isolated_process_sees_nothing_of_its_parent(shm_dir: Path) -> None:
    """Another user, the first process of its namespace, and a /proc in which its parent is not."""
    if (problem := isolation.problem()) is not None:
        pytest.skip(problem)
    said = shm_dir / "said"
    said.touch()
    said.chmod(0o666)
    shm_dir.chmod(0o755)

    def tell() -> None:
        said.write_text(f"{os.getpid()} {os.getuid()} {sorted(name for name in os.listdir('/proc') if name.isdecimal())}")

    child = Child("isolated", shm_dir, tell, isolated=True)
    child.wait()
    child.check()
    assert said.read_text() == f"1 {isolation.USER} ['1']"
    mine = os.readlink("/proc/self/ns/pid")
    assert os.readlink("/proc/self/ns/pid_for_children") == mine


def test_isolated_process_reports_its_violation(shm_dir: Path) -> None:
    """Although it may not write to the directory of the run."""
    if (problem := isolation.problem()) is not None:
        pytest.skip(problem)

    shm_dir.chmod(0o755)

    def fail() -> None:
        raise Violation("what was seen", "corrupt-log")

    child = Child("isolated", shm_dir, fail, isolated=True)
    child.wait()
    with pytest.raises(Violation, match="isolated: what was seen"):
        child.check()


CHARTS = (
    *("Latency of durable calls", "Latency as a heat map", "Throughput", "Kills", "Recovery", "Private memory", "Descriptors"),
    *("Processor time", "What a commit costs", "What this proves, and what not", "The place"),
)


def test_page_holds_its_charts(shm_dir: Path) -> None:
    """One self-contained file, with a chart for each series of the run, light or dark as the reader's system is."""
    found, _ = until(lambda found: all(f">{title}" in page.render(found) for title in CHARTS), shm_dir, *SMALL)
    text = page.render(found)
    for title in CHARTS:
        assert f">{title}" in text
    assert not re.search(r"\b(?:src|href)=|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert html.escape(found["verdict"]) in text
    for name in ("date", "host", "processor", "kernel", "load"):
        assert f"<tr><th>{name}</th><td>{html.escape(found['environment'][name])}</td></tr>" in text
    assert re.fullmatch(r"[\d.]+ at the start, [\d.]+ at the end", found["environment"]["load"])
    for sentence in found["scope"]:
        assert html.escape(sentence) in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)  # well formed
    assert not re.search(r"\b(?:nan|inf)\b", "".join(drawings))


def test_growth_is_told_without_negative_zeros() -> None:
    """The growth of each process; a short run is not judged."""
    assert results.growth_text({"a": {"memory": None}}) == "run too short to judge"
    told = results.growth_text({"a": {"memory": 1.5 * (1 << 20), "threads": -0.01}, "b": {"memory": None}})
    assert told == "a +1.50 MiB, +0.0 threads"


# -- payloads and journal


def test_payload_follows_from_seed_and_ticket() -> None:
    """Reproducible, different for another seed or ticket, within the length of its class, and recognised."""
    again, other = Payloads(1), Payloads(2)
    for size_class in range(10):
        ticket = first_ticket(7, 3) | size_class
        data = PAYLOADS.of(ticket)
        assert data == again.of(ticket)
        assert len(data) <= longest(size_class)
        if size_class:
            assert longest(size_class - 1) < len(data)
            assert PAYLOADS.genuine(data) == ticket
            assert PAYLOADS.genuine(data[:-1] + bytes([data[-1] ^ 1])) is None
            assert other.of(ticket) != data


def test_every_other_payload_imitates_structures_of_a_log() -> None:
    """All but the shortest: their bytes after the ticket are those of look-alikes."""
    tickets = [first_ticket(life, 1) | size_class for life in range(1, 40) for size_class in range(1, 12)]
    imitating = sum(PAYLOADS.of(ticket)[8:] in PAYLOADS._imitations for ticket in tickets)
    assert 0.3 * len(tickets) < imitating < 0.7 * len(tickets)


def test_journal_shows_the_call_under_way() -> None:
    """An intent without a result stays, and a cleared journal is empty."""
    journal = Journal()
    lane = journal.lane(2)
    lane.intend(Op.APPEND, 0, durable=True, ticket=TICKET, count=1)
    lane.done(1, 1)
    lane.intend(Op.TRUNCATE, 0, argument=1)
    entries = journal.entries()
    assert entries["state"].tolist() == [State.DONE, State.INTENDED]
    assert entries["lane"].tolist() == [2, 2]
    assert (entries["ticket"][0], entries["argument"][1]) == (TICKET, 1)
    journal.clear()
    assert len(journal.entries()) == 0


# -- the check


Script = Callable[[Journal], None]


def after(script: Script) -> Entries:
    """The journal of some calls."""
    journal = Journal()
    script(journal)
    return journal.entries()


def appends(count: int, *, under_way: int = 0) -> Script:
    """Appends that returned, and one call under way that stores ``under_way`` more records."""

    def script(journal: Journal) -> None:
        lane = journal.lane(0)
        for number in range(count):
            lane.intend(Op.APPEND, 0, durable=True, ticket=TICKET + number * STEP, count=1)
            lane.done(number + 1, number + 1)
        if under_way:
            lane.intend(Op.EXTEND, 0, durable=True, ticket=TICKET + count * STEP, count=under_way)

    return script


def rolled_back(journal: Journal) -> None:
    """Three appends, and a rollback to the first one that has not returned."""
    appends(3)(journal)
    other = journal.lane(1)
    other.intend(Op.ROLLBACK, 0, argument=1)


def beside(*, returned: bool = True, settled: int | None = None) -> Script:
    """Two appends and a rollback to the first, which an append of another thread overlaps; then a third thread appends.

    The overlapping call got number 2, like the discarded record, the last one number 3.
    """

    def script(journal: Journal) -> None:
        appends(2)(journal)
        rollback, other, late = journal.lane(1), journal.lane(2), journal.lane(3)
        other.intend(Op.EXTEND, 0, ticket=TICKET + 2 * STEP, count=2)
        rollback.intend(Op.ROLLBACK, 0, argument=1)
        other.done(2, 3)
        if returned:
            rollback.done(2)
            if settled == 5:
                late.intend(Op.APPEND, 0, ticket=TICKET + 4 * STEP, count=1)
                late.done(4, 4)
            if settled is not None:
                rollback.intend(Op.NEXT_SEQ, 0)
                rollback.done(settled)

    return script


def truncated(journal: Journal) -> None:
    """Three appends, a truncate that returned, and another one under way."""
    appends(3)(journal)
    other = journal.lane(1)
    other.intend(Op.TRUNCATE, 0, argument=2)
    other.done(2)
    other.intend(Op.TRUNCATE, 0, argument=3)


def holding(numbers: Sequence[int], first: int = 1) -> Look:
    """A log that holds the records of these numbers."""
    records = [
        pmwal.Record(first + at, PAYLOADS.kind(TICKET), 0, PAYLOADS.of(TICKET + number * STEP)) for at, number in enumerate(numbers)
    ]
    return Look(first, first + len(numbers), records, 0, 1 << 20, "R2")


def judged(script: Script, look: Look) -> str:
    """The kind of the violation, or "fine"."""
    try:
        compare(expect(Contents(), after(script), None, overwrites=False), look, PAYLOADS)
    except Violation as violation:
        return violation.kind
    return "fine"


@pytest.mark.parametrize(
    ("script", "look", "verdict"),
    [
        (appends(3), holding([0, 1, 2]), "fine"),
        (appends(3), holding([0, 1]), "missing-record"),
        (appends(3), holding([0, 1, 1]), "misplaced-record"),
        (appends(3), holding([0, 2, 1]), "misplaced-record"),
        (appends(3), holding([0, 1, 2, 1]), "resurrected-record"),
        (appends(3), holding([0, 1, 2, 3]), "resurrected-record"),
        (appends(2, under_way=2), holding([0, 1]), "fine"),
        (appends(2, under_way=2), holding([0, 1, 2, 3]), "fine"),
        (appends(2, under_way=2), holding([0, 1, 2]), "torn-batch"),
        (appends(2, under_way=2), holding([0, 1, 3]), "resurrected-record"),
        (appends(2, under_way=2), holding([0, 1, 2, 3, 4]), "resurrected-record"),
        (appends(3), holding([1, 2], first=2), "wrong-bounds"),
        (rolled_back, holding([0, 1, 2]), "fine"),
        (rolled_back, holding([0]), "fine"),
        (rolled_back, holding([0, 1]), "missing-record"),
        (beside(), holding([0]), "fine"),
        (beside(), holding([0, 2, 3]), "fine"),
        (beside(), holding([0, 2]), "torn-batch"),
        (beside(), holding([0, 1]), "resurrected-record"),
        (beside(), holding([0, 3]), "resurrected-record"),
        (beside(settled=2), holding([0]), "fine"),
        (beside(settled=2), holding([0, 2, 3]), "resurrected-record"),
        (beside(settled=3), holding([0, 2]), "wrong-order"),
        (beside(settled=4), holding([0, 2, 3]), "fine"),
        (beside(settled=4), holding([0]), "missing-record"),
        (beside(settled=4), holding([3], first=3), "wrong-bounds"),
        (beside(settled=5), holding([0, 2, 3, 4]), "fine"),
        (beside(settled=5), holding([0, 2, 3]), "missing-record"),
        (beside(settled=5), holding([0, 4]), "missing-record"),
        (beside(returned=False), holding([0]), "fine"),
        (beside(returned=False), holding([0, 2, 3]), "fine"),
        (beside(returned=False), holding([0, 1]), "resurrected-record"),
        (truncated, holding([1, 2], first=2), "fine"),
        (truncated, holding([2], first=3), "fine"),
        (truncated, holding([0, 1, 2]), "wrong-bounds"),
    ],
)
def test_check_allows_what_was_told_and_nothing_else(script: Script, look: Look, verdict: str) -> None:
    """Returned calls whole and in order, a call under way whole or not at all, the front where truncate said."""
    assert judged(script, look) == verdict


def test_numbers_against_the_order_of_calls_are_noticed() -> None:
    """A call that began after another had returned must get a higher number."""

    def script(journal: Journal) -> None:
        for number, seq in ((0, 2), (1, 1)):
            lane = journal.lane(number)
            lane.intend(Op.APPEND, 0, ticket=TICKET + number * STEP, count=1)
            lane.done(seq, seq)

    assert judged(script, holding([1, 0])) == "wrong-order"


def test_number_given_twice_is_noticed() -> None:
    """Two calls cannot have stored the same record."""

    def script(journal: Journal) -> None:
        lanes = journal.lane(0), journal.lane(1)
        for number, lane in enumerate(lanes):
            lane.intend(Op.APPEND, 0, ticket=TICKET + number * STEP, count=1)
        for lane in lanes:
            lane.done(1, 1)

    assert judged(script, holding([0])) == "wrong-order"


def test_reader_may_be_shown_what_a_rollback_takes_and_nothing_else() -> None:
    """What a reader was shown is there, or was rolled back."""
    expected, contents = compare(expect(Contents(), after(rolled_back), None, overwrites=False), holding([0]), PAYLOADS)
    shown([(1, TICKET), (2, TICKET + STEP)], expected, contents)
    with pytest.raises(Violation, match="shown record 2"):
        shown([(2, TICKET)], expected, contents)
    with pytest.raises(Violation, match="another record 1"):
        shown([(1, TICKET + STEP)], expected, contents)


# -- leaks


def samples(memory: Callable[[float], float]) -> list[Sample]:
    """A hundred seconds of a process whose memory follows a function of time."""
    noise = np.random.default_rng(1).normal(0, 1 << 19, 100)
    return [Sample(1, float(at), memory(at) + noise[at], 10, 1, 0, 0, 0) for at in range(100)]


def test_leak_is_growth_after_the_warm_up() -> None:
    """A step during the warm-up and noise are no leak; a slow, steady rise is one."""
    step = resources.growth(samples(lambda at: (1 << 27) if at > 10 else 0), "memory")
    rise = resources.growth(samples(lambda at: at * (1 << 18)), "memory")
    assert step is not None
    assert rise is not None
    assert abs(step) < resources.GROWTH_MAX["memory"] < rise
    resources.check({"steady": {"memory": step}})
    with pytest.raises(Violation, match="memory grew"):
        resources.check({"steady": {"memory": rise}})
    assert resources.growth(samples(lambda at: 0)[:5], "memory") is None


def test_leak_is_not_what_an_open_log_has_open() -> None:
    """A log that is open in some samples, by chance the later ones, is no leak; a descriptor more at each sample is one."""
    values = [10, 10, 10, 10, 10, 14, 10, 14, 14, 14, 14]  # the first are warm-up
    risen = resources.growth([Sample(1, float(at), 0, number, 1, 0, 0, 0) for at, number in enumerate(values)], "descriptors")
    kept = resources.growth([Sample(1, float(at), 0, number + at, 1, 0, 0, 0) for at, number in enumerate(values)], "descriptors")
    assert risen is not None
    assert kept is not None
    assert risen < resources.GROWTH_MAX["descriptors"] < kept


def test_process_that_dies_by_itself_is_a_violation(tmp_path: Path) -> None:
    """A crash of the interpreter does not count as the supervisor's kill."""
    child = Child("crasher", tmp_path, signal.raise_signal, signal.SIGHUP)
    child.wait()
    with pytest.raises(Violation, match="SIGHUP"):
        child.check()
