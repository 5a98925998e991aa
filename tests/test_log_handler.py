"""LogHandler: one record in the log for each log record, nothing raised into the program, nothing lost silently."""

from __future__ import annotations

import copy
import errno
import gc
import json
import logging
import logging.config
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of
from pmwal.format.layout import KIND_APPLICATION_MAX
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import sink, targets
from pmwal.logs.encoder import LIBRARIES, encoder
from pmwal.opening import open_with
from processes import PATIENCE, Child, Died, child, elsewhere, run_script
from support import BarrierRecorder, fail_flush

pytestmark = pytest.mark.both_engines

WORKERS = 4


class Watched(pmwal.LogHandler):
    """A handler that keeps the errors it would print."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reported: list[Exception] = []

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        assert isinstance(error, Exception)
        self.reported.append(error)


@pytest.fixture
def handler(log: Path) -> Iterator[Watched]:
    """A handler with commit="manual"."""
    handler = Watched(log, size=SIZE, commit="manual")
    yield handler
    handler.close()


def lines(log: Path) -> list[tuple[int, str]]:
    """Level and text of all records visible to a reader."""
    with pmwal.open(log, "r") as reader:
        return [(record.kind, record.data.decode()) for record in reader]


def stored(handler: pmwal.LogHandler) -> list[tuple[int, str]]:
    """Level and text of all records, durable or not."""
    return [(record.kind, record.data.decode()) for record in handler.wal]


# -- what is stored


def test_record_is_the_formatted_text_and_its_kind_the_level(handler: Watched) -> None:
    """Without a formatter of its own, the handler uses logging's default."""
    logger = logger_of(handler)
    logger.info("order %d filled", 7)
    handler.setFormatter(logging.Formatter("%(name)s:%(message)s"))
    logger.log(35, "größer")
    assert stored(handler) == [(20, "order 7 filled"), (35, "app:größer")]
    assert handler.stats() == sink.SinkStats(written=2)


def test_dictconfig_builds_a_handler_of_plain_keywords(log: Path) -> None:
    """dictConfig sets level, formatter and filters as usual; a second dictConfig closes the first one's log and continues it."""
    config: dict[str, Any] = {
        "version": 1,
        "formatters": {"short": {"format": "%(levelname)s %(message)s"}},
        "handlers": {
            "wal": {
                "class": "pmwal.LogHandler",
                "path": str(log),
                "size": SIZE,
                "commit": 60.0,
                "sync_level": "ERROR",
                "on_full": "raise",
                "medium": "memory",
                "level": "INFO",
                "formatter": "short",
            }
        },
        "loggers": {"pmwal-test": {"handlers": ["wal"], "level": "DEBUG", "propagate": False}},
    }
    logger = logging.getLogger("pmwal-test")
    try:
        for number in range(2):
            logging.config.dictConfig(config)
            logger.debug("below the level")
            logger.info("run %d", number)
        (handler,) = logger.handlers
        assert isinstance(handler, pmwal.LogHandler)
        assert (handler.level, handler.wal.committed_seq) == (logging.INFO, 1)
        logger.error("now")
        assert handler.wal.committed_seq == 3
        handler.close()
    finally:
        logger.handlers.clear()
    assert lines(log) == [(20, "INFO run 0"), (20, "INFO run 1"), (40, "ERROR now")]


def test_odd_levels_and_characters_are_stored_all_the_same(handler: Watched) -> None:
    """A level out of range becomes the nearest kind, none 0, half of a surrogate pair an escape."""
    logger = logger_of(handler)
    handler.handle(logging.makeLogRecord({"levelno": None, "msg": "none"}))
    logger.log(100_000, "high")
    handler.handle(logging.makeLogRecord({"levelno": -1, "msg": "low"}))
    logger.info("\udc80")
    assert stored(handler) == [(0, "none"), (KIND_APPLICATION_MAX, "high"), (0, "low"), (20, "\\udc80")]
    assert handler.reported == []


