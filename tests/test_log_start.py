"""A log that is damaged or of another size does not keep a program that logs from starting, and loses nothing."""

from __future__ import annotations

import errno
import logging
import logging.config
import os
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import set_aside as setting_aside
from pmwal.repair import repair
from processes import Child, child, elsewhere, run_script
from support import BarrierRecorder, file_offset, flip, overwrite, superblock, whole_records

pytestmark = pytest.mark.both_engines

ASIDE = r"app\.wal\.corrupt-\d{8}T\d{6}Z(-\d+)?"

MAKERS: list[Any] = [pmwal.LogHandler, LoggerFactory, Sink]


def closed(thing: Any) -> None:
    """Close a handler, a factory or a sink."""
    getattr(thing, "stop", getattr(thing, "close", None))()


def make_corrupt(log: Path, records: int = 5, size: str = SIZE) -> None:
    """A log whose third record rotted after a clean close."""
    with pmwal.open(log, size=size) as wal:
        wal.extend([b"record %d" % number for number in range(records)])
    flip(log, file_offset(superblock(log), whole_records(log)[3].position) + 50)
    assert pmwal.verify(log).outcome == "corrupt"


def lose_the_slots(log: Path) -> None:
    """A log without a valid slot."""
    make_corrupt(log)
    block = superblock(log)
    overwrite(log, block.control_offset, bytes(block.control_size))


def aside(log: Path) -> list[str]:
    """The names of what was set aside."""
    return sorted(name for name in os.listdir(log.parent) if name != log.name)


def stored(path: Path) -> list[bytes]:
    """All payloads of a log."""
    with pmwal.open(path, "r") as reader:
        return [record.data for record in reader]


# -- a corrupt log


def cut_off(log: Path) -> None:
    """A log of which the last record is no longer in the file."""
    with pmwal.open(log, size=SIZE) as wal:
        wal.extend([b"record %d" % number for number in range(5)])
    os.truncate(log, file_offset(superblock(log), whole_records(log)[4].end + 10))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", [make_corrupt, lose_the_slots, cut_off])
def test_corrupt_log_is_set_aside_with_one_warning(make: Any, damage: Callable[[Path], None], log: Path) -> None:
    """The new log has the size that was asked for; the old one is untouched, and can be salvaged and repaired."""
    damage(log)
    before = log.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"was set aside as .*recover='salvage'.*pmwal repair") as caught:
        thing = make(log, size="128KiB")
    assert [warning.filename for warning in caught] == [__file__]
    assert (thing.wal.capacity, len(thing.wal)) == (128 << 10, 0)
    closed(thing)
    (name,) = aside(log)
    assert re.fullmatch(ASIDE, name)
    assert name in str(caught[0].message)
    kept = log.with_name(name)
    assert kept.read_bytes() == before
    with pmwal.open(kept, "r", recover="salvage") as reader:
        found = {record.data for record in reader}
    assert found >= {b"record 0", b"record 1", b"record 3"} | ({b"record 4"} if damage is not cut_off else set())
    repair(kept)
    pmwal.open(kept).close()


@pytest.mark.parametrize("make", MAKERS)
def test_corrupt_log_is_raised_on_request(make: Any, log: Path) -> None:
    """Nothing is renamed then."""
    make_corrupt(log)
    with pytest.raises(pmwal.CorruptWal):
        make(log, size=SIZE, on_corrupt="raise")
    assert aside(log) == []
    with pytest.raises(ValueError, match="on_corrupt must be one of 'set-aside', 'raise', not 'ignore'"):
        make(log, size=SIZE, on_corrupt="ignore")


def test_dictconfig_sets_aside_and_logs(log: Path) -> None:
    """The program starts and its first record is there."""
    make_corrupt(log)
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"wal": {"class": "pmwal.LogHandler", "path": str(log), "on_corrupt": "set-aside"}},
        "loggers": {"pmwal-test": {"handlers": ["wal"], "level": "INFO", "propagate": False}},
    }
    logger = logging.getLogger("pmwal-test")
    try:
        with pytest.warns(RuntimeWarning, match="was set aside"):
            logging.config.dictConfig(config)
        logger.info("started")
        logger.handlers[0].close()
    finally:
        logger.handlers.clear()
    assert stored(log) == [b"started"]


def test_program_starts_with_a_corrupt_log_and_says_so_on_stderr(log: Path) -> None:
    """In an interpreter with default settings."""
    make_corrupt(log)
    source = """
        import logging, sys, pmwal
        logging.basicConfig(handlers=[pmwal.LogHandler(sys.argv[1], size="64KiB")], level="INFO")
        logging.info("started")
    """
    done = run_script(source, log)
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning") == 1
    assert "was set aside as" in done.stderr
    assert len(stored(log)) == 1


