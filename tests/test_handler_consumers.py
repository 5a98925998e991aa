"""``LogHandler(on_full="consumed", consumers=...)``: what consumers have not had is kept, and no logging call waits for them."""

from __future__ import annotations

import importlib
import logging
import logging.config
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from archived import archive, kept
from pmwal import events
from pmwal.writing.access import Access

KEPT: dict[str, Any] = {"size": "16KiB", "on_full": "consumed", "consumers": ["archive"]}


def record(number: int) -> logging.LogRecord:
    return logging.makeLogRecord({"levelno": logging.INFO, "msg": f"{number:05}" + 995 * "."})


def fill(handler: logging.Handler, count: int = 40) -> None:
    for number in range(count):
        handler.handle(record(number))


def test_full_log_keeps_what_is_not_consumed_and_drops_the_new(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the consumer has begun, too; what is dropped is reported once, and counted. Then there is room for as much again."""
    handler = pmwal.LogHandler(path, **KEPT)
    fill(handler)
    stats = handler.stats()
    assert (stats.dropped, stats.overwritten, stats.errors) == (40 - stats.written, 0, 0)
    assert 10 < stats.written < 17
    said = capsys.readouterr().err
    assert said.count("WalFull") == 1
    assert "archive" in said
    handler.flush()
    archive(path, to=tmp_path)
    fill(handler, 5)
    assert handler.stats().dropped == stats.dropped
    handler.close()
    numbers = [int(row[3][:5]) for row in kept(tmp_path, path)]
    assert numbers == [*range(stats.written), *range(5)]


def test_no_call_waits_for_a_consumer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a moment: the thread that logs never sleeps until one has moved."""

    def wait(self: Access, deadline: float | None) -> None:
        pytest.fail("it waits")

    monkeypatch.setattr(Access, "wait_for_change", wait)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it sleeps"))
    handler = pmwal.LogHandler(path, **KEPT, commit="manual")
    fill(handler)
    assert handler.stats().dropped
    handler.close()


def test_each_slot_of_a_directory_keeps_for_its_consumers(shm_dir: Path, tmp_path: Path) -> None:
    """The names are the same in all logs; each has a position of its own."""
    handler = pmwal.LogHandler(directory=shm_dir, **KEPT)
    fill(handler)
    dropped = handler.stats().dropped
    assert dropped
    handler.flush()
    archive(shm_dir, to=tmp_path)
    fill(handler, 5)
    assert handler.stats().dropped == dropped
    handler.close()


def test_dict_config_takes_it(path: Path) -> None:
    """As the guide shows."""
    configuration: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"wal": {"class": "pmwal.LogHandler", "path": str(path), **KEPT}},
        "loggers": {"test_handler_consumers": {"handlers": ["wal"], "level": "INFO", "propagate": False}},
    }
    logging.config.dictConfig(configuration)
    (handler,) = logging.getLogger("test_handler_consumers").handlers
    assert isinstance(handler, pmwal.LogHandler)
    fill(handler)
    assert handler.stats().dropped
    handler.close()


def _structlog(path: Path, **options: Any) -> Any:
    return importlib.import_module("pmwal.integrations.structlog").LoggerFactory(path, **options)


def _loguru(path: Path, **options: Any) -> Any:
    return importlib.import_module("pmwal.integrations.loguru").Sink(path, **options)


def _events(path: Path, **options: Any) -> Any:
    return events.Logger(directory=path.parent, **options)


@pytest.mark.parametrize("make", [pmwal.LogHandler, _structlog, _loguru, _events])
def test_all_that_log_take_the_same_options(path: Path, make: Callable[..., Any]) -> None:
    """And refuse consumers that they would not keep anything for."""
    if make is _structlog:
        pytest.importorskip("structlog")
    if make is _loguru:
        pytest.importorskip("loguru")
    log = make(path, **KEPT)
    log.wal.extend([bytes(1000)] * 14)
    with pytest.raises(pmwal.WalFull, match="archive"):
        log.wal.extend([bytes(1000)] * 14)
    (log.stop if hasattr(log, "stop") else log.close)()  # loguru calls it so
    for on_full in ("overwrite", "raise"):
        with pytest.raises(ValueError, match='on_full="consumed" keeps records'):
            make(path, **(KEPT | {"on_full": on_full}))
    with pytest.raises(TypeError, match="consumers is a list of names"):
        make(path, **(KEPT | {"consumers": "archive"}))
