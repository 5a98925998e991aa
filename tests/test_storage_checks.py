"""The storage layer's checks of its own invariants: on with PMWAL_CHECK=1; each can fail; off, they cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmwal.format import control
from pmwal.format.layout import CONTROL_OFFSET, LINE, LIVE_OFFSET, PAGE
from pmwal.opening.files import map_for_reading
from pmwal.storage import checks, create, mapping
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import SYSTEM
from processes import run_script
from support import open_small


@pytest.fixture
def _checking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the checks on, as PMWAL_CHECK=1 does."""
    for module in (create, mapping):
        monkeypatch.setattr(module, "CHECKING", True)


@pytest.fixture
def writable(shm_dir: Path, _checking: None) -> Iterator[Mapping]:
    """The mapping of a writer."""
    with open_small(shm_dir / "test.wal") as wal:
        yield wal._engine.mapping


@pytest.mark.parametrize(("value", "expected"), [(None, "False"), ("0", "False"), ("", "False"), ("1", "True")])
def test_switch_is_read_from_the_environment(value: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks are off unless it is 1."""
    monkeypatch.delenv("PMWAL_CHECK", raising=False)
    if value is not None:
        monkeypatch.setenv("PMWAL_CHECK", value)
    result = run_script("from pmwal.storage import checks; print(checks.CHECKING)")
    assert result.stdout.strip() == expected, result.stderr


def test_failed_check_is_an_assertion_error_with_its_text() -> None:
    """It reports a bug in pmwal, not in the program."""
    checks.check(True, "true")
    with pytest.raises(AssertionError, match="please report this: one is two"):
        checks.check(False, "one is two")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda mapping: mapping.store(-1, b"x"), "store of 1 bytes at -1"),
        (lambda mapping: mapping.store(mapping.size, b"x"), "store of 1 bytes at"),
        (lambda mapping: mapping.store(mapping.size - 1, b"xy"), "store of 2 bytes at"),
        (lambda mapping: mapping.store(0, b""), "store of 0 bytes at 0"),
        (lambda mapping: mapping.load(mapping.size - 1, 2), "load of 2 bytes at"),
        (lambda mapping: mapping.load(-1, 1), "load of 1 bytes at -1"),
        (lambda mapping: mapping.barrier((mapping.size - 1, mapping.size + 1)), "barrier over bytes"),
        (lambda mapping: mapping.barrier((CONTROL_OFFSET, CONTROL_OFFSET)), "barrier over bytes"),
        (lambda mapping: mapping.barrier((LIVE_OFFSET, LIVE_OFFSET + LINE)), "barrier over the live page"),
        (lambda mapping: mapping.barrier((LIVE_OFFSET + PAGE - 1, CONTROL_OFFSET + LINE)), "barrier over the live page"),
    ],
)
def test_step_outside_the_file_or_over_the_live_page_is_noticed(
    writable: Mapping, step: Callable[[Mapping], object], message: str
) -> None:
    """The check comes before the step."""
    barriers = writable.barriers
    with pytest.raises(AssertionError, match=message):
        step(writable)
    assert barriers == writable.barriers


@pytest.mark.usefixtures("_checking")
def test_store_through_a_reader_is_noticed(shm_dir: Path) -> None:
    """A reader maps nothing, so there is nothing to store to."""
    path = shm_dir / "test.wal"
    open_small(path).close()
    readable, _ = map_for_reading(str(path), "auto", SYSTEM)
    with pytest.raises(AssertionError, match="store through a read-only mapping"):
        readable.store(CONTROL_OFFSET, bytes(LINE))
    readable.close()


@pytest.mark.usefixtures("_checking")
def test_slot_that_creation_makes_wrong_is_noticed(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is left."""
    monkeypatch.setattr(control, "encode_slot", lambda slot, uuid, index: bytes(64))
    with pytest.raises(AssertionError, match="a slot of a new log is not whole"):
        open_small(shm_dir / "test.wal")
    assert list(shm_dir.iterdir()) == []
