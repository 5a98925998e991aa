"""A state machine: random calls, reopens and crashes against the model, for every policy of a full ring."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from history import History
from support import kill

pytestmark = pytest.mark.both_engines

SETTINGS = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
PAYLOADS = st.binary(max_size=300) | st.binary(min_size=1500, max_size=1990)
SOME = st.lists(PAYLOADS, min_size=1, max_size=4)


class LogMachine(RuleBasedStateMachine):
    """One log and its model. A crash damages what was not yet flushed: any old version of each page, mixed by sectors."""

    on_full = "raise"

    @initialize(ordering=st.sampled_from(["strict", "pipelined"]), seed=st.integers(0, 2**32))
    def create(self, ordering: str, seed: int) -> None:
        """An empty log."""
        self.directory = Path(tempfile.mkdtemp(prefix="pmwal-test-", dir="/dev/shm"))
        self.history = History(self.directory / "test.wal", seed, ordering=ordering, on_full=self.on_full)
        self.history.reopen()

    @rule(data=PAYLOADS, durable=st.booleans())
    def append(self, data: bytes, durable: bool) -> None:
        """One record."""
        self.history.append(data, durable=durable)

    @rule(size=st.integers(0, 1990), durable=st.booleans())
    def append_lookalike(self, size: int, durable: bool) -> None:
        """One record whose payload imitates structures of the log."""
        self.history.append(self.history.lookalike(size), durable=durable)

    @rule(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4))
    def extend_lookalikes(self, sizes: list[int]) -> None:
        """Some of them, all or none."""
        self.history.extend([self.history.lookalike(size) for size in sizes])

    @rule(datas=SOME)
    def extend(self, datas: list[bytes]) -> None:
        """Some records, all or none."""
        self.history.extend(datas)

    @rule(datas=SOME)
    def batch(self, datas: list[bytes]) -> None:
        """The same by a context."""
        self.history.batch(datas)

    @rule(datas=SOME, stores=st.integers(1, 8))
    def abort(self, datas: list[bytes], stores: int) -> None:
        """An interrupt in the middle of an extend."""
        self.history.abort(datas, stores=stores)

    @rule()
    def commit(self) -> None:
        """Make everything durable."""
        self.history.commit()

    @rule(fraction=st.floats(0, 1))
    def truncate(self, fraction: float) -> None:
        """Free some of the front."""
        wal = self.history.open_wal
        self.history.truncate(wal.first_seq + round(fraction * len(wal)))

    @rule(fraction=st.floats(0, 1))
    def rollback(self, fraction: float) -> None:
        """Discard some of the end."""
        wal = self.history.open_wal
        self.history.rollback(wal.first_seq - 1 + round(fraction * len(wal)))

    @rule()
    def close_and_reopen(self) -> None:
        """A clean end."""
        self.history.commit()
        self.history.open_wal.close()
        self.history.reopen()

    @rule(power_cut=st.booleans())
    def crash_and_reopen(self, power_cut: bool) -> None:
        """A kill, or a power cut."""
        kill(self.history.open_wal)
        if power_cut:
            self.history.cache.power_cut()
        self.history.reopen()

    @invariant()
    def shows_what_the_model_says(self) -> None:
        """Contents, bounds and length."""
        if hasattr(self, "history"):
            self.history.check()

    def teardown(self) -> None:
        """Let go of the log, also when a rule, a reopen or the creation raised."""
        with contextlib.ExitStack() as stack:
            if hasattr(self, "directory"):
                stack.callback(shutil.rmtree, self.directory)
            if hasattr(self, "history"):
                self.history.let_go()


@pytest.mark.slow
@pytest.mark.parametrize("on_full", ["raise", "wait", "overwrite"])
def test_random_calls_and_crashes_agree_with_a_list(on_full: str) -> None:
    """After any calls and crashes, the log is what the model says."""
    machine = type(f"LogMachine_{on_full}", (LogMachine,), {"on_full": on_full})
    run_state_machine_as_test(machine, settings=SETTINGS)
