"""The checks of pmwal/native/check.h: each can fail, none fails in the code that ships, other builds have no trace of them.

A mutant is one small edit in a copy of the C sources, built with checks: a short scenario (tests/check_scenarios.py) must end in
the check that is there for it. What only a caller can break is broken by the caller, in a scenario. What only hostile bytes reach
is found by the fuzzer, in its own mutants.
"""

from __future__ import annotations

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


class Mutant(NamedTuple):
    """An edit (no line more or less), the scenario that meets it, and the check that must fail: its file and condition."""

    file: str
    old: str
    new: str
    scenario: str
    check: str


MUTANTS = [
    Mutant(
        "core.h",
        "return offset & ~(PMWAL_PAGE - 1);",
        "return offset;",
        "file-strict",
        "barrier.c: (first | end) % PMWAL_PAGE == 0 && first < end && end <= page_end(core->size)",
    ),
    Mutant(
        "commit.c",
        "core->state.durable.position, flush->target.position, ranges)",
        "0, flush->target.position, ranges)",
        "file-strict",
        "barrier.c: start <= end && length <= capacity",
    ),
    Mutant(
        "at_once.h",
        " && core->generation < PMWAL_GENERATION_MAX",
        "",
        "last_generation",
        "barrier.c: core->generation < PMWAL_GENERATION_MAX",
    ),
    Mutant(
        "barrier.c",
        "uint64_t generation = core->generation + 1;",
        "uint64_t generation = core->generation + 2;",
        "memory-strict",
        "barrier.c: slot->slot.generation == core->generation + 1 && index < core->control_pages * PMWAL_SLOTS_PER_PAGE",
    ),
    Mutant(
        "barrier.c",
        "slot->words[2] = state->epoch_first_seq;",
        "slot->words[2] = state->epoch;",
        "last_generation",
        "barrier.c: slot->slot.epoch == state->epoch && slot->slot.epoch_first_seq == state->epoch_first_seq",
    ),
    Mutant(
        "barrier.c",
        "slot->words[4] = durable.seq - 1;",
        "slot->words[4] = durable.seq;",
        "memory-strict",
        "barrier.c: slot->slot.commit_position == durable.position && slot->slot.commit_seq + 1 == durable.seq",
    ),
    Mutant(
        "barrier.c",
        "slot->words[6] = state->tail.seq;",
        "slot->words[6] = durable.seq;",
        "memory-strict",
        "barrier.c: slot->slot.tail_position == state->tail.position && slot->slot.tail_seq == state->tail.seq",
    ),
    Mutant(
        "barrier.c",
        "                return -1;\n            PyErr_Clear",
        "                return PyErr_Clear(), -1;\n            PyErr_Clear",
        "seam",
        "barrier.c: (status < 0) == (PyErr_Occurred() != NULL)",
    ),
    Mutant(
        "at_once.c",
        "core->live_version++;\n    core->state.durable",
        "\n    core->state.durable",
        "memory-strict",
        "at_once.c: page->bounds.version_end == core->live_version",
    ),
    Mutant("handle.c", "!core || !core_is_free(core) ||", "!core ||", "seam_in_memory", "at_once.c: core_is_free(core)"),
    Mutant(
        "handle.c",
        "(*commit && size <= HELD_MAX && core_commits_at_once(core))",
        "(*commit)",
        "file-strict",
        "at_once.c: core_commits_at_once(core)",
    ),
    Mutant(
        "store.c",
        "batch->end = end;",
        "batch->end = core_head(core);",
        "memory-strict",
        "at_once.c: core->state.head.position == batch.end.position",
    ),
    Mutant(
        "handle.c",
        "*commit && core_syncs_at_once(core, size)",
        "*commit && core->on_disk",
        "alone",
        "at_once.c: core_syncs_at_once(core, size)",
    ),
    Mutant(
        "commit.c",
        "core->wanted = core->state.head;",
        "core->wanted = core->state.durable;",
        "together",
        "commit.c: core->state.durable.position < flush->target.position",
    ),
    Mutant("commit.c", "core->flushing = true;", "core->flushing = false;", "together", "commit.c: core->flushing"),
    Mutant(
        "commit.c",
        "core->guard->waiters || !lock_try(core->guard)",
        "core->guard->waiters",
        "together",
        "commit.c: lock_is_mine(core->guard)",
    ),
    Mutant(
        "commit.c",
        "&core->state, flush->target, 0)",
        "&core->state, core->state.durable, 0)",
        "file-strict",
        "commit.c: flush.slot.slot.commit_position == flush.target.position",
    ),
    Mutant("commit.c", "core->flushing = false;", "", "together", "commit.c: !core->flushing"),
    Mutant(
        "commit.c",
        "while (core->state.durable.seq <= seq &&",
        "while (core->state.durable.seq < seq &&",
        "file-strict",
        "commit.c: core->state.durable.seq > seq || core->state.head.seq <= seq",
    ),
    Mutant(
        "commit.c",
        "            if (core->guard->count)\n                return 1;",
        "\n",
        "guard_held",
        "core.h: lock_admits(core->guard) && !core->flushing",
    ),
    Mutant(
        "store.c",
        "core->head_offset = end.offset;",
        "core->head_offset = 0;",
        "memory-strict",
        "core.h: core->head_offset == s->head.position % core->geometry.capacity",
    ),
    Mutant("store.c", "core->appends += batch->count;", "", "memory-strict", "core.h: core->commits <= core->appends"),
    Mutant(
        "at_once.c",
        "core->commits++;\n    core->barriers++;",
        "core->commits++;\n",
        "memory-pipelined",
        "core.h: core->commits <= core->barriers && core->slots_written <= core->barriers",
    ),
    Mutant("crc32c.c", "    fill_table();", "", "values", "crc32c.c: table[0][1]"),
    Mutant(
        "crc32c.c",
        "length / 24 < WORDS_MAX ? length / 24 : WORDS_MAX",
        "length / 24",
        "values",
        "crc32c.c: words && words <= WORDS_MAX",
    ),
    Mutant(
        "emitter.c",
        "(packed->end - packed->at) < 1 + more",
        "(packed->end - packed->at) < 1",
        "event_calls",
        "emitter.c: (size_t)(packed->end - packed->at) >= more",
    ),
    Mutant("emitter.c", "seq = handle->core->state.head.seq;", "seq = 0;", "event_calls", "emitter.c: self->retained->seq < seq"),
    Mutant("fault.c", "active = NULL;", "", "memory-strict", "fault.c: !active"),
    Mutant(
        "live_page.h",
        "futex_wake(&page->bounds.version_begin)",
        "futex_wake((char *)&page->bounds.version_begin + 1)",
        "follower",
        "futex.c: (uintptr_t)word % 4 == 0",
    ),
    Mutant(
        "handle.c",
        "? self->core->state.head.seq : 0",
        "? self->core->state.head.seq + 1 : 0",
        "memory-strict",
        "handle.c: status || self->core->state.head.seq > seq",
    ),
    Mutant(
        "latency.h",
        "ns < PMWAL_LATENCY_NS_MAX ? ns : PMWAL_LATENCY_NS_MAX",
        "ns",
        "seam",
        "latency.h: live < PMWAL_LIVE_LATENCY_COUNTERS",
    ),
    Mutant(
        "commit.c",
        "lock_release(core->guard);",
        "lock_release(core->guard), lock_release(core->guard);",
        "file-strict",
        "lock.c: lock_is_mine(lock)",
    ),
    Mutant("lock.c", "lock->waiters++;", "", "locked", "lock.c: lock->waiters > 0"),
    Mutant("lock.c", "if (--lock->count == 0)", "if (lock->count--)", "locked", "lock.c: lock->count == 0"),
    Mutant("barrier.c", "if (status > 0)\n", "if (status)\n", "seam", "outside.c: number > 0"),
    Mutant("barrier.c", "            PyErr_Clear();", "", "seam", "outside.c: !PyErr_Occurred()"),
    Mutant(
        "live_page.c",
        "counters = PMWAL_LIVE_LATENCY_OFFSET +",
        "counters = core->ring_offset +",
        "file-strict",
        "outside.c: offset >= PMWAL_LIVE_OFFSET && offset + length <= PMWAL_CONTROL_OFFSET + core->control_pages * PMWAL_PAGE",
    ),
    Mutant(
        "persist.c",
        "line = (uintptr_t)start & ~(uintptr_t)(LINE - 1)",
        "line = (uintptr_t)start",
        "crooked_lines",
        "persist.c: line % LINE == 0 && line + LINE > (uintptr_t)start",
    ),
    Mutant("core.c", " && a->alignment >= PMWAL_LINE", "", "crooked_lines", "persist.c: ((uintptr_t)to | length) % LINE == 0"),
    Mutant(
        "record.c",
        "PyBytes_CheckExact(data) ? Py_NewRef(data) : PyBytes_FromObject(data)",
        "Py_NewRef(data)",
        "values",
        "record.c: PyBytes_CheckExact(data)",
    ),
    Mutant("ring.h", "offset == g->capacity ? 0 : offset", "offset", "memory-strict", "ring.h: end.offset < g->capacity"),
    Mutant(
        "store.c",
        "size = record_size(&core->geometry, piece.length);",
        "size = record_size(&core->geometry, piece.length) + 1;",
        "memory-strict",
        "store.c: start.position % g->alignment == 0 && size % g->alignment == 0",
    ),
    Mutant(
        "store.c",
        "end = end_record(&core->geometry, start, size);\n    }\n    batch->end",
        "end.position += size;\n    }\n    batch->end",
        "memory-strict",
        "store.c: start.offset == start.position % g->capacity",
    ),
    Mutant(
        "store.c",
        "start = place_record(&core->geometry, end, size);\n        unsigned",
        "start = end;\n        unsigned",
        "memory-strict",
        "store.c: start.offset + size <= g->capacity",
    ),
    Mutant(
        "store.c",
        "batch->core;\n    struct place end = core_head(core);\n    for",
        "batch->core;\n    struct place end = {0};\n    for",
        "memory-strict",
        "store.c: start.position >= core->state.head.position",
    ),
    Mutant(
        "handle.c",
        "return used <= core->geometry.capacity &&",
        "return true ||",
        "memory-strict",
        "store.c: start.position + size - core->state.tail.position <= g->capacity",
    ),
    Mutant(
        "handle.c",
        " || piece->length > core->geometry.payload_max",
        "",
        "memory-strict",
        "store.c: piece->length <= batch->core->geometry.payload_max",
    ),
    Mutant(
        "store.c",
        "fill_header(batch, &header, &piece, i);",
        "fill_header(batch, &header, &piece, i + 1);",
        "memory-strict",
        "store.c: place < batch->count && batch->count <= UINT32_MAX",
    ),
    Mutant(
        "store.c",
        "header->words[2] = state->durable.position;",
        "header->words[2] = state->head.position;",
        "memory-strict",
        "store.c: header->record.durable <= core->state.durable.position && header->record.durable <= position",
    ),
    Mutant(
        "store.c",
        "header->words[4] = state->epoch |",
        "header->words[4] = 0 |",
        "memory-strict",
        "store.c: header_possible(&core->geometry, &header->record, position, size)",
    ),
    Mutant(
        "disk.c",
        "start.offset == 0 || staged.length + size > PIECE",
        "staged.length + size > PIECE",
        "bulk",
        "disk.c: offset >= core->ring_offset && offset + length <= core->ring_offset + core->geometry.capacity",
    ),
    Mutant(
        "disk.c",
        "start.offset == 0 || staged.length + size > PIECE",
        "start.offset == 0",
        "long",
        "disk.c: staged.length + size <= core->stage_size",
    ),
    Mutant("batch.c", "by_write && make_stage(core, PIECE)", "by_write", "bulk", "disk.c: core->stage_size >= PIECE"),
    Mutant(
        "at_once.c",
        "size < PIECE ? PIECE : size",
        "PIECE",
        "long",
        "disk.c: built + size <= core->stage_size",
    ),
    Mutant(
        "disk.c",
        "page_end(offset + PMWAL_HEADER) - offset",
        "page_end(offset + PMWAL_HEADER) + PMWAL_PAGE",
        "long",
        "disk.c: begun <= sizeof first && done <= piece->length",
    ),
    Mutant(
        "disk.c",
        "first = page_end(offset), end = page_start(offset + length);",
        "first = offset, end = page_start(offset + length);",
        "long",
        "disk.c: (first | end) % PMWAL_PAGE == 0 && first < end",
    ),
    Mutant(
        "store.c",
        "store_records(batch);\n    show",
        "store_records(batch), take_in(batch);\n    show",
        "memory-strict",
        "store.c: !fault_inside()",
    ),
    Mutant(
        "store.c",
        "note_start_of(core, start.position,",
        "note_start_of(core, core->state.tail.position,",
        "alone",
        "store.c: last < position",
    ),
    Mutant("batch.c", "core->stray_records = true;", "", "memory-strict", "store.c: core->stray_records"),
    Mutant("core.h", "core->writing->count == 0 &&", "", "writer_held", "batch.c: lock_admits(core->writing)"),
    Mutant(
        "core.h",
        "(core->guard->count == 0 || core->flushing)",
        "true",
        "guard_held",
        "batch.c: lock_admits(core->guard) || core->flushing",
    ),
    Mutant("core.h", "!core->stray_records &&", "", "stray", "batch.c: !core->stray_records && !core->stray_slot"),
    Mutant(
        "handle.c",
        "state->head.position > PMWAL_POSITION_MAX - 2 * core->geometry.capacity || ",
        "",
        "last_position",
        "store.c: start.position + size <= PMWAL_POSITION_MAX",
    ),
    Mutant("module.c", "distance >= LINEAR_MAX", "distance >= 2 * LINEAR_MAX", "values", "linear.c: bytes < LINEAR_MAX"),
]
X86_ONLY = ("persist.c: ", "crc32c.c: words ")
"""Checks of code that other processors do not compile."""

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
    sources = tmp_path / "sources"
    shutil.copytree(NATIVE, sources, ignore=shutil.ignore_patterns("*.so", "*.py*", "__pycache__"))
    text = (sources / mutant.file).read_text()
    assert mutant.old in text
    assert mutant.old.count("\n") == mutant.new.count("\n")
    (sources / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    build.link(sources, [mutant.file] if mutant.file.endswith(".c") else c_files(), package(tmp_path / "work"))
    ended = play(tmp_path / "work", mutant.scenario, shm_dir)
    assert (said(ended), ended.returncode) == (mutant.check, -6)


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
    shutil.copytree(NATIVE, tmp_path / "pmwal" / "native", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "setup.py", tmp_path)
    run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built", cwd=tmp_path)
    (made,) = tmp_path.glob("built/pmwal/native/_native*.so")
    assert (b"check failed" in made.read_bytes()) == (wanted == "1")


def test_extension_says_whether_it_has_checks() -> None:
    """``_native.checks`` is true of a build that can say "check failed", and of no other."""
    assert native is not None
    assert native.checks == (b"check failed" in Path(native.__file__).read_bytes())
