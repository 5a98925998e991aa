"""The example of a queue when its producer rolls back jobs that were taken: no new job is taken for one that was discarded."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobqueue import WINDOW, Worker, producer

import pmwal
from pmwal.cli import main

pytestmark = pytest.mark.both_engines


def came(directory: Path) -> list[tuple[int, bytes, int]]:
    """All that a new worker gets, and acknowledges."""
    found = []
    with Worker(directory, delay=0) as worker:
        while jobs := worker.take(WINDOW, timeout=0):
            found += [(job.number, job.data, job.attempt) for job in jobs]
            worker.ack(*jobs)
    return found


def put(directory: Path, count: int, shares: int = 1) -> pmwal.Wal:
    jobs = producer(directory, shares, size="64KiB")
    jobs.extend([b"old %d" % number for number in range(1, count + 1)])
    return jobs


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("after", range(6))
def test_new_job_is_not_the_one_that_had_its_number(shm_dir: Path, after: int, is_done: bool) -> None:
    """Whether that was taken only, or done out of order. Those before it come too: which of them were done is not known."""
    with put(shm_dir, 6) as jobs:
        with Worker(shm_dir) as worker:
            taken = worker.take(6)
            if is_done:
                worker.ack(*taken[3:])
        jobs.rollback(after=after)
        jobs.extend([b"new %d" % number for number in range(after + 1, 9)])
        expected = [(number, b"%s %d" % (b"old" if number <= after else b"new", number), 1) for number in range(1, 9)]
        assert came(shm_dir) == expected
        assert came(shm_dir) == []
        assert jobs.truncate(consumed=True) == 9


def test_rollback_of_jobs_that_no_worker_has_seen_changes_nothing(shm_dir: Path) -> None:
    """What was done out of order stays done, also beside the worker."""
    with put(shm_dir, 4) as jobs:
        with Worker(shm_dir) as worker:
            one, *others = worker.take(4)
            worker.ack(*others[1:])
            jobs.append(b"mistake")
            jobs.rollback(after=4)
            jobs.append(b"new 5")
            assert [job.data for job in worker.take()] == [b"new 5"]
        assert came(shm_dir) == [(1, b"old 1", 2), (2, b"old 2", 2), (5, b"new 5", 2)]
    assert one.number == 1


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_worker_whose_jobs_were_rolled_back_says_so(shm_dir: Path, count: int) -> None:
    """However many new ones there are; the next worker gets them."""
    with put(shm_dir, 4) as jobs:
        with Worker(shm_dir) as worker:
            worker.take(4)
            jobs.rollback(after=2)
            new = [b"new %d" % number for number in range(3, 3 + count)]
            jobs.extend(new)
            for _ in range(2):
                with pytest.raises(pmwal.Overrun):
                    worker.take(timeout=0)
        assert [data for _, data, _ in came(shm_dir)] == [b"old 1", b"old 2", *new]


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_acknowledgement_of_a_job_that_was_rolled_back_is_not_of_the_new_one(shm_dir: Path, looks: int) -> None:
    """Where it would move the position there, whether or not the worker has met the new one."""
    with put(shm_dir, 6) as jobs:
        with Worker(shm_dir) as worker:
            taken = worker.take(6)
            worker.ack(taken[3])
            jobs.rollback(after=3)
            jobs.extend([b"new 4", b"new 5", b"new 6"])
            for _ in range(looks):
                with pytest.raises(pmwal.Overrun):
                    worker.take(timeout=0)
            with pytest.raises(pmwal.Overrun, match="record 4 is"):
                worker.ack(*taken[:3])
            worker.ack(*taken[:2])  # which does not move it there
        assert came(shm_dir) == [(3, b"old 3", 1), (4, b"new 4", 1), (5, b"new 5", 1), (6, b"new 6", 1)]


def test_position_whose_job_was_rolled_back_stops_the_share_until_it_is_set(shm_dir: Path) -> None:
    """All jobs that there are come again then."""
    with put(shm_dir, 4) as jobs:
        with Worker(shm_dir) as worker:
            worker.ack(*worker.take(4))
        jobs.rollback(after=3)
        jobs.append(b"new 4")
        for _ in range(2):
            with Worker(shm_dir) as worker, pytest.raises(pmwal.Overrun, match="continue with seek"):
                worker.take(timeout=0)
        assert main(["consumers", str(shm_dir / "jobs.wal"), "--set", "share-0=oldest"]) == 0
        assert came(shm_dir) == [(1, b"old 1", 1), (2, b"old 2", 1), (3, b"old 3", 1), (4, b"new 4", 1)]


def test_rollback_after_a_restart_is_noticed_before_a_job_is_passed_over(shm_dir: Path) -> None:
    """The earlier worker has done it, and this one has not come to it yet."""
    with put(shm_dir, 6) as jobs:
        with Worker(shm_dir) as worker:
            taken = worker.take(6)
            worker.ack(taken[3], taken[4], taken[5])
        with Worker(shm_dir) as worker:
            jobs.rollback(after=3)
            jobs.extend([b"new 4", b"new 5", b"new 6"])
            data = [job.data for job in worker.take(9)]
            assert data == [b"old 1", b"old 2", b"old 3", b"new 4", b"new 5", b"new 6"]


@pytest.mark.parametrize("shares", [2, 3])
def test_shares_do_not_take_new_jobs_for_old_ones(shm_dir: Path, shares: int) -> None:
    """Each names its own newest job."""
    with put(shm_dir, 12, shares) as jobs:
        workers = [Worker(shm_dir) for _ in range(shares)]
        for worker in workers:
            taken = worker.take(9)
            worker.ack(*taken[1:])
        for worker in workers:
            worker.close()
        jobs.rollback(after=6)
        jobs.extend([b"new %d" % number for number in range(7, 13)])
        workers = [Worker(shm_dir) for _ in range(shares)]
        found = {job.number: job.data for worker in workers for job in worker.take(12)}
        for worker in workers:
            worker.close()
    assert {number: found[number] for number in range(7, 13)} == {number: b"new %d" % number for number in range(7, 13)}


def test_position_that_is_moved_by_hand_keeps_no_job_for_done(shm_dir: Path) -> None:
    """The bytes were those of the jobs after the old position."""
    with put(shm_dir, 6):
        with Worker(shm_dir) as worker:
            taken = worker.take(6)
            worker.ack(*taken[:3], taken[4])
        with pmwal.open(shm_dir / "jobs.wal", "r") as reader, reader.consumer("share-0") as consumer:
            consumer.seek("oldest")
        assert [number for number, _, _ in came(shm_dir)] == [1, 2, 3, 4, 5, 6]
