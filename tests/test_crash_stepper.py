"""The stepper: real flushes and fences of the C engine, one instruction at a time, and proof that missing ones are noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from random import Random

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from crash import needs  # noqa: E402
from crash.stepper import __main__ as stepper  # noqa: E402
from crash.stepper.controls import CONTROLS  # noqa: E402
from crash.stepper.lines import Line, Memory  # noqa: E402
from crash.stepper.plan import TOUR, Call, History  # noqa: E402
from crash.stepper.trace import CannotRun, Lost, TraceEvent, What, compiled, traced  # noqa: E402
from pmwal.native.choice import STORES  # noqa: E402

pytestmark = pytest.mark.rigs

HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine
STATES = 1300
WORD = (1 << 64) - 1

PROGRAM = r"""
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

void act(char *map, long scaled, const char *bytes);
void act_wide(char *map, long scaled);

__asm__("act: movq %rdi, %r9; movq %rsi, %r13; movq %rdx, %r8; movq $0x0102030405060708, %rdx\n"
        "pcmpeqb %xmm3, %xmm3\n"
        "movq %rdx, 8(%rdi); clflush (%rdi); clflushopt 64(%r9); clwb 0x80(%r9,%r13,2)\n"
        "movnti %edx, 192(%rdi,%rsi); movnti %rdx, 0x148(%r9)\n"
        "movntdq %xmm3, 0x180(%r9); movntps %xmm3, 0x1c0(%rdi,%r13)\n"
        "sfence; mfence; lfence\n"
        "lock addl $1, 0x240(%rdi); movl $7, %ecx; xchgl %ecx, 0x280(%rdi); xchgl %ecx, %edx\n"
        "movl $-1, 0x2fe(%rdi); movdqu %xmm3, 0x300(%rdi)\n"
        "leaq 0x340(%rdi), %rdi; movq %r8, %rsi; movl $3, %ecx; rep movsb\n"
        "ret\n"
        "act_wide: movq %rsi, %r13; vpcmpeqb %ymm3, %ymm3, %ymm3; vmovntdq %ymm3, 0x400(%rdi)\n"
        "vmovntdq %xmm3, 0x440(%rdi,%r13); vpternlogd $255, %zmm19, %zmm19, %zmm19\n"
        "vmovntdq %zmm19, 0x4c0(%rdi); vmovntps %xmm19, 0x500(%rdi,%r13); ret\n");

int main(int argc, char **argv)
{
    int fd = open(argv[argc - 1], O_RDWR);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    raise(SIGUSR1);
    act(map, 64, "string");
    pwrite(fd, "system call", 11, 0x3bc);
    if (__builtin_cpu_supports("avx512f"))
        act_wide(map, 64);
    raise(SIGUSR2);
    return 0;
}
"""

ENGINE = r"""
#include <string.h>
__attribute__((noinline)) void *copy(char *to, const char *from) { return strcpy(to, from); }
long act(char *map, long (*back)(char *)) { copy(map, "engine"); return back(map) + 1; }
long last(char *map) { map[128]++; return 0; }
"""
CALLER = r"""
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>

long act(char *map, long (*back)(char *));
long last(char *map);
long back(char *map) { map[64]++; return 2; }