@pytest.mark.parametrize("kind", ["text", "superblock", "superblocks", "directory"])
def test_what_is_no_log_is_never_renamed(kind: str, log: Path) -> None:
    """FormatError and OSError are raised as before."""
    make_corrupt(log)
    block = superblock(log)
    if kind == "superblocks":
        overwrite(log, 0, bytes(4096))
        overwrite(log, block.copy_offset, bytes(4096))
    elif kind == "superblock":
        os.truncate(log, 4095)
    else:
        log.unlink()
        if kind == "directory":
            log.mkdir()
        else:
            log.write_text("text\n" * 1000)
    with pytest.raises((pmwal.FormatError, OSError)):
        pmwal.LogHandler(log, size=SIZE)
    assert aside(log) == []


def test_log_that_another_process_writes_is_never_renamed(log: Path) -> None:
    """Its writer has the lock; damage under it is the writer's to find."""
    with pmwal.open(log, size=SIZE) as wal:
        wal.extend([b"record"] * 5)
        flip(log, file_offset(superblock(log), whole_records(log)[3].position) + 50)
        with pytest.raises(pmwal.WalLocked):
            setting_aside.set_aside(str(log))
    assert aside(log) == []


def test_log_that_is_whole_again_is_not_renamed(log: Path) -> None:
    """What counts is the verdict under the lock: another process may have put a new log there."""
    pmwal.open(log, size=SIZE).close()
    assert setting_aside.set_aside(str(log)) is None
    log.unlink()
    assert setting_aside.set_aside(str(log)) is None


def test_at_most_three_are_kept_and_nothing_else_is_removed(log: Path) -> None:
    """The oldest go first; files that are no logs, of other names, or open for writing stay."""
    foreign = [
        "app.wal.corrupt-20000101T000000Z",  # not a log
        "app.wal.corrupt-20000102T000000Z",  # a symlink to a log
        "app.wal.corrupt",
        "app.wal.corrupt-latest",
        "app.wal.corrupt-20000101T000000Z.bak",
        "app.wal.damaged",
        "xapp.wal.corrupt-20000101T000000Z",
        "app.wal.corrupt-99991231T000000Z",  # not a log
    ]
    elsewhere_log = log.with_name("other.wal")
    pmwal.open(elsewhere_log, size=SIZE).close()
    for name in foreign:
        shutil.copy(elsewhere_log, log.with_name(name))
    log.with_name(foreign[0]).write_text("notes")
    log.with_name(foreign[-1]).write_text("notes")
    log.with_name(foreign[1]).unlink()
    log.with_name(foreign[1]).symlink_to(elsewhere_log)
    opened = log.with_name("app.wal.corrupt-20000103T000000Z")
    pmwal.open(opened, size=SIZE).close()
    seam, targets = BarrierRecorder(), []
    with pmwal.open(opened):
        for number in range(6):
            make_corrupt(log, records=3 + number)
            seam.now_ns = lambda number=number: (1_800_000_000 + number // 2) * 10**9  # type: ignore[method-assign, misc]
            target = setting_aside.set_aside(str(log), seam)
            assert target is not None
            targets.append(Path(target).name)
    assert len(set(targets)) == 6
    assert targets[1] == f"{targets[0]}-2"
    # The one that is open is older than all, but could not be removed.
    assert aside(log) == sorted([*foreign, elsewhere_log.name, opened.name, *targets[3:]])


def test_newest_is_kept_although_the_clock_went_back(log: Path) -> None:
    """It is the one whose records nobody has looked at."""
    seam = BarrierRecorder()
    for when in (9, 8, 7, 6, 5):
        make_corrupt(log)
        seam.now_ns = lambda when=when: when * 10**18  # type: ignore[method-assign, misc]
        target = setting_aside.set_aside(str(log), seam)
        assert target is not None
        assert Path(target).exists()
    assert len(aside(log)) == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO])
