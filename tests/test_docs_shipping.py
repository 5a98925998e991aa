"""docs/guide-shipping.md as its reader follows it: files, commands and configuration, against servers of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Cli, make_log
from documents import ROOT, Section, read_blocks, read_section, read_sections
from marks import first_fast
from nats_servers import nats_server
from pmwal.ship import relay
from shipped_streams import make_stream
from walkthroughs import commands_in, follow, steps_of

GUIDE = "guide-shipping.md"
PASSWORDS = {"SHIP_PASSWORD": "ship-secret", "RESTORE_PASSWORD": "restore-secret", "ADMIN_PASSWORD": "admin-secret"}


def followed() -> list[Section]:
    """The sections with commands to type, in order."""
    return [section for section in read_sections(ROOT / "docs" / GUIDE) if steps_of(section)]


def configuration() -> str:
    """The server's configuration of the guide, with passwords for the variables; a test's server has a JetStream of its own."""
    (text,) = (block for _, block in read_blocks(read_section(GUIDE, "Permissions"), "text"))
    for name, password in PASSWORDS.items():
        text = text.replace(f"${name}", password)
    return text.replace("jetstream: enabled\n", "")


def environment(directory: Path, url: str) -> dict[str, str]:
    """Commands that are those of this process, and the variables that the guide uses."""
    return commands_in(directory) | {"NATS_URL": url} | PASSWORDS


@pytest.mark.slow
def test_ship_restore_and_disaster_recovery_can_be_followed(shm_dir: Path) -> None:
    """Each step of the guide, from an empty server to a log that was restored and is shipped again."""
    work = shm_dir / "work"
    work.mkdir()
    with nats_server(shm_dir / "nats") as server:
        variables = environment(shm_dir / "bin", server.url)
        for title in ("Ship, and restore", "One record a message", "When the machine is lost"):
            assert follow(read_section(GUIDE, title), work, variables) == []


@pytest.mark.slow
def test_permissions_of_the_guide_are_enough(shm_dir: Path) -> None:
    """A server with the configuration of the guide: each user can do what it is for; the one for restoring cannot ship."""
    work = shm_dir / "work"
    work.mkdir()
    with nats_server(shm_dir / "nats", more=configuration()) as server:
        variables = environment(shm_dir / "bin", server.url)
        admin = server.url.replace("nats://", f"nats://admin:{PASSWORDS['ADMIN_PASSWORD']}@")
        before = read_section(GUIDE, "Ship, and restore")
        assert follow(before, work, variables | {"NATS_URL": admin}) == []
        assert follow(read_section(GUIDE, "Permissions"), work, variables) == []


@pytest.mark.parametrize("missing", first_fast(["pmwal.>", "$JS.API.STREAM.INFO.LOGS", "$JS.API.STREAM.MSG.GET.LOGS"]))
def test_permissions_of_the_guide_are_no_more_than_needed(
    cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Negative control: without one of them the shipper cannot ship."""
    monkeypatch.setattr(relay, "_PATIENCE", 0.5)
    monkeypatch.setenv("NATS_PASSWORD", PASSWORDS["SHIP_PASSWORD"])
    log = make_log(shm_dir / "a.wal")
    allowed = configuration().replace(f'"{missing}"', '"none"', 1)
    assert allowed != configuration()
    for more, status in ((allowed, 1), (configuration(), 0)):
        with nats_server(shm_dir / f"nats{status}", more=more) as server:
            make_stream(server, login={"user": "admin", "password": PASSWORDS["ADMIN_PASSWORD"]})
            assert cli("ship", log, "--to", server.url, "--stream", "LOGS", "--user", "ship", "--once").status == status


def test_every_command_of_the_guide_is_followed() -> None:
    """No section with commands is left out above."""
    assert {section.title for section in followed()} == {
        "Ship, and restore",
        "One record a message",
        "Permissions",
        "When the machine is lost",
    }
    assert sum("pmwal restore" in step.command for section in followed() for step in steps_of(section)) == 3