int main(int argc, char **argv)
{
    int fd = open(argv[argc - 1], O_RDWR);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (int i = 0; i < 2; i++) {
        raise(SIGUSR1);
        long answer = act(map, back) + last(map);
#ifdef OUTSIDE
        map[192] = 1;
#endif
        raise(SIGUSR2);
        if (answer != 3)
            return 1;
    }
    return 0;
}
"""

EXPECTED = [  # event, file offset, bytes
    (What.STORED, 8, 8),
    (What.WRITTEN_BACK, 0, 0),
    (What.WRITTEN_BACK, 0x40, 0),
    (What.WRITTEN_BACK, 0x100, 0),
    (What.STREAMED, 0x100, 4),
    (What.STREAMED, 0x148, 8),
    (What.STREAMED, 0x180, 16),
    (What.STREAMED, 0x200, 16),
    (What.FENCED, 0, 0),
    (What.FENCED, 0, 0),
    (What.FENCED, 0, 0),  # the locked instruction, and what it stores
    (What.STORED, 0x240, 1),
    (What.FENCED, 0, 0),
    (What.STORED, 0x280, 1),
    (What.STORED, 0x2FE, 2),  # one store, two lines
    (What.STORED, 0x300, 2),
    (What.STORED, 0x302, 14),
    (What.STORED, 0x340, 1),
    (What.STORED, 0x341, 1),
    (What.STORED, 0x342, 1),
    (What.STORED, 0x3BC, 4),
    (What.STORED, 0x3C0, 7),
]
WIDE = [
    (What.STREAMED, 0x400, 32),
    (What.STREAMED, 0x480, 16),
    (What.STREAMED, 0x4C0, 64),
    (What.STREAMED, 0x540, 16),
]


def unavailable(reason: str) -> None:
    """Skip, or fail if all rigs are required."""
    if os.environ.get(needs.ALL_REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def rig() -> None:
    """Every test here compiles or steps."""
    needs.require(*stepper.NEEDS)


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, str(TOOLS / "crash" / "stepper"), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANGING, check=False)
    if ended.returncode == stepper.CANNOT_RUN:
        unavailable(ended.stderr)
    return ended


def byte_mask(first: int, count: int) -> int:
    """The mask of some bytes of a line."""
    return ((1 << 8 * count) - 1) << 8 * first


def stored(line: int, mask: int, data: int, *, streamed: bool = False, unordered: bool = False, step: int = 0) -> TraceEvent:
    """A store as the tracer reports it."""
    return TraceEvent(What.STREAMED if streamed else What.STORED, unordered, step, 1, 64 * line, mask, data)


def test_instructions_are_told_apart(tmp_path: Path) -> None:
    """A program with each kind of instruction: the effect on the file, its offset, and the order."""
    source, program, file = tmp_path / "program.c", tmp_path / "program", tmp_path / "file"
    source.write_text(PROGRAM)
    file.write_bytes(bytes(4096))
    subprocess.run(["gcc", "-w", "-O1", "-o", program, source], check=True)
    try:
        with traced(compiled(tmp_path), file, [str(program), str(file)], os.environ) as events:
            told = list(events)
    except CannotRun as error:
        unavailable(str(error))
    assert (told[0].what, told[-1].what) == (What.CALL_BEGINS, What.CALL_RETURNS)
    found = []
    for event in told[1:-1]:
        first = (event.mask & -event.mask).bit_length() // 8 if event.mask else 0
        size = event.mask.bit_count() // 8
        assert event.mask == byte_mask(first, size)
        found.append((event.what, event.offset + first, size))
    wide = len(found) > len(EXPECTED)  # the processor has AVX-512
    assert EXPECTED + (WIDE if wide else []) == found
    assert [event.unordered for event in told if 0x340 <= event.offset < 0x400] == [True] * 5


def stepped_library(directory: Path, *flags: str) -> list[TraceEvent]:
    """The events of a program that has loaded a library whose path is that of the engine."""
    library, program, file = directory / "pmwal" / "native" / "_native.so", directory / "program", directory / "file"
    library.parent.mkdir(parents=True)
    file.write_bytes(bytes(4096))
    for source, text in (("engine.c", ENGINE), ("caller.c", CALLER)):
        (directory / source).write_text(text)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, directory / "engine.c"], check=True)
    linked = [directory / "caller.c", library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run(["gcc", "-O1", *flags, "-o", program, *linked], check=True)
    try:
        with traced(compiled(directory), file, [str(program), str(file)], os.environ) as events:
            return list(events)
    except CannotRun as error:
        unavailable(str(error))
        raise


def test_the_engine_is_stepped_from_each_entry_to_its_return(tmp_path: Path) -> None:
    """What it calls is stepped too, in libraries and in the program; the program that calls it runs at full speed."""
    told = stepped_library(tmp_path)
    assert [event.what for event in told].count(What.CALL_RETURNS) == 2
    stored: dict[int, list[bytes]] = {}
    for event in told:
        if event.what is What.STORED:
            stored.setdefault(event.offset, []).append(event.data.to_bytes(64, "little").rstrip(bytes(1)))
    assert stored.pop(0)[-1] == b"engine"
    assert stored == {64: [b"\1", b"\2"], 128: [b"\1", b"\2"]}


def test_a_store_outside_of_the_engine_is_an_error(tmp_path: Path) -> None:
    """Negative control: the rig would not see it, and says so."""
    with pytest.raises(Lost, match="stored to outside of the engine"):
        stepped_library(tmp_path, "-DOUTSIDE")


def test_cached_stores_of_a_line_are_lost_from_the_last_on() -> None:
    """Two words stored in sequence: neither, the first, or both; never the second alone."""
    line = Line(0)
    line.store(WORD, 1, False, run=1)
    line.store(WORD << 64, 2 << 64, False, run=2)
    assert line.versions == [0, 1, 1 | 2 << 64]


def test_a_wide_store_is_torn_into_its_words() -> None:
    """Its words become durable in any order."""
    line = Line(0)
    line.store(byte_mask(0, 16), 1 | 2 << 64, False, run=1)
    assert set(line.versions) == {0, 1, 2 << 64, 1 | 2 << 64}


def test_streaming_stores_are_in_no_order_and_durable_at_the_fence() -> None:
    """The second of two streamed words may be there alone, until a fence makes both durable."""
    line = Line(0)
    line.store(WORD, 1, True, run=1)
    line.store(WORD << 64, 2 << 64, True, run=2)
    assert set(line.versions) == {0, 1, 2 << 64, 1 | 2 << 64}
    line.fence()
    assert line.versions == [1 | 2 << 64]


def test_only_what_was_stored_before_the_write_back_is_durable_at_the_fence() -> None:
    """A store between write-back and fence stays pending, and so does one without a write-back."""
    memory = Memory(bytes(4096), range(0))
    memory.take(stored(0, WORD, 1))
    memory.take(TraceEvent(What.WRITTEN_BACK, False, 0, 0, 0, 0, 0))
    memory.take(stored(0, WORD, 2))
    memory.take(stored(1, WORD, 3))
    memory.take(TraceEvent(What.FENCED, False, 0, 0, 0, 0, 0))
    assert {offset: line.versions for offset, line in memory.lines.items()} == {0: [1, 2], 64: [0, 3]}
    found = {bytes(memory.image(state)[:72:8]) for state in memory.states(Random(1))}
    assert found == {bytes([first, *[0] * 7, second]) for first in (1, 2) for second in (0, 3)}


def test_stores_of_one_string_instruction_are_in_no_order() -> None:
    """Its steps follow one another at one address; those of two instructions keep their order."""
    memory = Memory(bytes(4096), range(0))
    memory.take(stored(0, WORD, 1, unordered=True, step=5))
    memory.take(stored(0, WORD << 64, 2 << 64, unordered=True, step=6))
    assert 2 << 64 in memory.lines[0].versions
    memory.take(stored(0, WORD << 128, 3 << 128, unordered=True, step=9))
    assert 3 << 128 not in memory.lines[0].versions


def test_equal_images_have_equal_keys() -> None:
    """The key by which states are counted once depends on the bytes, not on how they became durable."""
    one, other = Memory(bytes(4096), range(0)), Memory(bytes(4096), range(0))
    for memory in (one, other):
        memory.take(stored(0, WORD, 1))
        memory.take(stored(1, WORD, 2))
    one.take(TraceEvent(What.WRITTEN_BACK, False, 0, 0, 64, 0, 0))
    one.take(TraceEvent(What.FENCED, False, 0, 0, 0, 0, 0))
    assert one.key_of({0: 1}) == other.key_of({0: 1, 64: 2})
    assert one.key_of({0: 0}) != other.key_of({0: 0, 64: 0})


def test_history_knows_what_a_crash_may_leave() -> None:
    """Records lost after the acknowledgement, half a batch, a wrong payload, and records never issued are distinguished."""
    history, first, call = History(), Call(1, "append", 1, (8,)), Call(2, "extend", 2, (8, 0))
    history.begin(first)
    history.finish(first)
    history.begin(call)
    before, whole = first.records, first.records + call.records
    assert history.problem(1, before) is None
    assert history.problem(1, whole) is None
    assert "1 was acknowledged" in str(history.problem(1, []))
    assert "inside a batch" in str(history.problem(1, whole[:-1]))
    assert "past what was issued" in str(history.problem(1, [*whole, whole[-1]]))
    assert "not what was issued" in str(history.problem(1, [(1, 0, b"other")]))
    assert "begins at 2" in str(history.problem(2, whole[1:]))
    history.finish(call)
    assert "3 was acknowledged" in str(history.problem(1, before))


def test_history_knows_what_a_rollback_may_leave() -> None:
    """All records or those it keeps while it is under way; afterwards only those, never a discarded one in place of a new one."""
    history, old, new = History(), Call(1, "extend", 1, (8, 8, 8)), Call(3, "append", 3, (8,))
    history.begin(old)
    history.finish(old)
    rollback = Call(2, "rollback", 3)
    history.begin(rollback)
    assert history.problem(1, old.records) is None
    assert history.problem(1, old.records[:2]) is None
    assert "3 was acknowledged" in str(history.problem(1, old.records[:1]))
    history.finish(rollback)
    assert "past what was issued" in str(history.problem(1, old.records))
    assert history.problem(1, old.records[:2]) is None
    history.begin(new)
    assert history.problem(1, old.records[:2] + new.records) is None
    assert "number 3 is not what was issued" in str(history.problem(1, old.records))


def test_history_knows_what_an_overwriting_store_may_leave() -> None:
    """The old first record or the new one; records before the store are durable when it returns, the store itself not yet."""
    history, old, store = History(), Call(1, "store", 1, (8,)), Call(2, "store", 2, (8,), frees=2)
    history.begin(old)
    history.finish(old)
    history.begin(store)
    whole = old.records + store.records
    for first, records in ((1, []), (1, old.records), (1, whole), (2, []), (2, store.records)):
        assert history.problem(first, records) is None
    history.finish(store)
    assert "begins at 1" in str(history.problem(1, whole))
    assert history.problem(2, []) is None


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize(
    ("ordering", "seed", "full"),
    [("strict", 6, "overwrite"), ("pipelined", 5, "truncate")],
)
def test_every_state_while_the_engine_is_called_is_recovered(ordering: str, seed: int, full: str, stores: str) -> None:
    """At each instruction of a call of each kind, acknowledged records are there, nothing else is, and nothing is corrupt."""
    found = run_tool("--states", STATES, "--seed", seed, "--ordering", ordering, "--stores", stores)
    assert found.returncode == 0, found.stdout + found.stderr
    pattern = r"calls \((.*)\), .*\((\d+) bytes streamed\), (\d+) write-backs, (\d+) fences; \d+ states, (\d+) distinct"
    counts = re.search(pattern, found.stdout)
    assert counts is not None, found.stdout
    kinds, *numbers = counts.groups()
    streamed, write_backs, fences, distinct = map(int, numbers)
    # The number of calls for this many states depends on the processor's instructions, so any planned call may be among them.
    assert {*TOUR, "commit", full} >= {kind.split()[1] for kind in kinds.split(", ")}
    assert all(f" {kind}" in kinds for kind in ("batch", "reserve", "rollback", full)), kinds
    assert streamed >= 64 * 16  # a whole record of 1 KiB, by stores of 16 or of 32 bytes
    assert (write_backs > 0) == (stores == "write-back")
    assert fences > 0
    assert distinct >= STATES


@pytest.mark.parametrize("control", ["no-clwb", "no-fence", "slot-first", "cached-stream", "cached-words"])
def test_a_mistake_in_the_flushes_is_noticed(control: str) -> None:
    """The test above can fail: a copy of the engine with one mistake is noticed in each ordering and with each way to store that it
    concerns, for the right reason."""
    found = run_tool("--states", 16000, "--seed", 1, "--control", control)
    assert found.returncode == stepper.VIOLATED, found.stdout + found.stderr
    for ordering, stores in product(CONTROLS[control].orderings, CONTROLS[control].stores):
        said = re.search(rf"^{ordering}, {stores}: (?:.*\n){{3}}", found.stderr, re.MULTILINE)
        assert said is not None, found.stderr
        assert CONTROLS[control].says_why(said.group(0)), said.group(0)