def test_log_that_cannot_be_renamed_is_raised_with_both_reasons(number: int, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damage, and what stood in the way."""
    make_corrupt(log)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(setting_aside.SYSTEM, "replace", refuse)
    with pytest.raises(pmwal.CorruptWal) as raised:
        pmwal.LogHandler(log, size=SIZE)
    error = raised.value
    assert os.strerror(number) in str(error)
    assert "could not be set aside" in str(error)
    assert (error.first_seq, error.last_seq) == (3, 3)
    assert "not set aside" in error.reason
    assert aside(log) == []
    with pytest.raises(pmwal.CorruptWal):
        pmwal.open(log)


def test_read_only_directory_is_named_as_the_reason(log: Path) -> None:
    """A user who may write the log and may not rename it; nothing is changed."""
    make_corrupt(log)
    log.chmod(0o666)
    log.parent.chmod(0o555)

    def start() -> str:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            pmwal.LogHandler(log, size=SIZE)
        except pmwal.CorruptWal as error:
            return str(error)
        return "started"

    said = elsewhere(start)
    log.parent.chmod(0o700)
    for part in ("R4", "could not be set aside", "Permission denied"):
        assert part in said
    assert aside(log) == []


def test_warning_that_is_an_error_leaves_nothing_open(log: Path) -> None:
    """The next start works: the log was set aside already."""
    make_corrupt(log)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            pmwal.LogHandler(log, size=SIZE)
        handler = pmwal.LogHandler(log, size=SIZE)
        handler.close()
        with pytest.raises(RuntimeWarning):
            pmwal.LogHandler(log, size="128KiB")
        pmwal.LogHandler(log, size=SIZE).close()
    assert len(aside(log)) == 1


def test_symlink_to_a_corrupt_log_keeps_leading_to_the_log(log: Path, shm_dir: Path) -> None:
    """The file is renamed where it is, and the new one takes its name there."""
    (shm_dir / "data").mkdir()
    target = shm_dir / "data" / "real.wal"
    make_corrupt(target)
    log.symlink_to(target)
    with pytest.warns(RuntimeWarning, match="was set aside"):
        handler = pmwal.LogHandler(log, size=SIZE)
    logger_of(handler).info("new")
    handler.close()
    assert log.is_symlink()
    assert stored(target) == [b"new"]
    assert len(os.listdir(shm_dir / "data")) == 2


def starter(pipe: Any, log: Path, number: int) -> None:
    """A process that waits for the word, starts with the log as soon as no other writes it, and logs."""
    pipe.recv()
    set_aside = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while True:
            try:
                handler = pmwal.LogHandler(log, size=SIZE)
                break
            except pmwal.WalLocked:
                pass
    set_aside = sum("was set aside" in str(warning.message) for warning in caught)
    logger_of(handler).info("process %d", number)
    handler.close()
    pipe.send(set_aside)


def test_of_processes_that_start_at_once_one_sets_the_log_aside(log: Path) -> None:
    """All start in turn, as with a whole log, and the records of all are in the new one."""
    for _ in range(3):
        make_corrupt(log)
        with ExitStack() as stack:
            running: list[Child] = [stack.enter_context(child(starter, log, number)) for number in range(5)]
            for one in running:
                one.say("go")
            assert sum(one.hear() for one in running) == 1
        assert sorted(stored(log)) == [b"process %d" % number for number in range(5)]
        log.unlink()
    assert len(aside(log)) == 3


# -- another size


@pytest.mark.parametrize("make", MAKERS)
def test_log_of_another_size_keeps_it_with_one_warning(make: Any, log: Path) -> None:
    """pmwal.open raises still."""
    with pmwal.open(log, size=SIZE) as wal:
        wal.append(b"before")
    with pytest.warns(RuntimeWarning, match=r"a size of 65536 bytes and keeps it, although size='1MiB'") as caught:
        thing = make(log, size="1MiB")
    assert [warning.filename for warning in caught] == [__file__]
    assert [record.data for record in thing.wal] == [b"before"]
    closed(thing)
    with pytest.raises(ValueError, match="leave size out"):
        pmwal.open(log, size="1MiB")


@pytest.mark.parametrize("size", [None, SIZE, 65536, 65000, "63.9KiB"])
def test_size_that_the_log_has_is_no_warning(size: Any, log: Path) -> None:
    """Nor is none, nor one that is rounded up to it."""
    pmwal.open(log, size=SIZE).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pmwal.LogHandler(log, size=size).close()


def test_corrupt_log_of_another_size_is_one_warning_and_the_new_one_has_the_size(log: Path) -> None:
    """No word about a size that is not kept."""
    make_corrupt(log)
    with pytest.warns(RuntimeWarning) as caught:
        handler = pmwal.LogHandler(log, size="1MiB")
    assert len(caught) == 1
    assert handler.wal.capacity == 1 << 20
    handler.close()


@pytest.mark.parametrize("size", ["much", -1, "3 apples"])
def test_size_that_is_none_is_refused_as_before(size: Any, log: Path) -> None:
    """The programmer's error is no reason to take what there is."""
    pmwal.open(log, size=SIZE).close()
    with pytest.raises(ValueError):
        pmwal.LogHandler(log, size=size)
