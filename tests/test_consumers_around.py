"""Consumers of log sets, of event loops, and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
import pmwal.aio
from commands import Cli
from pmwal.errors import ConsumerHeld, Overrun, WalClosed, WalFull
from pmwal.format.layout import PAGE
from pmwal.logs.options import Limits
from pmwal.logs.retention import prune
from support import open_small, overwrite

# -- sets


@pytest.fixture
def slots(shm_dir: Path) -> Iterator[list[pmwal.Wal]]:
    """Two logs of a directory, with records in turn."""
    wals = [pmwal.open(shm_dir / f"0{number}.wal", size="64KiB") for number in range(2)]
    for number in range(6):
        wals[number % 2].append(b"%d" % number)
    yield wals
    for wal in wals:
        wal.close()


def consume(place: Path, count: int | None = None, start: str = "oldest") -> list[bytes]:
    """What the consumer of a set gets now; of that it acknowledges so many."""
    with pmwal.LogSet(place) as logs, logs.consumer("nats", start) as consumer:
        got = []
        for record in consumer.follow(timeout=0):
            got.append(record.data)
            if len(got) == count:
                consumer.ack()
        if count is None:
            consumer.ack()
        return got


def test_one_name_is_acknowledged_over_all_logs_of_a_set(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """In the order of the set: what was handed out, and nothing else."""
    everything = [b"%d" % number for number in range(6)]
    assert consume(shm_dir, 3) == everything
    assert [wal.truncate(consumed=True) for wal in slots] == [3, 2]
    assert consume(shm_dir, 1) == everything[3:]
    assert consume(shm_dir) == everything[4:]
    assert consume(shm_dir) == []
    slots[0].append(b"6")
    assert consume(shm_dir) == [b"6"]
    assert [wal.truncate(consumed=True) for wal in slots] == [5, 4]


def test_earlier_cursor_of_a_set_can_be_acknowledged(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """As when work is done in batches while the next is fetched."""
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        records = consumer.follow(timeout=0)
        next(records), next(records)
        cursor = consumer.cursor
        assert len(list(records)) == 4
        consumer.ack(cursor, durable=True)
        assert consumer.lag.records == 4
        assert [record.data for record in consumer.follow(timeout=0)] == [b"2", b"3", b"4", b"5"]


def test_new_consumer_of_a_set_may_begin_with_what_is_new(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """A log that joins later begins with its oldest record, and is held back from then on."""
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats", "newest") as consumer:
        slots[1].append(b"6")
        with pmwal.open(shm_dir / "02.wal", size="64KiB", consumers=["nats"]) as wal:
            wal.append(b"7")
            assert wal.truncate(consumed=True) == 1
            assert [record.data for record in consumer.follow(timeout=0)] == [b"6", b"7"]
            consumer.ack()
            assert wal.truncate(consumed=True) == 2


def test_new_log_in_the_place_of_an_old_one_begins_anew(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """The position says nothing about it."""
    assert len(consume(shm_dir)) == 6
    slots[0].close()
    (shm_dir / "00.wal").unlink()
    with pmwal.open(shm_dir / "00.wal", size="64KiB") as wal:
        wal.append(b"new")
        assert wal.truncate(consumed=True) == 1
        assert consume(shm_dir) == [b"new"]
        assert wal.truncate(consumed=True) == 2


def test_log_that_is_replaced_under_a_consumer_of_a_set_is_acknowledged(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """The new one has the path of the old one, and its own position."""
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        records = consumer.follow(timeout=60)
        assert [next(records).data for _ in range(6)] == [b"%d" % number for number in range(6)]
        slots[0].close()
        (shm_dir / "00.wal").unlink()
        with pmwal.open(shm_dir / "00.wal", size="64KiB") as wal:
            wal.extend([b"new", b"newer"])
            assert [next(records).data for _ in range(2)] == [b"new", b"newer"]
            consumer.ack()
            assert wal.truncate(consumed=True) == 3
        assert slots[1].truncate(consumed=True) == 4


def test_consumer_of_a_set_is_one_at_a_time(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """The second one leaves nothing held."""
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        with pmwal.LogSet(shm_dir) as others, pytest.raises(ConsumerHeld):
            others.consumer("nats")
        consumer.close()
        with pytest.raises(WalClosed):
            consumer.ack()
        logs.consumer("nats").close()


def test_rollback_in_a_log_of_a_set_is_told(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """seek() continues."""
    consume(shm_dir)
    slots[0].rollback(after=1)
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        with pytest.raises(Overrun):
            list(consumer.follow(timeout=0))
        consumer.seek("oldest")
        assert [record.data for record in consumer.follow(timeout=0)] == [b"0", b"1", b"3", b"5"]
        with pytest.raises(ValueError, match="'oldest' or 'newest'"):
            consumer.seek("3")
        with pytest.raises(ValueError, match="'oldest' or 'newest'"):
            logs.consumer("other", "3")


def test_pruned_slot_takes_its_positions_along(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """They would hold back the next log of its name."""
    consume(shm_dir)
    slots[0].close()
    assert [slot.path for slot in prune(str(shm_dir), Limits(0, None))] == [str(shm_dir / "00.wal")]
    assert sorted(os.listdir(shm_dir)) == ["01.wal", "01.wal.consumers"]


@pytest.mark.parametrize("dry", [False, True])
def test_only_consumed_slots_are_pruned(shm_dir: Path, slots: list[pmwal.Wal], dry: bool) -> None:
    """Of those without a process: where every consumer has released the newest record. A limit counts as well."""

    def pruned(keep_ns: int | None = None, total: int | None = None) -> list[str]:
        return [Path(slot.path).name for slot in prune(str(shm_dir), Limits(keep_ns, total), consumed=True, dry=dry)]

    consume(shm_dir)
    assert pruned() == []  # processes have them
    last = slots[1].append(b"more")
    for wal in slots:
        wal.close()
    assert pruned(keep_ns=10**18) == []  # they are too young
    assert pruned() == ["00.wal"]
    assert (shm_dir / "00.wal").exists() == dry
    (shm_dir / "00.wal").unlink(missing_ok=True)
    with pmwal.open(shm_dir / "01.wal", "r") as reader, reader.consumer("late"), reader.consumer("nats") as consumer:
        consumer.ack(last, released=last - 1)
        assert pruned(0, 1) == []
        consumer.ack(last, released=last)
        assert pruned(0, 1) == []  # "late" has had nothing
    for page in range(2):
        overwrite(shm_dir / "01.wal.consumers" / "late", page * PAGE + 40, b"damage")
    assert pruned() == []
    (shm_dir / "01.wal.consumers" / "late").unlink()
    assert pruned(total=1) == ["01.wal"]


def test_slot_without_consumers_is_not_consumed(shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """Nobody says that it was read."""
    for wal in slots:
        wal.close()
    assert prune(str(shm_dir), Limits(0, 1), consumed=True) == []


def test_command_prunes_what_is_consumed(cli: Cli, shm_dir: Path, slots: list[pmwal.Wal]) -> None:
    """Without another limit."""
    consume(shm_dir)
    slots[0].close()
    ran = cli("prune", "--consumed", shm_dir)
    assert (ran.status, len(ran.lines)) == (0, 1)
    assert ran.lines[0].startswith(f"{shm_dir}/00.wal: removed, ")
    assert cli("prune", shm_dir).status == 64


# -- event loops


def test_consumer_in_an_event_loop(path: Path) -> None:
    """It follows, acknowledges and resumes as in a thread, while another task appends."""

    async def main() -> list[bytes]:
        got: list[bytes] = []
        async with pmwal.aio.open(path, size="64KiB") as wal:
            await wal.append(b"0")

            async def produce() -> None:
                for number in range(1, 5):
                    await wal.append(b"%d" % number)

            async with pmwal.aio.consumer(path, "nats") as consumer:
                producer = asyncio.create_task(produce())
                async for record in consumer.follow():
                    got.append(record.data)
                    await consumer.ack(record.cursor, durable=record.seq % 2 == 0, application=b"x")
                    if len(got) == 3:
                        break
                await producer
                assert (consumer.position, consumer.name, consumer.application[:1]) == (3, "nats", b"x")
                assert consumer.cursor == record.cursor
                assert (await consumer.lag()).records == 2
            async with pmwal.aio.consumer(path, "nats") as consumer:
                got += [record.data async for record in consumer.follow(timeout=0)]
                await consumer.seek("newest")
                assert consumer.position == 5
            assert await wal.truncate(consumed=True) == 6
        return got

    assert asyncio.run(main()) == [b"0", b"1", b"2", b"3", b"4"]


def test_error_of_an_asynchronous_consumer_comes_after_its_records(path: Path) -> None:
    """And a consumer that is held is refused."""

    async def main() -> None:
        with open_small(path) as wal:
            wal.extend([b"a", b"b"])
            async with pmwal.aio.consumer(path, "nats") as consumer:
                with pytest.raises(ConsumerHeld):
                    async with pmwal.aio.consumer(path, "nats"):
                        pass
                await consumer.ack(2)
                wal.rollback(after=1)
                with pytest.raises(Overrun):
                    await anext(aiter(consumer.follow()))

    asyncio.run(main())


def test_tasks_wait_for_consumers(path: Path) -> None:
    """The loop runs meanwhile; after the time-out the error names who holds the records."""

    async def main() -> None:
        async with pmwal.aio.open(path, size="16KiB", on_full="consumed", consumers=["nats"], timeout=60) as wal:
            for _ in range(3):
                await wal.append(bytes(5000))
            appending = asyncio.create_task(wal.append(bytes(5000)))
            done, _ = await asyncio.wait([appending], timeout=0.02)
            assert not done
            async with pmwal.aio.consumer(path, "nats") as consumer:
                await consumer.ack(2)
                assert await appending == 4
            assert wal.first_seq == 3
        async with pmwal.aio.open(path, on_full="consumed", timeout=0.01) as wal:
            await wal.append(bytes(5000))
            with pytest.raises(WalFull, match=r"after 0.01 seconds.*consumer 'nats' has acknowledged record 2"):
                await wal.extend([bytes(5000)] * 2)

    asyncio.run(main())


def test_event_loop_refuses_hard_links_too(path: Path) -> None:
    """Consumers under the other name would not be seen. The log is released."""
    open_small(path).close()
    os.link(path, path.with_name("second.wal"))

    async def main() -> None:
        with pytest.raises(ValueError, match="2 names"):
            await pmwal.aio.open(path, on_full="consumed")

    asyncio.run(main())
    open_small(path).close()


# -- the command line


@pytest.fixture
def log(path: Path) -> Path:
    """A log with five records and two consumers."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d", b"e"])
        with pmwal.open(path, "r") as reader:
            for name, seq in (("fast", 5), ("slow", 2)):
                with reader.consumer(name) as consumer:
                    consumer.ack(seq)
    return path


