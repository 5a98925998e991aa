"""The extension module with the C engine; see pmwal/native/*.c."""

import mmap
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from typing_extensions import Buffer

BARRIER_NONE: int
BARRIER_LINES: int
BARRIER_MSYNC: int
CRC32C_WAYS: tuple[str, ...]
VENDOR: str  # of the processor, as CPUID gives it
can_stream: bool  # whether ``stream`` bypasses the cache
checks: bool  # whether the checks of pmwal/native/check.h are built in

StateTuple = tuple[int, int, int, int, int, int, int, int]

def setup_persistence(cached_is_durable: bool, /) -> str | None: ...
def time_stores() -> tuple[int, int]: ...
def catch_faults() -> None: ...
def load(mapping: mmap.mmap, offset: int, length: int, /) -> bytes: ...
def store(mapping: mmap.mmap, offset: int, data: Buffer, /) -> None: ...
def write_back(mapping: mmap.mmap, offset: int, length: int, /) -> None: ...
def stream(mapping: mmap.mmap, offset: int, data: Buffer, /) -> None: ...
def flush(mapping: mmap.mmap, offset: int, length: int, /) -> None: ...
def fence() -> None: ...
def futex_wait(mapping: mmap.mmap, offset: int, expected: int, seconds: float, /) -> None: ...
def futex_wake(mapping: mmap.mmap, offset: int, /) -> None: ...
def crc32c(data: Buffer, crc: int = 0, way: str | None = None, /) -> int: ...
def crc32c_words(crc: int, place: int, words: Buffer, way: str, payload: Buffer = ..., /) -> int: ...
def crc32c_shift(register: int, distance: int, portable: bool = False, /) -> int: ...
def unpack_frame(body: Buffer, /) -> list[tuple[int, int, bytes]]: ...

class Lock:
    @property
    def waiters(self) -> int: ...
    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *error: object) -> None: ...
    def _is_owned(self) -> bool: ...

class Record:
    def __new__(cls, seq: int, kind: int, time_ns: int, data: bytes) -> Record: ...
    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def data(self) -> bytes: ...

class Index:
    """The index of ``pmwal.format.index.SparseIndex`` over C's own entries."""

    def __new__(cls, entries: Sequence[_Bound], capacity: int, bound_type: type) -> Index: ...
    @property
    def entries(self) -> list[Any]: ...
    def floor(self, seq: int, tail: _Bound, /) -> Any: ...
    def drop_before(self, seq: int, /) -> None: ...
    def drop_from(self, seq: int, /) -> None: ...

class Core:
    def __new__(
        cls,
        *,
        mapping: mmap.mmap,
        fd: int,
        capacity: int,
        alignment: int,
        payload_max: int,
        ring_offset: int,
        control_pages: int,
        uuid_crc: int,
        barrier: int,
        streams: bool,
        pipelined: bool,
        on_disk: bool,
        synced_writes: bool,
        cached_writes: bool,
        seam: object | None,
        writing: Lock,
        guard: Lock,
        index: Index,
        writer: bytes,
        state: StateTuple,
        generation: int,
        pointer: int,
        timing_step: int,
    ) -> Core: ...
    @property
    def state(self) -> StateTuple: ...
    @property
    def generation(self) -> int: ...
    @property
    def pointer(self) -> int: ...
    @property
    def failed(self) -> int: ...  # errno of a barrier that failed, or 0
    stray_records: bool
    stray_slot: bool
    watched: int
    yields: bool
    @property
    def hold_until_ns(self) -> int: ...
    headroom: int
    upkept_ns: int
    upkeep_due: bool
    @property
    def appends(self) -> int: ...
    @property
    def stored_bytes(self) -> int: ...
    @property
    def commits(self) -> int: ...
    @property
    def barriers(self) -> int: ...
    @property
    def slots_written(self) -> int: ...
    @property
    def latency(self) -> tuple[bytes, int, int]: ...
    def become(self, state: StateTuple, /) -> None: ...
    def store(self, payloads: Sequence[bytes], kinds: Sequence[int], beside: bool, /) -> bool: ...
    def store_rows(self, rows: Buffer, count: int, length: int, kind: int, beside: bool, /) -> bool: ...
    def continue_from(self, other: Core, /) -> None: ...
    def flush(self) -> None: ...
    def commit(self) -> None: ...
    def commit_through(self, seq: int, /) -> bool: ...
    def write_slot(self, state: StateTuple, flags: int, /) -> None: ...
    def halt(self) -> None: ...
    def detach(self) -> None: ...

