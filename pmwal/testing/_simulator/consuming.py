"""A writer that frees what a named consumer has acknowledged, and that consumer, through power cuts.

Invariants
----------
- The log and the position are two files. Whatever of each has reached the medium at one moment, the log begins at or before the
  record after the position, has the record that the position names, and a durable acknowledgement has not gone back.
- Both take turns in one process, and each of their steps is a moment. A position is written in one sector, so what the medium may
  have of it is one of the versions since its last sync.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pmwal.format.position import newest_position
from pmwal.opening import open_log
from pmwal.reading.reader import Reader
from pmwal.storage.positions import directory_of
from pmwal.testing._simulator.explore import History
from pmwal.testing._simulator.oracles import Examiner
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.recorder import Recorder, Step
from pmwal.testing.violation import Violation
from pmwal.writing.wal import Wal

_SIZE = 16 * 1024
_NAME = "nats"


class _Moment(NamedTuple):
    """Images of the log and of the position that the medium may hold; what was acknowledged durably, and at most."""

    logs: list[bytes]
    positions: list[bytes]
    durable: int
    last: int


class _Shared:
    """The steps of a writer and of a consumer, in the order in which they were taken, and what each leaves on the medium."""

    def __init__(self, path: Path, history: History) -> None:
        setting = history.setting
        self._options: dict[str, Any] = {"medium": setting.mapped, "ordering": setting.ordering}
        self.path = path
        _writer(path, "x", size=_SIZE, align=setting.align, **self._options).close()
        reader = open_log(path, "r")
        assert isinstance(reader, Reader)
        with reader:
            reader.consumer(_NAME).close()
        self._file = Path(directory_of(str(path)), _NAME)
        self._log = PowerCutModel(setting.medium, path.read_bytes())
        self._versions = [self._file.read_bytes()]
        self._durable = self._last = 0
        self.moments: list[_Moment] = []
        self._of_writer, self._of_consumer = Recorder(stores=setting.stores), Recorder()
        self._of_writer.after, self._of_consumer.after = self._by_writer, self._by_consumer

    def _by_writer(self, step: Step) -> None:
        if step.name == "sync position":
            self._versions = self._versions[-1:]
        else:
            if self._log.settles(step):
                self._look()
            self._log.take(step)
        self._look()

    def _by_consumer(self, step: Step) -> None:
        if step.name == "sync position":
            self._versions = self._versions[-1:]
        elif step.name == "write":
            data = bytearray(self._file.read_bytes())
            data[step.offset : step.offset + step.length] = step.data
            self._versions.append(bytes(data))
        self._look()

    def _look(self) -> None:
        oldest, newest, mixed = (bytearray(self._log.held) for _ in range(3))
        for place, (unit, versions) in enumerate(self._log.open.items()):
            part = slice(unit * self._log.size, (unit + 1) * self._log.size)
            oldest[part], newest[part] = versions[0].data, versions[-1].data
            mixed[part] = versions[-1 if place % 2 else 0].data
        logs = sorted({bytes(oldest), bytes(newest), bytes(mixed)})
        self.moments.append(_Moment(logs, self._versions[:], self._durable, self._last))

    def take_turns(self) -> None:
        """Acknowledgements of both kinds, truncates, a full log, and a rollback."""
        wal = _writer(self.path, "r+", seam=self._of_writer, on_full="consumed", timeout=0, **self._options)
        reader = open_log(self.path, "r", seam=self._of_consumer)
        assert isinstance(reader, Reader)
        consumer = reader.consumer(_NAME)

        def ack(seq: int, *, durable: bool = False) -> None:
            self._last = seq
            consumer.ack(seq, durable=durable)
            self._durable = seq if durable else self._durable

        wal.extend([b"%d" % seq for seq in range(1, 7)])
        wal.commit()
        ack(2)
        wal.truncate(consumed=True)
        ack(3)
        ack(4, durable=True)
        ack(5)
        wal.truncate(consumed=True)
        wal.extend([bytes(2000)] * 5)
        wal.commit()
        ack(8)
        wal.extend([bytes(2000)] * 4)  # it does not fit, unless what is consumed is freed
        wal.rollback(after=12)
        wal.commit()
        ack(10)
        wal.truncate(consumed=True)
        for handle in (consumer, reader, wal):
            handle.close()


def _writer(path: Path, mode: str, **options: Any) -> Wal:
    wal = open_log(path, mode, **options)
    assert isinstance(wal, Wal)
    return wal


def explore_consumed(directory: Path, history: History) -> int:
    """Cut the power at every step of a writer and a consumer; how many pairs of images. ``Violation`` of oracle "consumed"."""
    shared = _Shared(directory / "consumed.wal", history)
    shared.take_turns()
    examiner, ends, pairs = Examiner(), dict[bytes, tuple[int, int]](), 0
    for number, moment in enumerate(shared.moments):
        for log in moment.logs:
            if log not in ends:
                found = examiner.examine(log).found
                ends[log] = found.first_seq, found.next_seq
            first_seq, next_seq = ends[log]
            for raw in moment.positions:
                pairs += 1
                stored = newest_position(raw)
                seq = -1 if stored is None else stored.position.seq
                acknowledged = moment.durable <= seq <= moment.last
                if not acknowledged or not first_seq - 1 <= seq < next_seq:
                    promised = f"acknowledged durably {moment.durable}, and at most {moment.last}"
                    there = f"the log has {first_seq} to {next_seq - 1}"
                    raise Violation("consumed", f"moment {number}: the position is {seq}; {promised}; {there}")
    return pairs