@pytest.mark.parametrize("libraries", [(), *((library,) for library in LIBRARIES)], ids=["json", *LIBRARIES])
def test_structured_record_is_json_by_each_library(libraries: tuple[str, ...], log: Path) -> None:
    """Each library gives the same document: time, level, logger, message, where it was logged, exception, extra fields."""
    for library in libraries:
        pytest.importorskip(library)
    handler = Watched(log, size=SIZE, structured=True)
    handler._encode = encoder(libraries)
    logger = logger_of(handler)
    logger.info("order %d", 7, extra={"order": 7, "price": 99.5, "tags": ["a", "ö"], "time": "theirs", "path": Path("/x")})
    try:
        raise KeyError("missing")
    except KeyError:
        logger.exception("failed", stack_info=True)
    handler.close()
    assert handler.reported == []
    first, second = (json.loads(text) for _, text in lines(log))
    when = datetime.fromisoformat(first.pop("time"))
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60
    extra = {"order": 7, "price": 99.5, "tags": ["a", "ö"], "time": "theirs", "path": "/x"}
    where = {"module": "test_log_handler", "function": "test_structured_record_is_json_by_each_library", "process": os.getpid()}
    assert first.pop("line") < second["line"]
    expected = {"level": "INFO", "logger": "app", "message": "order 7", **where, "thread": "MainThread", "extra": extra}
    assert {name: value for name, value in first.items() if name != "process_name"} == expected
    assert second["exc"].startswith("Traceback")
    assert second["exc"].endswith("KeyError: 'missing'")
    assert [(each["exc_type"], each["exc_value"]) for each in second["exception"]] == [("KeyError", "'missing'")]
    assert second["stack"].startswith("Stack")
    assert "extra" not in second


@pytest.mark.parametrize("libraries", [(), *((library,) for library in LIBRARIES)], ids=["json", *LIBRARIES])
def test_no_extra_field_makes_a_structured_record_impossible(libraries: tuple[str, ...]) -> None:
    """Values that JSON, or a library, cannot represent are stored as text; NaN as null."""
    for library in libraries:
        pytest.importorskip(library)
    encode = encoder(libraries)
    odd = {"large": 1 << 70, "half": "a\udc80", "keys": {1: "x", (2, 3): "y"}, "none": float("nan"), "some": {7}, "what": 1j}
    found = json.loads(encode(odd))
    assert found == {
        "large": 1 << 70, "half": "a\udc80", "keys": {"1": "x", "(2, 3)": "y"}, "none": None, "some": [7], "what": "1j",
    }  # fmt: skip
    assert json.loads(encode({"nan": [float("inf")]})) == {"nan": [None]}