class Handle:
    def append(self, data: Buffer, *, kind: int = 0, commit: bool | None = None) -> int: ...
    def extend(self, items: Any, *, kind: int = 0) -> tuple[int, int]: ...
    def commit(self) -> int: ...
    def _set_core(self, core: Core, commits_each: bool, /) -> None: ...

class Retained:
    seq: int
    last_used: int

class Emitter:
    def __new__(
        cls,
        handle: Handle,
        retained: Any,  # an instance of a subclass of Retained
        slow: Callable[..., int],
        number: int,
        kind: int,
        positional: int,
        names: tuple[str, ...],
        datetime_type: type,
        utc: object,
    ) -> Emitter: ...
    def __call__(self, *args: object, **keywords: object) -> int: ...

# The tuples that scans take are pmwal.records.Bound, and Rules and Window of pmwal.format.ring.
_Bound = tuple[int, int]
_Rules = tuple[int, int, int, int, bool, bytes]
_Window = tuple[Buffer, int, int]
_Checked = tuple[Any, int, int, int]  # record, position, end, checksum

class RecordIterator(Iterator[Any]):
    def __new__(
        cls,
        core: Core,
        record_type: type,
        step: Callable[[int, int], tuple[Any, int]],
        at: _Bound,
        rules: _Rules,
        end_seq: int,
    ) -> RecordIterator: ...
    def __next__(self) -> Any: ...

class Scanner:
    def __new__(cls, capacity: int, alignment: int, payload_max: int, uuid_crc: int, bound_type: type) -> Scanner: ...
    def slots(self, control: Buffer, /) -> tuple[bytes, tuple[int, ...]]: ...
    def run(
        self,
        window: _Window,
        at: _Bound,
        rules: _Rules,
        epoch_min: int,
        mark: int,
        last_start: int | None,
        bytes_max: int,
    ) -> tuple[int, int, int, int, bool, list[Any]]: ...
    def records(self, record_type: type, window: _Window, at: _Bound, rules: _Rules, count_max: int) -> list[_Checked]: ...
    def selected(
        self,
        record_type: type,
        window: _Window,
        at: _Bound,
        rules: _Rules,
        count_max: int,
        kinds: bytes | None,
        since: int,
        until: int,
        now: int,
        epoch: int,
        latest: int,
    ) -> tuple[list[_Checked], list[int], int, int, int, int, int, int] | None: ...
    def follower(self, record_type: type, mark: Mark, source: Generator[Any, Any]) -> Iterator[Any]: ...
    def rows(self, window: _Window, at: _Bound, rules: _Rules, rows: Buffer, first: int, length: int) -> int: ...
    def frame(self, window: _Window, at: _Bound, rules: _Rules, room: int) -> tuple[bytes, int, int, int, int, int, bool]: ...
    def relocate(
        self,
        window: _Window,
        at: _Bound,
        rules: _Rules,
        other: Scanner,
        bytes: Buffer,
        used: int,
        to: int,
        batch: int,
        longest: int,
    ) -> tuple[int, int, int, int, int, bool]: ...

# pmwal.recovery.spans.Limits and Span.
_Limits = tuple[bool, int, int, int, int]
_Span = tuple[int, int, bool]

class Search:
    def __new__(
        cls,
        capacity: int,
        alignment: int,
        payload_max: int,
        uuid_crc: int,
        limits: _Limits,
        spans: Sequence[_Span],
        piece: int,
        portable: bool = False,
    ) -> Search: ...
    at: int
    pending: int
    candidates: int
    shared: int
    summed: int
    def data(self, raw: Buffer, length: int, starts: int, /) -> bytes: ...
    def hole(self) -> bytes: ...
    def rewind(self, at: int, /) -> None: ...

class Mark:
    closed: bool

    def take(self) -> tuple[Any, tuple[int, int, int, int]] | None: ...
