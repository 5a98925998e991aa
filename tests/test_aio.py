"""Tasks and a log: they share barriers, hold up nobody, and learn what became of what they appended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
import pmwal.aio
from conftest import Place
from pmwal.aio import AsyncWal
from pmwal.native import native
from pmwal.opening.options import Options
from support import BarrierRecorder, fail_flush, open_small, payloads

pytestmark = pytest.mark.both_engines

PATIENCE = 300.0
SIZE = "64KiB"


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """One event loop from beginning to end, with a time limit."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main(), PATIENCE)

    return asyncio.run(bounded())


@contextlib.contextmanager
def held(wal: AsyncWal) -> Iterator[None]:
    """The log's thread has something else to do: no barrier begins before the end of the block."""
    over = threading.Event()
    wal._thread.submit(over.wait, PATIENCE)
    try:
        yield
    finally:
        over.set()


async def waiting(wal: AsyncWal, *appends: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Tasks that have appended, and wait for a barrier."""
    tasks = [asyncio.create_task(append) for append in appends]
    await asyncio.sleep(0)
    assert len(wal._waiting) == len(tasks)
    return tasks


def given(options: Options) -> dict[str, Any]:
    """The options that are not None, by name."""
    return {name: value for name, value in vars(options).items() if value is not None}


@pytest.fixture
def seam(monkeypatch: pytest.MonkeyPatch) -> BarrierRecorder:
    """What ``pmwal.aio.open`` opens its logs with from now on."""
    seam = BarrierRecorder()
    monkeypatch.setattr("pmwal.aio.log.open_with", lambda path, options: open_small(path, **given(options), seam=seam))
    return seam


# -- what is appended is durable


def test_append_returns_durable_and_in_order(place: Place) -> None:
    """On every medium; what was appended without waiting is waited for by its number."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size=SIZE, **place.options) as wal:
            assert [await wal.append(b"a", kind=3), wal.committed_seq] == [1, 1]
            assert [wal.append_nowait(b"b"), wal.append_nowait(b"c", kind=4), wal.committed_seq] == [2, 3, 1]
            await wal.durable(2)
            assert wal.committed_seq == 3
            assert await wal.extend([b"d", b"e"]) == (4, 5)
            assert await wal.extend(()) == (6, 5)
            assert wal.append_nowait(b"f") == 6
            assert (await wal.commit(), await wal.commit()) == (6, 6)
            assert wal.append_nowait(b"g") == 7
            assert [record.data for record in wal.read(4, 6)] == [b"d", b"e"]
            assert (wal.path, wal.first_seq, wal.next_seq, wal.recovery.outcome) == (str(place.path), 1, 8, "created")
        assert wal.closed

    run(main)
    with pmwal.open(place.path, "r") as reader:
        assert reader.recovery.outcome == "clean"
        assert payloads(reader) == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
        assert [record.kind for record in reader] == [3, 0, 4, 0, 0, 0, 0]


def test_tasks_that_wait_share_the_next_barrier(shm_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One barrier, and one wake-up of the loop."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options) as wal:
            before, told, tell = wal.stats().commits, 0, wal._committed

            def count(error: BaseException | None) -> None:
                nonlocal told
                told += 1
                tell(error)

            monkeypatch.setattr(wal, "_committed", count)
            with held(wal):
                tasks = await waiting(wal, *[wal.append(b"x") for _ in range(100)])
            assert await asyncio.gather(*tasks) == [*range(1, 101)]
            assert (wal.stats().commits - before, told) == (1, 1)

    run(main)


def test_thousand_tasks_take_few_barriers(tmp_path: Path) -> None:
    """On a real disk, where the barrier is under way while others append."""

    async def main() -> None:
        async with pmwal.aio.open(tmp_path / "log", size="1MiB", medium="file") as wal:
            assert await asyncio.gather(*(wal.append(b"x") for _ in range(1000))) == [*range(1, 1001)]
            assert wal.committed_seq == 1000
            assert wal.stats().commits < 100

    run(main)


def test_append_whose_record_is_rolled_back_meanwhile_returns(tmp_path: Path) -> None:
    """It does not wait for a number to become durable that the log does not have any more."""

    async def main() -> None:
        async with pmwal.aio.open(tmp_path / "log", size=SIZE, medium="file") as wal:
            assert await wal.append(b"kept") == 1
            with held(wal):
                appended = await waiting(wal, wal.append(b"gone"), wal.append(b"gone too"))
                assert await asyncio.to_thread(wal._wal.rollback, 1) == 2
            assert await asyncio.gather(*appended) == [2, 3]
            assert (wal.next_seq, await wal.append(b"next")) == (2, 2)

    run(main)


def test_read_selects_by_time_and_by_kind(place: Place) -> None:
    """As the log's own read; what makes no sense is refused at the call."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size=SIZE, **place.options) as wal:
            for kind in (20, 40, 20, 40):
                await wal.append(b"x", kind=kind)
                await asyncio.sleep(0.001)
            times = [record.time_ns for record in wal.read()]
            assert [record.seq for record in wal.read(kind=range(30, 51))] == [2, 4]
            assert [record.seq for record in wal.read(since=times[1], until=times[2])] == [2, 3]
            assert [record.seq for record in wal.read(2, since=times[1], kind=20, exact=True)] == [3]
            with pytest.raises(ValueError, match="exchange"):
                wal.read(since=2, until=1)

    run(main)


def test_loop_does_not_wait_for_locks_that_its_thread_holds(place: Place) -> None:
    """After a long record or a rollback, short records are stored in their turn, and the loop runs meanwhile."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size="1MiB", **place.options) as wal:
            assert await wal.append(b"kept") == 1
            with held(wal):
                calls = [wal.append(bytes(70_000)), wal.append(b"b"), wal.extend([b"c", bytes(70_000)]), wal.truncate(2)]
                tasks = [asyncio.create_task(call) for call in [*calls, wal.rollback(3), wal.append(b"d")]]
                for _ in range(5):
                    await asyncio.sleep(0)
                assert [task.done() for task in tasks] == [False] * 6
                assert wal.next_seq == 2
            assert await asyncio.gather(*tasks) == [2, 3, (4, 5), 2, 4, 4]
            assert [record.data for record in wal.read()] == [bytes(70_000), b"b", b"d"]
            assert await wal.append(bytearray(70_000)) == 5
            with pytest.raises(TypeError):
                await wal.append("text")  # type: ignore[arg-type]

    run(main)


def test_loop_runs_while_a_long_record_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is another thread's, however long it takes."""

    async def main() -> None:
        async with pmwal.aio.open(tmp_path / "log", size="1MiB", medium="file") as wal:
            threads: list[int] = []
            original = type(wal._wal).append

            def append(self: pmwal.Wal, *args: Any, **options: Any) -> int:
                threads.append(threading.get_ident())
                return original(self, *args, **options)

            monkeypatch.setattr(type(wal._wal), "append", append)
            for length in (100, 64 * 1024, 64 * 1024 + 1):
                await wal.append(bytes(length))
            here = threading.get_ident()
            assert [thread == here for thread in threads] == [True, True, False]

    run(main)


def test_commit_that_is_no_system_call_asks_no_thread(shm_dir: Path) -> None:
    """On memory nothing lets another task run, and the thread is asked for nothing."""

    async def main() -> None:
        async with pmwal.aio.open(shm_dir / "log", size=SIZE) as wal:
            with held(wal):
                for call in (wal.append(b"x"), wal.extend([b"y", b"z"]), wal.durable(1), wal.commit(), wal.truncate(2)):
                    with pytest.raises(StopIteration):
                        call.send(None)
                assert (wal.first_seq, wal.committed_seq) == (2, 3)

    run(main)


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="with the engine in Python a store waits for the barrier")
def test_interpreter_is_let_go_at_each_barrier(tmp_path: Path) -> None:
    """Also when a commit alone would be faster without."""

    async def main() -> None:
        async with pmwal.aio.open(tmp_path / "log", size=SIZE, medium="file") as wal:
            assert wal._wal._engine.core.yields  # type: ignore[attr-defined]
            for _ in range(70):
                await wal.durable(wal.append_nowait(b"x"))
            assert wal.stats().commits == 70

    run(main)


def test_number_that_is_not_there_is_not_waited_for(shm_place: Place) -> None:
    """It would never end; a number that is durable already is not waited for, either."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options) as wal:
            with pytest.raises(ValueError, match="not appended yet"):
                await wal.durable(1)
            seq = await wal.append(b"x")
            with held(wal):
                await wal.durable(seq)
            with pytest.raises(TypeError):
                await wal.durable("1")  # type: ignore[arg-type]

    run(main)


def test_wrong_record_is_refused_at_once(shm_place: Place) -> None:
    """As in Wal.append, and the log stays usable."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options) as wal:
            for data, error in (("text", TypeError), (bytes(1 << 20), pmwal.RecordTooLarge)):
                with pytest.raises(error):
                    await wal.append(data)
                with pytest.raises(error):
                    wal.append_nowait(data)
            assert await wal.append(b"x") == 1

    run(main)


# -- cancellation and failure


def test_cancelled_task_loses_nothing_and_harms_nobody(shm_place: Place) -> None:
    """Its record is in the log, and the others are told."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options) as wal:
            with held(wal):
                tasks = await waiting(wal, wal.append(b"a"), wal.append(b"b"), wal.append(b"c"))
                tasks[1].cancel()
                await asyncio.sleep(0)
                assert tasks[1].cancelled()
            assert (await tasks[0], await tasks[2]) == (1, 3)
            assert wal.committed_seq == 3

    run(main)
    with pmwal.open(shm_place.path, "r") as reader:
        assert payloads(reader) == [b"a", b"b", b"c"]


def test_failed_barrier_reaches_every_task(shm_dir: Path, seam: BarrierRecorder) -> None:
    """Each gets an error of its own; later calls get it too, and nobody hangs."""

    async def main() -> None:
        wal = await pmwal.aio.open(shm_dir / "log", medium="file")
        assert await wal.append(b"durable") == 1
        follower = asyncio.ensure_future(anext(wal.follow(2)))
        with held(wal):
            tasks = await waiting(wal, *[wal.append(b"lost") for _ in range(5)])
            seam.before = fail_flush(errno.ENOSPC)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {(type(error), error.errno, error.committed_seq) for error in errors} == {  # type: ignore[union-attr]
            (pmwal.PersistError, errno.ENOSPC, 1)
        }
        assert len({id(error) for error in errors}) == 5
        for call in (wal.append(b"x"), wal.extend([b"x"]), wal.commit(), wal.durable(2), follower):
            with pytest.raises(pmwal.PersistError):
                await call
        with pytest.raises(pmwal.PersistError):
            wal.append_nowait(b"x")
        seam.before = None
        await wal.close()

    run(main)


def test_close_commits_for_the_tasks_that_wait(shm_place: Place) -> None:
    """Their records are durable, and they learn that; what comes after is refused."""

    async def main() -> None:
        wal = await pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options)
        with held(wal):
            tasks = await waiting(wal, wal.append(b"a"), wal.append(b"b"))
            closing = [asyncio.create_task(wal.close()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(pmwal.WalClosed):
                await wal.append(b"late")
        assert await asyncio.gather(*tasks) == [1, 2]
        await asyncio.gather(*closing)
        await wal.close()
        for call in (wal.append(b"x"), wal.durable(1), wal.commit(), wal.truncate(1)):
            with pytest.raises(pmwal.WalClosed):
                await call
        with pytest.raises(pmwal.WalClosed):
            wal.append_nowait(b"x")

    run(main)
    with pmwal.open(shm_place.path, "r") as reader:
        assert (payloads(reader), reader.recovery.outcome) == ([b"a", b"b"], "clean")


def test_failed_close_reaches_the_tasks_that_wait(shm_dir: Path, seam: BarrierRecorder) -> None:
    """And the caller that closes, once."""

    async def main() -> None:
        wal = await pmwal.aio.open(shm_dir / "log", medium="file")
        wal.append_nowait(b"x")
        seam.before = fail_flush()
        with pytest.raises(pmwal.PersistError):
            await wal.close()
        await wal.close()
        seam.before = None

    run(main)


def test_cancelled_close_closes(shm_place: Place) -> None:
    """Half closed is nothing that anybody could use."""

    async def main() -> None:
        wal = await pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options)
        wal.append_nowait(b"x")
        with held(wal):
            closing = asyncio.create_task(wal.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        await wal.close()
        assert wal.closed

    run(main)
    with pmwal.open(shm_place.path) as again:
        assert payloads(again) == [b"x"]


def test_cancelled_open_lets_go_of_the_log(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread opened after all is closed, and can be opened again."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path, options: Options) -> pmwal.Wal:
        begun.set()
        assert go_on.wait(PATIENCE)
        return open_small(path, **given(options))

    monkeypatch.setattr("pmwal.aio.log.open_with", slow)

    async def main() -> None:
        opening = asyncio.ensure_future(pmwal.aio.open(shm_dir / "log").__aenter__())
        await asyncio.to_thread(begun.wait, PATIENCE)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        go_on.set()

    run(main)
    for thread in threading.enumerate():
        if thread.name.startswith("pmwal-aio"):
            thread.join(PATIENCE)
    with open_small(shm_dir / "log") as wal:
        assert wal.recovery.outcome == "clean"


def test_errors_of_open_are_raised(shm_dir: Path) -> None:
    """Where it is awaited; a reader needs no loop."""

    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await pmwal.aio.open(shm_dir / "log", "r+")
        with pytest.raises(ValueError, match="Reader"):
            pmwal.aio.open(shm_dir / "log", "r")
        with pytest.raises(ValueError, match="on_full"):
            await pmwal.aio.open(shm_dir / "log", on_full="sometimes")

    run(main)
    assert os.listdir(shm_dir) == []


# -- a full log


def test_full_log_holds_up_the_task_and_not_the_loop(place: Place) -> None:
    """Tasks wait in turn for a truncate, and resume as soon as there is room."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size="16KiB", on_full="wait", **place.options) as wal:
            for _ in range(8):
                await wal.append(bytes(2000))
            tasks = [asyncio.create_task(wal.append(bytes([number]) * 2000)) for number in range(5)]
            for _ in range(5):
                await asyncio.sleep(0)
            assert (sum(task.done() for task in tasks), wal.next_seq) == (0, 9)
            with pytest.raises(pmwal.WalFull):
                wal.append_nowait(bytes(2000))
            assert await wal.truncate(before=4) == 4
            assert await asyncio.gather(*tasks[:3]) == [9, 10, 11]
            assert not tasks[3].done()
            tasks[3].cancel()
            await wal.truncate(before=8)
            assert await tasks[4] == 12
            assert [record.data[0] for record in wal.read(9)] == [0, 1, 2, 4]

    run(main)


def test_full_log_is_waited_for_as_long_as_was_said(shm_place: Place) -> None:
    """Then it is WalFull; a record that can never fit is refused at once."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size="16KiB", on_full="wait", timeout=0.02, **shm_place.options) as wal:
            for _ in range(8):
                await wal.append(bytes(2000))
            with pytest.raises(pmwal.WalFull):
                await wal.append(bytes(2000))
            with pytest.raises(pmwal.RecordTooLarge):
                await wal.append(bytes(20_000))
            assert wal.next_seq == 9

    run(main)


def test_close_ends_the_wait_for_room(shm_place: Place) -> None:
    """There will be none."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size="16KiB", on_full="wait", **shm_place.options) as wal:
            for _ in range(8):
                await wal.append(bytes(2000))
            task = asyncio.create_task(wal.append(bytes(2000)))
            await asyncio.sleep(0)
        with pytest.raises(pmwal.WalClosed):
            await task

    run(main)


def test_policies_raise_and_overwrite_are_those_of_the_log(shm_place: Place) -> None:
    """As without a loop."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size="16KiB", **shm_place.options) as wal:
            await wal.extend([bytes(2000)] * 4)
            with pytest.raises(pmwal.WalFull):
                await wal.extend([bytes(2000)] * 5)
        async with pmwal.aio.open(shm_place.path, on_full="overwrite", **shm_place.options) as wal:
            for number in range(5, 20):
                assert await wal.append(bytes(2000)) == number
            assert wal.first_seq > 1
            assert await wal.rollback(after=18) == 19

    run(main)


# -- following


async def gather_records(records: AsyncIterator[pmwal.Record]) -> list[bytes]:
    """All payloads until the end."""
    return [record.data async for record in records]


def test_follower_gets_each_record_once_it_is_durable(place: Place) -> None:
    """From the oldest on or from a number on; it ends when the log is closed."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size=SIZE, **place.options) as wal:
            await wal.append(b"0")
            every, later = (asyncio.create_task(gather_records(wal.follow(start))) for start in (None, 3))
            await wal.extend([b"%d" % number for number in range(1, 590)])
            for number in range(590, 600):
                await wal.append(b"%d" % number)
            wal.append_nowait(b"pending")
            assert await gather_records(wal.follow(600, timeout=0)) == [b"599"]
            assert await wal.commit() == 601
            while len(wal._followers) < 2:
                await asyncio.sleep(0.001)
        expected = [b"%d" % number for number in range(600)] + [b"pending"]
        assert await every == expected
        assert await later == expected[2:]

    run(main)


def test_follower_goes_on_behind_its_cursor(place: Place) -> None:
    """As that of a Wal does, and it is told when that record is another one now."""

    async def main() -> None:
        async with pmwal.aio.open(place.path, size=SIZE, **place.options) as wal:
            await wal.extend([b"a", b"b", b"c"])
            second, third = (record.cursor for record in wal.read(2))
            assert [record.data for record in wal.read(second)] == [b"c"]
            assert await gather_records(wal.follow(second, timeout=0)) == [b"c"]
            follower = asyncio.ensure_future(anext(wal.follow(third)))
            await asyncio.sleep(0)
            await wal.append(b"d")
            assert (await follower).data == b"d"
            await wal.rollback(after=1)
            await wal.extend([b"B", b"C"])
            with pytest.raises(pmwal.Overrun, match="not the one that the cursor names"):
                await anext(wal.follow(second))
            with pytest.raises(ValueError, match="is no cursor"):
                await anext(wal.follow("2"))

    run(main)


def test_follower_stops_after_its_time_without_a_record(shm_place: Place) -> None:
    """And is woken by nothing but a record."""

    async def main() -> None:
        async with pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options) as wal:
            wal.append_nowait(b"pending")
            assert await gather_records(wal.follow(timeout=0.02)) == []
            await wal.truncate(before=2)
            with pytest.raises(pmwal.Overrun):
                await anext(wal.follow(1))

    run(main)


