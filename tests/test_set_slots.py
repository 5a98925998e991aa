"""Slots of a directory: each process that logs there has one log, however it was started, and a dead one's is taken over."""

from __future__ import annotations

import logging
import os
import signal
import stat
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
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
from pmwal.writing import background
from processes import PATIENCE, child, elsewhere, run_script

pytestmark = pytest.mark.both_engines


class Watched(pmwal.LogHandler):
    """A handler that keeps the errors that it reports."""

    def __init__(self, **options: Any) -> None:
        self.reported: list[BaseException | None] = []
        super().__init__(**{"size": SIZE, "commit": "manual"} | options)

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.reported.append(sys.exc_info()[1])


@pytest.fixture
def directory(shm_dir: Path) -> Path:
    """A directory for a set; it does not exist yet, nor does the one above it."""
    return shm_dir / "logs" / "shop"


@pytest.fixture
def opened(directory: Path) -> Iterator[Watched]:
    """A handler of this process in the directory."""
    handler = Watched(directory=directory)
    yield handler
    handler.close()


def names(directory: Path) -> list[str]:
    """Everything in the directory."""
    return sorted(os.listdir(directory))


def texts(directory: Path) -> dict[str, list[str]]:
    """What each slot has stored."""
    return {name: stored(directory / name) for name in names(directory)}


def log_and_hold(pipe: Connection, directory: Path, text: str) -> None:
    """In a process of its own: log a line, and keep the slot until the pipe says so."""
    handler = Watched(directory=directory)
    logger_of(handler).warning(text)
    pipe.send(handler.wal.path)
    pipe.recv()
    handler.close()


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
        handler = Watched(directory=directory)
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


# -- the spare


def spare_of(handler: pmwal.LogHandler) -> Any:
    """What keeps the spare of a handler's directory."""
    target: Any = handler._sink._target
    return target._spare


def wait_for_spare(handler: pmwal.LogHandler) -> int:
    """The descriptor of a spare that no child has used, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        fd = spare_of(handler)._fd
        if fd is not None and not os.fstat(fd).st_nlink:
            return int(fd)
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_child_uses_the_spare_and_the_parent_makes_another(directory: Path, opened: Watched) -> None:
    """It has no name until then, so nobody sees it, and a crash leaves nothing of it."""
    inode = os.fstat(wait_for_spare(opened)).st_ino
    assert names(directory) == ["00.wal"]

    def run() -> None:
        logger_of(opened).info("child")
        opened.close()

    elsewhere(run)
    assert (directory / "01.wal").stat().st_ino == inode
    assert os.fstat(wait_for_spare(opened)).st_ino != inode
    assert names(directory) == ["00.wal", "01.wal"]
    opened.close()
    assert spare_of(opened)._fd is None


def test_of_two_children_one_uses_the_spare(directory: Path, opened: Watched) -> None:
    """The other makes a log."""
    inode = os.fstat(wait_for_spare(opened)).st_ino

    def run(pipe: Connection) -> None:
        pipe.recv()
        logger_of(opened).info("child")
        pipe.send((os.stat(opened.wal.path).st_ino, opened.reported))
        pipe.recv()

    with child(run) as one, child(run) as another:
        one.say("log")
        another.say("log")
        answers = [one.hear(), another.hear()]
    assert [reported for _, reported in answers] == [[], []]
    inodes = {number for number, _ in answers}
    assert len(inodes) == 2
    assert inode in inodes
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"], "02.wal": ["child"]}


def test_child_takes_a_free_slot_before_the_spare(directory: Path) -> None:
    """So there are never more files than processes."""
    with child(log_and_hold, directory, "first") as one:
        one.hear()
        handler = Watched(directory=directory)
        wait_for_spare(handler)
        one.kill()
    assert Path(handler.wal.path).name == "01.wal"

    def run() -> str:
        logger_of(handler).info("child")
        return handler.wal.path

    assert Path(elsewhere(run)).name == "00.wal"
    handler.close()


def test_without_nameless_files_a_child_makes_its_log(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has no O_TMPFILE."""
    monkeypatch.setattr("pmwal.storage.create._tmpfile", lambda directory: None)
    handler = Watched(directory=directory)

    def run() -> list[Any]:
        logger_of(handler).info("child")
        handler.close()
        return handler.reported

    assert elsewhere(run) == []
    handler.close()
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"]}


