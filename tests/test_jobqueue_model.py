"""The example of a queue beside a simple model of it: takes, acknowledgements, retries, restarts and kills in any order."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from random import Random

import pytest
from jobqueue import WINDOW, Job, Worker, producer

import pmwal

pytestmark = pytest.mark.both_engines

ATTEMPTS = 3


@dataclasses.dataclass
class Entry:
    """A job in one of the logs: its number, how often it had come before it was stored there and since, and whether it is done."""

    number: int
    before: int
    is_done: bool = False


class Killed(Exception):
    """The worker ends here."""


class Share:
    """What a share must do. ``logs`` are that of the retries and that of the jobs, of which ``next`` come next."""

    def __init__(self) -> None:
        self.logs: tuple[list[Entry], list[Entry]] = ([], [])
        self.next = [0, 0]
        self.out: list[tuple[Job, Entry]] = []
        self.dead: list[tuple[int, int]] = []

    def take(self, most: int) -> list[Entry]:
        for which, log in enumerate(self.logs):
            if started := self._take(which, log, most):
                return started
        return []

    def _take(self, which: int, log: list[Entry], most: int) -> list[Entry]:
        started: list[Entry] = []
        while len(started) < most and self.next[which] < len(log):
            entry = log[self.next[which]]
            oldest = next((index for index, old in enumerate(log) if not old.is_done), len(log))
            if self.next[which] - oldest >= WINDOW or (entry.before >= ATTEMPTS and started and not entry.is_done):
                break
            self.next[which] += 1
            if entry.is_done:
                continue
            if entry.before >= ATTEMPTS:
                self.store(entry)
                entry.is_done = True
            else:
                entry.before += 1
                started.append(entry)
        return started

    def store(self, entry: Entry) -> None:
        """It failed."""
        if entry.before < ATTEMPTS:
            self.logs[0].append(Entry(entry.number, entry.before))
        else:
            self.dead.append((entry.number, entry.before))

    def restart(self) -> None:
        self.next = [0, 0]
        self.out = []

    @property
    def is_done(self) -> bool:
        return all(entry.is_done for log in self.logs for entry in log)


class Play:
    """A queue and its model, which must agree after each step."""

    def __init__(
        self, directory: Path, shares: int, seed: int, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.directory, self.chooser, self.stack, self.monkeypatch = directory, Random(seed), stack, monkeypatch
        self.jobs = stack.enter_context(producer(directory, shares, size="64KiB", timeout=0))
        self.shares = [Share() for _ in range(shares)]
        self.workers = [self.begin() for _ in range(shares)]

    def begin(self) -> Worker:
        return self.stack.enter_context(Worker(self.directory, attempts=ATTEMPTS, delay=0))

    def step(self) -> None:
        share = self.chooser.randrange(len(self.shares))
        steps = [
            self.put,
            self.take,
            self.take,
            self.ack,
            self.ack,
            self.ack,
            self.retry,
            self.again,
            self.restart,
            self.free,
            self.kill,
        ]
        self.chooser.choice(steps)(share)

    def put(self, _share: int) -> None:
        if sum(not entry.is_done for share in self.shares for entry in share.logs[1]) < 200:
            first = self.jobs.next_seq
            count = self.chooser.choice((1, 3, 90))
            self.jobs.extend([b"%d" % number for number in range(first, first + count)])
            for number in range(first, first + count):
                self.shares[number % len(self.shares)].logs[1].append(Entry(number, 0))

    def take(self, share: int) -> None:
        jobs = self.workers[share].take(most := self.chooser.choice((1, 2, 5, WINDOW + 1)), timeout=0)
        entries = self.shares[share].take(most)
        assert [(job.number, job.attempt) for job in jobs] == [(entry.number, entry.before) for entry in entries]
        assert all(job.data == b"%d" % job.number for job in jobs)
        self.shares[share].out += zip(jobs, entries, strict=True)

    def some(self, share: int, most: int) -> list[tuple[Job, Entry]]:
        out = self.shares[share].out
        self.chooser.shuffle(out)
        count = min(self.chooser.randrange(most + 1), len(out))
        some, self.shares[share].out = out[:count], out[count:]
        return some

    def ack(self, share: int) -> None:
        some = self.some(share, 40)
        self.workers[share].ack(*[job for job, _ in some], durable=self.chooser.random() < 0.1)
        for _, entry in some:
            entry.is_done = True

    def retry(self, share: int) -> None:
        for job, entry in self.some(share, 3):
            self.workers[share].retry(job)
            self.shares[share].store(entry)
            entry.is_done = True

    def again(self, share: int) -> None:
        """What is done is not acknowledged twice."""
        for job, _ in (some := self.some(share, 1)):
            self.workers[share].ack(job)
            with pytest.raises(ValueError, match="this one was before"):
                self.workers[share].ack(job)
        for _, entry in some:
            entry.is_done = True

    def restart(self, share: int) -> None:
        self.workers[share].close()
        self.workers[share] = self.begin()
        assert self.workers[share].share == share
        self.shares[share].restart()

    def free(self, _share: int) -> None:
        self.jobs.truncate(consumed=True)

    def kill(self, share: int) -> None:
        """A worker ends before what a call has done is stored."""

        def ack(*_: object, **__: object) -> None:
            raise Killed

        some = self.some(share, 1)
        with self.monkeypatch.context() as patch:
            patch.setattr(pmwal.Consumer, "ack", ack)
            for job, entry in some:
                with pytest.raises(Killed):
                    self.workers[share].retry(job)
                self.shares[share].store(entry)  # it is there twice
            expired = any(entry.before >= ATTEMPTS for log in self.shares[share].logs for entry in log if not entry.is_done)
            if not expired:  # else it may be buried twice
                with pytest.raises(Killed):
                    self.workers[share].take(2, timeout=0)
        self.restart(share)

    def finish(self) -> None:
        """Do all that is left; then nothing holds a job."""
        for share, worker in enumerate(self.workers):
            while True:
                jobs = worker.take(WINDOW, timeout=0)
                entries = self.shares[share].take(WINDOW)
                assert [job.number for job in jobs] == [entry.number for entry in entries]
                self.shares[share].out += zip(jobs, entries, strict=True)
                if not self.shares[share].out:
                    break
                self.ack(share)
            assert self.shares[share].is_done
            with pmwal.open(self.directory / f"dead-{share}.wal", "r") as dead:
                assert [(int.from_bytes(record.data[:8], "big"), record.kind) for record in dead] == self.shares[share].dead
        assert self.jobs.truncate(consumed=True) == self.jobs.next_seq


@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_queue_does_what_its_model_does(shares: int, seed: int, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job comes in its turn, with its number and its attempt, until it is done, and not again."""
    with contextlib.ExitStack() as stack:
        play = Play(shm_dir, shares, seed, stack, monkeypatch)
        for _ in range(150):
            play.step()
        play.finish()