def by_name(cli: Cli, log: Path, *options: str) -> dict[str, Any]:
    return {each["name"]: each for each in cli("consumers", log, "--json", *options).json["consumers"]}


def test_consumers_are_shown_with_lag_and_holder(cli: Cli, log: Path) -> None:
    """As a table and as JSON."""
    with pmwal.open(log, "r") as reader, reader.consumer("slow"):
        ran = cli("consumers", log)
        assert ran.status == 0
        assert [line.split()[0] for line in ran.lines] == ["consumer", "fast", "slow"]
        assert f"process {os.getpid()}" in ran.lines[2]
        found = by_name(cli, log)
        assert found["slow"]["holder"] == os.getpid()
        assert found["slow"]["held"]
        assert (found["slow"]["seq"], found["slow"]["cursor"]) == (2, reader[2].cursor)
        assert found["slow"]["lag"]["records"] == 3
        assert found["fast"]["lag"] == {"records": 0, "bytes": 0, "seconds": 0.0}
        assert (found["fast"]["held"], found["fast"]["holder"], found["fast"]["problem"]) == (False, None, None)


def test_consumers_of_a_directory_are_those_of_its_logs(cli: Cli, log: Path) -> None:
    """One after the other, as a pattern gives them, too; what cannot be opened is reported, and nothing is changed."""
    other = log.with_name("zz.wal")
    pmwal.open(other, size="64KiB").close()
    for place in (log.parent, log.parent / "*.wal"):
        ran = cli("consumers", place)
        assert (ran.status, ran.err) == (0, "")
        assert (ran.lines[0], ran.lines[-1]) == (f"{log}:", f"{other}: no consumers")
        assert [line.split()[0] for line in ran.lines[1:-1]] == ["consumer", "fast", "slow"]
        found = [json.loads(line) for line in cli("consumers", place, "--json").lines]
        assert [(each["path"], len(each["consumers"])) for each in found] == [(str(log), 2), (str(other), 0)]
        for option in ("--forget=slow", "--set=slow=oldest"):
            ran = cli("consumers", place, option)
            assert (ran.status, "name its file" in ran.err) == (64, True)
    other.write_bytes(b"no log" * 1000)
    ran = cli("consumers", log.parent)
    assert (ran.status, len(ran.lines)) == (3, 4)
    assert ran.err.startswith(f"pmwal: {other}: ")
    assert by_name(cli, log)["slow"]["seq"] == 2


