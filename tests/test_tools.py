"""The one entry point of the developers' tools: what each verb runs, what it says when it cannot, and the nightly runs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import nightly  # noqa: E402
from nightly import RUNS, Planned  # noqa: E402

tools = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "__main__.py")))
FILES = sorted(name for name, verb in tools.VERBS.items() if verb.commands[0][0] != "-m")


def run(*arguments: str, where: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The entry point, as a developer calls it."""
    command = [
        sys.executable,
        str(ROOT / "tools" / "__main__.py") if where != ROOT else "-m",
        *([] if where != ROOT else ["tools"]),
    ]
    return subprocess.run([*command, *arguments], cwd=where, capture_output=True, text=True, check=False)


def planned(name: str, script: str, tmp_path: Path) -> Planned:
    """A run of one line of Python."""
    path = tmp_path / f"{name}.py"
    path.write_text(script)
    return Planned(name, f"{path} {{amount}} {{seed}}", 1, "counted", 100, 10, (2,))


def test_help_lists_every_verb_with_one_line() -> None:
    """Name and purpose, in one line each."""
    said = run("--help").stdout
    for name, verb in tools.VERBS.items():
        assert f"{name} " in said
        assert verb.about in said
        assert "\n" not in verb.about


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("header", "golden")])
def test_verb_passes_its_arguments_to_its_tool(name: str) -> None:
    """--help is an argument too: the tool answers, and its modules can be imported."""
    answer = run(name, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: ")
    assert "python -m tools [-h]" not in answer.stdout


def test_header_is_checked_by_its_verb() -> None:
    """The committed header is what the layout makes."""
    assert run("header", "--check").returncode == 0


def test_golden_files_that_are_there_are_left_alone() -> None:
    """The verb makes only what is missing."""
    answer = run("golden")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("left as it is") == len(list((ROOT / "tests" / "data").glob("v1-*.bin")))


def test_lint_runs_all_three_and_fails_when_one_does(tmp_path: Path) -> None:
    """A file with an unused import, badly formatted: both are told, and mypy still runs."""
    pytest.importorskip("ruff")
    (tmp_path / "wrong.py").write_text("import os\nx  = 1\n")
    answer = run("lint", str(tmp_path / "wrong.py"))
    assert answer.returncode == 1
    for said in ("F401", "would be reformatted", "no issues found"):
        assert said in answer.stdout + answer.stderr


def test_other_directory_than_the_root_is_refused_and_the_root_named(tmp_path: Path) -> None:
    """Tools and documents are found by relative paths."""
    answer = run("lint", where=tmp_path)
    assert answer.returncode == tools.USAGE
    assert f"cd {ROOT}" in answer.stderr


def test_missing_module_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is a command that can be pasted."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sphinx" else object())
    assert "pip install -e '.[docs]'" in tools.problem(tools.VERBS["docs"])
    assert tools.problem(tools.VERBS["lint"]) is None


# -- nightly


def test_every_nightly_run_names_a_tool_that_exists() -> None:
    """A renamed tool must be renamed here."""
    for planned_run in RUNS:
        first = planned_run.command.split()[0]
        assert first == "-m" or (ROOT / first).exists()


def test_minutes_scale_every_run_and_list_starts_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the time is half of every amount; a short run explores the quick set."""
    full = sum(each.minutes for each in RUNS)
    assert nightly.main(["--list", "--minutes", str(full / 2), "--seed", "7"]) == 0
    said = capsys.readouterr().out
    assert "filelog.py --states 5000 --seed 7" in said
    assert "pmwal crashsim --quick --images 500000" in said
    assert nightly.main(["--list"]) == 0
    said = capsys.readouterr().out
    for words in ("--full --images 1000000", "--states 10000", "hostlog.py --states 5000", "--cuts 100", "--seconds 600"):
        assert words in said


def test_nightly_goes_on_after_a_failure_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each run, with what it counted; a run that is not possible here is no success."""
    scripts = {"bad": "print('1 counted'); exit(1)", "none": "exit(2)", "good": "import sys; print('counted', *sys.argv[1:])"}
    monkeypatch.setattr(nightly, "RUNS", [planned(name, script, tmp_path) for name, script in scripts.items()])
    arguments: list[Any] = ["--logs", str(tmp_path / "logs"), "--seed", "5", "--minutes", "6"]
    assert nightly.main(arguments) == nightly.FAILED
    said = capsys.readouterr().out
    assert "| bad | 1 counted | FAILED (1) |" in said
    assert "| none | + python" in said
    assert "CANNOT RUN HERE" in said
    assert "| good | counted 200 5 | ok |" in said
    assert "1 of 3 runs passed; seed 5" in said
    assert "counted 200 5" in (tmp_path / "logs" / "good.log").read_text()
    assert nightly.main([*arguments, "--only", "good"]) == 0


def test_nightly_without_a_test_marked_so_says_it() -> None:
    """pytest that found nothing is no success."""
    assert nightly.result_of(RUNS[0], 5) == "NO TESTS"
    assert nightly.result_of(RUNS[0], 0) == "ok"
