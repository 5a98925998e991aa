"""What C is told of a log's geometry and state: nothing makes it access memory outside of the ring and its windows.

Everything runs in a fresh interpreter, because a failure ends it.
"""

from __future__ import annotations

import pytest

from marks import first_fast
from pmwal.native import native
from processes import run_script

pytestmark = pytest.mark.skipif(native is None, reason="it is about the native engine")

PARTS = 8
SETTING = """
import itertools, mmap, os, random, struct, sys
from pmwal.format.ring import Rules, Window
from pmwal.native import native
from pmwal.records import Bound, Record

PAGE, HUGE = 4096, 1 << 64
NUMBERS = [0, 1, 7, 8, 47, 48, 49, 64, 100, 4095, PAGE, PAGE + 8, 1 << 16, (1 << 31) - 1, 1 << 32, (1 << 32) - 1, 1 << 46,
           1 << 62, 1 << 63, (1 << 63) - 1, HUGE - 48, HUGE - 8, HUGE - 1]

def made(call):
    try:
        return call()
    except (ValueError, OverflowError, TypeError, BufferError, MemoryError):
        return None
"""


@pytest.mark.parametrize("part", first_fast(range(PARTS)))
def test_no_geometry_makes_a_scanner_read_outside_of_its_window(part: int) -> None:
    """All combinations of capacity, alignment and largest payload; then scans of windows that end at a page without access."""
    done = run_script(
        SETTING
        + """
import ctypes
libc = ctypes.CDLL(None)
area = mmap.mmap(-1, 4 * PAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert libc.mprotect(ctypes.c_void_p(address + 2 * PAGE), 2 * PAGE, 0) == 0
header = struct.pack("<IIQQqIHHII", 1, 200, 1, 0, 0, 1, 0, 0, 0, 1)
area[:2 * PAGE] = header * 170 + bytes(2 * PAGE - 170 * len(header))
window = memoryview(area)[:2 * PAGE]
rows = bytearray(100)
scanners = calls = 0
for number, (capacity, alignment, payload_max) in enumerate(itertools.product(NUMBERS, repeat=3)):
    if number % int(sys.argv[2]) != int(sys.argv[1]):
        continue
    scanner = made(lambda: native.Scanner(capacity, alignment, payload_max, 0, Bound))
    if scanner is None:
        continue
    scanners += 1
    assert payload_max + 48 <= capacity and payload_max < 1 << 32 and alignment in (8, 64, PAGE), (capacity, alignment, payload_max)
    end = capacity - alignment
    for position, start in itertools.product((0, 8, 64, PAGE, end, HUGE - 8), (0, 8, end, HUGE - 1)):
        for length in (0, 1, 100, payload_max, HUGE - 48, HUGE - 1):
            made(lambda: scanner.rows(Window(window, start, 0), Bound(position, 1), Rules(99, HUGE - 1, 1, 1), rows, 0, length))
        made(lambda: scanner.run(Window(window, start, 0), Bound(position, 1), Rules(99, HUGE - 1, 1, 1), 1, 0, None, 1 << 20))
        made(lambda: scanner.records(Record, Window(window, start, 0), Bound(position, 1), Rules(99, HUGE - 1, 1, 1), 10))
        limits, spans = (True, position, 1, 1, 1), [(start, end, True)]
        search = made(lambda: native.Search(capacity, alignment, payload_max, 0, limits, spans, PAGE))
        if search is not None:
            made(lambda: search.data(window, min(2 * PAGE, end - start), min(2 * PAGE, end - start)))
        calls += 10
print(scanners, calls)
window.release()
""",
        part,
        PARTS,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    scanners, calls = map(int, done.stdout.split())
    assert scanners > 100 // PARTS
    assert calls > 10_000 // PARTS


def test_no_arguments_make_a_core_store_outside_of_its_mapping() -> None:
    """Random combinations of what Core() takes; those that it accepts then store and commit as far as there is room."""
    done = run_script(
        SETTING
        + """
rng = random.Random(12)
path = "/dev/shm/pmwal-test-core-%d" % os.getpid()
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.unlink(path)
os.ftruncate(fd, 64 * PAGE)
mapping = mmap.mmap(fd, 64 * PAGE)
good = dict(
    mapping=mapping, fd=fd, capacity=16 * PAGE, alignment=8, payload_max=8 * PAGE - 48, ring_offset=8 * PAGE, control_pages=2,
    uuid_crc=0, barrier=0, streams=False, pipelined=False, on_disk=False,
    synced_writes=False, cached_writes=False, seam=None, writing=native.Lock(), guard=native.Lock(),
    index=native.Index([], 16 * PAGE, Bound), writer=bytes(64), state=(0, 1, 0, 1, 0, 1, 1, 1),
    generation=0, pointer=0, timing_step=1,
)
core = native.Core(**good)
core.store([b"x" * 100], [0], False)
refused, accepted = 0, 0
OTHER = {
    "mapping": [bytearray(64 * PAGE), bytearray(1), mmap.mmap(-1, PAGE), b"read-only"],
    "barrier": [1, 2, 3, -1],
    "streams": [True],
    "index": [[], None, native.Index([(0, 1)], 16 * PAGE, Bound), native.Index([(8, 1)], PAGE, Bound)],
    "writer": [b"", bytes(63), bytes(65)],
    "timing_step": [0, 3, 1 << 63],
    "state": [tuple(rng.choice([*NUMBERS, 0, 1, 2]) for _ in range(8)) for _ in range(60)]
    + [(0, 1, n, 2, n, 2, 1, 1) for n in NUMBERS] + [(n, 2, n, 2, n, 2, 1, 1) for n in NUMBERS],
}
LARGE = ["capacity", "alignment", "payload_max", "ring_offset", "control_pages", "pointer", "generation"]
changes = [{name: value} for name in LARGE for value in NUMBERS]
changes += [{name: value} for name, values in OTHER.items() for value in values]
MORE = [*NUMBERS, 2, 8 * PAGE, 16 * PAGE]
changes += [{name: rng.choice(MORE) for name in LARGE[:5]} for _ in range(4000)]
LIKELY = {"capacity": [PAGE, 8 * PAGE, 16 * PAGE, 56 * PAGE], "alignment": [8, 64, PAGE], "payload_max": [0, 1, 2000, PAGE],
          "ring_offset": [4 * PAGE, 8 * PAGE, 48 * PAGE], "control_pages": [1, 2, 6, 7], "barrier": [0, 1, 2]}
changes += [{name: rng.choice(values) for name, values in LIKELY.items()} for _ in range(400)]
changes += [one | other for one, other in (rng.sample(changes[:300], 2) for _ in range(3000))]
for change in changes:
    index = made(lambda: native.Index([], change.get("capacity", 16 * PAGE), Bound))
    given = {**good, "index": index, **change}
    core = made(lambda: native.Core(**given))
    if core is None:
        refused += 1
        continue
    accepted += 1
    if core.state[6] == 0 or max(core.state) > HUGE // 4:
        continue  # the engine stores nothing before it began an epoch, and near the limits of the format it stops
    assert given["payload_max"] + 48 <= given["capacity"] <= 64 * PAGE - given["ring_offset"], change
    for length in (0, 1, 100, min(given["payload_max"], 1 << 20), 1 << 20):
        with given["guard"], given["writing"]:
            tail, _, head = core.state[:3]
            if length + 48 + given["alignment"] > (given["capacity"] - (head - tail)) // 2 or core.generation > HUGE - 100:
                continue
            made(lambda: core.store([b"x" * length], [0], False))
            try:
                core.commit()
            except OSError:
                pass
print(refused, accepted)
os._exit(0)
"""
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    refused, accepted = map(int, done.stdout.split())
    assert refused > 1000
    assert accepted > 50
