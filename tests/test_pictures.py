"""The pictures of the README: a recorded session of the demo, and pmwal beside alternatives, as measured.md has them."""

from __future__ import annotations

import html
import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from documents import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from benchmark import alternatives, pages
from benchmark.report import Results, Table

pytest.importorskip("rich")

import record_demo

PICTURES = ROOT / "docs" / "pictures"
DRAWN = sorted(PICTURES.glob("*.svg"))
SCRIPT = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns, 'µs <ok>'); sys.exit({status})"


def texts(svg: str) -> list[str]:
    """The texts of a picture in order; a space that must not collapse is a space."""
    found = ["".join(each.itertext()) for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    return [text.replace("\xa0", " ").strip() for text in found]


def measured() -> Results:
    """The run on the page."""
    return pages.read(ROOT / "docs" / "measured.md")


# -- the demo


def test_session_is_recorded_in_a_terminal(tmp_path: Path) -> None:
    """The command sees a terminal of 80 columns, and what it prints is kept byte for byte."""
    cast = tmp_path / "demo.cast"
    assert record_demo.record([sys.executable, "-c", SCRIPT.format(status=0)], cast) == 0
    assert record_demo.shown(cast)[1] == "True 80 µs <ok>\n"
    assert texts(record_demo.picture(cast))[-1] == "True 80 µs <ok>"


def test_session_that_fails_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture stays as it was, and the recording shows what happened."""
    (tmp_path / "demo.svg").write_text("before")
    monkeypatch.setattr(record_demo, "COMMAND", (sys.executable, "-c", SCRIPT.format(status=3)))
    assert record_demo.main(["--directory", str(tmp_path)]) == 1
    assert "status 3" in capsys.readouterr().err
    assert (tmp_path / "demo.svg").read_text() == "before"
    assert "True 80" in (tmp_path / "demo.cast").read_text()


def test_picture_of_the_demo_is_the_recording_and_the_recording_proves_it() -> None:
    """Every line of the session, nothing else, and a verdict."""
    command, output = record_demo.shown(PICTURES / "demo.cast")
    assert command.startswith("pmwal demo")
    assert "\nPROVED: " in output
    said = re.sub(r"\s", "", "$" + command + output)
    title, *lines = texts((PICTURES / "demo.svg").read_text())
    assert title == command
    assert re.sub(r"\s", "", "".join(lines)) == said


# -- alternatives


def test_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Environment, titles, notes and cells, also with a bar or parentheses in them."""
    table = Table("Peers: a (b)", ["a", "b"], [["x|y", "1 (2)"], ["", "-"]], "tmpfs (rw): none")
    results = Results({"date": "2026-01-01", "flush on file": "msync", "processor": "Intel(R)"}, [table, table])
    page = tmp_path / "measured.md"
    page.write_text(pages.replaced("# A\n\n<!-- tables -->\n\n<!-- end -->\n", "tables", pages.tables_block(results)))
    assert pages.read(page) == results


def test_page_beside_others_has_the_figures_of_the_tables() -> None:
    """performance.md shows what measured.md has: nobody edits figures by hand."""
    block = alternatives.block(measured().tables, measured().environment)
    assert (
        f"<!-- alternatives, {pages.vendor(measured())} -->\n\n{block}\n\n{pages.END}" in (ROOT / "docs/performance.md").read_text()
    )


def test_picture_of_alternatives_has_the_figures_of_the_tables() -> None:
    """Each bar with its name and time, each panel with its title, and where it was measured."""
    shown = texts((PICTURES / "alternatives.svg").read_text())
    panels = alternatives.panels(measured().tables)
    assert len(panels) >= 3
    assert all(any(bar.ours for bar in panel.bars) and not all(bar.ours for bar in panel.bars) for panel in panels)
    for panel in panels:
        start = shown.index(panel.title)
        assert [text for bar in panel.bars for text in (bar.name, bar.shown)] == shown[start + 1 : start + 1 + 2 * len(panel.bars)]
    assert alternatives.where_text(measured().environment) in shown[-1]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_bars_start_at_zero_and_have_the_length_of_their_times() -> None:
    """So that the picture may be read without its figures; a quick run says that it is worthless."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    import matplotlib.pyplot as plot  # noqa: PLC0415

    rows = [["pmwal", "1 µs"], ["plain file", "500 ns"], ["lmdb", "2 ms"]]
    table = Table("Peers: durable append, 128 B", ["peer", "p50"], rows, "disk")
    environment = {"date": "d", "processor": "p", "kernel": "Linux 6", "python": "3", "run": "quick: not for figures"}
    (panel,) = alternatives.panels([table])
    assert [bar.nanoseconds for bar in panel.bars] == [500, 1000, 2_000_000]
    svg = alternatives.svg(plot, [table], environment)
    assert "worthless" in texts(svg)[-1]
    bars = re.findall(
        rf'd="M ([\d.]+) [^L]*L ([\d.]+) [^"]*z\s*"[^>]*style="fill: (?:{alternatives.OURS}|{alternatives.OTHERS})', svg
    )
    starts, ends = {float(start) for start, _ in bars}, [float(end) for _, end in bars]
    assert len(starts) == 1
    (zero,) = starts
    assert (ends[1] - zero) / (ends[2] - zero) == pytest.approx(1000 / 2e6, rel=0.05)


# -- all pictures


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_picture_loads_nothing(path: Path) -> None:
    """Pages that show it forbid that, and a reader of a checkout may have no network."""
    text = html.unescape(path.read_text())
    links = re.findall(r"(?:href|src)=\"([^#\"][^\"]*)\"|url\((?!\"?#)([^)]*)\)|@(import|font-face)", text)
    assert links == []


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_picture_has_a_background_of_its_own(path: Path) -> None:
    """The page below may be light or dark whatever the reader's system is."""
    first = next(
        each
        for each in ET.fromstring(path.read_text()).iter()
        if each.tag.endswith(("}rect", "}path")) and "fill" in str(each.attrib)
    )
    assert re.search(r"#[0-9a-f]{6}", str(first.attrib))


def test_every_picture_is_shown_somewhere() -> None:
    """None is left over."""
    shown = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    assert [
        path.name for path in PICTURES.iterdir() if path.suffix in (".svg", ".png") and f"pictures/{path.name}" not in shown
    ] == []
