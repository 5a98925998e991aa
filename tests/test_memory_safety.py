"""The C engine under sanitizers, its fuzzers, and proof that they notice a mistake."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
FUZZ = TOOLS / "fuzz"
sys.path.insert(0, str(FUZZ))

import file_fuzz  # noqa: E402
import make_corpus  # noqa: E402

from pmwal.format.ring import RingReader, Rules, Run  # noqa: E402
from pmwal.native import native  # noqa: E402

pytestmark = pytest.mark.slow

PATIENCE = 240.0
FUZZ_SECONDS, MUTANT_SECONDS, CASES = 6, 20, 200
MUTANTS = ("no-room-check", "header-before-window", "half-a-batch")
"""Some of those in tools/fuzz/run.py; ``run.py --mutants`` tries all."""


@functools.cache
def can_sanitize() -> bool:
    """Whether gcc is here, with the libraries of the sanitizers."""
    gcc = shutil.which("gcc")
    return gcc is not None and all(
        os.path.isabs(subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout)
        for name in ("libasan.so", "libubsan.so", "libtsan.so")
    )


@pytest.fixture
def gcc() -> None:
    """A test that compiles: it fails without a compiler where the native engine is required, and is skipped elsewhere."""
    if not can_sanitize():
        reason = "gcc with libasan, libubsan and libtsan is needed"
        if os.environ.get("PMWAL_REQUIRE_NATIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def run_tool(*command: object, directory: Path) -> subprocess.CompletedProcess[str]:
    """One of the tools in a process of its own; what it keeps is kept in this directory."""
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.usefixtures("gcc")
def test_no_input_makes_the_ring_read_outside_of_its_window(tmp_path: Path) -> None:
    """Arbitrary bytes as a ring, under sanitizers, from another seed each time: no wrong access, and every rule is kept."""
    found = run_tool(FUZZ / "run.py", "--engine", "standalone", "--seconds", FUZZ_SECONDS, directory=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(found.stdout.split(" executions")[0].rpartition(" ")[2]) > 100, found.stdout


@pytest.mark.usefixtures("gcc")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_fuzzer_notices_a_check_that_is_missing(mutant: str, tmp_path: Path) -> None:
    """The test above can fail: without one of the tests in ring.c the same fuzzer stops and keeps the input."""
    command = ["--engine", "standalone", "--mutant", mutant, "--seed", 1]
    found = run_tool(FUZZ / "run.py", *command, "--seconds", MUTANT_SECONDS, directory=tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert (tmp_path / "ring-fuzz-crash").stat().st_size > make_corpus.PARAMETERS.size


def test_corpus_is_what_its_script_makes(tmp_path: Path) -> None:
    """The files in tools/fuzz/corpus come from the golden ones and the generator of look-alikes, and are few."""
    stored = {path.name: path.read_bytes() for path in make_corpus.CORPUS.iterdir()}
    assert make_corpus.inputs() == stored
    assert sum(map(len, stored.values())) < 16384


@pytest.mark.usefixtures("gcc")
def test_engine_runs_clean_under_sanitizers(tmp_path: Path) -> None:
    """Storing, reading, wrapping, refusing and recovering, with an extension built with -fsanitize=address,undefined."""
    found = run_tool(TOOLS / "sanitize.py", "--quick", directory=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 reports" in found.stdout


@pytest.mark.usefixtures("gcc")
def test_sanitizers_notice_a_short_buffer(tmp_path: Path) -> None:
    """The test above can fail: a payload copied into half the room is reported."""
    only = "native and payloads_of_every_kind"
    found = run_tool(TOOLS / "sanitize.py", "test_framing.py", "-x", "-k", only, "--mutant", directory=tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "heap-buffer-overflow" in found.stderr


@pytest.mark.usefixtures("gcc")
def test_threads_run_clean_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """Appends, commits that are shared, truncates, rollbacks, readers and followers of one log, on every medium: no race."""
    found = run_tool(TOOLS / "sanitize.py", "--threads", directory=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 reports" in found.stdout


@pytest.mark.usefixtures("gcc")
def test_thread_sanitizer_notices_a_race(tmp_path: Path) -> None:
    """The test above can fail: a counter that is changed before its lock is taken is reported."""
    found = run_tool(TOOLS / "sanitize.py", "--threads", "--mutant", directory=tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "data race" in found.stderr
    assert "core_commit_through" in found.stderr


@pytest.mark.skipif(native is None, reason="there is nothing to compare without the native engine")
def test_both_engines_say_the_same_of_mutated_files(tmp_path: Path) -> None:
    """Damaged and lying logs: only documented errors, and the same reports, records and bytes from both engines."""
    found = run_tool(FUZZ / "file_fuzz.py", "--cases", CASES, directory=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


def break_while_checking(monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Any]) -> None:
    """Replace a method of the ring's reader while a file is looked at, and not while it is made."""
    check = file_fuzz.check

    def checked(*args: Any) -> str:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(RingReader, name, broken)
            return check(*args)

    monkeypatch.setattr(file_fuzz, "check", checked)


@pytest.mark.skipif(native is None, reason="there is nothing to compare without the native engine")
def test_differing_engines_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The test above can fail: a native engine that keeps half a batch is found, and the kept file fails again."""
    run = RingReader.run

    def careless(self: RingReader, at: Any, rules: Rules, *args: Any) -> Run:
        return run(self, at, rules._replace(batches=False), *args)

    break_while_checking(monkeypatch, "run", careless)
    assert file_fuzz.main(["--cases", "2000", "--seed", "1", "--keep", str(tmp_path)]) == 1
    (kept,) = tmp_path.iterdir()
    assert "the engines differ" in capsys.readouterr().err
    assert file_fuzz.main(["--replay", str(kept), "--keep", str(tmp_path)]) == 1
    monkeypatch.undo()
    assert file_fuzz.main(["--replay", str(kept), "--keep", str(tmp_path)]) == 0


def test_undocumented_error_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that is neither pmwal's nor the operating system's ends the fuzzer, too."""

    def careless(*args: Any) -> None:
        raise IndexError("a length was believed")

    break_while_checking(monkeypatch, "peek", careless)
    assert file_fuzz.main(["--cases", "20", "--seed", "1", "--keep", str(tmp_path)]) == 1
    assert "IndexError, which is not documented" in capsys.readouterr().err
