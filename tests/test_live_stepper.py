"""The C engine stopped after each instruction that stores, with readers looking: none is ever misled.

The stepper of ``tools/crash/stepper`` reports each store of a traced writer, in the order of the program, which is the order in
which x86 makes them visible. They are applied one at a time to a second file, whose byte for a living writer this process locks:
to readers that file is a log whose writer is stopped there.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from onlookers import Misled, Onlookers
from pmwal.format.layout import LINE, LIVE_OFFSET, LIVE_WRITER, LIVE_WRITER_OFFSET, PAGE
from pmwal.native.choice import STORES
from pmwal.storage.liveness import announce

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from crash import needs  # noqa: E402
from crash.stepper import __main__ as stepper  # noqa: E402
from crash.stepper.controls import ROOT, Control, build  # noqa: E402
from crash.stepper.plan import Call, History, calls, filling  # noqa: E402
from crash.stepper.trace import HERE, CannotRun, TraceEvent, What, compiled, environment, traced  # noqa: E402

pytestmark = [pytest.mark.rigs, pytest.mark.usefixtures("hints_first")]

CALLS = 14
STOPS = (What.STORED, What.STREAMED)


@pytest.fixture(autouse=True)
def rig() -> None:
    """Every test here compiles or steps."""
    needs.require(*stepper.NEEDS)


class Replica:
    """A copy of the stepped log that has a living writer: this process."""

    def __init__(self, path: Path, image: bytes) -> None:
        path.write_bytes(image)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        inode = struct.pack("<Q", os.fstat(self._fd).st_ino)
        os.pwrite(self._fd, inode, LIVE_WRITER_OFFSET + LIVE_WRITER.offsets["inode"])
        assert announce(self._fd)

    def apply(self, event: TraceEvent) -> None:
        """Take one store."""
        line = int.from_bytes(os.pread(self._fd, LINE, event.offset), "little")
        changed = (line & ~event.mask) | (event.data & event.mask)
        os.pwrite(self._fd, changed.to_bytes(LINE, "little"), event.offset)

    def close(self) -> None:
        """The writer dies."""
        os.close(self._fd)


def stepped(directory: Path, ordering: str, stores: str, seed: int, package: Path) -> Counter[str]:
    """Look after each store of the first calls of a seed; how many stops there were, by what was stored. ``Misled`` if it fails."""
    log, base, maps = directory / "stepped.wal", directory / "base.wal", directory / "maps"
    arguments = [str(log), str(base), str(maps), str(package), ordering, str(seed)]
    command = [sys.executable, "-P", str(HERE / "child.py"), *arguments]
    with traced(compiled(directory), log, command, environment(directory, package, stores)) as events:
        return _look_at(events, calls(seed), base, directory / "replica.wal")


def _look_at(events: Iterator[TraceEvent], plan: Iterator[Call], base: Path, path: Path) -> Counter[str]:
    stops: Counter[str] = Counter()
    history = History()
    history.begin(filling())
    history.finish(filling())
    replica: Replica | None = None
    onlookers: Onlookers | None = None
    try:
        for event in events:
            if event.what is What.CALL_BEGINS:
                if stops["calls"] == CALLS:
                    break
                if replica is None:
                    replica = Replica(path, base.read_bytes())
                    onlookers = Onlookers(path)
                call = next(plan)
                history.begin(call)
                stops["calls"] += 1
            assert replica is not None
            assert onlookers is not None
            if event.what is What.CALL_RETURNS:
                history.finish(call)
                stops[call.name] += 1
            if event.what in STOPS:
                replica.apply(event)
                stops["live" if LIVE_OFFSET <= event.offset < LIVE_OFFSET + PAGE else "others"] += 1
            if event.what in (*STOPS, What.CALL_RETURNS):
                first, seen = onlookers.look()
                problem = history.problem(first, seen)
                if problem is not None:
                    raise Misled(f"{call}, instruction {event.step}: {problem}")
    finally:
        if onlookers is not None:
            onlookers.__exit__(None, None, None)
        if replica is not None:
            replica.close()
    return stops


def run(directory: Path, ordering: str, stores: str, seed: int, package: Path = ROOT) -> Counter[str]:
    """As ``stepped``; the test is skipped, or fails if all rigs are required, where this machine forbids tracing."""
    try:
        return stepped(directory, ordering, stores, seed, package)
    except CannotRun as error:
        if os.environ.get(needs.ALL_REQUIRED) == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


CHOSEN = (("strict", "write-back", "overwrite"), ("pipelined", "stream", "truncate"))  # that run each time, the others at night
SEEDS = {"truncate": 5, "overwrite": 6}


@pytest.mark.parametrize(
    ("ordering", "stores", "full"),
    [
        pytest.param(*case, id="-".join(case), marks=() if case in CHOSEN else pytest.mark.nightly)
        for case in product(("strict", "pipelined"), STORES, SEEDS)
    ],
)
def test_readers_are_not_misled_after_any_store_of_the_engine(shm_dir: Path, ordering: str, stores: str, full: str) -> None:
    """append, extend, batch, reserve, store, rollback and truncate or overwrite, stopped after each instruction that stores."""
    stops = run(shm_dir, ordering, stores, SEEDS[full])
    print(f"{ordering}, {stores}, {full}: {dict(stops)}")
    assert stops["live"] > 100
    assert stops["others"] > 100
    assert {"append", "extend", "batch", "reserve", "store", "rollback"} <= stops.keys()


WRONG_ORDER = Control(
    "live.h",
    r"live_put\(&line->version_begin, bounds->version_begin\);\n",
    "live_put(&line->version_begin, bounds->version_begin);\n    live_put(&line->version_end, bounds->version_end);\n",
    "",
)


def test_two_stores_in_the_wrong_order_are_noticed(shm_dir: Path) -> None:
    """Negative control: an engine that stores both versions before the fields misleads a reader."""
    package = shm_dir / "package"
    package.mkdir()
    build(WRONG_ORDER, package)
    with pytest.raises(Misled):
        run(shm_dir, "strict", "write-back", 5, package)
