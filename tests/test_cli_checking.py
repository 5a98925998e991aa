"""``pmwal info``, ``verify`` and ``repair`` on logs that are whole, torn or corrupt, and on other files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import pmwal
from commands import (
    MAKERS,
    VERIFY_STATUS,
    Cli,
    Ran,
    damage_record,
    make_log,
    make_no_superblock,
    make_slotless,
    make_torn,
    make_torn_slot,
)
from pmwal.format.layout import LIVE_WRITER_OFFSET, SECTOR
from pmwal.storage.mapping import Mapping
from support import file_offset, flip, kill, open_small, overwrite, place_of, superblock
from surgery import newest_slot


@pytest.mark.parametrize("kind", MAKERS)
def test_verify_status_is_the_verdict(cli: Cli, shm_dir: Path, kind: str) -> None:
    """Clean is 0, torn 1, corrupt 2, not a log 3; JSON says the same; ``-q`` prints nothing; no file is written to."""
    path = MAKERS[kind](shm_dir / "a.wal")
    before = path.read_bytes() if path.exists() else b""
    expected = VERIFY_STATUS.get(kind, 3)
    assert cli("verify", path).status == expected
    assert cli("verify", "-q", path) == Ran(expected, b"", "")
    value = cli("verify", "--json", path).json
    assert (value["status"], value["path"], "error" in value) == (expected, str(path), expected == 3)
    assert (path.read_bytes() if path.exists() else b"") == before


def test_verify_of_several_files_ends_with_the_worst_status(cli: Cli, shm_dir: Path) -> None:
    """Each file has a line of its own, and the status is the worst of all."""
    paths = [MAKERS[kind](shm_dir / kind) for kind in ("clean", "corrupt", "torn")]
    ran = cli("verify", *paths)
    assert ran.status == 2
    for line, path in zip(ran.lines, paths, strict=True):
        assert line.startswith(f"{path}: ")
    assert [json.loads(line)["status"] for line in cli("verify", "--json", *paths).lines] == [0, 2, 1]


def test_verify_names_numbers_offsets_and_reason(cli: Cli, shm_dir: Path) -> None:
    """The output locates the damage in the file, both for corruption and for a torn tail."""
    corrupt, torn = damage_record(make_log(shm_dir / "c.wal"), 4), make_torn(shm_dir / "t.wal")
    offset = file_offset(superblock(corrupt), 3 * 56)
    words = cli("verify", corrupt).text
    assert "CORRUPT: number 4 is not whole" in words
    assert f"record 4 lost; file offsets {offset} to {offset + 56}; 3 records, 1 to 3 whole before it [R4" in words
    offset = file_offset(superblock(torn), 9 * 56)
    assert f"1 unfinished record (56 B) dropped from number 10 on, file offset {offset}" in cli("verify", torn).text


def test_unfinished_end_beside_a_running_writer_is_not_torn(cli: Cli, shm_dir: Path) -> None:
    """A log in use has status 0 although its newest record is not committed yet: only what is durable is judged."""
    path = shm_dir / "a.wal"
    with open_small(path, ordering="strict") as wal:
        wal.append(b"committed")
        wal.append(b"not yet", commit=False)
        block = wal._engine.block
        flip(path, file_offset(block, wal._engine.state.durable.position) + 50)
        ran = cli("verify", path)
        report = pmwal.verify(path)
        assert (report.live, report.last_seq, report.dropped_records) == (True, 1, 0)
        assert ran.status == 0
        assert f"in use by process {os.getpid()}, sound so far: 1 record, 1 durable [R2" in ran.text
        assert "in use, sound so far: 1 record, 1 durable and judged" in cli("info", path).text
        info = cli("info", "--json", path).json
        assert info["writer"]["pid"] == os.getpid()
        assert info["writer"]["alive"]


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "missing"])
def test_info_works_on_any_file_and_never_writes(cli: Cli, shm_dir: Path, kind: str) -> None:
    """Every file is described and has a verdict; the status is 2 if it is corrupt, 3 if it cannot be opened as a log."""
    path = MAKERS[kind](shm_dir / "a.wal")
    before = path.read_bytes()
    expected = {2: 2, 3: 3}.get(VERIFY_STATUS.get(kind, 3), 0)
    ran = cli("info", path)
    assert (ran.status, ran.err) == (expected, "")
    assert ran.lines[0].startswith("file")
    assert ran.lines[-1].startswith("verdict")
    value = cli("info", "--json", path).json
    assert value["status"] == expected
    assert value["superblocks"][0] == {"one-superblock": "damaged", "no-superblock": "damaged", "foreign": "not found"}.get(
        kind, "whole"
    )
    assert path.read_bytes() == before


def test_info_tells_a_log_with_two_damaged_superblocks_by_its_slots(cli: Cli, shm_dir: Path) -> None:
    """Slots that validate with the uuid in a damaged superblock identify the log."""
    ran = cli("info", make_no_superblock(shm_dir / "a.wal"))
    assert ran.status == 3
    assert "copy 0 damaged, copy 1 damaged" in ran.text
    assert "by 2048 whole commit slots" in ran.text
    assert "CANNOT BE OPENED: both superblocks are damaged" in ran.text


def test_info_locates_the_lost_slot_and_names_the_dead_writer(cli: Cli, shm_dir: Path) -> None:
    """The output locates the lost slot and says that the writer did not close the log."""
    path = make_torn_slot(shm_dir / "a.wal")
    value = cli("info", "--json", path).json
    newest = value["slots"]["newest"]["generation"]
    assert value["slots"]["lost_offsets"] == [place_of(path, newest + 1)]
    text = cli("info", path).text
    assert "1 of 128 lost: slot" in text
    assert "gone without closing the log" in text


def test_copy_of_a_log_in_use_has_no_writer(cli: Cli, shm_dir: Path) -> None:
    """A copy names the writer of the original, but has no writer itself."""
    path, copy = shm_dir / "a.wal", shm_dir / "copy.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"x")
        shutil.copyfile(path, copy)
        assert cli("info", "--json", path).json["writer"]["alive"]
        assert not cli("info", "--json", copy).json["writer"]["alive"]
        assert "of the file that this is a copy of" in cli("info", copy).text
        assert cli("verify", copy).text.startswith(f"{copy}: not closed, nothing torn: 1 record, 1")


def test_words_of_the_format_are_for_those_who_ask(cli: Cli, shm_dir: Path) -> None:
    """What an unclean end means is said in words that a user knows; --verbose adds those of the format."""
    path = shm_dir / "a.wal"
    wal = pmwal.open(path, size="64KiB", medium="file", ordering="pipelined", commit="manual")
    wal.extend([b"a", b"b"])
    kill(wal)
    plain, verbose = cli("verify", path), cli("verify", "--verbose", path)
    assert plain.text.startswith(
        f"{path}: not closed, nothing torn: 2 records, 1 to 2; if the last records were damaged, it would look like this, too ["
    )
    assert "2 records, 1 to 2, 2 of them past the commit pointer and every durable mark; " in verbose.text
    assert "would look like this, too: a torn tail, at most back to the newest slot [" in verbose.text
    assert (plain.status, plain.err) == (verbose.status, verbose.err) == (0, "")


@pytest.mark.parametrize("page", [b"\xff" * 64, b"no live page, but some of a text " * 2], ids=["ones", "text"])
def test_info_takes_no_writer_from_a_damaged_live_page(cli: Cli, shm_dir: Path, page: bytes) -> None:
    """Garbage was taken for the id of a process, of the file that this one is a copy of."""
    path = make_log(shm_dir / "a.wal")
    assert cli("info", "--json", path).json["live_page_valid"]
    overwrite(path, LIVE_WRITER_OFFSET, page[:64])
    value = cli("info", "--json", path).json
    assert (value["writer"], value["live_page_valid"], value["status"]) == (None, False, 0)
    assert "the live page is not valid" in cli("info", path).text


def test_lost_numbers_are_the_least(cli: Cli, shm_dir: Path) -> None:
    """A ring of zeros: the pointer names record 9, and nothing names the ones that a pipelined log had acknowledged after it."""
    path = shm_dir / "a.wal"
    wal = open_small(path, ordering="pipelined")
    wal.extend([b"x"] * 9)
    wal.commit()
    wal.append(b"acknowledged")
    kill(wal)
    block = superblock(path)
    overwrite(path, block.ring_offset, bytes(block.capacity))
    assert "at least records 1 to 9 lost" in cli("verify", path).text
    assert "at least records 1 to 9 lost" in cli("cat", path).err
    assert "lost: at least records 1 to 9" in cli("repair", path).text


def test_error_of_a_shortened_file_has_its_path(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is shortened after it was opened."""
    path = make_log(shm_dir / "a.wal")
    load = Mapping.load

    def shortened(self: Mapping, offset: int, length: int) -> bytes:
        os.truncate(path, 0)
        return load(self, offset, length)

    monkeypatch.setattr(Mapping, "load", shortened)
    ran = cli("cat", path)
    assert (ran.status, ran.err) == (3, f"pmwal: {path}: the file was shortened to 0 bytes while it was mapped\n")


