"""The example of a queue: jobs are done at least once, in whatever order they are acknowledged, and are retried or buried."""

from __future__ import annotations

import contextlib
import doctest
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobqueue
import pytest
from jobqueue import WINDOW, Job, Worker, producer, revive

import pmwal
from pmwal.format.layout import HEADER

pytestmark = pytest.mark.both_engines

PATIENT = 60.0
"""Seconds for what happens at once, also on a busy machine."""


def put(directory: Path, count: int, shares: int = 1) -> None:
    with producer(directory, shares, size="64KiB") as jobs:
        jobs.extend([b"job %d" % number for number in range(1, count + 1)])


@contextlib.contextmanager
def worker_of(directory: Path, share: int) -> Iterator[Worker]:
    """The worker that has this share, while others have those before it."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(directory)) for _ in range(share + 1)]
        yield workers[share]


def taken(worker: Worker, most: int = WINDOW) -> list[tuple[int, int]]:
    """Number and attempt of all jobs that there are."""
    return [(job.number, job.attempt) for job in worker.take(most, timeout=0)]


def buried(directory: Path, share: int = 0) -> list[tuple[int, bytes, int]]:
    with pmwal.open(directory / f"dead-{share}.wal", "r") as reader:
        return [(int.from_bytes(record.data[:8], "big"), record.data[8:], record.kind) for record in reader]


def test_docstring_of_the_example_runs(shm_dir: Path) -> None:
    """The example gives the output that its docstrings show."""
    assert doctest.testmod(jobqueue, extraglobs={"directory": shm_dir}).failed == 0


def test_jobs_are_taken_in_order_and_once(shm_dir: Path) -> None:
    """Put one by one and many at once."""
    with producer(shm_dir, size="64KiB") as jobs, Worker(shm_dir) as worker:
        assert worker.take(timeout=0) == []
        assert jobs.append(b"a") == 1
        assert jobs.extend([b"b", b"c"]) == (2, 3)
        assert [job.data for _ in range(3) for job in worker.take(timeout=0)] == [b"a", b"b", b"c"]
        assert worker.take(timeout=0) == []


@pytest.mark.parametrize("done", [(), (1,), (2,), (3, 1), (5, 4, 3, 2), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_acknowledged_in_any_order_does_not_come_again(shm_dir: Path, done: tuple[int, ...], at_once: bool) -> None:
    """All else does, and counts its attempts."""
    put(shm_dir, 5)
    with Worker(shm_dir) as worker:
        jobs = {job.number: job for job in worker.take(5)}
        if at_once:
            worker.ack(*[jobs[number] for number in done], durable=True)
        else:
            for number in done:
                worker.ack(jobs[number])
    with Worker(shm_dir) as worker:
        assert taken(worker) == [(number, 2) for number in range(1, 6) if number not in done]


@pytest.mark.parametrize(("count", "shares"), [(4, 1), (100, 1), (100, 3)])
def test_jobs_that_were_done_before_a_restart_do_not_come_again(shm_dir: Path, count: int, shares: int) -> None:
    """Not when the oldest job is done before they are seen, and the attempts of later jobs are their own."""
    put(shm_dir, count, shares)
    with Worker(shm_dir) as worker:
        first, *others = worker.take(3)
        worker.ack(*others, durable=True)
    with Worker(shm_dir) as worker:
        came = []
        while jobs := worker.take(timeout=0):
            came += [(job.number, job.attempt) for job in jobs]
            worker.ack(*jobs)
    done = {job.number for job in others}
    assert came == [(n, 2 if n == first.number else 1) for n in range(shares, count + 1, shares) if n not in done]


def test_acknowledged_jobs_are_freed_up_to_the_oldest_open_one(shm_dir: Path) -> None:
    """The position is the last job before which all are done."""
    with producer(shm_dir, size="64KiB") as jobs, Worker(shm_dir) as worker:
        jobs.extend([b"a", b"b", b"c"])
        first, second, third = worker.take(3)
        worker.ack(first, third)
        assert jobs.truncate(consumed=True) == 2
        worker.ack(second)
        assert jobs.truncate(consumed=True) == 4


def test_second_acknowledgement_is_refused(shm_dir: Path) -> None:
    """Of a job that is done, or was retried; also when nothing before it is done."""
    put(shm_dir, 3)
    with Worker(shm_dir) as worker:
        first, second, third = worker.take(3)
        worker.ack(second)
        worker.retry(third)
        for job in (second, third):
            with pytest.raises(ValueError, match="this one was before"):
                worker.ack(job)
        worker.ack(first)
        with pytest.raises(ValueError, match="this one was before"):
            worker.ack(first)


def test_window_bounds_what_is_handed_out(shm_dir: Path) -> None:
    """A job has a byte of the position. There is room again when the oldest one is done."""
    put(shm_dir, WINDOW + 10)
    with Worker(shm_dir) as worker:
        jobs = worker.take(WINDOW + 10)
        assert len(jobs) == WINDOW
        worker.ack(*jobs[1:])
        assert worker.take(timeout=0) == []
        worker.ack(jobs[0])
        assert [job.number for job in worker.take(WINDOW)] == list(range(WINDOW + 1, WINDOW + 11))


def test_worker_that_waits_for_room_gets_it(shm_dir: Path) -> None:
    """From another thread, which acknowledges."""
    put(shm_dir, WINDOW + 1)
    with Worker(shm_dir) as worker:
        jobs = worker.take(WINDOW)
        thread = threading.Timer(0.01, worker.ack, jobs)
        thread.start()
        assert [job.number for job in worker.take(timeout=PATIENT)] == [WINDOW + 1]
        thread.join()


def test_worker_that_waits_gets_a_job_that_is_put(shm_dir: Path) -> None:
    """Also of a producer that begins again meanwhile."""
    put(shm_dir, 1)
    with Worker(shm_dir) as worker:
        worker.ack(*worker.take())
        thread = threading.Timer(0.01, put, (shm_dir, 1))
        thread.start()
        assert [job.number for job in worker.take(timeout=PATIENT)] == [2]
        thread.join()


def test_threads_share_the_jobs(shm_dir: Path) -> None:
    """Each job goes to one of them."""
    put(shm_dir, 300)
    done: list[int] = []

    def work(worker: Worker) -> None:
        while jobs := worker.take(2, timeout=0):
            done.extend(job.number for job in jobs)
            worker.ack(*jobs)

    with Worker(shm_dir) as worker:
        threads = [threading.Thread(target=work, args=(worker,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        work(worker)  # what a thread did not see that found no room
        assert sorted(done) == list(range(1, 301))
        assert worker.take(timeout=0) == []


# -- retries and dead letters


def test_retried_job_comes_again_with_its_number(shm_dir: Path) -> None:
    """Before new ones, and in the next process too."""
    put(shm_dir, 3)
    with Worker(shm_dir, delay=0) as worker:
        first, second = worker.take(2)
        worker.retry(second)
        assert taken(worker, 1) == [(2, 2)]
        assert taken(worker) == [(3, 1)]
        worker.ack(first)
    with Worker(shm_dir, delay=0) as worker:
        again = worker.take(WINDOW, timeout=0)
        assert [(job.data, job.number, job.attempt) for job in again] == [(b"job 2", 2, 3)]
        assert taken(worker) == [(3, 2)]


def test_retry_waits_for_its_delay(shm_dir: Path) -> None:
    """And does not hold up what comes after it."""
    put(shm_dir, 2)
    with Worker(shm_dir, delay=3600) as worker:
        worker.retry(*worker.take())
        assert taken(worker) == [(2, 1)]
    with Worker(shm_dir, delay=3600) as worker:
        assert taken(worker) == [(2, 2)]
    with Worker(shm_dir, delay=0) as worker:
        assert taken(worker) == [(1, 2)]


def test_retry_that_was_done_before_a_restart_does_not_come_again_when_due(shm_dir: Path) -> None:
    """The position has passed it meanwhile: it is read, waits for its delay, and then has no byte."""
    put(shm_dir, 2)
    with Worker(shm_dir, delay=0) as worker:
        for job in worker.take(2):
            worker.retry(job)
        _, second = worker.take(2)
        worker.ack(second)
    with Worker(shm_dir, delay=0) as worker:
        (first,) = worker.take()
        worker._delay = 3600
        assert worker.take(timeout=0) == []
        worker.ack(first)
        worker._delay = 0
        assert worker.take(timeout=0) == []


def test_retry_that_gets_due_wakes_a_worker(shm_dir: Path) -> None:
    """Which waits for a job."""
    put(shm_dir, 1)
    with Worker(shm_dir, delay=0.05) as worker:
        (job,) = worker.take()
        retried = time.time()
        worker.retry(job)
        assert [(job.number, job.attempt) for job in worker.take(timeout=PATIENT)] == [(1, 2)]
        assert time.time() >= retried + 0.05


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """By so many seconds, as the worker sees it."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


