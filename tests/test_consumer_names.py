"""Where the positions of consumers are: beside the log, by its name, which is moved, linked, lost, or leads to a new file of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmwal
from consuming import consume, position_file
from pmwal.errors import WalUnlinked
from support import open_small, payloads

pytestmark = pytest.mark.both_engines


@pytest.fixture
def wal(path: Path) -> Iterator[pmwal.Wal]:
    """A log with the records a to e."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d", b"e"])
        yield wal
    # closed by the block


@pytest.fixture
def reader(path: Path, wal: pmwal.Wal) -> Iterator[pmwal.Reader]:
    """A reader beside the writer."""
    with pmwal.open(path, "r") as reader:
        yield reader


def test_positions_move_with_the_log_if_their_directory_does(path: Path) -> None:
    """Renamed alone, the log has no consumers under its new name."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        consume(path, 1)
    new = path.with_name("new.wal")
    os.rename(path, new)
    assert consume(new, 1, name="other") == [b"a", b"b"]
    shutil.rmtree(f"{new}.consumers")
    os.rename(f"{path}.consumers", f"{new}.consumers")
    assert consume(new) == [b"b"]


def test_copy_takes_no_positions_along(path: Path, wal: pmwal.Wal) -> None:
    """Its consumers begin anew."""
    consume(path, 4)
    copy = path.with_name("copy.wal")
    shutil.copy(path, copy)
    assert consume(copy) == payloads(wal)


def test_symbolic_link_leads_to_the_same_positions(path: Path, wal: pmwal.Wal) -> None:
    """They lie beside the real path."""
    (path.parent / "sub").mkdir()
    link = path.parent / "sub" / "link.wal"
    link.symlink_to(path)
    consume(link, 4)
    assert sorted(os.listdir(link.parent)) == ["link.wal"]
    assert consume(path) == [b"e"]


def test_positions_stay_where_they_are_when_the_process_changes_its_directory(
    path: Path, wal: pmwal.Wal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it meant at open."""
    (path.parent / "sub").mkdir()
    monkeypatch.chdir(path.parent)
    with pmwal.open(path.name, "r") as reader:
        monkeypatch.chdir("sub")
        with reader.consumer("nats") as consumer:
            consumer.ack(4)
    assert os.listdir(".") == []
    monkeypatch.chdir(path.parent)
    with open_small("other.wal", consumers=["nats"]) as other:
        monkeypatch.chdir("sub")
        other.append(b"a")
        consume(path.parent / "other.wal", 1)
        assert other.truncate(consumed=True) == 2
    assert consume(path) == [b"e"]


def test_log_with_several_hard_links_is_refused(path: Path, wal: pmwal.Wal) -> None:
    """Consumers under one name would not be seen under the other."""
    os.link(path, path.with_name("second.wal"))
    with pytest.raises(ValueError, match=r"2 names \(hard links\).*use symbolic links"):
        consume(path)
    assert not position_file(path).parent.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_log_that_lost_its_name_has_no_consumers(path: Path, wal: pmwal.Wal, reader: pmwal.Reader, replaced: bool) -> None:
    """The position would lie beside nothing, or beside another log, and hold that back."""
    path.unlink()
    if replaced:
        pmwal.open(path, size="64KiB").close()
    with pytest.raises(WalUnlinked, match="open the path again"):
        reader.consumer("nats")
    assert not position_file(path).parent.exists()
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()