def test_spare_has_the_mode_and_the_size_that_were_asked_for(directory: Path) -> None:
    """It is as any other log of the set."""
    handler = Watched(directory=directory, file_mode="640", size="128KiB")
    inode = os.fstat(wait_for_spare(handler)).st_ino

    def run() -> int:
        logger_of(handler).info("child")
        capacity = handler.wal.capacity
        handler.close()
        return capacity

    assert elsewhere(run) == 128 * 1024
    handler.close()
    status = (directory / "01.wal").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o640)


# -- the mode of new files


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o640, 0o640), ("0644", 0o644), ("660", 0o660)])
def test_new_log_has_the_mode_that_was_asked_for(mode: int | str, expected: int, shm_dir: Path) -> None:
    """The umask takes nothing away."""
    path = shm_dir / "app.wal"
    before = os.umask(0o077)
    try:
        pmwal.open(path, size=SIZE, file_mode=mode).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected


@pytest.mark.parametrize("mode", [0o400, 0o1600, -1, "9", "rw", "0o1000", 0])
def test_mode_with_which_nobody_could_write_is_refused(mode: int | str, shm_dir: Path) -> None:
    """And one that is no mode."""
    with pytest.raises(ValueError, match="file_mode must be"):
        pmwal.open(shm_dir / "app.wal", size=SIZE, file_mode=mode)
    assert os.listdir(shm_dir) == []


@pytest.mark.parametrize("mode", [True, 6.0, None])
def test_mode_of_another_type_is_refused(mode: Any, shm_dir: Path) -> None:
    """A bool is no number here either."""
    with pytest.raises(TypeError, match="file_mode must be"):
        pmwal.open(shm_dir / "app.wal", file_mode=mode)


# -- threads and forks


def threads_of(prefix: str) -> list[threading.Thread]:
    """The running threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_no_thread_of_the_library_runs_during_a_fork(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committer and the one that makes spares end before it, and begin again in the parent only."""
    handler = pmwal.LogHandler(directory=directory, size=SIZE, commit=1000.0)
    logger_of(handler).info("line")
    wait_for_spare(handler)
    seen = []
    pause_all = background._pause_all

    def paused() -> None:
        pause_all()
        seen.append([thread.name for thread in threads_of("pmwal-")])

    paused()
    background._resume_all()
    assert seen == [[]]
    assert len(threads_of("pmwal-committer")) == 1
    assert elsewhere(lambda: [thread.name for thread in threads_of("pmwal-")]) == []
    assert len(threads_of("pmwal-committer")) == 1
    handler.close()
    assert threads_of("pmwal-") == []


def test_commit_that_was_due_stays_due_over_forks(shm_dir: Path) -> None:
    """A process that forks more often than it commits still commits."""
    with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.2) as wal:
        seq = wal.append(b"x")
        deadline = time.monotonic() + PATIENCE
        while wal.committed_seq < seq:
            assert time.monotonic() < deadline
            background._pause_all()
            background._resume_all()
            time.sleep(0.05)


def test_fork_inside_a_call_on_the_log_does_not_wait_for_its_thread(shm_dir: Path) -> None:
    """The thread may wait for that very call."""
    with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.001) as wal:
        with wal._engine.guard:
            wal._engine.changed.notify_all()
            assert elsewhere(lambda: 5) == 5
        seq = wal.append(b"x")
        assert wal.wait_durable(seq, timeout=PATIENCE)


def test_handle_that_is_closed_during_a_fork_has_no_thread_afterwards(shm_dir: Path) -> None:
    """Another thread of the parent closes it."""
    wal = pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.1)
    background._pause_all()
    wal.close()
    background._resume_all()
    assert threads_of("pmwal-committer") == []
