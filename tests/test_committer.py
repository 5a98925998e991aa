"""The background committer: commits in time, sleeps when there is nothing to do, and ends with its handle."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import warnings
from pathlib import Path

import pytest

import pmwal
from conftest import Place
from processes import elsewhere, run_script
from support import BarrierRecorder, fail_flush, open_small

pytestmark = pytest.mark.both_engines

SOON = 0.02
NEVER = 1000.0
PATIENCE = 300.0


def committers() -> list[threading.Thread]:
    """Their threads."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("pmwal-committer")]


def wait_for(wal: pmwal.Wal, seq: int) -> None:
    """Wait until the committer has made this number durable."""
    deadline = time.monotonic() + PATIENCE
    while wal.committed_seq < seq:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_records_become_durable_by_themselves(place: Place) -> None:
    """Repeatedly, each time after a pause."""
    with open_small(place.path, commit=SOON, **place.options) as wal:
        for _ in range(5):
            seq = wal.append(b"x")
            wait_for(wal, seq)
            time.sleep(SOON)
        assert wal.stats().commits == 5


def test_many_appends_share_a_commit(place: Place) -> None:
    """Appends within one interval share one; commit=True does not wait for it."""
    with open_small(place.path, commit=NEVER, **place.options) as wal:
        for _ in range(20):
            wal.append(b"x")
        assert (wal.committed_seq, wal.stats().commits) == (0, 0)
        assert wal.append(b"now", commit=True) == wal.committed_seq
        wal.append(b"y")
    with pmwal.open(place.path, "r") as reader:
        assert len(reader) == 22
    assert committers() == []


def test_idle_committer_does_not_wake_up(shm_dir: Path) -> None:
    """Not once: the kernel counts each time a thread gives up the processor."""
    with open_small(shm_dir / "log", commit=0.001) as wal:
        wait_for(wal, wal.append(b"x"))
        time.sleep(0.05)
        (thread,) = committers()
        status = Path(f"/proc/self/task/{thread.native_id}/status")

        def switches() -> list[str]:
            return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

        before = switches()
        time.sleep(0.2)
        assert switches() == before


def test_failed_commit_poisons_the_handle(shm_dir: Path) -> None:
    """The next call says what happened in the background."""
    seam = BarrierRecorder()
    wal = open_small(shm_dir / "log", seam=seam, medium="file", commit=SOON)
    wait_for(wal, wal.append(b"x"))
    seam.before = fail_flush(errno.ENOSPC)
    wal.append(b"y")
    (thread,) = committers()
    thread.join(PATIENCE)
    with pytest.raises(pmwal.PersistError) as caught:
        wal.append(b"z")
    assert (caught.value.errno, caught.value.committed_seq) == (errno.ENOSPC, 1)
    wal.close()


def test_dropped_handle_takes_its_committer_along(shm_dir: Path) -> None:
    """The thread does not keep the handle alive; nothing is committed, as for any dropped handle."""
    wal = open_small(shm_dir / "log", commit=NEVER)
    wal.append(b"x")
    (thread,) = committers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del wal
        gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    with open_small(shm_dir / "log") as wal:
        assert wal.recovery.outcome == "recovered"


def test_end_of_the_interpreter_commits_what_is_pending(shm_dir: Path) -> None:
    """A program that forgets close() loses nothing that a commit would have kept."""
    source = """
        import pmwal, sys
        wal = pmwal.open(sys.argv[1], size="64KiB", commit=1000)
        wal.append(b"x")
    """
    done = run_script(source, shm_dir / "log")
    assert done.returncode == 0, done.stderr
    with pmwal.open(shm_dir / "log", "r") as reader:
        assert [record.data for record in reader] == [b"x"]
        assert reader.recovery.kept_past_pointer == 0


def test_forked_child_has_no_committer(shm_dir: Path) -> None:
    """And ends without waiting for one, or committing for its parent."""
    with open_small(shm_dir / "log", commit=NEVER) as wal:
        wal.append(b"x")
        assert elsewhere(lambda: len(committers())) == 0
        pid = os.fork()
        if pid == 0:
            wal.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert wal.committed_seq == 0


@pytest.mark.parametrize("commit", [0, -1.0, float("nan"), float("inf"), True, None, "sometimes"])
def test_what_is_no_policy_is_refused(shm_dir: Path, commit: object) -> None:
    """Before anything is created."""
    error = TypeError if commit is True or commit is None else ValueError
    with pytest.raises(error, match="commit"):
        open_small(shm_dir / "log", commit=commit)
    assert not (shm_dir / "log").exists()
