"""Slots of a directory: each process that logs there has one log, however it was started, and a dead one's is taken over."""

from __future__ import annotations

import os
import shutil
import signal
import textwrap
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of, stored
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import slots
from processes import child, elsewhere, run_script
from slotted import Watched, log_and_hold, names, texts
from test_log_rotation import due

pytestmark = pytest.mark.both_engines


# -- which slot a process takes


def test_each_process_takes_the_first_free_slot(directory: Path) -> None:
    """The next one is made only while all others are taken."""
    with ExitStack() as stack:
        running = [stack.enter_context(child(log_and_hold, directory, f"process {number}")) for number in range(3)]
        paths = [Path(one.hear()).name for one in running]
        assert sorted(paths) == names(directory) == ["00.wal", "01.wal", "02.wal"]
        running[paths.index("01.wal")].say("end")
        running[paths.index("01.wal")].wait()
        with child(log_and_hold, directory, "another") as one:
            assert Path(one.hear()).name == "01.wal"
    assert names(directory) == ["00.wal", "01.wal", "02.wal"]


def test_slot_of_a_killed_process_is_taken_over_with_its_records(directory: Path) -> None:
    """They stay, and the next process's follow them."""
    with child(log_and_hold, directory, "before the kill") as one:
        one.hear()
        one.kill()
    handler = Watched(directory=directory)
    logger_of(handler).info("after it")
    handler.close()
    assert texts(directory) == {"00.wal": ["before the kill", "after it"]}


def test_number_of_slots_is_that_of_the_processes_at_one_time(directory: Path) -> None:
    """Waves of processes, half of them killed, leave as many files as one wave has processes."""
    for wave in range(3):
        with ExitStack() as stack:
            running = [stack.enter_context(child(log_and_hold, directory, f"{wave} {number}")) for number in range(3)]
            for one in running:
                one.hear()
            running[0].kill()
            running[1].say("end")
            running[1].wait()
    found = texts(directory)
    assert list(found) == ["00.wal", "01.wal", "02.wal"]
    assert sorted(line for lines in found.values() for line in lines) == [
        f"{wave} {number}" for wave in range(3) for number in range(3)
    ]


def test_what_is_no_log_is_passed_over(directory: Path) -> None:
    """A file, a directory and an other name stay as they are."""
    directory.mkdir(parents=True)
    (directory / "00.wal").write_bytes(b"my own notes" * 1000)
    (directory / "01.wal").mkdir()
    (directory / "2.wal").write_bytes(b"no slot")
    handler = Watched(directory=directory)
    assert Path(handler.wal.path).name == "02.wal"
    handler.close()
    assert (directory / "00.wal").read_bytes() == b"my own notes" * 1000
    assert (directory / "2.wal").read_bytes() == b"no slot"


def log_as(user: int, directory: Path) -> str:
    """Log a line as another user; the name of the slot."""
    os.setgroups([])
    os.setuid(user)
    handler = Watched(directory=directory)
    logger_of(handler).info("theirs")
    handler.close()
    return Path(handler.wal.path).name


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_slot_of_another_user_is_passed_over(directory: Path, opened: Watched) -> None:
    """It is not readable, so it is not theirs, free or not."""
    directory.chmod(0o777)
    for above in (directory.parent, directory.parent.parent):
        above.chmod(0o755)
    assert elsewhere(log_as, 65534, directory) == "01.wal"
    opened.close()
    assert elsewhere(log_as, 65534, directory) == "01.wal"
    assert texts(directory)["01.wal"] == ["theirs", "theirs"]


def test_corrupt_slot_is_set_aside_and_is_no_slot_any_more(directory: Path) -> None:
    """The new log takes its name."""
    directory.mkdir(parents=True)
    with pmwal.open(directory / "00.wal", size=SIZE) as wal:
        wal.extend([b"one", b"two"])
    os.truncate(directory / "00.wal", (directory / "00.wal").stat().st_size - 4096)
    with pytest.warns(RuntimeWarning, match="set aside") as caught:
        handler = pmwal.LogHandler(directory=directory, size=SIZE, commit="manual")
    assert caught[0].filename == __file__
    handler.close()
    assert [name.split(".corrupt")[0] for name in names(directory)] == ["00.wal", "00.wal"]
    assert slots.slot_numbers(str(directory)) == [0]


