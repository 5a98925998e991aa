"""``pmwal stat``: what a log's writer is doing, as its live page shows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pmwal
from commands import Cli, PastSeam, between_looks
from pmwal.format.layout import LIVE_OFFSET, LIVE_WRITER_OFFSET
from support import kill, open_small, overwrite


def make(path: Path, count: int = 20) -> Path:
    """A closed log of this many lines."""
    with open_small(path) as wal:
        wal.extend(b"line %d" % number for number in range(1, count + 1))
    return path


def test_stat_shows_what_a_writer_did_between_two_samples(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates count records, bytes of the ring and commits over the stated interval."""
    path = shm_dir / "log"
    with open_small(path, commit="manual") as wal:
        wal.extend([b"x"] * 3)
        wal.commit()

        def work() -> None:
            for _ in range(2):
                wal.extend([bytes(100)] * 4)
                wal.commit()
            wal.append(b"pending")

        between_looks(monkeypatch, work)
        facts = cli("stat", path, "--json").json
        assert facts["writer"] == {"pid": os.getpid(), "alive": True, "of_this_file": True}
        rates, bounds = facts["rates"], facts["bounds"]
        assert [round(rates[name] * rates["seconds"]) for name in ("records", "bytes", "commits")] == [9, 8 * 152 + 56, 2]
        assert (bounds["first_seq"], bounds["last_seq"], bounds["durable_seq"]) == (1, 12, 11)
        assert bounds["used_bytes"] == wal.stats().used
        assert facts["newest_store_at_commit_seconds"] >= 0
        between_looks(monkeypatch, lambda: None)
        text = cli("stat", path).text
        assert f"process {os.getpid()}, running" in text
        assert "1 to 12, 12 in all; 1 not durable yet" in text
        assert "0 records/s" in text


