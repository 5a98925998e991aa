"""The example of a queue after kills and power cuts: no job is lost, and none that was acknowledged comes again."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from jobqueue import WINDOW, Job, Worker, producer

import pmwal
from pmwal.opening import open_log
from pmwal.testing import Step
from pmwal.testing.power_cut import PowerCutModel
from processes import PATIENCE, child
from support import BarrierRecorder

# -- every crash of a run

LOGS = ("jobs.wal", "retries-0.wal", "dead-0.wal")
POSITIONS = {"jobs.wal": "jobs.wal.consumers/share-0", "retries-0.wal": "retries-0.wal.consumers/worker"}
ATTEMPTS = 2


class Promised(NamedTuple):
    """What was true at a moment: jobs that were put, worked on, acknowledged, and acknowledged durably."""

    put: frozenset[int]
    worked: frozenset[int]
    done: frozenset[int]
    durable: frozenset[int]


class Moment(NamedTuple):
    """Of each file, what is on the medium at least, and what is in the page cache; and what was promised."""

    files: dict[str, tuple[bytes, bytes]]
    promised: Promised


class Run:
    """A run of a producer and a worker, step by step."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        with producer(directory, size=8192):
            Worker(directory).close()
        self.logs = {name: PowerCutModel("page", (directory / name).read_bytes()) for name in LOGS}
        self.positions = {name: [(directory / name).read_bytes()] for name in POSITIONS.values()}
        self.promised = Promised(*[frozenset[int]()] * 4)
        self.moments: list[Moment] = []
        with monkeypatch.context() as patch:
            patch.setattr(pmwal, "open", self._open)
            with producer(directory, timeout=0) as jobs, Worker(directory, attempts=ATTEMPTS, delay=0) as worker:
                self.play(jobs, worker)

    def _open(self, path: Path, mode: str = "a", **options: Any) -> Any:
        recorder = BarrierRecorder()
        recorder.after = lambda step: self._note(path.name, step)
        return open_log(path, mode, seam=recorder, **options if mode == "r" else {"medium": "file", **options})

    def _note(self, log: str, step: Step) -> None:
        position = POSITIONS.get(log, "")
        if step.name == "sync position":
            self.positions[position] = self.positions[position][-1:]
        elif step.name == "write":
            data = bytearray(self.positions[position][-1])
            data[step.offset : step.offset + step.length] = step.data
            self.positions[position].append(bytes(data))
        else:
            if self.logs[log].settles(step):
                self._look()
            self.logs[log].take(step)
        self._look()

    def _look(self) -> None:
        files = {name: (versions[0], versions[-1]) for name, versions in self.positions.items()}
        for name, model in self.logs.items():
            oldest, newest = bytearray(model.held), bytearray(model.held)
            for unit, versions in model.open.items():
                place = slice(unit * model.size, (unit + 1) * model.size)
                oldest[place], newest[place] = versions[0].data, versions[-1].data
            files[name] = bytes(oldest), bytes(newest)
        moment = Moment(files, self.promised)
        if not self.moments or self.moments[-1] != moment:
            self.moments.append(moment)

    # -- what is done

    def play(self, jobs: pmwal.Wal, worker: Worker) -> None:
        """Acknowledge in another order than taken, retry, and let jobs become dead letters."""
        for _ in range(3):
            self.note(put={jobs.append(b"%d" % jobs.next_seq)})
        first, second, third = worker.take(3)
        self.work(worker, third)
        worker.retry(first)
        self.note(put=set(range(4, jobs.extend([b"4", b"5"])[1] + 1)))
        self.work(worker, second, durable=True)
        for again in worker.take(timeout=0):  # a queue with a mistake may have none
            worker.retry(again)  # which buries it
        for number, job in enumerate(worker.take(5, timeout=0)):
            if number:
                self.work(worker, job)
            else:
                worker.retry(job)
        jobs.truncate(consumed=True)
        self.work(worker, *worker.take(timeout=0), durable=True)
        self.note(put={jobs.append(b"6")})
        self.work(worker, *worker.take(timeout=0))

    def work(self, worker: Worker, *jobs: Job, durable: bool = False) -> None:
        """Do these jobs, and acknowledge them."""
        numbers = {job.number for job in jobs}
        self.note(worked=numbers)
        worker.ack(*jobs, durable=durable)
        self.note(done=numbers, durable=numbers if durable else set())

    def note(self, **numbers: set[int]) -> None:
        """It is true from now on."""
        self.promised = Promised(*[old | numbers.get(name, set()) for name, old in self.promised._asdict().items()])
        self._look()

    # -- what is left

    def problems(self, directory: Path, kinds: tuple[str, ...] = ("kill", "cut")) -> tuple[int, set[str]]:
        """How many images there were, and what is wrong with them."""
        seen, found = set[tuple[Any, ...]](), set[str]()
        for moment in self.moments:
            for kind in kinds:
                for image in _images(moment, kind):
                    key = (kind, moment.promised, *[hash(data) for data in image.values()])
                    if key not in seen:
                        seen.add(key)
                        found |= {f"{kind}: {problem}" for problem in _problems(image, moment.promised, kind, directory)}
        return len(seen), found