def test_record_from_a_queue_is_stored_by_the_listener(handler: Watched) -> None:
    """QueueHandler and QueueListener work, also with an exception among the records."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logger = logger_of(logging.handlers.QueueHandler(records))
    listener = logging.handlers.QueueListener(records, handler)
    listener.start()
    logger.warning("order %d", 7)
    try:
        raise KeyError("missing")
    except KeyError:
        logger.exception("failed")
    listener.stop()
    first, second = stored(handler)
    assert first == (30, "order 7")
    assert second[1].endswith("KeyError: 'missing'")


def test_filter_decides_and_may_replace_the_record(handler: Watched) -> None:
    """Filters work as in every handler; replacing a record needs Python 3.12."""
    handler.addFilter(lambda record: record.levelno > logging.INFO)
    logger = logger_of(handler)
    logger.info("no")
    logger.error("yes")
    assert stored(handler) == [(40, "yes")]


# -- durability


def test_record_survives_sigkill_as_soon_as_the_call_returns(shm_dir: Path) -> None:
    """Not even a commit is needed."""

    def body(pipe: Any) -> None:
        logger = logger_of(pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, commit="manual"))
        for number in range(100):
            logger.info("line %d", number)
        os.kill(os.getpid(), signal.SIGKILL)

    with child(body) as running, pytest.raises(Died) as died:
        running.hear()
    assert died.value.code == -signal.SIGKILL
    assert lines(shm_dir / "app.wal") == [(20, f"line {number}") for number in range(100)]


@pytest.mark.parametrize(("commit", "after_info"), [("manual", 0), (1000.0, 0), ("each", 1)])
def test_sync_level_and_flush_make_durable_what_the_policy_leaves(log: Path, commit: Any, after_info: int) -> None:
    """CRITICAL is durable at once, with all before it; the rest at flush."""
    handler = Watched(log, size=SIZE, commit=commit)
    logger, wal = logger_of(handler), handler.wal
    logger.info("one")
    assert wal.committed_seq == after_info
    logger.critical("two")
    assert wal.committed_seq == 2
    logger.info("three")
    handler.flush()
    assert wal.committed_seq == 3
    handler.close()


def test_reader_sees_records_without_a_flush_by_default(log: Path) -> None:
    """With the default policy the log can be watched from another process without a flush."""
    handler = Watched(log, size=SIZE)
    with pmwal.open(log, "r") as reader:
        records = reader.follow(timeout=PATIENCE)
        logger_of(handler).info("seen")
        assert next(records).data == b"seen"
    handler.close()


def test_close_is_clean_and_idempotent_and_later_records_are_reported(handler: Watched, log: Path) -> None:
    """close() commits; flush() after it does nothing; a later record is reported, not lost silently."""
    logger = logger_of(handler)
    logger.info("one")
    handler.close()
    handler.close()
    handler.flush()
    assert pmwal.verify(log).outcome == "clean"
    logger.info("late")
    assert [type(error) for error in handler.reported] == [pmwal.WalClosed]
    assert handler.stats() == sink.SinkStats(written=1, errors=1)


def test_end_of_the_interpreter_closes_the_log(log: Path) -> None:
    """logging.shutdown does it, without a word on stderr."""
    source = """
        import logging, sys, pmwal
        logging.basicConfig(handlers=[pmwal.LogHandler(sys.argv[1], size="64KiB")], level="INFO", format="%(message)s")
        logging.info("last words")
    """
    done = run_script(source, log)
    assert (done.returncode, done.stderr) == (0, "")
    assert pmwal.verify(log).outcome == "clean"
    assert lines(log) == [(20, "last words")]


# -- what goes wrong


def test_logging_call_raises_nothing(handler: Watched) -> None:
    """Wrong arguments, an exception in __str__ and a record that can never fit are counted and handed to handleError.

    Of the last one as much is stored as fits.
    """

    class Bad:
        def __str__(self) -> str:
            raise ZeroDivisionError

    logger = logger_of(handler)
    logger.info("%d", "no number")
    logger.info(Bad())
    logger.info("x" * (1 << 16))
    assert [type(error) for error in handler.reported] == [TypeError, ZeroDivisionError, pmwal.RecordTooLarge]
    assert handler.stats() == sink.SinkStats(written=1, errors=3, cut=1)
    assert handler.stats().reasons == {"TypeError": 1, "ZeroDivisionError": 1, "RecordTooLarge": 1}
    assert stored(handler) == [(20, "x" * (1 << 14) + f"[cut: {3 << 14} bytes]")]


def test_recursion_without_an_end_is_counted_and_not_raised(handler: Watched) -> None:
    """The object logs itself while it is formatted."""
    logger = logger_of(handler)

    class Echo:
        def __str__(self) -> str:
            logger.info(self)
            return "echo"

    logger.info(Echo())
    assert handler.stats().errors >= 1
    assert handler.reported == []


def test_default_report_names_error_and_message(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report goes to stderr, as in logging."""
    handler = pmwal.LogHandler(log, size=SIZE)
    handler.close()
    logger_of(handler).info("late")
    printed = capsys.readouterr().err
    assert "pmwal.errors.WalClosed" in printed
    assert "Message: 'late'" in printed