def test_slots_have_two_digits_or_more() -> None:
    """Names sort as numbers up to 99, and every number has one name."""
    assert [slots.slot_name(number) for number in (0, 7, 99, 100)] == ["00.wal", "07.wal", "99.wal", "100.wal"]
    others = {"0.wal", "007.wal", "00.wal.corrupt-20260101T000000Z", "a.wal", "00.WAL", "00.wal~"}
    assert [name for name in others if slots._SLOT.fullmatch(name)] == []


# -- all taken


def test_start_without_a_free_slot_is_refused(directory: Path, opened: Watched) -> None:
    """The error says what to do."""
    done = run_script("import sys, pmwal; pmwal.LogHandler(directory=sys.argv[1], max_files=1)", directory)
    assert f"pmwal.errors.WalLocked: {directory}: all 1 slots are taken" in done.stderr
    assert "use a larger max_files" in done.stderr
    assert names(directory) == ["00.wal"]


def test_logging_call_without_a_free_slot_raises_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is counted and goes to handleError; the directory is looked at again a second later, or when one is free."""
    handler = Watched(directory=directory, max_files=1)
    logger = logger_of(handler)
    looks = []
    monkeypatch.setattr(slots, "slot_numbers", lambda directory: looks.append(directory) or [0])

    def misuse() -> tuple[int, int, int, set[type]]:
        for number in range(5):
            logger.info("line %d", number)
        return handler.stats().written, handler.stats().errors, len(looks), {type(error) for error in handler.reported}

    assert elsewhere(misuse) == (0, 5, 1, {pmwal.WalLocked})
    monkeypatch.setattr(slots, "_RETRY_SECONDS", 0.0)
    assert elsewhere(misuse)[2] == 5
    handler.close()
    assert texts(directory) == {"00.wal": []}


def test_child_that_found_no_slot_takes_one_as_soon_as_it_is_free(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records in between are lost and counted."""
    monkeypatch.setattr(slots, "_RETRY_SECONDS", 0.0)
    handler = Watched(directory=directory, max_files=1)

    def run(pipe: Connection) -> None:
        logger_of(handler).info("too early")
        pipe.send(handler.stats().errors)
        pipe.recv()
        logger_of(handler).info("in time")
        pipe.send((handler.stats().written, handler.stats().errors))

    with child(run) as one:
        assert one.hear() == 1
        handler.close()
        one.say("free")
        assert one.hear() == (1, 1)
    assert texts(directory) == {"00.wal": ["in time"]}


# -- one slot for each process


def test_handlers_of_one_process_share_its_slot(directory: Path, opened: Watched) -> None:
    """logging, structlog and loguru; the slot is released with the last of them."""
    factory = LoggerFactory(directory=directory, size=SIZE, commit="manual")
    sink = Sink(directory=directory, size=SIZE, commit="manual")
    logger_of(opened).info("logging")
    factory().info("structlog")
    sink.write("loguru\n")
    assert opened.wal is factory.wal is sink.wal
    opened.close()
    opened.close()
    sink.stop()
    factory().info("still open")
    factory.close()
    assert factory.wal.closed
    assert texts(directory) == {"00.wal": ["logging", "structlog", "loguru", "still open"]}
    again = Watched(directory=directory)
    logger_of(again).info("again")
    again.close()
    assert texts(directory)["00.wal"][-1] == "again"


def test_each_handler_has_a_sync_level_of_its_own(directory: Path, opened: Watched) -> None:
    """What one makes durable at once, the other does not."""
    other = Watched(directory=directory, sync_level="ERROR")
    logger_of(opened).error("one")
    assert opened.wal.committed_seq == 0
    logger_of(other).error("two")
    assert opened.wal.committed_seq == 2
    other.close()


def test_second_handler_with_other_options_keeps_the_first_ones_with_a_warning(directory: Path, opened: Watched) -> None:
    """It names the options that differ."""
    with pytest.warns(RuntimeWarning, match=r"other values of size, on_full were given") as caught:
        other = pmwal.LogHandler(directory=directory, size="1MiB", commit="manual", on_full="raise")
    assert caught[0].filename == __file__
    assert other.wal is opened.wal
    other.close()
    assert not opened.wal.closed