def test_salvage_is_imported_into_a_new_log(cli: Cli, shm_dir: Path) -> None:
    """As the help of repair shows: records after the damage get new numbers, and keep kind, time and payload."""
    path, other = damage_record(make_log(shm_dir / "a.wal"), 4), shm_dir / "b.wal"
    ran = cli("cat", "--salvage", "-o", "json", path)
    assert ran.status == 2
    assert cli("import", other, stdin=ran.out).status == 0
    with pmwal.open(path, "r", recover="salvage") as damaged, pmwal.open(other, "r") as salvaged:
        assert [(record.kind, record.data) for record in damaged] == [(record.kind, record.data) for record in salvaged]
        assert len(salvaged) == 9


@pytest.mark.parametrize("command", ["info", "verify", "cat"])
def test_fifo_is_refused_and_not_waited_for(cli: Cli, shm_dir: Path, command: str) -> None:
    """A FIFO is refused at once: a blocking open would wait for a writer."""
    os.mkfifo(shm_dir / "fifo")
    assert cli(command, shm_dir / "fifo").status == 3


def test_dry_run_changes_nothing_and_repair_makes_the_log_usable(cli: Cli, shm_dir: Path) -> None:
    """``--dry-run`` reports what would be lost; a repair keeps the original and leaves a clean log."""
    path = damage_record(make_log(shm_dir / "a.wal"), 4)
    before = path.read_bytes()
    rehearsed = cli("repair", "--dry-run", path)
    assert rehearsed.status == 1
    assert "lost: at least records 4 to 10" in rehearsed.text
    assert "nothing was changed" in rehearsed.text
    assert (path.read_bytes(), os.listdir(shm_dir)) == (before, ["a.wal"])
    value = cli("repair", "--json", path).json
    assert (value["kept_records"], value["lost_first_seq"], value["lost_last_seq"]) == (3, 4, 10)
    assert Path(value["backup"]).read_bytes() == before
    assert cli("verify", path).status == 0
    again = cli("repair", path)
    assert (again.status, "nothing to repair" in again.text) == (0, True)


