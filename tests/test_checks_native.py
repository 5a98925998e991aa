"""The checks of pmwal/native/check.h: each can fail, none fails in the code that ships, other builds have no trace of them.

A mutant is one small edit in a copy of the C sources, built with checks: a short scenario (tests/check_scenarios.py) must end in
the check that is there for it. What only a caller can break is broken by the caller, in a scenario. What only hostile bytes reach
is found by the fuzzer, in its own mutants.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

import pmwal
from check_mutants import MUTANTS, Mutant
from check_scenarios import MISUSES, SCENARIOS
from pmwal.native import native

ROOT = Path(pmwal.__file__).parents[1]
NATIVE = ROOT / "pmwal" / "native"
FUZZ = ROOT / "tools" / "fuzz" / "run.py"
PATIENCE = 120.0
FLAGS = ["-std=gnu11", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused", f"-I{sysconfig.get_path('include')}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native is None or not FUZZ.exists(), reason="needs the native engine and its sources"),
]


X86_ONLY = ("persist.c: ", "crc32c.c: words ", "crc32c.c: length ", "store.c: ((uintptr_t)to ")
"""Checks of code that other processors do not compile."""

FOLDING_ONLY = "crc32c.c: length "
"""Checks of code that only processors with VPCLMULQDQ run."""

BROKEN_BY_CALLERS = {
    "older-epoch": "core.c: before->epoch <= after->epoch",
    "falling-tail": "core.c: before->tail.position <= after->tail.position && before->tail.seq <= after->tail.seq",
    "falling-durable": "core.c: before->epoch < after->epoch || before->durable.position <= after->durable.position",
    "moved-head": "core.c: before->epoch < after->epoch || before->head.position == after->head.position",
    "tail-past-durable": "core.h: s->tail.position <= s->durable.position && s->durable.position <= s->head.position",
    "numbers-out-of-order": "core.h: s->tail.seq <= s->durable.seq && s->durable.seq <= s->head.seq",
    "two-tails": "core.h: (s->tail.position == s->durable.position) == (s->tail.seq == s->durable.seq)",
    "two-heads": "core.h: (s->durable.position == s->head.position) == (s->durable.seq == s->head.seq)",
    "longer-than-the-ring": "core.h: s->head.position - s->tail.position <= core->geometry.capacity",
    "crooked": "core.h: ((s->tail.position | s->durable.position | s->head.position) & (core->geometry.alignment - 1)) == 0",
    "durable-before-its-slot": "core.h: core->pointer <= s->durable.position",
    "slot-of-an-older-epoch": "barrier.c: state->epoch >= core->state.epoch && state->epoch <= UINT32_MAX",
    "slot-before-its-tail": "barrier.c: state->tail.position <= durable.position && state->tail.seq <= durable.seq",
    "slot-that-takes-back": "barrier.c: durable.position >= core->pointer || state->epoch > core->state.epoch || core->stray_slot",
    "slot-by-another-thread": "core.h: lock_admits(core->guard) && !core->flushing",
    "state-by-another-thread": "core.h: lock_admits(core->guard) && !core->flushing",
    "flush-by-another-thread": "core.h: lock_admits(core->guard) && !core->flushing",
}
"""By the names of ``check_scenarios.MISUSES``."""

NOTICED_BY_THE_FUZZER = {
    "no-window-check": "ring.c: offset - window->start + PMWAL_HEADER + header->record.length <= window->length",
    "no-durable-check": "ring.c: record_size(g, header->record.length) <= room && header->record.durable <= position",
    "starts-before-limit": "ring.c: position <= rules->limit",
    "row-outside": "ring.c: count * size <= room && count * size <= held",
    "frame-past-its-room": "ring.c: at.used + needed <= framing->used + framing->room",
}
"""By the names of the mutants in tools/fuzz/run.py."""


class Build(NamedTuple):
    """The C sources compiled with checks: a directory with an object for each."""

    directory: Path

    def link(self, sources: Path, changed: list[str], target: Path) -> None:
        """Compile what changed, and make an extension of it and of all other objects."""
        for name in changed:
            compile_source(sources, name, sources / f"{name}.o", "-DPMWAL_CHECKS", "-O1")
        objects = [sources / f"{name}.o" if name in changed else self.directory / f"{name}.o" for name in c_files()]
        run("gcc", "-shared", "-pthread", *objects, "-o", target)


def run(*command: object, cwd: Path | None = None) -> None:
    made = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert made.returncode == 0, f"{command}\n{made.stdout}{made.stderr}"


def c_files() -> list[str]:
    return sorted(path.name for path in NATIVE.glob("*.c"))


@functools.cache
def rules() -> dict[str, set[str]]:
    """What each C file includes of the others, by the compiler's account."""
    command = ["gcc", *FLAGS, "-DPMWAL_CHECKS", "-MM", *c_files()]
    made = subprocess.run(command, cwd=NATIVE, capture_output=True, text=True, check=True, timeout=PATIENCE)
    found = [line.partition(":")[2].split() for line in made.stdout.replace("\\\n", " ").splitlines()]
    return {name: set(included) for name, *included in found}