def test_directory_is_the_same_under_every_name(directory: Path, opened: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, with a link, or as bytes."""
    monkeypatch.chdir(directory.parent)
    (directory.parent / "link").symlink_to(directory)
    for name in ("shop", "link", b"shop", directory.parent / "link"):
        other = Watched(directory=name)
        assert other.wal is opened.wal
        other.close()


@pytest.mark.parametrize("given", [{}, {"path": "a.wal", "directory": "logs"}], ids=str)
@pytest.mark.parametrize("make", [pmwal.LogHandler, LoggerFactory, Sink])
def test_either_path_or_directory_is_given(make: Any, given: dict[str, Any]) -> None:
    """Both or none is an error of the program."""
    with pytest.raises(TypeError, match="either path"):
        make(**given)


@pytest.mark.parametrize("name", ["", b""])
def test_empty_name_is_no_directory(name: Any) -> None:
    """A variable that is not set must not make slots of the working directory."""
    with pytest.raises(FileNotFoundError, match="no directory was given"):
        Watched(directory=name)


@pytest.mark.parametrize("forked", [False, True], ids=["same process", "child"])
def test_directory_that_was_removed_is_made_again(directory: Path, opened: Watched, *, forked: bool) -> None:
    """As at the start: a process that runs on must not be without a log."""
    logger = logger_of(opened)
    shutil.rmtree(directory.parent)

    def run() -> list[BaseException | None]:
        logger.info("line")
        logger.info("another")
        opened.close()
        return opened.reported

    due(opened)
    assert (elsewhere(run) if forked else run()) == []
    assert texts(directory) == {"00.wal": ["line", "another"]}


@pytest.mark.parametrize("max_files", [0, -1])
def test_directory_has_at_least_one_slot(directory: Path, max_files: int) -> None:
    """Any other value is refused before anything is made."""
    with pytest.raises(ValueError, match="max_files must be at least 1"):
        Watched(directory=directory, max_files=max_files)
    assert not directory.exists()


# -- forks


@pytest.mark.parametrize("kind", ["directory", "pid"])
def test_first_record_of_a_forked_child_opens_a_log_of_its_own(kind: str, directory: Path) -> None:
    """Nothing has to be configured; what the parent counted is not counted again; the parent's log is left alone."""
    directory.mkdir(parents=True)
    handler = Watched(directory=directory) if kind == "directory" else Watched(path=directory / "app-{pid}.wal")
    logger = logger_of(handler)
    logger.info("parent")
    before = handler.wal.path

    def run() -> tuple[int, str, int, int]:
        handler.flush()
        none = handler.stats().written
        logger.info("child")
        logger.info("child again")
        handler.close()
        return os.getpid(), handler.wal.path, none, handler.stats().written

    pid, path, none, written = elsewhere(run)
    assert (none, written) == (0, 2)
    assert Path(path).name == ("01.wal" if kind == "directory" else f"app-{pid}.wal")
    logger.info("parent again")
    assert handler.wal.path == before
    assert handler.stats().written == 2
    handler.close()
    assert stored(Path(before)) == ["parent", "parent again"]
    assert stored(Path(path)) == ["child", "child again"]


def test_child_that_logs_nothing_takes_no_slot(directory: Path, opened: Watched) -> None:
    """Nor does one that only flushes, asks for figures and closes."""

    def run() -> tuple[int, int]:
        opened.flush()
        figures = opened.stats()
        opened.close()
        return figures.written, figures.errors

    assert elsewhere(run) == (0, 0)
    assert names(directory) == ["00.wal"]


def test_handler_that_a_child_has_closed_stores_nothing(directory: Path, opened: Watched) -> None:
    """As in any process; it is counted."""

    def run() -> tuple[int, set[type]]:
        opened.close()
        logger_of(opened).info("late")
        return opened.stats().errors, {type(error) for error in opened.reported}

    assert elsewhere(run) == (1, {pmwal.WalClosed})
    assert names(directory) == ["00.wal"]


def test_child_of_a_child_has_a_slot_of_its_own(directory: Path, opened: Watched) -> None:
    """As a worker's worker."""
    logger = logger_of(opened)

    def outer() -> tuple[str, str]:
        logger.info("outer")
        pid = os.fork()  # a daemonic process of multiprocessing may have no children
        if not pid:
            logger.info("inner")
            os._exit(int(Path(opened.wal.path).stem))
        inner = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        logger.info("outer again")
        return opened.wal.path, f"{inner:02d}.wal"

    paths = [Path(path).name for path in elsewhere(outer)]
    opened.close()
    assert paths == ["01.wal", "02.wal"]
    assert texts(directory) == {"00.wal": [], "01.wal": ["outer", "outer again"], "02.wal": ["inner"]}


def test_children_of_a_handler_and_of_adapters_keep_all_lines_when_they_are_killed(directory: Path, opened: Watched) -> None:
    """A line is in the file when the call returns, in a child too."""
    factory = LoggerFactory(directory=directory, size=SIZE, commit="manual")
    logger = logger_of(opened)

    def run(pipe: Connection) -> None:
        for number in range(20):
            logger.info("logging %d", number)
            factory().info(f"structlog {number}")
        pipe.send(None)
        pipe.recv()

    with child(run) as one, child(run) as another:
        one.hear()
        another.hear()
        one.kill()
        another.kill()
    factory.close()
    lines = [line for number in range(20) for line in (f"logging {number}", f"structlog {number}")]
    assert texts(directory) == {"00.wal": [], "01.wal": lines, "02.wal": lines}


def test_threads_of_a_child_share_the_slot_that_the_first_of_them_takes(directory: Path, opened: Watched) -> None:
    """They begin at the same moment."""
    logger = logger_of(opened)

    def run() -> tuple[int, list[Any]]:
        barrier = threading.Barrier(4)

        def log(number: int) -> None:
            barrier.wait()
            logger.info("thread %d", number)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return opened.stats().written, opened.reported

    assert elsewhere(run) == (4, [])
    assert sorted(texts(directory)["01.wal"]) == [f"thread {number}" for number in range(4)]
    assert names(directory) == ["00.wal", "01.wal"]


def test_line_that_waits_in_the_parent_is_not_the_childs(directory: Path, opened: Watched) -> None:
    """It was logged inside a batch during which the process forked; the child logs as usual."""
    logger = logger_of(opened)

    def run() -> tuple[int, list[Any]]:
        logger.info("child")
        opened.close()
        return opened.stats().written, opened.reported

    with opened.wal.batch() as batch:
        logger.info("inside")
        batch.append(b"batch")
        assert elsewhere(run) == (1, [])
    opened.close()
    assert texts(directory) == {"00.wal": ["batch", "inside"], "01.wal": ["child"]}


def test_signal_handler_that_logs_while_a_child_takes_its_slot(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line is stored, too."""
    handler = Watched(directory=directory)
    logger = logger_of(handler)
    take = slots.SlotTarget._take

    def interrupted(self: Any, options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return take(self, options)

    def run() -> list[str]:
        monkeypatch.setattr(slots.SlotTarget, "_take", interrupted)
        signal.signal(signal.SIGUSR1, lambda number, frame: logger.info("signal"))
        logger.info("first")
        handler.close()
        return [str(error) for error in handler.reported]

    assert elsewhere(run) == []
    handler.close()
    assert sorted(texts(directory)["01.wal"]) == ["first", "signal"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.slow
def test_other_start_methods_run_the_configuration_again(method: str, directory: Path) -> None:
    """One dictConfig; each process takes a slot, and every line is there."""
    source = """
        import logging, logging.config, multiprocessing, os, sys

        def configure(directory):
            logging.config.dictConfig({
                "version": 1,
                "handlers": {"wal": {"class": "pmwal.LogHandler", "directory": directory, "size": "64KiB", "commit": "manual"}},
                "root": {"handlers": ["wal"], "level": "INFO"},
            })

        def work(directory, number):
            configure(directory)
            for line in range(10):
                logging.info("worker %d line %d", number, line)

        if __name__ == "__main__":
            directory, method = sys.argv[1:]
            configure(directory)
            context = multiprocessing.get_context(method)
            workers = [context.Process(target=work, args=(directory, number)) for number in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            logging.info("main")
    """
    script = directory.parent.parent / "program.py"
    script.write_text(textwrap.dedent(source))
    done = run_script(
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')", script, directory, method
    )
    assert done.stderr == ""
    found = texts(directory)
    assert found["00.wal"][-1] == "main"
    assert len(found) <= 3
    assert sorted(line for lines in found.values() for line in lines) == sorted(
        [f"worker {worker} line {line}" for worker in range(2) for line in range(10)] + ["main"]
    )
