"""Where a reader is in a log: the last record that it delivered, and whether the log still has that record's history.

Invariants
----------
- A number comes to mean another record only through a rollback, a recovery, or another file's bytes in place of the log's. The
  first two begin an epoch, the last changes the open that the live page names. While neither has changed, nothing is checked.
- A record that is still in the log is compared by number and checksum. For one that the tail has passed, the slots say which
  epochs began since, each with its first number: it was discarded if one of them began at or before it. Where they do not reach
  back so far, it may have been, and that is said.
- Two opens never share an epoch in one history, and an epoch has one first number. So an older copy of the file that was written
  back over it shows, although its epochs have the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

from pmwal.errors import Overrun
from pmwal.format.layout import PAGE, Superblock
from pmwal.format.ring import Load, RingReader
from pmwal.native import native
from pmwal.reading.walk import Delivered, View, rolled_back, uncertain

Epochs = Callable[[], dict[int, int]]
"""The epochs that the slots still name, each with its first sequence number."""

Fate = Literal["kept", "discarded", "unknown"]
"""Whether a record was in the log until the tail passed it, or was rolled back before."""


class Place:
    """The last record delivered, None before the first; and the view in which it was last known to be in the log.

    With a ``mark`` that includes what native followers delivered, which note it there.
    """

    __slots__ = ("_known", "_last", "_view", "mark")

    def __init__(self, other: Place | None = None, mark: native.Mark | None = None) -> None:
        self._last: Delivered | None = None if other is None else other.last
        self._view: View | None = None if other is None else other.view
        self._known: tuple[Hashable, int] | None = None if other is None else other._known  # the last writer, and its epoch
        self.mark = mark

    @property
    def last(self) -> Delivered | None:
        """The last record delivered, None before the first."""
        self._take()
        return self._last

    @property
    def view(self) -> View | None:
        """The view in which it was last known to be in the log."""
        self._take()
        return self._view

    def last_in(self, view: View) -> Delivered | None:
        """The last record delivered, if this view is of the history in which it was last known to be in the log.

        Otherwise it may have been rolled back, and no record need begin where it ended.
        """
        self._take()
        return self._last if self._view is not None and view.same_history(self._view) else None

    def _take(self) -> None:
        noted = None if self.mark is None else self.mark.take()
        if noted is not None:
            self._deliver(Delivered(*noted[1]), noted[0])

    def deliver(self, record: Delivered, view: View) -> None:
        """This record is being delivered from this view."""
        self._take()
        self._deliver(record, view)

    def _deliver(self, record: Delivered, view: View) -> None:
        self._last = record
        if view is not self._view:
            self._saw(view)

    def forget(self) -> None:
        """Begin anywhere."""
        self._take()
        self._last = self._view = self._known = None

    def check(self, view: View, again: Callable[[], View], block: Superblock, load: Load, epochs: Epochs) -> None:
        """``Overrun`` if the record was discarded since. ``again`` gives the view as it is by then."""
        if self.last is None or self.view is None or view.same_history(self.view):
            return
        seq, kept = self.last.seq, self._is_there(view, block, load)
        if not kept and seq < view.end.next_seq:
            view = again()  # the tail may have passed it while it was read
            kept = self._is_there(view, block, load)
        fate: Fate = "kept" if kept else "discarded"
        if not kept and seq < view.tail.next_seq:
            fate = self._fate(view, epochs())
        if fate == "kept":
            self._saw(view)
            return
        self.forget()
        if fate == "unknown":
            raise uncertain(seq)
        raise Overrun(f"record {seq}, read before, was rolled back; read again from an earlier one")

    def check_passed(self, view: View, epochs: Epochs) -> None:
        """``Overrun`` if the record was discarded since and the tail has passed it, also in another file of the log."""
        last, seen = self.last, self.view
        if last is None or seen is None or last.seq >= view.tail.next_seq:
            return
        raise_discarded(last.seq, seen, view, epochs())

    def _saw(self, view: View) -> None:
        self._view = view
        if view.writer is not None:
            self._known = view.writer, view.epoch

    def _is_there(self, view: View, block: Superblock, load: Load) -> bool:
        """Whether the log has the record where it was."""
        last = self.last
        if last is None or not view.tail.next_seq <= last.seq < view.end.next_seq:
            return False
        found = RingReader(block, load, chunk=PAGE).whole(last.position)
        return found is not None and (found.header.seq, found.header.crc) == (last.seq, last.crc) and view.contains(found)

    def _fate(self, view: View, firsts: dict[int, int]) -> Fate:
        """What became of a record that the tail has passed."""
        assert self.last is not None
        assert self.view is not None
        if view.writer is not None and self._known is not None and self._known[0] != view.writer and self._known[1] >= view.epoch:
            return "discarded"
        return fate_of(self.last.seq, self.view, view, firsts)


def fate_of(seq: int, seen: View, now: View, firsts: dict[int, int]) -> Fate:
    """What became of a record that the tail has passed between two views.

    Unknown where the slots do not name all epochs since; from the oldest one that they name on, they name all.
    """
    firsts = firsts | {now.epoch: now.epoch_first_seq}
    if was_discarded(seq, (seen.epoch, seen.epoch_first_seq), now, firsts):
        return "discarded"
    return "kept" if min(firsts) <= seen.epoch + 1 else "unknown"


def raise_discarded(seq: int, seen: View, now: View, firsts: dict[int, int]) -> None:
    """``Overrun`` if a record that the tail has passed was, or may have been, discarded between two views."""
    fate = fate_of(seq, seen, now, firsts)
    if fate != "kept":
        raise rolled_back(seq) if fate == "discarded" else uncertain(seq)


def was_discarded(seq: int, seen: tuple[int, int], now: View, firsts: dict[int, int]) -> bool:
    """Whether an epoch that is known to have begun since discarded this record. ``seen``: an epoch, and its first number, in which
    the log contained it; of another history it counts as discarded."""
    firsts = firsts | {now.epoch: now.epoch_first_seq}
    epoch, first_seq = seen
    if now.epoch < epoch or firsts.get(epoch, first_seq) != first_seq:
        return True
    return any(first <= seq for later, first in firsts.items() if later > epoch)