@pytest.mark.parametrize("kind", ["slotless", "one-superblock", "damaged", "newest slot lost"])
def test_repair_says_what_it_did_and_a_dry_run_what_it_would_do(cli: Cli, shm_dir: Path, kind: str) -> None:
    """The same steps in the same order, once in the past. Only where records are left out are some "only" kept."""
    path = shm_dir / "a.wal"
    if kind == "damaged":
        damage_record(make_log(path), 4)
    elif kind == "newest slot lost":
        make_log(path)
        overwrite(path, place_of(path, newest_slot(path).generation + 40) // SECTOR * SECTOR, bytes(SECTOR))
    else:
        MAKERS[kind](path)
    would = [line.strip() for line in cli("repair", "--dry-run", path).lines if line.startswith("  would ")]
    done = cli("repair", path)
    verbs = {"keep": "kept", "rebuild": "rebuilt", "rewrite": "rewrote", "use": "used", "write": "wrote"}
    steps = [line.split(" ", 2)[1:] for line in would if not line.startswith("would be ")]
    assert steps
    assert [f"{verbs[verb]} {rest}" for verb, rest in steps] == [line.strip() for line in done.lines[1 : 1 + len(steps)]]
    assert ("  kept only 3 records, 1 to 3" in done.lines) == (kind == "damaged")
    assert ("  kept all 10 records, 1 to 10" in done.lines) == (kind in ("slotless", "newest slot lost"))


def test_repair_and_salvage_say_whether_a_slot_vouches_for_the_records(cli: Cli, shm_dir: Path) -> None:
    """Without a slot the kept records are in doubt. With the newest one whole they are not, however many others are lost."""
    path = make_slotless(shm_dir / "a.wal")
    assert "rolled back or truncated records may be among these" in cli("cat", "--salvage", path).err
    repaired = cli("repair", path)
    assert "10 of the kept records may have been truncated or rolled back before: no commit slot says" in repaired.text
    path = make_log(shm_dir / "b.wal")
    sector = place_of(path, newest_slot(path).generation + 40) // SECTOR * SECTOR
    overwrite(path, sector, bytes(SECTOR))
    ran = cli("cat", "--salvage", path)
    assert (ran.status, len(ran.lines), len(ran.err.splitlines())) == (2, 10, 1)
    assert "may be among these" not in ran.err
    value = cli("repair", "--json", path).json
    assert (value["before"]["case"], value["kept_records"], value["doubtful_records"]) == ("R9b", 10, 0)
    assert any("use the commit slot of generation" in action for action in value["actions"])


@pytest.mark.parametrize(("kind", "status"), [("slotless", 0), ("one-superblock", 0), ("no-superblock", 3), ("foreign", 3)])
def test_repair_status_says_whether_anything_was_lost(cli: Cli, shm_dir: Path, kind: str, status: int) -> None:
    """The status is 0 if all records are kept, 3 if the log cannot be rebuilt."""
    path = MAKERS[kind](shm_dir / "a.wal")
    assert cli("repair", path).status == status
    assert cli("verify", path).status == (3 if status else 0)