@pytest.mark.both_engines
def test_rates_do_not_depend_on_when_the_writer_commits(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records count as they are stored, so that a commit for many intervals gives none of them all the records."""
    path = shm_dir / "log"
    with open_small(path, commit="manual") as wal:
        wal.append(b"first")

        def store() -> None:
            wal.extend([b"x"] * 5)

        def commit() -> None:
            store()
            wal.commit()

        between_looks(monkeypatch, store, store, commit, store, wal.commit)
        samples = [json.loads(line) for line in cli("stat", path, "--watch", "0.5", "--json").lines]
    counts = [[round(sample["rates"][name] * sample["rates"]["seconds"]) for name in ("records", "bytes")] for sample in samples]
    assert counts == [[5, 5 * 56]] * 4 + [[0, 0]]


@pytest.mark.both_engines
def test_age_is_that_of_the_newest_store_at_the_last_commit(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later store does not change it, so that it is not called the age of the last store."""
    path = shm_dir / "log"
    with open_small(path, commit="manual") as wal:
        committed = wal.append(b"x")
        wal.commit()
        wal.append(b"later")
        between_looks(monkeypatch, lambda: None)
        facts = cli("stat", path, "--json").json
        stored_ns = facts["time_ns"] - facts["newest_store_at_commit_seconds"] * 1e9
        assert abs(stored_ns - wal[committed].time_ns) < 1e5
        between_looks(monkeypatch, lambda: None)
        assert "\nlast commit newest store " in cli("stat", path).text


@pytest.mark.parametrize("command", [("stat",), ("stat", "--json")])
def test_stat_writes_nothing_and_takes_no_lock(cli: Cli, shm_dir: Path, command: tuple[str, ...]) -> None:
    """Not even the word that announces a waiting reader is stored."""
    path = make(shm_dir / "log")
    before = path.read_bytes()
    with open_small(path):
        during = path.read_bytes()
        assert cli(*command, path).status == 0
        assert path.read_bytes() == during
    assert before != during


def test_writer_that_is_gone_has_no_rates(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed log, a killed writer and the writer of a copied file are each named, without rates."""
    path, copy = shm_dir / "log", shm_dir / "copy"
    with open_small(path) as wal:
        wal.append(b"x")
        shutil.copyfile(path, copy)
        assert "of the file that this is a copy of" in cli("stat", copy).text
        wal.append(b"y")
    assert cli("stat", path).lines[0].split() == ["writer", "none"]
    facts = cli("stat", path, "--json").json
    assert (facts["writer"], facts["rates"], facts["bounds"]["last_seq"]) == (None, None, 2)
    script = "import pmwal, os, sys; wal = pmwal.open(sys.argv[1]); wal.append(b'z'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    between_looks(monkeypatch)
    assert "gone without closing the log" in cli("stat", path).text


@pytest.mark.parametrize(
    ("committed", "stored", "said"),
    [
        (0, 5, "1 to 5, 5 in all; 5 not committed when the writer ended"),
        (2, 3, "1 to 5, 5 in all; 3 not committed"),
        (2, 0, "1 to 2, 2 in all\n"),
    ],
)
@pytest.mark.both_engines
def test_killed_writer_leaves_what_it_had_stored(
    committed: int, stored: int, said: str, cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that never committed. It is what a recovery keeps; after another boot only what was durable is sure."""
    path = shm_dir / "log"
    wal = open_small(path, seam=PastSeam(), commit="manual")
    wal.extend([b"x"] * committed)
    wal.commit()
    wal.extend([b"y"] * stored)
    kill(wal)
    between_looks(monkeypatch, *[lambda: None] * 3)
    text, bounds = cli("stat", path).text, cli("stat", path, "--json").json["bounds"]
    assert "gone without closing the log" in text
    assert f"records     {said}" in text
    assert (bounds["last_seq"], bounds["durable_seq"]) == (committed + stored, committed)
    assert pmwal.verify(path).records == committed + stored
    monkeypatch.setattr("pmwal.storage.seam._boot_id", lambda: bytes(16))
    assert cli("stat", path, "--json").json["bounds"]["last_seq"] == committed


def test_new_writer_between_two_samples_has_no_rates(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters of different epochs are not compared."""
    path = make(shm_dir / "log")
    wals = [open_small(path)]

    def again() -> None:
        wals[0].close()
        wals[0] = open_small(path)
        wals[0].append(b"x")

    between_looks(monkeypatch, again)
    facts = cli("stat", path, "--json").json
    wals[0].close()
    assert (facts["rates"], facts["bounds"]["last_seq"]) == (None, 21)


@pytest.mark.parametrize("page", [bytes(64), b"\xff" * 64, bytes(range(64))], ids=["zeros", "ones", "noise"])
def test_impossible_live_page_is_not_trusted(cli: Cli, shm_dir: Path, page: bytes) -> None:
    """After a power cut the live page may contain anything."""
    path = make(shm_dir / "log")
    overwrite(path, LIVE_OFFSET, page)
    overwrite(path, LIVE_WRITER_OFFSET, page)
    ran = cli("stat", path)
    assert (ran.status, ran.err) == (0, "")
    assert "the live page is not valid; see pmwal info" in ran.text
    assert cli("stat", "--json", path).json["bounds"] is None


def test_stat_of_another_file_is_status_3(cli: Cli, shm_dir: Path) -> None:
    """A file that is not a log has status 3, as for every command."""
    (shm_dir / "foreign").write_bytes(bytes(10000))
    assert cli("stat", shm_dir / "foreign").status == 3


def test_watch_on_a_pipe_prints_a_line_per_sample(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample is a line of text or a JSON object; Ctrl-C has status 130."""
    path = shm_dir / "log"
    with open_small(path) as wal:
        for arguments in ((), ("--json",)):
            between_looks(monkeypatch, *[lambda: wal.append(b"x")] * 3)
            ran = cli("stat", path, "--watch", *arguments)
            assert (ran.status, ran.err, len(ran.lines)) == (130, "", 3)
            if arguments:
                assert [json.loads(line)["bounds"]["last_seq"] for line in ran.lines] == [4, 5, 6]
            else:
                assert all("records/s" in line for line in ran.lines)


@pytest.mark.parametrize("gap", ["renamed", "truncated", "foreign"])
def test_watch_continues_with_the_next_log_of_the_name(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, gap: str) -> None:
    """A rotation leaves a gap in which the path leads to no log."""
    path, other = shm_dir / "log", shm_dir / "other"
    actions = {
        "renamed": lambda: path.rename(shm_dir / "log.1"),
        "truncated": lambda: os.truncate(path, 0),
        "foreign": lambda: path.write_bytes(bytes(10000)),
    }
    for arguments in ((), ("--json",)):
        make(path)
        make(other, 3)
        between_looks(monkeypatch, actions[gap], lambda: other.replace(path))
        ran = cli("stat", path, "--watch", *arguments)
        assert (ran.status, ran.err, len(ran.lines)) == (130, "", 2)
        if arguments:
            without, with_one = map(json.loads, ran.lines)
            assert (without["path"], without["bounds"], without["writer"]) == (str(path), None, None)
            assert without["error"]
            assert ("error" in with_one, with_one["bounds"]["last_seq"]) == (False, 3)
        else:
            assert "; no log: " in ran.lines[0]
            assert "records 1 to 3" in ran.lines[1]
        path.unlink()


def test_watch_of_no_log_is_status_3(cli: Cli, shm_dir: Path) -> None:
    """Only a gap is waited for: a wrong path is an error at once."""
    assert cli("stat", shm_dir / "none", "--watch").status == 3


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_watch_on_a_terminal_stays_in_place(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """The first page is drawn at once, each later one over the last; a dumb terminal gets lines."""
    path = shm_dir / "log"
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    with open_small(path) as wal:
        between_looks(monkeypatch, *[lambda: wal.append(b"x")] * 2)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        ran = cli("stat", path, "--watch")
    assert ran.status == 130
    if term == "dumb":
        assert (ran.out.count(b"\x1b"), len(ran.lines)) == (0, 2)
        return
    first, second, third = ran.text.split("\x1b[J")
    assert first.endswith("\x1b[6F")
    assert second.endswith("\x1b[8F")
    assert [page.count("\n") for page in (first, second, third)] == [6, 8, 8]
    assert max(map(len, third.splitlines())) <= 39


def test_watch_of_an_empty_log_says_so(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a writer and records a line has neither the word none nor a range that ends before it begins."""
    open_small(shm_dir / "log").close()
    between_looks(monkeypatch, lambda: None)
    (line,) = cli("stat", shm_dir / "log", "--watch").lines
    assert line.split("; ")[1:] == ["no writer", "no records", "fill 0.0%"]
    with open_small(shm_dir / "log") as wal:
        wal.append(b"x")
    between_looks(monkeypatch, lambda: None)
    (line,) = cli("stat", shm_dir / "log", "--watch").lines
    assert line.split("; ")[1:3] == ["no writer", "record 1, durable up to 1"]