def test_log_without_consumers_says_so(cli: Cli, path: Path) -> None:
    """It is no error."""
    open_small(path).close()
    ran = cli("consumers", path)
    assert (ran.status, ran.text) == (0, f"{path}: no consumers\n")


def test_problem_of_a_position_is_shown(cli: Cli, log: Path) -> None:
    """With status 1: it holds everything back."""
    for page in range(2):
        overwrite(Path(f"{log}.consumers/slow"), page * PAGE + 40, b"damage")
    ran = cli("consumers", log)
    assert ran.status == 1
    assert ran.lines[-1] == "slow: its position is damaged"
    assert by_name(cli, log)["slow"]["seq"] is None
    with open_small(log) as wal:
        wal.rollback(after=3)
    assert "fast: there is no record 5, which it acknowledged" in cli("consumers", log).text


def test_consumer_can_be_forgotten(cli: Cli, log: Path) -> None:
    """Unless a process holds it."""
    with pmwal.open(log, "r") as reader, reader.consumer("slow"):
        ran = cli("consumers", log, "--forget", "slow")
        assert ran.status == 1
        assert "has consumer 'slow'; only one at a time can be it" in ran.err
    assert list(by_name(cli, log, "--forget=slow")) == ["fast"]
    ran = cli("consumers", log, "--forget", "slow")
    assert ran.status == 3
    assert "there is no consumer 'slow'" in ran.err


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink("fast", path), lambda path: os.symlink("gone", path)]
)
def test_what_is_no_position_is_not_forgotten(cli: Cli, log: Path, make: Callable[[str], None]) -> None:
    """A directory, a pipe or a link in its place stays, and the command says what it is; it holds everything back."""
    make(f"{log}.consumers/odd")
    ran = cli("consumers", log, "--forget", "odd")
    assert (ran.status, ran.out) == (1, b"")
    assert f"{log}.consumers/odd: no regular file, so pmwal has not made it; see where it came from" in ran.err
    assert sorted(os.listdir(f"{log}.consumers")) == ["fast", "odd", "slow"]
    with open_small(log) as wal:
        assert wal.truncate(consumed=True) == 1