DAY = 86400.0


def test_clock_that_is_set_back_holds_no_retry(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those after it."""
    put(shm_dir, 2)
    with Worker(shm_dir, delay=0.01) as worker:
        first, second = worker.take(2)
        worker.retry(first)
        set_clock(monkeypatch, -DAY)
        worker.retry(second)
        assert [job.number for _ in range(2) for job in worker.take(1, timeout=PATIENT)] == [1, 2]


def test_clock_that_is_set_back_holds_a_retry_after_a_restart_for_its_delay(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the restart, and not before."""
    put(shm_dir, 1)
    with Worker(shm_dir, delay=3600) as worker:
        worker.retry(*worker.take())
    set_clock(monkeypatch, -DAY)
    with Worker(shm_dir, delay=3600) as worker:
        assert worker.take(timeout=0) == []
    with Worker(shm_dir, delay=0.01) as worker:
        assert [job.number for job in worker.take(timeout=PATIENT)] == [1]


def test_clock_that_is_set_forward_brings_no_retry_early(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that has stored it."""
    put(shm_dir, 1)
    with Worker(shm_dir, delay=3600) as worker:
        worker.retry(*worker.take())
        set_clock(monkeypatch, DAY)
        assert worker.take(timeout=0) == []
        worker._delay = 0
        assert taken(worker) == [(1, 2)]


def test_job_becomes_a_dead_letter_after_its_attempts(shm_dir: Path) -> None:
    """With its number, its data and how often it was tried; it does not come again."""
    put(shm_dir, 1)
    with Worker(shm_dir, attempts=3, delay=0) as worker:
        for attempt in (1, 2, 3):
            (job,) = worker.take(timeout=PATIENT)
            assert job.attempt == attempt
            assert buried(shm_dir) == []
            worker.retry(job)
        assert worker.take(timeout=0) == []
        assert buried(shm_dir) == [(1, b"job 1", 3)]
    with Worker(shm_dir, attempts=3) as worker:
        assert worker.take(timeout=0) == []


@pytest.mark.parametrize("retries", [0, 1])
def test_job_that_ends_its_process_each_time_becomes_a_dead_letter(shm_dir: Path, retries: int) -> None:
    """Whoever took it did not live to say that it failed."""
    put(shm_dir, 2)
    for attempt in (1, 2, 3):
        with Worker(shm_dir, attempts=3, delay=0) as worker:
            (job,) = worker.take()
            assert (job.number, job.attempt) == (1, attempt)
            if attempt <= retries:
                worker.retry(job)
    with Worker(shm_dir, attempts=3, delay=0) as worker:
        assert taken(worker) == [(2, 1)]
        assert buried(shm_dir) == [(1, b"job 1", 3)]


def is_full(*_: object, **__: object) -> None:
    """In the place of ``Worker._store``."""
    raise pmwal.WalFull("no room")


def test_dead_letter_for_which_there_is_no_room_stays_taken(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others come. The next process tries again, and that is no attempt."""
    put(shm_dir, 3)
    with Worker(shm_dir, attempts=1) as worker:
        worker.ack(worker.take(2)[0])  # and ends before 2 is done
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_store", is_full)
        for _ in range(3):
            with Worker(shm_dir, attempts=1) as worker, pytest.raises(pmwal.WalFull):
                worker.take()
        with Worker(shm_dir, attempts=1) as worker:
            with pytest.raises(pmwal.WalFull):
                worker.take()
            assert taken(worker) == [(3, 1)]
    with Worker(shm_dir, attempts=1) as worker:
        assert taken(worker) == []
    assert buried(shm_dir) == [(2, b"job 2", 1), (3, b"job 3", 1)]


def test_jobs_taken_with_a_dead_letter_are_handed_out(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is stored, which may fail."""
    put(shm_dir, 2)
    with Worker(shm_dir, delay=0) as worker:
        first, second = worker.take(2)
        worker.retry(second)
        (second,) = worker.take()
        worker.retry(first)
        worker.retry(second)
    with Worker(shm_dir, attempts=2, delay=0) as worker, monkeypatch.context() as patch:
        patch.setattr(Worker, "_store", is_full)
        assert taken(worker) == [(1, 2)]
        with pytest.raises(pmwal.WalFull):
            worker.take()


def test_full_log_of_retries_refuses_and_the_job_stays_taken(shm_dir: Path) -> None:
    """Until there is room."""
    with producer(shm_dir, size=8192, timeout=0) as jobs, Worker(shm_dir, delay=3600) as worker:
        count = 0
        with pytest.raises(pmwal.WalFull):  # noqa: PT012
            while True:
                jobs.append(bytes(3000))
                (job,) = worker.take(timeout=0)
                worker.retry(job)
                count += 1
        worker.ack(job)
        assert worker.take(timeout=0) == []
    with Worker(shm_dir, delay=0) as worker:
        retried = worker.take(count + 1)
        assert len(retried) == count > 1
        worker.ack(*retried)
        assert worker.take(timeout=0) == []


@pytest.mark.parametrize("align", [8, 64, 4096])
@pytest.mark.parametrize("size", ["64KiB", "4MiB"])
def test_largest_job_can_be_retried_and_buried(shm_dir: Path, size: str, align: int) -> None:
    """Of whatever size and alignment the queue is; also one that ends its process each time."""
    with producer(shm_dir, size=size, align=align) as jobs:
        largest = jobs.capacity // 2 // align * align - HEADER
        with pytest.raises(pmwal.RecordTooLarge):
            jobs.append(bytes(largest + 1))
        jobs.append(bytes(largest))
        with Worker(shm_dir, attempts=2, delay=0) as worker:
            worker.retry(*worker.take())
            (job,) = worker.take()
            assert (job.attempt, len(job.data)) == (2, largest)
            worker.retry(job)
        jobs.append(bytes(largest))
        with Worker(shm_dir, attempts=1) as worker:
            worker.take()
        with Worker(shm_dir, attempts=1) as worker:
            assert worker.take(timeout=0) == []
    assert [(number, len(data), attempts) for number, data, attempts in buried(shm_dir)] == [(1, largest, 2), (2, largest, 1)]


def test_logs_of_a_share_that_are_too_small_are_refused(shm_dir: Path) -> None:
    """After a resize of the jobs, until they are resized as the error says."""
    put(shm_dir, 1)
    Worker(shm_dir).close()
    pmwal.resize(shm_dir / "jobs.wal", "1MiB")
    for name in ("retries-0.wal", "dead-0.wal"):
        with pytest.raises(ValueError, match=f"{name} has no room for the largest job.*pmwal resize .*/{name} [0-9]+$") as refused:
            Worker(shm_dir)
        pmwal.resize(shm_dir / name, int(str(refused.value).rpartition(" ")[2]))
    with Worker(shm_dir) as worker:
        assert taken(worker) == [(1, 1)]


def test_dead_letters_are_put_again(shm_dir: Path) -> None:
    """Once, those of all shares, as new jobs."""
    put(shm_dir, 4, shares=2)
    for share in (0, 1):
        with worker_of(shm_dir, share) as worker:
            for job in worker.take(2):
                if job.number != 2:
                    worker.retry(job._replace(attempt=5))
                else:
                    worker.ack(job)
    with producer(shm_dir, 2) as jobs:
        assert (revive(jobs), jobs.next_seq) == (3, 8)
        assert (revive(jobs), jobs.next_seq) == (0, 8)
    came = []
    for share in (0, 1):
        with worker_of(shm_dir, share) as worker:
            came += [(job.number, job.data, job.attempt) for job in worker.take(WINDOW, timeout=0)]
    assert came == [(6, b"job 1", 1), (5, b"job 4", 1), (7, b"job 3", 1)]


@pytest.mark.parametrize("attempts", [0, 254])
def test_attempts_that_have_no_byte_are_refused(shm_dir: Path, attempts: int) -> None:
    """Zero would bury every job, and a byte counts no further."""
    with pytest.raises(ValueError, match="attempts must be from 1 to 253"):
        Worker(shm_dir, attempts=attempts)


def test_dead_letter_is_put_again_before_it_is_acknowledged(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends between the two loses none."""

    def ack(*_: object, **__: object) -> None:
        raise InterruptedError

    put(shm_dir, 1)
    with Worker(shm_dir, attempts=1) as worker:
        worker.retry(*worker.take())
    with producer(shm_dir) as jobs:
        with monkeypatch.context() as patch:
            patch.setattr(pmwal.Consumer, "ack", ack)
            with pytest.raises(InterruptedError):
                revive(jobs)
        assert (revive(jobs), [record.data for record in jobs.read(2)]) == (1, [b"job 1", b"job 1"])


# -- a full queue


def test_producer_waits_for_the_workers_or_raises(shm_dir: Path) -> None:
    """What is not done is not overwritten."""
    with producer(shm_dir, size="64KiB", timeout=0) as jobs, Worker(shm_dir) as worker:
        count = 0
        with pytest.raises(pmwal.WalFull, match="'share-0' has acknowledged nothing"):  # noqa: PT012
            while True:
                jobs.append(bytes(1000))
                count += 1
        taken: list[Job] = worker.take(5)
        worker.ack(*taken[1:])
        with pytest.raises(pmwal.WalFull):
            jobs.append(bytes(1000))
        worker.ack(taken[0])
        assert jobs.append(bytes(1000)) == count + 1


# -- several processes


def test_each_worker_has_a_share(shm_dir: Path) -> None:
    """They get different jobs, all of them together; one too many is refused, and takes the place of one that has ended."""
    put(shm_dir, 10, shares=2)
    with Worker(shm_dir) as even, Worker(shm_dir) as odd:
        assert taken(even) == [(number, 1) for number in (2, 4, 6, 8, 10)]
        assert taken(odd) == [(number, 1) for number in (1, 3, 5, 7, 9)]
        with pytest.raises(pmwal.ConsumerHeld):
            Worker(shm_dir)
        odd.close()
        with Worker(shm_dir) as again:
            assert again.share == 1
            assert taken(again) == [(number, 2) for number in (1, 3, 5, 7, 9)]


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_acknowledgements_of_a_share_are_of_its_jobs(shm_dir: Path, shares: int) -> None:
    """In any order, and each share for itself."""
    put(shm_dir, 40, shares)
    for share in range(shares):
        with worker_of(shm_dir, share) as worker:
            jobs = worker.take(WINDOW)
            assert {job.number % shares for job in jobs} == {share}
            worker.ack(*jobs[:2], *jobs[3:5])
            worker.ack(jobs[-1])
    left = []
    for share in range(shares):
        with worker_of(shm_dir, share) as worker:
            jobs = worker.take(WINDOW)
            left += [job.number for job in jobs]
            worker.ack(*jobs)
    per_share = [[number for number in range(1, 41) if number % shares == share] for share in range(shares)]
    assert left == [number for own in per_share for number in (own[2], *own[5:-1])]
    with producer(shm_dir, shares) as jobs_log:
        assert jobs_log.truncate(consumed=True) == 41


def test_another_number_of_shares_is_refused(shm_dir: Path) -> None:
    """Jobs would be nobody's, or come twice."""
    put(shm_dir, 1, shares=2)
    with pytest.raises(ValueError, match="has the label 'shares: 2', and shares=3 was asked for: give the number"):
        producer(shm_dir, 3)


def test_shares_that_have_nothing_to_do_do_not_lag(shm_dir: Path) -> None:
    """The jobs after their last one are those of others."""
    put(shm_dir, 10, shares=3)
    for share in range(3):
        with worker_of(shm_dir, share) as worker:
            while jobs := worker.take(timeout=0):
                worker.ack(*jobs)
    with pmwal.open(shm_dir / "jobs.wal", "r") as reader:
        for share in range(3):
            with reader.consumer(f"share-{share}") as consumer:
                assert consumer.lag.records == 0


@pytest.mark.parametrize("label", [None, "orders", "shares: ", "shares: 0", "shares: two"])
def test_log_that_is_no_queue_is_refused(shm_dir: Path, label: str | None) -> None:
    """It has no shares to work on."""
    pmwal.open(shm_dir / "jobs.wal", size="64KiB", label=label).close()
    with pytest.raises(ValueError, match=r"jobs\.wal is not the log of a queue: create it in an empty directory, with producer"):
        Worker(shm_dir)


@pytest.mark.parametrize("option", ["on_full", "label", "consumers"])
def test_options_that_make_it_a_queue_are_refused(shm_dir: Path, option: str) -> None:
    """All others are those of ``pmwal.open``."""
    options: dict[str, Any] = {option: "raise"}
    with pytest.raises(TypeError, match=option):
        producer(shm_dir, **options)


@pytest.mark.parametrize("shares", [0, -1])
def test_queue_of_no_shares_is_refused(shm_dir: Path, shares: int) -> None:
    """Nobody could work on it."""
    with pytest.raises(ValueError, match=f"shares must be at least 1, not {shares}"):
        producer(shm_dir, shares)


def test_worker_before_the_producer_is_refused(shm_dir: Path) -> None:
    """There is no queue yet."""
    with pytest.raises(FileNotFoundError):
        Worker(shm_dir)