def _images(moment: Moment, kind: str) -> Iterator[dict[str, bytes]]:
    """A kill leaves the page cache; a power cut of each file what it likes, here of all but at most one the same."""
    names = list(moment.files)
    if kind == "kill":
        yield {name: newest for name, (_, newest) in moment.files.items()}
        return
    for most, other in itertools.product((0, 1), (None, *names)):
        yield {name: versions[1 - most if name == other else most] for name, versions in moment.files.items()}


def _problems(image: dict[str, bytes], promised: Promised, kind: str, directory: Path) -> set[str]:
    shutil.rmtree(directory, ignore_errors=True)
    for name, data in image.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    found, delivered = set[str](), list[Job]()
    with producer(directory), Worker(directory, attempts=ATTEMPTS, delay=0) as worker:
        while jobs := worker.take(WINDOW, timeout=0):
            delivered += jobs
            worker.ack(*jobs)
    with pmwal.open(directory / "dead-0.wal", "r") as reader:
        dead = {int.from_bytes(record.data[:8], "big") for record in reader}
    numbers = {job.number for job in delivered}
    if any(job.data != b"%d" % job.number for job in delivered):
        found.add("a job has another number")
    if promised.put - promised.worked - numbers - dead:
        found.add("a job is lost")
    if numbers & (promised.done if kind == "kill" else promised.durable):
        found.add("an acknowledged job comes again")
    return found


