"""tools/shipping_load.py: what shipping costs both sides, as docs/guide-shipping.md has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from documents import ROOT, read_section, read_table
from nats_servers import binary

sys.path.insert(0, str(ROOT / "tools"))

import shipping_load


def test_a_load_is_measured_on_both_sides(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each load, and nothing that was started is left."""
    binary()
    monkeypatch.setattr(shipping_load, "_CALM", 0.0)
    assert shipping_load.main(["--load", "2", "50", "0.01", "--seconds", "0.2", "--path", str(shm_dir)]) == 0
    *_, headings, line, row = capsys.readouterr().out.splitlines()
    assert headings.count("|") == line.count("|") == row.count("|") == len(shipping_load.HEADINGS) + 1
    assert row.startswith("| 2 | 50 | 0.01 s | ")
    assert row.endswith(" MiB |")
    assert list(shm_dir.iterdir()) == []


def test_loads_of_the_guide_are_those_of_the_tool() -> None:
    """In its order, with its columns."""
    section = read_section("guide-shipping.md", "What it costs")
    assert f"| {' | '.join(shipping_load.HEADINGS)} |" in section.lines
    rows = read_table(section, "logs")
    assert [row[:3] for row in rows] == [[str(logs), str(rate), f"{linger:g} s"] for logs, rate, linger in shipping_load.LOADS]