@pytest.mark.parametrize(("start", "seq"), [("oldest", 0), ("newest", 5), ("3", 2), ("cursor", 4)])
def test_consumer_can_be_moved_or_made(cli: Cli, log: Path, start: str, seq: int) -> None:
    """Also one whose position is damaged."""
    with pmwal.open(log, "r") as reader:
        start = reader[4].cursor if start == "cursor" else start
    for page in range(2):
        overwrite(Path(f"{log}.consumers/slow"), page * PAGE + 40, b"damage")
    for name in ("new", "slow", "fast"):
        assert by_name(cli, log, f"--set={name}={start}")[name]["seq"] == seq


@pytest.mark.parametrize("option", ["--set=mail", "--set=mail=", "--set=-x=1", "--forget=a/b"])
def test_name_or_cursor_that_is_none_is_wrong_usage(cli: Cli, log: Path, option: str) -> None:
    """Nothing is changed."""
    assert cli("consumers", log, option).status == 64
    assert sorted(by_name(cli, log)) == ["fast", "slow"]


def test_cursor_that_is_not_in_the_log_is_an_error(cli: Cli, log: Path) -> None:
    """The position stays."""
    ran = cli("consumers", log, "--set=fast=9")
    assert ran.status != 0
    assert ran.err.startswith("pmwal: 9 is past the end; ")
    assert by_name(cli, log)["fast"]["seq"] == 5