# -- loops


def test_handle_belongs_to_one_loop(shm_place: Place) -> None:
    """Another loop is refused in clear words, in the same thread and beside."""

    async def begin() -> AsyncWal:
        return await pmwal.aio.open(shm_place.path, size=SIZE, **shm_place.options)

    async def use(wal: AsyncWal) -> None:
        for call in (wal.append(b"x"), wal.durable(1), wal.commit(), wal.close()):
            with pytest.raises(RuntimeError, match="another event loop"):
                await call

    with asyncio.Runner() as runner:
        wal = runner.run(begin())
        asyncio.run(use(wal))
        assert runner.run(wal.append(b"x")) == 1
        runner.run(wal.close())


def test_loop_that_ends_first_leaves_nothing_hanging(shm_dir: Path) -> None:
    """The handle is dropped then, as a process that dies would drop it."""

    async def main() -> None:
        wal = await pmwal.aio.open(shm_dir / "log", size=SIZE, medium="file")
        with held(wal):
            await waiting(wal, wal.append(b"x"))

    def run_and_drop() -> None:
        run(main)
        gc.collect()  # from Python 3.12 on a cancelled task is part of a cycle, and the thread ends with the handle
        for thread in threading.enumerate():
            if thread.name.startswith("pmwal-aio"):
                thread.join(PATIENCE)
        gc.collect()

    with pytest.warns(ResourceWarning, match="without close"):
        run_and_drop()
    with pmwal.open(shm_dir / "log") as wal:
        assert payloads(wal) == [b"x"]