def built_from(name: str) -> list[str]:
    """The C files that a change of this one, or of this header, concerns."""
    return [name] if name.endswith(".c") else [file for file, included in rules().items() if name in included]


def compile_source(directory: Path, name: str, target: Path, *flags: str) -> None:
    """In its own directory, so that a check names the file alone."""
    run("gcc", *FLAGS, *flags, "-c", name, "-o", target, cwd=directory)


def checks() -> list[str]:
    """Each check in the sources, as file and condition."""
    return [
        f"{path.name}: {condition}"
        for path in sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.h")])
        for condition in re.findall(r"^ +PMWAL_CHECK\((.*)\);", path.read_text(), re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """All objects, compiled once for each process of pytest."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    made = Build(tmp_path_factory.mktemp("objects"))
    for name in c_files():
        compile_source(NATIVE, name, made.directory / f"{name}.o", "-DPMWAL_CHECKS", "-O1")
    return made


def package(work: Path) -> Path:
    """A package in ``work`` that is this one but for its extension; where that goes."""
    (work / "pmwal" / "native").mkdir(parents=True)
    for path in (ROOT / "pmwal").iterdir():
        if path.name not in ("native", "__pycache__"):
            (work / "pmwal" / path.name).symlink_to(path)
    for path in NATIVE.glob("*.py"):
        (work / "pmwal" / "native" / path.name).symlink_to(path)
    return work / "pmwal" / "native" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def play(work: Path, scenario: str, shm_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run a scenario over the package in ``work``."""
    environment = {**os.environ, "PYTHONPATH": f"{work}:{Path(__file__).parent}", "PMWAL_ENGINE": "native"}
    command = [sys.executable, str(Path(__file__).with_name("check_scenarios.py")), scenario, str(shm_dir)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture(scope="module")
def real(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is, with checks."""
    work = tmp_path_factory.mktemp("real")
    build.link(NATIVE, [], package(work))
    return work


def test_each_check_has_something_that_fails_it() -> None:
    """A check that cannot fail is a defect; so is a mutant for a check that is gone. No file has one condition twice."""
    tripped = {mutant.check for mutant in MUTANTS} | set(BROKEN_BY_CALLERS.values()) | set(NOTICED_BY_THE_FUZZER.values())
    assert sorted(tripped) == sorted(checks())
    assert set(BROKEN_BY_CALLERS) == set(MISUSES)


@pytest.mark.parametrize("scenario", sorted(set(SCENARIOS) - set(MISUSES)))
def test_no_check_fails_in_the_code_that_ships(real: Path, shm_dir: Path, scenario: str) -> None:
    """Each scenario ends as it should with every check built in."""
    ended = play(real, scenario, shm_dir)
    assert (ended.returncode, ended.stderr) == (0, "")


def said(ended: subprocess.CompletedProcess[str]) -> str:
    """The check that ended a process, as file and condition."""
    found = re.search(r"pmwal: check failed: (.*), (\w+\.[ch]):\d+", ended.stderr)
    return f"{found[2]}: {found[1]}" if found else f"status {ended.returncode}: {ended.stderr[-2000:]}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.check.replace(" ", ""))
def test_check_notices_a_mistake(build: Build, tmp_path: Path, shm_dir: Path, mutant: Mutant) -> None:
    """A copy with one mistake ends in the check that is there for it, and in no other."""
    if mutant.check.startswith(X86_ONLY) and platform.machine() != "x86_64":
        pytest.skip("code for x86-64")
    if mutant.check.startswith(FOLDING_ONLY) and "vpclmulqdq" not in native.CRC32C_WAYS:
        pytest.skip("code for processors with VPCLMULQDQ")
    sources = tmp_path / "sources"
    shutil.copytree(NATIVE, sources, ignore=shutil.ignore_patterns("*.so", "*.py*", "__pycache__"))
    text = (sources / mutant.file).read_text()
    assert mutant.old in text
    assert mutant.old.count("\n") == mutant.new.count("\n")
    (sources / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    build.link(sources, built_from(mutant.file), package(tmp_path / "work"))
    ended = play(tmp_path / "work", mutant.scenario, shm_dir)
    assert (said(ended), ended.returncode) == (mutant.check, -6)


def test_files_that_a_header_concerns_are_those_that_include_it() -> None:
    """Also through another header. Otherwise a mutant would be linked without its mistake."""
    assert set(rules()) == set(c_files())
    assert {"store.c", "commit.c"} <= set(built_from("core.h"))
    assert built_from("store.c") == ["store.c"]
    direct = {path.name for path in NATIVE.glob("*.c") if '#include "core.h"' in path.read_text()}
    assert direct < set(built_from("core.h"))


@pytest.mark.parametrize("misuse", sorted(MISUSES))
def test_check_notices_a_caller_that_breaks_the_rules(real: Path, shm_dir: Path, misuse: str) -> None:
    """A state or a thread that no engine comes with ends in the check that is there for it."""
    ended = play(real, misuse, shm_dir)
    assert (said(ended), ended.returncode) == (BROKEN_BY_CALLERS[misuse], -6)


@pytest.mark.parametrize("mutant", NOTICED_BY_THE_FUZZER)
def test_fuzzer_notices_a_mutant_by_a_check(tmp_path: Path, mutant: str) -> None:
    """Where hostile bytes pass a test that is missing in ring.c, the check after it fails."""
    command = [sys.executable, FUZZ, "--engine", "standalone", "--mutant", mutant, "--seed", "1", "--seconds", "20"]
    ended = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.returncode == 1
    assert f"check failed: {NOTICED_BY_THE_FUZZER[mutant].partition(': ')[2]}," in ended.stderr


@pytest.mark.parametrize("name", c_files())
def test_build_without_checks_is_as_if_there_were_none(tmp_path: Path, name: str) -> None:
    """Without PMWAL_CHECKS the compiler makes the same object of the sources and of a copy whose checks are cut out."""
    compile_source(NATIVE, name, tmp_path / "with.o", "-O2")
    cut = tmp_path / "cut"
    shutil.copytree(NATIVE, cut, ignore=shutil.ignore_patterns("*.so", "*.py*", "__pycache__"))
    for path in cut.iterdir():
        path.write_text(re.sub(r"^ +PMWAL_CHECK\(.*\);", "", path.read_text(), flags=re.MULTILINE))
    compile_source(cut, name, tmp_path / "without.o", "-O2")
    assert (tmp_path / "with.o").read_bytes() == (tmp_path / "without.o").read_bytes()


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_environment_turns_the_checks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """PMWAL_CHECK=1 at the build is what builds the checks in."""
    monkeypatch.setenv("PMWAL_CHECK", wanted)
    monkeypatch.setenv("PMWAL_REQUIRE_NATIVE", "1")
    shutil.copytree(ROOT / "pmwal", tmp_path / "pmwal", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built", cwd=tmp_path)
    (made,) = tmp_path.glob("built/pmwal/native/_native*.so")
    assert (b"check failed" in made.read_bytes()) == (wanted == "1")


def test_extension_says_whether_it_has_checks() -> None:
    """``_native.checks`` is true of a build that can say "check failed", and of no other."""
    assert native is not None
    assert native.checks == (b"check failed" in Path(native.__file__).read_bytes())
