"""Units of systemd and files of Compose in the documents: valid, and with commands that pmwal has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from documents import DOCUMENTS, IDS, read_blocks, read_sections
from nats_servers import binary
from test_docs_cli import refusal

yaml = pytest.importorskip("yaml")


def blocks(path: Path, language: str) -> Iterator[str]:
    """The code blocks of a document in this language."""
    for section in read_sections(path):
        yield from (block for _, block in read_blocks(section, language))


def units(path: Path) -> list[str]:
    """The units of systemd in a document."""
    return [block for block in blocks(path, "ini") if "[Service]\n" in block]


def timers(path: Path) -> list[str]:
    """The timers of systemd in a document."""
    return [block for block in blocks(path, "ini") if "[Timer]\n" in block]


def compositions(path: Path) -> list[dict[str, Any]]:
    """The files of Compose in a document."""
    found = [yaml.safe_load(block) for block in blocks(path, "yaml")]
    return [each for each in found if any("image" in service for service in each.get("services", {}).values())]


def verified(unit: str, directory: Path, timer: str | None = None) -> str:
    """What systemd-analyze says of a unit, or of its timer. Its programs are on another machine. Nothing if it is valid."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    file = directory / "example.service"
    file.write_text(re.sub(r"^(Exec\w+=)\S+", rf"\1{sys.executable}", unit, flags=re.MULTILINE))
    if timer is not None:
        file = directory / "example.timer"
        file.write_text(timer)
    ran = subprocess.run([program, "verify", str(file)], capture_output=True, text=True, check=False)
    return "".join(line for line in (ran.stdout + ran.stderr).splitlines(keepends=True) if file.name in line)


def taken_by_nats(options: list[str], directory: Path) -> bool:
    """Whether nats-server has these options; else it prints those that it has."""
    file = directory / "server.conf"
    file.write_text("debug: false\n")
    ran = subprocess.run([binary(), *options, "-t", "-c", str(file)], check=False, capture_output=True, text=True)
    return "is valid" in ran.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_units_in_documents_are_valid(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """systemd knows each of their keys, and pmwal each option of its commands."""
    for unit in units(path):
        assert verified(unit, tmp_path) == ""
        for line in re.findall(r"^Exec\w+=(.*)$", unit, re.MULTILINE):
            program, *arguments = shlex.split(line)
            if Path(program).name == "pmwal":
                assert refusal(arguments) is None, capsys.readouterr().err


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_timers_in_documents_are_valid(path: Path, tmp_path: Path) -> None:
    """Each is of a unit that ends, which comes before it."""
    for timer in timers(path):
        services = [unit for unit in units(path) if "Type=oneshot\n" in unit]
        assert services
        assert verified(services[0], tmp_path, timer) == ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_files_of_compose_in_documents_are_consistent(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each volume and each host of an address is in the file, pmwal has its commands, and nats-server takes its options."""
    for composition in compositions(path):
        services = composition["services"]
        for service in services.values():
            assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(composition["volumes"])
            command = service.get("command", [])
            assert set(re.findall(r"://([a-z]+):", " ".join(command))) <= set(services)
            if command[:1] == ["pmwal"]:
                assert refusal(command[1:]) is None, capsys.readouterr().err
            if service["image"].startswith("nats:"):
                assert taken_by_nats(command, tmp_path)


def test_mistakes_are_noticed(tmp_path: Path) -> None:
    """Negative control; and the guide of shipping has one of each."""
    assert not taken_by_nats(["--jetsream"], tmp_path)
    (unit,) = (unit for path in DOCUMENTS if path.name == "guide-shipping.md" for unit in units(path))
    assert "Unknown key 'Restarts'" in verified(unit.replace("Restart=", "Restarts="), tmp_path)
    (guide,) = (path for path in DOCUMENTS if path.name == "guide-archives.md")
    (timer,), (service,) = timers(guide), units(guide)
    assert "OnCalender" in verified(service, tmp_path, timer.replace("OnCalendar=", "OnCalender="))
    assert [len(compositions(path)) for path in DOCUMENTS if path.name == "guide-shipping.md"] == [1]
