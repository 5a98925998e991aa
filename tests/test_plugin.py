"""The pytest plugin: its fixtures, the logs that crash on command, and that it costs nothing where it is not used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

import pmwal
import pmwal.testing
from pmwal.testing import CrashLog, Piece
from processes import run_script
from test_structure import MODULES, imported_by, reached

pytest_plugins = "pytester"


def contents(wal: pmwal.Wal) -> list[bytes]:
    """The payloads of a log."""
    return [record.data for record in wal]


@pytest.mark.parametrize("medium", ["page", "pmem", "folio-64k"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_power_cut_takes_what_was_not_flushed(medium: str, ordering: str, pmwal_crash: Callable[..., CrashLog]) -> None:
    """What was committed is there in the worst case, what was only stored in the best one."""
    log = pmwal_crash(medium=medium, ordering=ordering, commit="manual")
    log.wal.append(b"flushed")
    log.wal.commit()
    log.wal.append(b"pending")
    with log.reopen() as wal:
        assert contents(wal) == [b"flushed"]
    with log.reopen(()) as wal:
        assert contents(wal) == [b"flushed", b"pending"]
        assert wal.append(b"on") == 3
    log.wal.commit()
    with log.reopen() as wal:
        assert contents(wal) == [b"flushed", b"pending"]


@pytest.mark.parametrize("medium", ["page", "pmem"])
def test_any_subset_may_be_lost_and_none_leaves_a_hole(medium: str, pmwal_crash: Callable[..., CrashLog]) -> None:
    """Each subset of the pieces is another crash; all that recovery finds are beginnings of what was stored."""
    log = pmwal_crash(medium=medium, size="64KiB", commit="manual")
    stored = [bytes([65 + number]) * (3000 if medium == "page" else 10) for number in range(5)]
    for data in stored:
        log.wal.append(data)
    subsets = list(log.subsets())
    assert len(subsets) == len(set(subsets)) > 10
    assert set(chain(*subsets)) == set(log.unflushed)
    found = set()
    for lost in subsets:
        with log.reopen(lost) as wal:
            assert contents(wal) == stored[: len(wal)]
            found.add(len(wal))
    assert {0, 5} <= found
    assert len(found) > 2


def test_one_chosen_piece_is_lost_and_the_rest_kept(pmwal_crash: Callable[..., CrashLog]) -> None:
    """Losing the page of the third record alone ends the log before it."""
    log = pmwal_crash(align=4096, size="64KiB", commit="manual")
    log.wal.extend([b"1"])
    log.wal.extend([b"2"])
    log.wal.extend([b"3"])
    log.wal.extend([b"4"])
    assert [piece.length for piece in log.unflushed] == [4096] * 4
    with log.reopen([log.unflushed[2]]) as wal:
        assert contents(wal) == [b"1", b"2"]
        assert wal.recovery.case == "R3"


def test_batch_is_lost_as_a_whole(pmwal_crash: Callable[..., CrashLog]) -> None:
    """A batch that lost any of its pieces is gone."""
    log = pmwal_crash(align=4096, size="64KiB", commit="manual")
    log.wal.append(b"before")
    log.wal.commit()
    log.wal.extend([b"a", b"b", b"c"])
    for piece in log.unflushed:
        with log.reopen([piece]) as wal:
            assert contents(wal) == [b"before"]


def test_piece_with_nothing_to_lose_is_refused(pmwal_crash: Callable[..., CrashLog]) -> None:
    """A test that chooses what is flushed already would test nothing."""
    log = pmwal_crash()
    log.wal.append(b"flushed")
    assert log.unflushed == ()
    with pytest.raises(ValueError, match="nothing unflushed"), log.reopen([Piece(4096, 4096)]):
        pass
    with pytest.raises(ValueError, match="medium must be one of"):
        pmwal_crash(medium="paper")


def test_crash_leaves_no_files_behind(pmwal_crash: Callable[..., CrashLog], pmwal_path: Path) -> None:
    """The files of the crashes go with their handles."""
    log = pmwal_crash()
    log.wal.append(b"x")
    with log.reopen(), log.reopen():
        assert len(list(pmwal_path.parent.iterdir())) == 3
    assert len(list(pmwal_path.parent.iterdir())) == 1


def test_pmwal_path_is_a_free_path_on_tmpfs(pmwal_path: Path) -> None:
    """A log made there is on memory."""
    assert not pmwal_path.exists()
    with pmwal.open(pmwal_path, size="64KiB") as wal:
        assert wal.stats().medium == "memory"


def test_plugin_is_found_by_pytest_and_cleans_up(pytester: pytest.Pytester) -> None:
    """Other projects have the fixtures without a line in their conftest, and /dev/shm is left as it was."""
    pytester.makepyfile(
        """
        import pmwal

        def test_of_a_user(pmwal_path, pmwal_crash):
            with pmwal.open(pmwal_path, size="64KiB") as wal:
                wal.append(b"x")
            log = pmwal_crash(size="64KiB")
            log.wal.append(b"y")
            with log.reopen() as wal:
                assert [record.data for record in wal] == [b"y"]
            print("PATH", pmwal_path)
        """
    )
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if "PATH " in line]
    assert not Path(line.partition("PATH ")[2].strip()).parent.exists()


def test_without_tmpfs_the_path_is_on_the_disk(pytester: pytest.Pytester) -> None:
    """The directory of the test serves then."""
    pytester.makeconftest("import pytest_pmwal\npytest_pmwal._SHM = '/nonexistent'\n")
    pytester.makepyfile(
        """
        def test_of_a_user(pmwal_path, tmp_path):
            assert pmwal_path.parent == tmp_path
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_loading_the_plugin_imports_neither_pmwal_nor_numpy() -> None:
    """It is loaded in every run of pytest on a machine where pmwal is installed, and before coverage is measured."""
    result = run_script(
        """
        import sys
        import pytest

        before = set(sys.modules)
        import pytest_pmwal

        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
        """
    )
    assert result.stdout.strip() == "['pytest_pmwal']", result.stderr
    assert "pmwal" in sys.modules


