"""Everything from version 0.1 still works: import paths, names in configurations, and pickles."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import logging
import logging.config
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pmwal
from pmwal import records
from pmwal.format import layout
from processes import run_script

ROOT = Path(__file__).parent.parent
PICKLES = zipfile.Path(ROOT / "tests" / "data" / "v0.1-pickles.zip")
NAMES = sorted(path.stem for path in PICKLES.iterdir() if path.suffix == ".pickle")
OLD_NAMES = ("pmwal.handler", "pmwal.layout", "pmwal.sink")


@pytest.fixture
def _not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old names warn when they are imported, which happens once in a process."""
    for name in OLD_NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pickles", ROOT / "tools" / "make_pickles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- import paths


@pytest.mark.usefixtures("_not_imported")
@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_module_warns_with_what_to_use(name: str) -> None:
    """It gives one warning, which also says when the old name will go."""
    with pytest.warns(DeprecationWarning, match=rf"{name} is deprecated and will be removed in 0\.3: ") as caught:
        importlib.import_module(name)
    assert len(caught) == 1


def test_warning_of_an_old_module_points_at_the_import() -> None:
    """The user can then find the import. In a process of its own: pytest may import the modules of its plugins in its own way."""
    done = run_script(
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from pmwal.layout import RECORD
        assert [warning.filename for warning in caught] == ["<string>"], caught
        """
    )
    assert not done.returncode, done.stderr


@pytest.mark.usefixtures("_not_imported")
def test_old_layout_gives_every_name_of_the_new_one() -> None:
    """They are the same objects, not copies."""
    with pytest.warns(DeprecationWarning, match="use pmwal.format.layout"):
        old = importlib.import_module("pmwal.layout")
    expected = {name: value for name, value in vars(layout).items() if not name.startswith("_")}
    assert expected == {name: getattr(old, name) for name in expected}
    assert {"RECORD", "SUPERBLOCK", "SLOT", "Superblock", "seed_crc", "CAPACITY_DEFAULT"} <= expected.keys()


@pytest.mark.usefixtures("_not_imported")
def test_old_modules_give_the_classes_of_the_new_ones() -> None:
    """``isinstance`` and ``except`` see no difference."""
    with pytest.warns(DeprecationWarning, match="use pmwal.LogHandler"):
        assert importlib.import_module("pmwal.handler").LogHandler is pmwal.LogHandler
    with pytest.warns(DeprecationWarning, match="SinkStats is in pmwal.records"):
        assert importlib.import_module("pmwal.sink").SinkStats is records.SinkStats


@pytest.fixture
def _root_logger() -> Iterator[None]:
    """Restore what a configuration changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_not_imported", "_root_logger")
def test_configuration_of_logging_with_the_old_class_works(shm_dir: Path) -> None:
    """A dictConfig of 0.1 opens the log and stores records, with a warning."""
    path = shm_dir / "app.wal"
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"wal": {"class": "pmwal.handler.LogHandler", "path": str(path), "size": "1MiB"}},
        "root": {"handlers": ["wal"], "level": "INFO"},
    }
    with pytest.warns(DeprecationWarning, match="use pmwal.LogHandler"):
        logging.config.dictConfig(configuration)
    logging.getLogger("shop").info("paid")
    logging.config.dictConfig({"version": 1, "root": {"handlers": []}, "disable_existing_loggers": False})
    with pmwal.open(path, "r") as reader:
        assert [record.data for record in reader] == [b"paid"]


# -- pickles


def test_pickle_of_a_recorded_step_loads() -> None:
    """``pmwal.testing.Event`` of 0.1 is ``Step`` now; protocol 0 shows the path."""
    made_by_0_1 = b"cpmwal.testing.recorder\nEvent\n(Vstore\nI1\nI2\nc_codecs\nencode\n(Vx\nVlatin1\ntRtR."
    assert pickle.loads(made_by_0_1) == ("store", 1, 2, b"x")


@pytest.mark.parametrize("name", NAMES)
def test_pickle_of_version_0_1_loads_with_every_attribute(name: str) -> None:
    """The class is importable where 0.1 had it, and each attribute known to 0.1 has its value."""
    expected = json.loads((PICKLES / f"{name}.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for an old name
        loaded = pickle.loads((PICKLES / f"{name}.pickle").read_bytes())
    found = _tool().describe(loaded)
    assert found["class"] == type(loaded).__module__ + "." + type(loaded).__qualname__
    assert expected == restricted(found, expected)


@pytest.mark.parametrize("name", ["recovery-report", "recovery-report-defaults"])
def test_report_of_version_0_1_has_the_fields_that_came_later(name: str) -> None:
    """They have their defaults, so it can be printed, compared and turned into JSON."""
    loaded = pickle.loads((PICKLES / f"{name}.pickle").read_bytes())
    assert (loaded.live, loaded.judged) == (False, (0, 0))
    assert "live=False" in repr(loaded)
    assert loaded.as_dict()["judged"] == (0, 0)
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def restricted(found: Any, expected: Any) -> Any:
    """A description reduced to the other one's attributes, with classes by the names used there if they are the same."""
    if isinstance(found, list) and isinstance(expected, list):
        return [restricted(*pair) for pair in zip(found, expected, strict=True)]
    if not isinstance(found, dict) or not isinstance(expected, dict) or expected.keys() != {"class", "attributes"}:
        return found
    assert named(expected["class"]) is named(found["class"])
    attributes = {name: restricted(found["attributes"][name], value) for name, value in expected["attributes"].items()}
    return {"class": expected["class"], "attributes": attributes}


def named(path: str) -> Any:
    """The class with this dotted name."""
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["recovery-report", "repair-report", "wal-stats"])
def test_report_of_version_0_1_has_the_defaults_of_newer_fields(name: str) -> None:
    """What a program kept of an older version can be used like a report of today."""
    report = pickle.loads((PICKLES / f"{name}.pickle").read_bytes())
    assert len(report.as_dict()) == len(dataclasses.fields(report))
    assert report == pickle.loads(pickle.dumps(report))


def test_pickles_are_of_every_kind_of_object_that_is_handed_out() -> None:
    """Records, reports, figures, events and errors: no public class of plain data is missing."""
    kinds = {json.loads((PICKLES / f"{name}.json").read_text())["class"].rpartition(".")[2] for name in NAMES}
    errors = {
        name for name in pmwal.__all__ if isinstance(getattr(pmwal, name), type) and issubclass(getattr(pmwal, name), Exception)
    }
    newer = {
        "ConsumerHeld",
        "PositionError",
        "ShipError",
        "ShortenedWal",
        "StaleStore",
        "WalUnlinked",
        "UnlinkedWarning",
    }  # than version 0.1
    handed_out = {"Record", "RecoveryReport", "WalStats", "LatencyHistogram", "RepairReport", "SinkStats", "Event"}
    assert (errors - newer) | handed_out == kinds


def test_pickles_of_today_do_not_name_old_modules(shm_dir: Path) -> None:
    """A pickle made now loads without a warning, also after the old names are gone."""
    handler = pmwal.LogHandler(shm_dir / "app.wal", size="64KiB")
    handler.close()
    assert type(handler.stats()).__module__ == "pmwal.records"
