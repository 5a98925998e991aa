"""A durable queue: each job is done at least once, also if processes are killed. One process puts jobs, any number of them work.

The directory of a queue has ``jobs.wal``, which the producer writes, and of each share of the jobs ``retries-N.wal`` and
``dead-N.wal``, which the worker writes that has the share. The number of a job decides its share. What is done is in the position
of the share's consumer: all up to a record, one byte for each of the next ``WINDOW`` jobs, and a checksum by which to see whether
these jobs were rolled back. After a rollback their numbers are those of other jobs.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pmwal

WINDOW = 60
"""Jobs of a share that may be handed out, counted from the oldest one that is not done. A position has 64 bytes for us."""
_DONE = 255  # other values of a byte: how often the job was handed out
_PAUSE = 0.05  # seconds between two looks at what cannot wake us up


class Job(NamedTuple):
    """What to do; its number, the same at every attempt; which attempt this is, from 1 on; and where its record is."""

    data: bytes
    number: int
    attempt: int
    source: _Source
    seq: int


def producer(directory: str | PathLike[str], shares: int = 1, **options: Any) -> pmwal.Wal:
    """The log of the jobs: ``append`` puts one, ``extend`` many or none. It waits while the queue is full, at most ``timeout=``.

    ``shares``: how many processes can work, the same at every open. ``options``: those of ``pmwal.open``, such as ``size=`` and
    ``commit=``, but not ``label``, ``consumers`` and ``on_full``, which make it a queue. The directory must exist. Raises
    ``ValueError`` if the queue has another number of shares.
    """
    if shares < 1:
        raise ValueError(f"shares must be at least 1, not {shares}")
    names = [f"share-{share}" for share in range(shares)]
    path, label = Path(directory, "jobs.wal"), f"shares: {shares}"
    wal: pmwal.Wal = pmwal.open(path, label=None if path.exists() else label, consumers=names, on_full="consumed", **options)
    if wal.label != label:
        wal.close()
        raise ValueError(
            f"{path} has the label {wal.label!r}, and shares={shares} was asked for: give the number of shares that it has, or "
            "make a new queue in another directory"
        )
    return wal


def revive(jobs: pmwal.Wal) -> int:
    """Put the dead letters of a queue again, as new jobs with new numbers; how many. The producer calls it.

    >>> with producer(directory) as jobs:
    ...     revive(jobs)
    0
    """
    count = 0
    for path in sorted(Path(jobs.path).parent.glob("dead-*.wal")):
        with pmwal.open(path, "r") as reader, reader.consumer("revive") as dead:  # which lets their space be used again
            for letter in dead.follow(timeout=0):
                jobs.append(letter.data[8:], commit=True)  # the number comes before the data; the kind is how often it was tried
                dead.ack(letter.seq, durable=True)
                count += 1
    return count


def _log_of_failures(path: Path, size: int, **options: Any) -> pmwal.Wal:
    wal: pmwal.Wal = pmwal.open(path, size=None if path.exists() else size, on_full="consumed", timeout=0, **options)
    if wal.capacity < size:
        wal.close()
        raise ValueError(f"{path} has no room for the largest job, since jobs.wal was resized: pmwal resize {path} {size}")
    return wal


class _Source:
    """A log of jobs and its consumer: which job is next, and which of those after the position are handed out or done.

    After a rollback the bytes of the position would be those of other jobs. So the newest job that has one is stored as a cursor: a
    rollback that discards any of these jobs discards this one. For the same reason the position moves to cursors, not to numbers.
    """

    def __init__(self, reader: pmwal.Reader, name: str, share: int, shares: int) -> None:
        self._reader = reader
        self.consumer = reader.consumer(name)
        self._share, self._shares = share, shares
        self._states, check = bytearray(self.consumer.application[:WINDOW]), self.consumer.application[WINDOW:]
        self._begin = self.consumer.position
        self._last: pmwal.Record | None = None  # up to here each record was passed on, or is of another share
        self._records: Iterator[pmwal.Record] = iter(())
        self._next: pmwal.Record | None = None
        self._recalled = self._newest(self._begin)  # of the bytes that an earlier worker has stored, the last; None: they are ours
        self._cursors = {seq: f"{seq}-{check.hex()}" for seq in (self._recalled,) if seq}  # of jobs after the position

    def fetch(self, wait: float) -> pmwal.Record | None:
        """The next record of this share. It stays the next one until it is started or passed on."""
        if self._next is None:
            self._next = next(self._records, None)
        if self._next is None:
            self._records = self._follow(0)
            self._next = next(self._records, None)
        if self._next is None and wait:
            self._next = next(self._follow(wait), None)
        return self._next

    def may_have(self, seq: int) -> bool:
        """Whether a record up to this one was not started."""
        return self._next is not None or seq > self._fetched

    @property
    def _fetched(self) -> int:
        return self._begin if self._last is None else self._last.seq

    def _follow(self, timeout: float) -> Iterator[pmwal.Record]:
        reached = 0
        for record in self.consumer.follow(timeout):
            if self._last is not None and record.seq == self._fetched and record != self._last:
                raise self._rolled_back()
            reached = record.seq
            if record.seq > self._fetched:
                if record.seq % self._shares == self._share:
                    yield record
                else:
                    self._last = record
        if max(reached, self.consumer.position) < self._fetched:
            raise self._rolled_back()

    def _rolled_back(self) -> pmwal.Overrun:
        return pmwal.Overrun(
            f"{self._reader.path}: record {self._fetched} was rolled back when it had been read; open a new Worker"
        )

    def _own(self, seq: int) -> int:
        """The first job of this share from here on."""
        return seq + (self._share - seq) % self._shares

    def _index(self, seq: int) -> int:
        """Of the byte of this job. Negative if it is at or before the position: then it has none, and is done."""
        return (seq - self._own(self.consumer.position + 1)) // self._shares

    def _newest(self, position: int) -> int | None:
        """The last job that was handed out or done, if it is after this position."""
        count = len(self._states.rstrip(b"\0"))
        return self._own(position + 1) + (count - 1) * self._shares if count else None

    def has_room_for(self, seq: int) -> bool:
        """Whether this job has a byte."""
        return self._index(seq) < WINDOW

    def state_of(self, record: pmwal.Record) -> int:
        """How often this job was handed out, or ``_DONE``."""
        index = self._index(record.seq)
        if self._recalled is not None and record.seq <= self._recalled and not self._has(self._cursors[self._recalled]):
            self._states[index:] = bytes(WINDOW - index)  # of jobs that were rolled back: rather do a job twice than lose one
            self._recalled = None
        return self._states[index]

    def _has(self, cursor: str) -> bool:
        """Whether the log has this record, so that none before it was rolled back either."""
        try:
            next(self._reader.read(cursor), None)
        except pmwal.Overrun:
            return False
        return True

    def pass_on(self) -> None:
        """The next job is another one from now on."""
        assert self._next is not None
        self._cursors[self._next.seq] = self._next.cursor
        self._last, self._next = self._next, None

    def start(self, seq: int) -> None:
        """Count that the next job is handed out, in memory."""
        self.pass_on()
        self._states[self._index(seq)] += 1

    def store(self, *done: int, durable: bool = False) -> None:
        """Store what is handed out, and that these jobs are done, in one step.

        The position moves up to the oldest open job, past those of other shares too, but not past what was fetched: the producer
        may overwrite what lies before it. ``pmwal.Overrun`` if its record was rolled back.
        """
        before, old, last = self.consumer.position, self._states, self._last
        states, first = old[:], self._own(before + 1)
        for seq in done:
            index = self._index(seq)
            if index < 0 or states[index] == _DONE:
                raise ValueError("a job is acknowledged or retried once; this one was before")
            states[index] = _DONE
        is_open = first + (len(states) - len(states.lstrip(bytes([_DONE])))) * self._shares
        position, cursor = before, self.consumer.cursor
        if last is not None and last.seq < is_open:
            position, cursor = last.seq, last.cursor
        elif last is not None and first < is_open:
            position = is_open - self._shares
            cursor = self._cursors[position]
        passed = (self._own(position + 1) - first) // self._shares
        self._states = states[passed:] + bytes(passed)
        newest = self._newest(position)
        check = bytes(4) if newest is None else bytes.fromhex(self._cursors[newest].partition("-")[2])
        try:
            self.consumer.ack(cursor or position, durable=durable, application=bytes(self._states) + check)
        except BaseException:
            self._states = old
            raise
        self._cursors = {seq: cursor for seq, cursor in self._cursors.items() if seq > position}


class Worker:
    """Takes the jobs of one share, the first that no other process has. Its threads may take, acknowledge and retry in any order.

    >>> with producer(directory, size="64KiB") as jobs:
    ...     first, last = jobs.extend([b"resize a.png", b"resize b.png"])
    >>> with Worker(directory, delay=0) as worker:
    ...     a, b = worker.take(most=2)
    ...     worker.ack(b)
    ...     worker.retry(a)
    ...     [(job.data, job.number, job.attempt) for job in worker.take()]        # a worker that ends here has not done it
    [(b'resize a.png', 1, 2)]
    >>> with Worker(directory) as worker:
    ...     [(job.data, job.number, job.attempt) for job in worker.take()]
    [(b'resize a.png', 1, 3)]
    """

    def __init__(self, directory: str | PathLike[str], *, attempts: int = 5, delay: float = 1.0) -> None:
        """``attempts``: after so many a job becomes a dead letter. ``delay``: seconds until a retry.

        Raises ``pmwal.ConsumerHeld`` if other processes have all shares, ``FileNotFoundError`` before the producer has begun, and
        ``ValueError`` if ``jobs.wal`` is not the log of a ``producer``, or has become larger than the logs of this share.
        """
        if not 1 <= attempts < _DONE - 1:
            raise ValueError(f"attempts must be from 1 to {_DONE - 2}, not {attempts}")
        self._attempts, self._delay = attempts, delay
        self._taking = threading.Lock()  # of what is fetched
        self._guard = threading.Condition(threading.RLock())  # of what is handed out or done; notified when there is room
        with contextlib.ExitStack() as opened:
            reader = opened.enter_context(pmwal.open(Path(directory, "jobs.wal"), "r"))
            label = re.fullmatch("shares: ([1-9][0-9]*)", reader.label or "")
            if label is None:
                raise ValueError(f"{reader.path} is not the log of a queue: create it in an empty directory, with producer()")
            shares = int(label[1])
            for self.share in range(shares):
                with contextlib.ExitStack() as files:
                    try:
                        self._open(reader, Path(directory), shares, files)
                    except (pmwal.ConsumerHeld, pmwal.WalLocked):
                        if self.share == shares - 1:
                            raise
                        continue
                    opened.push(files.pop_all())
                    break
            self._opened = opened.pop_all()

    def _open(self, reader: pmwal.Reader, directory: Path, shares: int, files: contextlib.ExitStack) -> None:
        self._jobs = _Source(reader, f"share-{self.share}", self.share, shares)
        files.enter_context(self._jobs.consumer)
        size = reader.capacity + 4096  # for the largest job and its number
        path = directory / f"retries-{self.share}.wal"
        self._retries = files.enter_context(_log_of_failures(path, size, consumers=["worker"]))
        self._again = _Source(files.enter_context(pmwal.open(path, "r")), "worker", 0, 1)
        files.enter_context(self._again.consumer)
        self._begun, self._last_before = time.monotonic(), self._retries.committed_seq
        self._retried: dict[int, float] = {}  # when, for each retry that this worker has stored and that is not done
        self._dead = files.enter_context(_log_of_failures(directory / f"dead-{self.share}.wal", size))

    def take(self, most: int = 1, timeout: float | None = None) -> list[Job]:
        """The next jobs, at most so many; none after ``timeout`` seconds. Each counts as an attempt, also if this process dies."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            wait = max(0.0, min(until - time.monotonic(), _PAUSE))
            with self._taking:
                jobs = self._start(self._again, most, 0) if self._again.may_have(self._retries.committed_seq) else []
                jobs = jobs or self._start(self._jobs, most, wait)
            if jobs or not wait:
                return jobs

    def _start(self, source: _Source, most: int, wait: float) -> list[Job]:
        jobs: list[Job] = []
        while len(jobs) < most and (record := source.fetch(0 if jobs else wait)) is not None:
            with self._guard:
                if source is self._again and not self._is_due(record):
                    break
                if not source.has_room_for(record.seq):
                    self._guard.wait(0 if jobs else wait)
                    break
                handed_out = source.state_of(record)
                if handed_out == _DONE:
                    source.pass_on()
                    source.store()  # its byte is free for another job
                    continue
                if source is self._again:
                    data, number, before = record.data[8:], int.from_bytes(record.data[:8], "big"), record.kind + handed_out
                else:
                    data, number, before = record.data, record.seq, handed_out
                job = Job(data, number, before + 1, source, record.seq)
                if before < self._attempts:
                    source.start(record.seq)
                    jobs.append(job)
                elif jobs:  # which are handed out first: the next step may fail
                    break
                else:  # its last attempt has killed the process
                    source.pass_on()
                    self._store(self._dead, job, before)
        with self._guard:
            source.store()
        return jobs

    def _is_due(self, retry: pmwal.Record) -> bool:
        """By the time that passes in this process. What an earlier one stored is due by the clock, which may have been set since:
        at the latest one delay after this process has begun."""
        now = time.monotonic()
        if retry.seq <= self._last_before:
            return now >= self._begun + self._delay or time.time() >= retry.time_ns / 1e9 + self._delay
        return now >= self._retried.setdefault(retry.seq, now) + self._delay

    def ack(self, *jobs: Job, durable: bool = False) -> None:
        """These jobs are done, and do not come again: after no kill, and with ``durable`` after no power cut either."""
        with self._guard:
            for source in {job.source for job in jobs}:
                source.store(*[job.seq for job in jobs if job.source is source], durable=durable)
            for job in jobs:
                if job.source is self._again:
                    self._retried.pop(job.seq, None)
            self._guard.notify_all()

    def retry(self, job: Job) -> None:
        """Let this job come again after the delay; after its last attempt it becomes a dead letter."""
        self._store(self._retries if job.attempt < self._attempts else self._dead, job, job.attempt)

    def _store(self, log: pmwal.Wal, job: Job, attempts: int) -> None:
        seq = log.append(job.number.to_bytes(8, "big") + job.data, kind=attempts)  # durable, and only then the job may go
        if log is self._retries:
            self._retried.setdefault(seq, time.monotonic())
        self.ack(job)

    def close(self) -> None:
        """Let another process have the share. What is handed out is then handed out again. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