# -- what is shipped for tests, and what only pmwal's own rigs need

TESTING = "pmwal.testing"
SIMULATOR, MUTANTS = f"{TESTING}._simulator", f"{TESTING}._mutants"


def imports(name: str, package: str) -> bool:
    """Whether a module imports a package, or one of its modules."""
    return any(found == package or found.startswith(f"{package}.") for found in imported_by(name))


def test_library_does_not_import_what_tests_need() -> None:
    """Nothing outside of pmwal.testing imports it, but for the commands that run it."""
    users = {name for name in MODULES if not name.startswith(TESTING) and imports(name, TESTING)}
    assert users == {"pmwal.cli.crashing", *(f"pmwal.cli.commands.{command}" for command in ("bench", "crashsim", "stress"))}


def test_public_part_of_testing_needs_neither_the_simulator_nor_the_mutants() -> None:
    """The modules directly in pmwal.testing reach none in its private packages, and the simulator reaches no mutant."""
    public = [name for name in MODULES if name.startswith(TESTING) and not name.startswith((SIMULATOR, MUTANTS))]
    assert len(public) > 5
    assert {name for start in public for name in reached(start) if name.startswith((SIMULATOR, MUTANTS))} == set()
    assert [name for name in MODULES if name.startswith(SIMULATOR) and imports(name, MUTANTS)] == []
    assert imports(f"{MUTANTS}.table", SIMULATOR), "the checks above can fail"


def test_import_of_testing_loads_neither_the_simulator_nor_the_mutants() -> None:
    """In a fresh interpreter; the simulator itself loads no mutant."""
    script = """
        import sys
        import pmwal.testing

        print([name for name in sys.modules if name.startswith(("pmwal.testing._simulator", "pmwal.testing._mutants"))])
        import pmwal.testing._simulator.campaign

        print([name for name in sys.modules if name.startswith("pmwal.testing._mutants")])
        import pmwal.testing._mutants.table

        print("pmwal.testing._mutants.engine" in sys.modules)
        """
    result = run_script(script)
    assert result.stdout.splitlines() == ["[]", "[]", "True"], result.stderr


def test_names_of_0_1_are_still_there() -> None:
    """Two of them are other names now."""
    assert (pmwal.testing.Event, pmwal.testing.Medium) == (pmwal.testing.Step, pmwal.testing.PowerCutModel)
    names = "ORACLES UNITS Crash CrashImage CrashLog Event Image Medium Piece Recorder Violation crash_images"
    assert set(names.split()) <= set(pmwal.testing.__all__)
    assert pmwal.testing.Recorder(bytes(16)).new_uuid() == bytes(16)