@pytest.mark.both_engines
def test_crash_loses_no_job_and_brings_none_again(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill and a power cut at every step of a run, whatever they leave of its five files."""
    (shm_dir / "queue").mkdir()
    run = Run(shm_dir / "queue", monkeypatch)
    count, found = run.problems(shm_dir / "image")
    assert (found, count > 100) == (set(), True), f"{count} images"


# -- mistakes


def acknowledge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's mistake."""

    def work(self: Run, worker: Worker, *jobs: Job, durable: bool = False) -> None:
        worker.ack(*jobs, durable=durable)
        self.note(worked={job.number for job in jobs})

    monkeypatch.setattr(Run, "work", work)


def position_past_an_open_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last acknowledged job, whether all before it are done or not."""

    def ack(self: Worker, *jobs: Job, durable: bool = False) -> None:
        for job in jobs:
            job.source.consumer.ack(job.seq, durable=durable)
            job.source._states = bytearray(WINDOW)

    monkeypatch.setattr(Worker, "ack", ack)


def acknowledge_before_it_is_stored_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a retry and of a dead letter."""

    def store(self: Worker, log: pmwal.Wal, job: Job, attempts: int) -> None:
        self.ack(job)
        log.append(job.number.to_bytes(8, "big") + job.data, kind=attempts)

    monkeypatch.setattr(Worker, "_store", store)


def store_elsewhere_without_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that a power cut takes, after a durable acknowledgement."""

    def store(self: Worker, log: pmwal.Wal, job: Job, attempts: int) -> None:
        log.append(job.number.to_bytes(8, "big") + job.data, kind=attempts, commit=False)
        self.ack(job, durable=True)

    monkeypatch.setattr(Worker, "_store", store)


def forget_what_is_done_after_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the position is stored."""
    original = pmwal.Consumer.ack

    def ack(self: pmwal.Consumer, seq: int, *, durable: bool = False, application: bytes | None = None) -> None:
        original(self, seq, durable=durable)

    monkeypatch.setattr(pmwal.Consumer, "ack", ack)


def forget_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable acknowledgement is an ordinary one."""
    original = pmwal.Consumer.ack

    def ack(self: pmwal.Consumer, seq: int, *, durable: bool = False, application: bytes | None = None) -> None:
        original(self, seq, application=application)

    monkeypatch.setattr(pmwal.Consumer, "ack", ack)


MISTAKES: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, str]] = {
    acknowledge_first: ("kill", "a job is lost"),
    position_past_an_open_job: ("kill", "a job is lost"),
    acknowledge_before_it_is_stored_elsewhere: ("kill", "a job is lost"),
    store_elsewhere_without_a_commit: ("cut", "a job is lost"),
    forget_what_is_done_after_the_position: ("kill", "an acknowledged job comes again"),
    forget_to_sync: ("cut", "an acknowledged job comes again"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_queue_is_noticed(
    mistake: Callable[[pytest.MonkeyPatch], None], shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the check above."""
    kind, problem = MISTAKES[mistake]
    (shm_dir / "queue").mkdir()
    with monkeypatch.context() as patch:
        mistake(patch)
        run = Run(shm_dir / "queue", monkeypatch)
    assert f"{kind}: {problem}" in run.problems(shm_dir / "image", (kind,))[1]


# -- kills of processes

SHARES = 2
HOPELESS = 997
"""Every job of a number that this divides fails at every attempt."""


class Marks:
    """One byte for each job, in memory that the processes share and that outlives them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.worked = mmap.mmap(-1, count + 1)  # how often
        self.done = mmap.mmap(-1, count + 1)  # acknowledged, and the call has returned
        self.retrying = mmap.mmap(-1, count + 1)  # calls that have begun and not returned: after a kill the job may be there twice
        self.wrong = mmap.mmap(-1, count + 1)  # came again, or with other data

    def count_done(self) -> int:
        return self.done[:].count(1)


def produce(pipe: Connection, directory: Path, size: str, marks: Marks, seed: int) -> None:
    """Put jobs until there are all; each is its number."""
    del pipe
    chooser = Random(seed)
    with producer(directory, SHARES, size=size) as jobs:
        while (first := jobs.next_seq) <= marks.count:
            last = min(first + chooser.randrange(100), marks.count)
            jobs.extend([b"%d" % number for number in range(first, last + 1)])


def work(pipe: Connection, directory: Path, marks: Marks, seed: int) -> None:
    """Do jobs in any order, and mark what is done."""
    del pipe
    chooser = Random(seed)
    with Worker(directory, attempts=10, delay=0.001) as worker:
        while jobs := worker.take(chooser.randrange(1, 50)):
            chooser.shuffle(jobs)
            good = []
            for job in jobs:
                number = job.number
                if job.data != b"%d" % number or (marks.done[number] and not marks.retrying[number]):
                    marks.wrong[number] = 1
                if number % HOPELESS == 0 or (number % 97 == 0 and job.attempt == 1):
                    marks.retrying[number] += 1
                    worker.retry(job)
                    marks.retrying[number] -= 1
                else:
                    marks.worked[number] = min(marks.worked[number] + 1, 255)
                    good.append(job)
            for some in (good[::2], good[1::2]):
                worker.ack(*some)
                for job in some:
                    marks.done[job.number] = 1


def dead_letters(directory: Path) -> set[int]:
    found = set[int]()
    for share in range(SHARES):
        with pmwal.open(directory / f"dead-{share}.wal", "r") as reader:
            found |= {int.from_bytes(record.data[:8], "big") for record in reader}
    return found


def check_kills(directory: Path, count: int, kills: int, size: str, seed: int) -> tuple[int, float]:
    """Kill the producer and the workers in turn while they put and do so many jobs. How many were done twice, and the seconds."""
    marks, chooser, begun = Marks(count), Random(seed), time.monotonic()
    hopeless = set(range(HOPELESS, count + 1, HOPELESS))
    with contextlib.ExitStack() as everything:
        stacks = [everything.enter_context(contextlib.ExitStack()) for _ in range(1 + SHARES)]
        for turn in range(-SHARES, kills + 1):
            who = (turn + SHARES) % (1 + SHARES)
            stacks[who].close()  # which kills it
            if who == 0:
                stacks[0].enter_context(child(produce, directory, size, marks, chooser.randrange(1 << 30)))
                _wait_until((directory / "jobs.wal").exists)
            else:
                stacks[who].enter_context(child(work, directory, marks, chooser.randrange(1 << 30)))
            if turn >= 0:
                goal = count * min(turn + 1, kills) // (kills + 1)
                _wait_until(lambda goal=goal: marks.count_done() >= goal)  # type: ignore[misc]
                time.sleep(chooser.uniform(0, 0.02))
        _wait_until(lambda: marks.count_done() == count - len(hopeless) and dead_letters(directory) == hopeless)
    seconds = time.monotonic() - begun
    assert marks.wrong[:].count(1) == 0
    assert [number for number in range(1, count + 1) if not marks.worked[number]] == sorted(hopeless)
    twice = sum(marks.worked[number] > 1 for number in range(1, count + 1))
    assert twice <= kills * WINDOW
    return twice, seconds


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.both_engines
def test_kills_lose_no_job_and_repeat_only_those_in_flight(shm_dir: Path) -> None:
    """A producer and two workers, six kills."""
    check_kills(shm_dir, 3000, 6, "64KiB", 25)


@pytest.mark.nightly
def test_a_million_jobs_survive_twenty_kills(tmp_path: Path) -> None:
    """On a disk. Run with ``-s`` to see the figures."""
    count = 1_000_000
    twice, seconds = check_kills(tmp_path, count, 20, "4MiB", 16)
    print(f"{count} jobs, 20 kills: {twice} done twice, {seconds:.0f} s, {count / seconds:.0f} jobs a second")