@pytest.mark.parametrize("on_full", ["overwrite", "raise"])
def test_full_log_does_what_it_was_told_and_counts(log: Path, on_full: str) -> None:
    """Either the oldest records or the new ones are dropped; each is counted once."""
    handler = Watched(log, size=SIZE, on_full=on_full)
    logger = logger_of(handler)
    for number in range(100):
        logger.info("%d %s", number, "x" * 1000)
    stats = handler.stats()
    handler.close()
    numbers = [int(text.split()[0]) for _, text in lines(log)]
    assert stats.errors == 0
    assert len(numbers) == stats.written - stats.overwritten == 100 - stats.overwritten - stats.dropped
    if on_full == "overwrite":
        assert stats.dropped == 0 < stats.overwritten
        assert numbers[-1] == 99
    else:
        assert stats.overwritten == 0 < stats.dropped == len(handler.reported)
        assert numbers == list(range(stats.written))


@pytest.mark.parametrize("structlog", [False, True], ids=["logging", "structlog"])
def test_full_log_says_so_in_one_line_until_it_stores_again(log: Path, structlog: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Once for all records that are dropped one after another; each is counted."""
    options = {"size": SIZE, "on_full": "raise", "commit": "manual"}
    thing: Any = LoggerFactory(log, **options) if structlog else pmwal.LogHandler(log, **options)  # type: ignore[arg-type]
    logger: Any = thing() if structlog else logger_of(thing)
    for _ in range(100):
        logger.info("x" * 1000)
    dropped = thing.stats().dropped
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("Logging error", "pmwal.errors.WalFull", "stats()", "'xxx"):
        assert part in line
    assert dropped > 30
    thing.wal.truncate(before=thing.wal.next_seq - 1)
    logger.info("stored")
    assert (thing.stats().dropped, capsys.readouterr().err) == (dropped, "")
    for _ in range(100):
        logger.info("x" * 1000)
    assert thing.stats().dropped > dropped + 30
    assert capsys.readouterr().err.count("\n") == 1
    thing.close()


def test_failed_barrier_is_reported_by_every_later_call(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After that nothing counts as stored, each record is reported, and flush raises."""
    seam = BarrierRecorder()
    monkeypatch.setattr(
        targets, "open_with", lambda path, options, made: open_with(path, replace(options, medium="file"), seam=seam)
    )
    handler = Watched(log, size=SIZE)
    logger = logger_of(handler)
    logger.info("stored")
    seam.before = fail_flush(errno.ENOSPC)
    logger.critical("not durable")
    logger.info("refused")
    with pytest.raises(pmwal.PersistError):
        handler.flush()
    handler.close()
    assert [getattr(error, "errno", None) for error in handler.reported] == [errno.ENOSPC] * 2
    assert handler.stats().errors == 2


@pytest.mark.parametrize(("name", "value"), [("on_full", "wait"), ("sync_level", "LOUD"), ("level", "LOUD"), ("commit", "now")])
def test_wrong_argument_is_refused_and_leaves_nothing_open(log: Path, name: str, value: str) -> None:
    """Another handler can open the log, and logging has nothing to shut down."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=value):
        pmwal.LogHandler(log, size=SIZE, **options)
    pmwal.LogHandler(log, size=SIZE).close()
    gc.collect()
    assert [ref for ref in logging._handlerList if isinstance(ref(), pmwal.LogHandler)] == []  # type: ignore[attr-defined]


def test_threads_log_without_a_lock_and_lose_nothing(handler: Watched) -> None:
    """All records of all threads are there, those of each thread in order."""
    logger = logger_of(handler)

    def work(name: int) -> None:
        for number in range(100):
            logger.info("%d %d", name, number)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [tuple(map(int, text.split())) for _, text in stored(handler)]
    assert sorted(found) == [(name, number) for name in range(4) for number in range(100)]
    assert [found.index((name, 99)) > found.index((name, 0)) for name in range(4)] == [True] * 4
    assert handler.lock is None


# -- other processes


def worker(pipe: Any, parents: Watched, path: str, misuses: bool) -> None:
    """A worker as gunicorn forks it: it opens a handler of its own first, or uses its parent's."""
    handler = parents if misuses else Watched(path, size=SIZE)
    logger = logger_of(handler)
    for number in range(50):
        logger.info("request %d", number)
    handler.flush()
    pipe.send((os.getpid(), handler.stats(), [str(error) for error in handler.reported], {type(e) for e in handler.reported}))
    handler.close()


def test_forked_workers_have_handlers_of_their_own_and_one_misuses_its_parents(shm_dir: Path) -> None:
    """As under gunicorn: four logs have all lines, and the fifth worker gets an error that says what to do."""
    path = str(shm_dir / "app-{pid}.wal")
    parents = Watched(shm_dir / "master.wal", size=SIZE)
    parents.setLevel(logging.INFO)
    logger_of(parents).info("booting")

    def heard(running: Child) -> Any:
        answer = running.hear()
        assert running.wait() == 0
        return answer

    for number in range(WORKERS + 1):
        misuses = number == WORKERS
        with child(worker, parents, path, misuses) as running:
            pid, stats, reported, kinds = heard(running)
        if misuses:
            assert (stats.written, stats.errors, len(reported), kinds) == (0, 50, 50, {pmwal.ForkedWal})
            for part in ("master.wal", str(os.getpid()), str(pid), "after the fork", "master-{pid}.wal"):
                assert part in reported[0]
        else:
            assert (stats.written, reported) == (50, [])
            assert [text for _, text in lines(shm_dir / f"app-{pid}.wal")] == [f"request {place}" for place in range(50)]
            assert pmwal.verify(shm_dir / f"app-{pid}.wal").outcome == "clean"
    logger_of(parents).info("still here")
    parents.close()
    assert [text for _, text in lines(shm_dir / "master.wal")] == ["booting", "still here"]
    assert parents.reported == []


def test_workers_at_the_same_time_do_not_disturb_each_other(shm_dir: Path) -> None:
    """Four forked workers and their parent log at the same time, each to a log of its own."""
    parents = Watched(shm_dir / "master.wal", size=SIZE, commit=0.001)
    with ExitStack() as stack:
        running = [stack.enter_context(child(worker, parents, str(shm_dir / f"{number}.wal"), False)) for number in range(WORKERS)]
        for number in range(50):
            logger_of(parents).info("beat %d", number)
        answers = [one.hear() for one in running]
    assert [(stats.written, reported) for _, stats, reported, _ in answers] == [(50, [])] * WORKERS
    assert parents.stats().written == 50
    parents.close()


def test_end_of_a_forked_child_leaves_the_parents_log_alone(handler: Watched, log: Path) -> None:
    """Its logging.shutdown flushes and closes the inherited handler: nothing happens, and nothing is printed."""
    logger_of(handler).info("one")

    def end() -> tuple[int, list[Exception]]:
        logging.shutdown()
        return handler.stats().errors, handler.reported

    assert elsewhere(end) == (0, [])
    logger_of(handler).info("two")
    handler.close()
    assert [text for _, text in lines(log)] == ["one", "two"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_new_process_is_told_to_open_a_log_of_its_own(method: str, handler: Watched) -> None:
    """A handler refuses to be pickled for another process."""
    context = multiprocessing.get_context(method)
    with pytest.raises(TypeError, match="path of its own"):
        context.Process(target=handler.emit).start()
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="QueueHandler"):
            attempt(handler)


def test_second_handler_on_a_path_is_told_what_to_do(handler: Watched, log: Path) -> None:
    """This applies to a second handler in the process, and to a spawned process that runs the same configuration again."""
    with pytest.raises(pmwal.WalLocked, match=r"this process .*app-\{pid\}\.wal") as here:
        pmwal.LogHandler(log)
    assert here.value.pid == os.getpid()
    source = """
        import sys, pmwal
        pmwal.LogHandler(sys.argv[1])
    """
    done = run_script(source, log)
    assert f"process {os.getpid()} has it open" in done.stderr
    assert "app-{pid}.wal" in done.stderr


def test_pid_in_a_path_becomes_the_process_id(shm_dir: Path) -> None:
    """One configuration can then serve many processes."""
    handler = pmwal.LogHandler(shm_dir / "app-{pid}.wal", size=SIZE)
    handler.close()
    assert (shm_dir / f"app-{os.getpid()}.wal").exists()
    assert repr(handler) == f"<pmwal.LogHandler '{shm_dir}/app-{os.getpid()}.wal' (NOTSET)>"
