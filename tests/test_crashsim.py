"""The crash simulator: what its media may hold, that its oracles and mutants work, and tens of thousands of images."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from random import Random

import pytest

import pmwal
from pmwal.cli.exit_status import USAGE
from pmwal.testing import ORACLES, UNITS, PowerCutModel, Recorder, Step, Violation, crash_images
from pmwal.testing._mutants.table import MUTANTS, PLAIN, applied, explored, noticed_by
from pmwal.testing._simulator.beside import explore_beside, explore_hidden, explore_spliced
from pmwal.testing._simulator.campaign import (
    DEEP,
    SETTINGS,
    Plan,
    explore_chunk,
    long_histories,
    minimal,
    read_history,
    short_histories,
    spell,
)
from pmwal.testing._simulator.creation import explore_creation
from pmwal.testing._simulator.explore import Effort, Explorer, Failure, History, start_of
from pmwal.testing._simulator.model import Expectation, Found, Model
from pmwal.testing._simulator.operations import CORE, OPERATIONS, operations_for, perform
from pmwal.testing._simulator.repairing import explore_repair
from pmwal.testing._simulator.session import Session, Setting
from pmwal.testing._simulator.slots import explore_slots
from pmwal.testing._simulator.succession import explore_succession
from pmwal.testing._simulator.surroundings import explore_handlers, explore_names, explore_unlinkable
from pmwal.testing.images import EXHAUSTIVE_MAX, build, cached, choices, digest_after, half_stored
from pmwal.testing.power_cut import WORD, digest_of
from pmwal.testing.process import scratch

pytestmark = pytest.mark.rigs

TOOL = [sys.executable, "-m", "pmwal", "crashsim"]
SHARES = 10
"""Test cases over which the images are divided, for each engine."""
IMAGES_OF_A_SHARE = 3_000
"""Distinct within a share; over all shares 62,000 of 68,000 were when they were counted."""
SIZE, RING = 32768, 20480
SIX = ("append_large", "extend", "truncate", "rollback", "close_reopen", "append_to_end")
ONE, TWO = b"1" * 64, b"2" * 64


def held(medium: PowerCutModel, offset: int = RING, length: int = 64) -> set[bytes]:
    """What these bytes may be after a power cut."""
    found = choices(medium, Random(0), 50)
    return {build(medium, choice).data[offset : offset + length] for choice in found}


def after(kind: str, *events: Step) -> PowerCutModel:
    """A medium of zeros after these steps."""
    medium = PowerCutModel(kind, bytes(SIZE))
    for event in events:
        medium.take(event)
    return medium


def store(data: bytes, offset: int = RING, step: str = "store") -> Step:
    """A store."""
    return Step(step, offset, len(data), data)


# -- lines


def test_cached_store_may_be_on_the_medium_in_any_prefix_of_words() -> None:
    """From the front, word by word, and nothing else but what one memcpy may have done in another order."""
    whole = {ONE[: 8 * count] + bytes(64 - 8 * count) for count in range(9)}
    found = held(after("pmem", store(ONE)))
    assert whole <= found
    assert all(set(line) <= {0, ord("1")} and all(len(set(line[at : at + 8])) == 1 for at in range(0, 64, 8)) for line in found)


def test_second_cached_store_is_never_there_without_the_first() -> None:
    """The stores to one line reach it in order."""
    found = held(after("pmem", store(b"a" * 8), store(b"b" * 8, RING + 8)), length=16)
    assert found == {bytes(16), b"a" * 8 + bytes(8), b"a" * 8 + b"b" * 8}


def test_streamed_store_may_be_there_in_any_words() -> None:
    """Past the cache nothing orders the words of a line."""
    medium = after("pmem", store(ONE, step="stream"))
    found = {medium.mixture(RING // 64, Random(seed)).data for seed in range(100)}
    assert any(line[:8] == bytes(8) and line[-8:] == ONE[-8:] for line in found)


def test_stores_to_different_lines_come_in_any_order() -> None:
    """The later of two may be there alone."""
    found = held(after("pmem", store(ONE), store(TWO, RING + 64)), length=128)
    assert {bytes(128), ONE + TWO, ONE + bytes(64), bytes(64) + TWO} <= found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Step("write_back", RING, 64), Step("fence")], {ONE}),
        ([Step("write_back", RING, 64)], {bytes(64), ONE}),
        ([Step("fence")], {bytes(64), ONE}),
        ([Step("fence"), Step("write_back", RING, 64)], {bytes(64), ONE}),
        ([Step("write_back", RING + 64, 64), Step("fence")], {bytes(64), ONE}),
    ],
)
def test_line_is_durable_when_it_was_written_back_before_a_fence(steps: list[Step], expected: set[bytes]) -> None:
    """Neither alone is enough, nor the wrong order, nor another line."""
    found = held(after("pmem", store(ONE), *steps))
    assert {line for line in found if line in (bytes(64), ONE)} == expected


def test_store_after_the_write_back_is_not_made_durable_by_the_fence() -> None:
    """The fence waits for what was written back, as it was then."""
    found = held(after("pmem", store(ONE), Step("write_back", RING, 64), store(TWO), Step("fence")))
    assert {ONE, TWO} <= found
    assert bytes(64) not in found


# -- pages and folios


def test_page_may_be_any_version_since_the_last_msync() -> None:
    """Early writing: the kernel may write a page at any time."""
    found = held(after("page", store(ONE), store(TWO), store(b"3" * 64)), length=WORD)
    assert {bytes(WORD), ONE[:WORD], TWO[:WORD], b"3" * WORD} == found


def test_page_may_be_written_in_the_middle_of_a_store() -> None:
    """It has words of the store from the front, and no others; after an msync it has all of them."""
    found = held(after("page", store(ONE)), length=64)
    assert found <= {ONE[:cut] + bytes(64 - cut) for cut in range(0, 65, WORD)}
    assert len(found) > 2, "not only the whole store or nothing"
    assert held(after("page", store(ONE), Step("flush", RING, 4096))) == {ONE}


def test_msync_settles_its_pages_only() -> None:
    """The page beside it stays open."""
    medium = after("page", store(ONE), store(TWO, RING + 4096), Step("flush", RING, 4096))
    assert held(medium) == {ONE}
    assert held(medium, RING + 4096, WORD) == {bytes(WORD), TWO[:WORD]}


def test_pages_mix_by_sector_and_never_within_one() -> None:
    """A torn page has whole sectors of its versions."""
    medium = after("page", store(b"x" * 1024))
    found = {medium.mixture(RING // 4096, Random(seed)).data[:1024] for seed in range(50)}
    assert {bytes(512) + b"x" * 512, b"x" * 512 + bytes(512)} <= found
    assert all(piece in (bytes(512), b"x" * 512) for data in found for piece in (data[:512], data[512:]))


def test_folio_is_written_as_one() -> None:
    """An msync of one page of it writes the others too; without a torn write they have one age."""
    medium = after("folio-64k", store(ONE), store(TWO, RING + 4096), Step("flush", RING, 4096))
    assert medium.open == {}
    assert len(after("folio-2m", store(ONE), store(TWO, RING + 4096)).open) == 1


def test_page_that_an_msync_failed_on_is_not_settled_by_the_next_one() -> None:
    """It counts as clean: only another store gets it written."""
    failed = [store(ONE), Step("failed", RING, 4096), Step("flush", RING, 4096)]
    assert held(after("page", *failed), length=WORD) == {bytes(WORD), ONE[:WORD]}
    assert held(after("page", *failed, store(TWO, RING + 64), Step("flush", RING, 4096))) == {ONE}


def test_lie_settles_nothing() -> None:
    """An msync that returned 0 and had failed."""
    assert held(after("page", store(ONE), Step("lied", RING, 4096)), length=WORD) == {bytes(WORD), ONE[:WORD]}


def test_evicted_page_is_what_was_read_back() -> None:
    """In the cache and on the disk."""
    medium = after("page", store(ONE), Step("failed", RING, 4096), Step("evict", RING, 4096, bytes(4096)))
    assert held(medium) == {bytes(64)}
    assert cached(medium).data[RING : RING + 64] == bytes(64)


def test_kill_keeps_the_cache() -> None:
    """A power cut may lose it."""
    medium = after("page", store(ONE))
    assert cached(medium).data[RING : RING + 64] == ONE
    assert bytes(64) in held(medium)


@pytest.mark.parametrize("kind", UNITS)
def test_live_page_is_in_no_image(kind: str) -> None:
    """No barrier includes it, and recovery does not read it."""
    medium = after(kind, store(ONE, 4096), store(ONE))
    assert {build(medium, choice).data[4096:8192] for choice in choices(medium, Random(0), 5)} == {bytes(4096)}


@pytest.mark.parametrize("kind", UNITS)
def test_digest_of_a_choice_is_that_of_the_image(kind: str) -> None:
    """It is told before the image is built, and other bytes have another one."""
    random = Random(1)
    medium = PowerCutModel(kind, bytes(SIZE))
    digests: dict[int, bytes] = {}
    for number in range(1, 25):
        offset = random.randrange(RING, RING + 1500)
        medium.take(store(bytes([number]) * random.randrange(1, 300), offset))
        if number % 3 == 0:
            medium.take(Step("write_back", RING, 1000))
            medium.take(random.choice([Step("fence"), Step("flush", RING, 8192)]))
        for choice in choices(medium, random, 3):
            image = build(medium, choice)
            assert image.digest == digest_after(medium, choice) == digest_of(image.data)
            assert digests.setdefault(image.digest, image.data) == image.data
        assert cached(medium).digest == digest_of(cached(medium).data)


def test_choices_are_exhaustive_while_few_units_are_open() -> None:
    """Every subset of six lines is there, and beyond that each pair lost."""
    lines = range(EXHAUSTIVE_MAX)
    few = after("pmem", *(store(ONE, RING + 64 * line) for line in lines))
    kept = {frozenset(unit for unit, version in choice.items() if version.data == ONE) for choice in choices(few, Random(0), 0)}
    assert len(kept) == 2**EXHAUSTIVE_MAX
    many = after("pmem", *(store(ONE, RING + 64 * line) for line in range(12)))
    lost = {frozenset(many.open) - set(choice) for choice in choices(many, Random(0), 0)}
    assert {len(units) for units in lost} >= {0, 1, 2, 11, 12}
    assert sum(len(units) == 2 for units in lost) >= 66


# -- the model and the oracles


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        (Found(1, ((1, b"a"),)), True),
        (Found(1, ((1, b"a"), (2, b"b"))), True),
        (Found(1, ((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d"))), True),
        (Found(1, ((1, b"a"), (2, b"b"), (3, b"c"))), False),
        (Found(1, ((1, b"a"), (2, b"x"))), False),
        (Found(1, ()), False),
        (Found(2, ((2, b"b"),)), False),
    ],
)
def test_expectation_is_what_was_acknowledged_and_then_whole_groups(found: Found, allowed: bool) -> None:
    """Nothing missing, nothing changed, no half batch."""
    model = Model(((1, b"a"),), [((2, b"b"),), ((3, b"c"), (4, b"d"))])
    assert model.expectation().allows(found) is allowed


def test_expectation_of_a_truncate_is_the_old_tail_or_the_new() -> None:
    """And of a rollback what it discards, or not."""
    model = Model(((1, b"a"), (2, b"b")))
    assert model.expectation(first_max=2).allows(Found(2, ((2, b"b"),)))
    assert model.expectation(first_max=3).allows(Found(3, ()))
    assert model.expectation(cut_after=1).allows(Found(1, ((1, b"a"),)))
    assert not model.expectation(cut_after=1).allows(Found(1, ()))
    assert Expectation(frozenset([()]), (), 3, 3).allows(Found(3, ()))


def test_tail_that_moves_in_one_step_is_never_found_between() -> None:
    """Only a call that moves it again and again may leave it anywhere."""
    model = Model(tuple((seq, b"%d" % seq) for seq in range(1, 5)))
    found = [Found(first, model.acknowledged[first - 1 :]) for first in range(1, 6)]
    jumps, steps = model.expectation(first_max=4), model.expectation(first_max=4, jumps=False)
    assert [jumps.allows(one) for one in found] == [True, False, False, True, False]
    assert [steps.allows(one) for one in found] == [True, True, True, True, False]
    assert (jumps.states(), steps.states()) == ({found[0], found[3]}, set(found[:4]))


def test_damage_may_take_what_the_last_two_barriers_made_durable_and_no_more() -> None:
    """Of a pipelined log that ended uncleanly; a recovery, and a rollback, vouch for all that they leave."""
    items = tuple((seq, b"%d" % seq) for seq in range(1, 6))
    model = Model()
    model.settle(Found(1, items[:2]))
    for item in items[2:]:
        model.pending.append((item,))
        model.advance(1, item[0])
    assert [model.expectation().begins_with(Found(1, items[:count])) for count in range(6)] == [False] * 3 + [True] * 3
    assert not model.expectation().begins_with(Found(1, ((1, b"x"), *items[1:])))
    assert not model.expectation().begins_with(Found(2, items[1:]))
    model.discard(4)
    assert [model.expectation().begins_with(Found(1, items[:count])) for count in range(5)] == [False] * 4 + [True]


def test_reopen_whose_first_sync_fails_leaves_everything_to_its_own_barrier(shm_dir: Path) -> None:
    """Nothing of what only the cache held is durable before it is stored again."""
    session = Session(SETTINGS[1], shm_dir / "test.wal", start_of(SETTINGS[1]), 1)
    trace = perform(session, ("append_pending", "kill_reopen_unsynced"))
    names = [event.name for event in trace.events[trace.begin :]]
    assert names.index("failed") < names.index("store") < names.index("flush")
    assert "sync" not in names


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("engine_name", ["native", "python"])
def test_operation_runs_on_every_base(name: str, engine_name: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation, twice, on each setting where it makes sense, and its model holds."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    for setting in SETTINGS:
        if name in operations_for(setting.medium):
            session = Session(setting, shm_dir / "test.wal", start_of(setting), 3)
            trace = perform(session, (name, name))
            assert trace.events


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting[:3]))
def test_both_engines_leave_the_same_trace_of_stores(setting: Setting, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the images of one engine speak for the other, as far as the order of barriers is the same."""
    stores = []
    for engine_name in ("native", "python"):
        monkeypatch.setenv("PMWAL_ENGINE", engine_name)
        session = Session(setting, shm_dir / "test.wal", start_of(setting), 3)
        trace = perform(session, SIX)
        ours = [event for event in trace.events if event.name in ("store", "stream")]
        stores.append([(event.offset, event.data) for event in ours if event.offset // 4096 != 1])
    assert stores[0] == stores[1]


def test_creation_leaves_no_file_or_a_whole_one(shm_dir: Path) -> None:
    """At every step of it."""
    assert explore_creation(shm_dir, Setting()) >= 3


# -- exploring


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize("share", range(SHARES))
def test_images_of_a_share_of_the_histories_hold(
    share: int, engine_name: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 50,000 distinct images over all shares: every sequence of one operation, then longer ones by seed."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    plan = Plan(seed=2 * share + (engine_name == "native"), engines=(engine_name,), target=0, lengths=1, effort=Effort())
    explorer = Explorer(shm_dir, plan.effort)
    for history in chain(list(short_histories(plan))[share::SHARES], long_histories(plan)):
        try:
            explorer.explore(history)
        except Violation as violation:
            pytest.fail(told(engine_name, Failure(history, violation.oracle, violation.detail)))
        if len(explorer.tally.seen) >= IMAGES_OF_A_SHARE:
            break


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize("setting", SETTINGS[:5], ids=lambda setting: "-".join(setting[:3]))
@pytest.mark.parametrize(
    "explore",
    [
        explore_repair,
        explore_beside,
        explore_hidden,
        explore_spliced,
        explore_names,
        explore_unlinkable,
        explore_handlers,
        explore_slots,
    ],
)
def test_repairs_readers_and_surroundings_of_a_history_hold(
    explore: Callable[[Path, History], object], setting: Setting, engine_name: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lost sector repaired; a reader beside each step; an older copy written back; a lost name; a handler's start; slots."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    for names in ("append_pending commit append_small", "extend rollback truncate append_large", "append_pending overwrite"):
        explore(shm_dir, History(setting, tuple(names.split()), 1))


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[1]], ids=lambda setting: "-".join(setting[:3]))
def test_readers_are_not_misled_between_two_writers(
    setting: Setting, engine_name: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `tail -f` printed a record twice, and reported a rollback: a verdict had begun before the second writer opened."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    looks = explore_succession(shm_dir, History(setting, (), len(engine_name)))
    print(f"{looks} looks")
    assert looks > 1000


def told(engine_name: str, failure: Failure) -> str:
    """What was violated, and how to see it again."""
    return f"{failure.oracle}: {failure.detail}\nagain with: {TOOL} --replay {spell(engine_name, failure.history)}"


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_by_its_oracle(name: str) -> None:
    """A simulator that lets a deliberate bug pass proves nothing."""
    noticed = noticed_by(MUTANTS[name])
    assert noticed is not None, MUTANTS[name].what
    assert noticed[0] == MUTANTS[name].oracle, noticed[1]


@pytest.mark.parametrize("name", MUTANTS)
def test_history_of_a_mutant_holds_without_it(name: str) -> None:
    """It is the bug that is noticed, and not the history."""
    mutant = MUTANTS[name]
    if mutant.explore is not None:
        assert explored(mutant) is None
    elif mutant.operations is not None:
        effort = mutant.effort if mutant.effort == PLAIN else Effort()
        result = explore_chunk(effort, (mutant.engine, (mutant.history,)))
        assert result.failure is None, told(*result.failure)


def test_minimal_history_keeps_what_is_needed() -> None:
    """Operations that the violation does not need are left out."""
    mutant = MUTANTS["tail_in_memory"]
    history = mutant.history._replace(names=("append_small", "commit", "truncate"))
    with applied(mutant):
        result = explore_chunk(PLAIN, (mutant.engine, (history,)))
        assert result.failure is not None
        assert minimal(*result.failure, PLAIN).history.names == ("truncate",)


def test_history_is_read_as_it_is_spelled() -> None:
    """The command that a failure prints leads to the same history."""
    history = History(SETTINGS[2], ("append_small", "cut_reopen"), 77)
    assert read_history(spell("python", history)) == ("python", history)
    with pytest.raises(ValueError, match="no such operation"):
        read_history(spell("native", history).replace("append_small", "append_samll"))


def test_short_histories_are_all_sequences_on_every_setting() -> None:
    """None is left out, and none is of another setting's medium."""
    plan = Plan(seed=1, engines=("python",), target=0, lengths=2, effort=Effort())
    expected = {
        (setting, names)
        for setting in SETTINGS
        for length in range(3)
        for names in product(operations_for(setting.medium), repeat=length)
    }
    histories = list(short_histories(plan))
    assert {(history.setting, history.names) for history in histories} == expected
    assert len(histories) == len(expected)


def test_longer_histories_are_all_sequences_on_the_first_settings() -> None:
    """Three operations of the core, each with each."""
    plan = Plan(seed=1, engines=("python",), target=0, lengths=3, effort=Effort())
    found = {(history.setting, history.names) for history in short_histories(plan) if len(history.names) == 3}
    assert len(found) == sum(len(operations_for(setting.medium, CORE)) ** 3 for setting in DEEP)
    assert {"page", "pmem"} == {setting.medium for setting in DEEP}


def test_kill_in_the_middle_of_a_store_leaves_a_part_of_it() -> None:
    """From the front, by words; and all of it after the store."""
    medium = after("page")
    found = [image.data[RING : RING + 64] for image in half_stored(medium, store(ONE))]
    assert found == [ONE[:count] + bytes(64 - count) for count in (8, 32, 56, 64)]
    assert all(image.digest == digest_of(image.data) for image in half_stored(medium, store(b"odd size....", RING + 100)))


def test_equal_images_of_two_processes_count_once() -> None:
    """The same history explored twice adds nothing."""
    plan = Plan(seed=1, engines=("python",), target=0, lengths=1, effort=Effort())
    task = "python", (History(Setting(), ("append_small",), 1),)
    once, twice = explore_chunk(plan.effort, task), explore_chunk(plan.effort, task)
    alone = once.images_distinct()
    once.add(twice)
    assert once.images_distinct() == alone == twice.images_distinct() > 1
    assert once.counts["judged"] == 2 * alone


def test_tool_prints_counts_and_the_seed() -> None:
    """And says when it found fewer images than it was to find."""
    command = [*TOOL, "--quick", "--engine", "python", "--seed", "5", "--processes", "1"]
    result = subprocess.run([*command, "--images", "50", "--length", "0"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "seed 5, engines python" in result.stdout
    assert int(re.findall(r"(\d+) distinct", result.stdout)[-1]) >= 50
    result = subprocess.run([*command, "--seconds", "0.001"], capture_output=True, text=True, check=False)
    assert result.returncode == USAGE
    assert "of 50000 distinct images" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--replay", "nonsense"], ["--replay", "native:page:strict:fresh:x:8:write-back:1:"], ["--control", "none"]]
)
def test_tool_refuses_what_it_cannot_do(arguments: list[str]) -> None:
    """Exit status 64, as for every command."""
    assert subprocess.run([*TOOL, *arguments], capture_output=True, check=False).returncode == USAGE


# -- for users


def three_appends(wal: pmwal.Wal) -> None:
    """A user's run."""
    for data in (b"a", b"b", b"c"):
        wal.append(data)


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize("medium", UNITS)
def test_every_image_of_a_run_holds_what_was_acknowledged(medium: str, engine_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a prefix of what the run appended."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    kinds, lengths = set(), set()
    for image in crash_images(three_appends, size="8KiB", medium=medium):
        with image.open() as wal:
            records = list(wal)
        assert records[: len(image.acknowledged)] == list(image.acknowledged)
        assert [record.data for record in records] == [b"a", b"b", b"c"][: len(records)]
        kinds.add(image.kind)
        lengths.add((len(image.acknowledged), len(records)))
    assert kinds == {"cut", "kill"}
    assert {(0, 0), (3, 3)} <= lengths


def test_images_during_a_rollback_and_a_truncate_promise_what_stays() -> None:
    """What a call under way may take is not acknowledged."""

    def run(wal: pmwal.Wal) -> None:
        wal.extend([b"a", b"b", b"c", b"d"])
        wal.rollback(after=3)
        wal.truncate(before=2)
        wal.append(b"D", commit=False)

    found = set()
    for image in crash_images(run, size="8KiB", medium="pmem"):
        with image.open() as wal:
            records = list(wal)
        assert set(image.acknowledged) <= set(records)
        found.add(b"".join(record.data for record in records))
    assert found == {b"", b"abcd", b"abc", b"bc", b"bcD"}


def test_images_notice_a_broken_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose barriers cover nothing has an image without what was acknowledged."""
    monkeypatch.setattr(Recorder, "flush", lambda self, mapping, offset, length: None)
    missing = []
    for image in crash_images(three_appends, size="8KiB"):
        with image.open() as wal:
            missing.append(len(wal) < len(image.acknowledged))
    assert any(missing)


def test_exception_of_a_run_is_raised_and_its_log_let_go() -> None:
    """And no file is left behind."""

    def run(wal: pmwal.Wal) -> None:
        wal.append(b"x")
        raise LookupError("of the user")

    before = set(scratch().glob("pmwal-run-*"))
    with pytest.raises(LookupError, match="of the user"):
        next(crash_images(run))
    assert set(scratch().glob("pmwal-run-*")) == before


def test_unknown_medium_is_refused() -> None:
    """By name."""
    with pytest.raises(ValueError, match="pmem"):
        next(crash_images(three_appends, medium="tape"))


def test_image_can_be_saved(shm_dir: Path) -> None:
    """To look at it with other tools."""
    image = next(crash_images(three_appends))
    image.save(shm_dir / "image.wal")
    assert pmwal.verify(shm_dir / "image.wal").outcome in ("clean", "recovered")


def test_simulator_needs_no_pytest() -> None:
    """Users may have another test runner."""
    code = "import sys, pmwal.testing._mutants.table; assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_oracle_is_the_one_that_notices_a_mutant_or_is_checked_by_hand() -> None:
    """The table leaves out only oracles that repeat others."""
    repeating = {"open", "twice", "continued"}
    assert set(ORACLES) - {mutant.oracle for mutant in MUTANTS.values()} == repeating
