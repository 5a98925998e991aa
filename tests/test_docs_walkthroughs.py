"""Pages to be followed: their files and commands, in order, with the output that they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import damage_record
from documents import ROOT, Section, read_section, read_sections
from support import open_small
from walkthroughs import commands_in, follow, steps_of

QUICK_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p pytest_pmwal -p no:cacheprovider"}
"""Only the plugin of pmwal: the others take seconds to load."""

TUTORIAL = ROOT / "docs" / "tutorial.md"


def parts_of_the_tutorial() -> list[Section]:
    """Its sections, without the one that installs pmwal."""
    return [section for section in read_sections(TUTORIAL) if section.title != "Install"]


@pytest.mark.slow
def test_tutorial_can_be_followed(shm_dir: Path) -> None:
    """Each file runs, each kill loses nothing, and the planted mistake is noticed as the page says."""
    bank = shm_dir / "bank"
    bank.mkdir()
    environment = commands_in(shm_dir / "bin") | QUICK_PYTEST
    for section in parts_of_the_tutorial():
        assert follow(section, bank, environment) == []


def test_tutorial_kills_and_cuts_the_power() -> None:
    """The test above would pass for an empty page."""
    commands = [step.command for section in parts_of_the_tutorial() for step in steps_of(section)]
    assert commands.count("python kill.py") == 2
    assert sum("pytest" in command for command in commands) == 2
    assert "worker.kill()" in TUTORIAL.read_text()


@pytest.mark.slow
def test_what_to_do_with_a_corrupt_log_can_be_followed(shm_dir: Path) -> None:
    """The commands in docs/troubleshooting.md, on a log whose second line of three is damaged."""
    directory = shm_dir / "work"
    directory.mkdir()
    with open_small(directory / "app.wal") as wal:
        for line in (b"line 1", b"line 2", b"line 3"):
            wal.append(line)
    damage_record(directory / "app.wal", 2)
    section = read_section("troubleshooting.md", "Corrupt")
    assert len(steps_of(section)) >= 6
    assert follow(section, directory, commands_in(shm_dir / "bin")) == []


def test_check_of_a_walkthrough_notices_another_output(tmp_path: Path) -> None:
    """Negative control: another output, and another exit status."""
    lines = ["```console", "$ echo one", "two", "$ false", "$ exit 3   # exit status 3", "```"]
    problems = follow(Section("", 0, lines), tmp_path, commands_in(tmp_path / "bin"))
    assert [problem.splitlines()[0] for problem in problems] == ["line 2: echo one", "line 4: false"]
