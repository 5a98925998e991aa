"""Writes that the kernel refuses, for a limit, a seal, a filter of system calls or its age: the mapping takes their place.

The functions without ``test_`` in front run in fresh interpreters over a preloaded pwritev(2) and pwritev2(2) (tests/preload.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.storage.medium import Medium, volatile_mount
from preload import run
from processes import Died, child, elsewhere
from support import payloads

pytestmark = pytest.mark.both_engines

REFUSALS = [errno.EPERM, errno.EINVAL, errno.EFBIG, errno.ENOSYS, errno.EOPNOTSUPP]
FINAL = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
WARM_UP = 70
SMALL, PAGE, LARGE = b"s" * 100, b"p" * 4096, [b"l" * 5000] * 20


# -- over a preloaded library; only the engine in C makes such calls


def used(path: str, number: int, after: bool, cut: int) -> dict[str, Any]:
    """Use a log whose writes are refused after some appends; what it holds, and how many calls were tried."""
    library = ctypes.CDLL(None)
    wal = pmwal.open(path, size="1MiB")
    for _ in range(WARM_UP):
        wal.append(SMALL)
    before = library.shim_synced_writes()
    library.shim_refuse(ctypes.c_long(number), after, ctypes.c_long(cut))
    error = None
    try:
        for record in (SMALL, PAGE, SMALL):
            wal.append(record)
        wal.extend(LARGE)
        wal.append(SMALL)
        wal.extend(LARGE)
    except pmwal.PersistError as caught:
        error = caught.errno
    library.shim_refuse(ctypes.c_long(0), 0, ctypes.c_long(-1))
    answer = {
        "warm": before,
        "tried": library.shim_synced_writes() - before,
        "committed": wal.committed_seq,
        "error": error,
        "synced_writes": wal._engine.mapping.medium.synced_writes,
    }
    if error is None:
        answer["epoch"] = wal.stats().epoch
        answer["whole"] = payloads(wal)[WARM_UP:] == [SMALL, PAGE, SMALL, *LARGE, SMALL, *LARGE]
        wal.close()
        answer["case"] = pmwal.verify(path).case
    return answer


@pytest.mark.native_engine
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_refused_write_goes_through_the_mapping(library: Path, tmp_path: Path, number: int) -> None:
    """Nothing is lost or poisoned; the call that was refused once is not tried again."""
    answer = run(library, __name__, "used", str(tmp_path / "test.wal"), number, False, -1)
    if answer["synced_writes"]:
        assert answer["warm"] > 0
        assert answer["tried"] == 1
    assert (answer["error"], answer["whole"], answer["case"]) == (None, True, "R1")


@pytest.mark.native_engine
@pytest.mark.parametrize("cut", [1, 48, 100, 147, 151], ids=lambda cut: f"{cut}-bytes")
def test_write_cut_short_is_stored_again(library: Path, tmp_path: Path, cut: int) -> None:
    """Also when only the padding was cut off, so that a whole record lies past the end of the log: a new epoch buries it."""
    answer = run(library, __name__, "used", str(tmp_path / "test.wal"), 0, False, cut)
    assert (answer["error"], answer["whole"], answer["case"]) == (None, True, "R1")
    assert answer["epoch"] == (2 if answer["synced_writes"] else 1)


@pytest.mark.native_engine
@pytest.mark.parametrize("number", FINAL, ids=errno.errorcode.get)
def test_failing_disk_is_final(library: Path, tmp_path: Path, number: int) -> None:
    """An errno that says something about the medium poisons the handle, as before."""
    answer = run(library, __name__, "used", str(tmp_path / "test.wal"), number, False, -1)
    assert answer["error"] == number
    if answer["synced_writes"]:
        assert answer["committed"] == WARM_UP


@pytest.mark.native_engine
@pytest.mark.parametrize("number", [*REFUSALS, *FINAL], ids=errno.errorcode.get)
def test_errno_of_the_sync_is_final_whatever_it_is(library: Path, tmp_path: Path, number: int) -> None:
    """A disk may refuse a request with EINVAL or EOPNOTSUPP. The sync reported it, once: a later msync would prove nothing."""
    answer = run(library, __name__, "used", str(tmp_path / "test.wal"), number, True, -1)
    if answer["synced_writes"]:
        assert (answer["error"], answer["committed"]) == (number, WARM_UP)


# -- limits on the size of files


def limited(path: Path, limit: int, action: Callable[[pmwal.Wal], Any] | None) -> Any:
    """Use an existing log in a process whose files may not be longer than ``limit``, and which SIGXFSZ would end."""
    pmwal.open(path, size="1MiB").close()

    def body() -> list[bytes]:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if action is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pmwal.open(path, on_full="overwrite") as wal:
            if action is not None:
                for _ in range(WARM_UP):
                    wal.append(SMALL)
                wal.truncate(before=wal.next_seq)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                action(wal)
            else:
                for record in (SMALL, PAGE) * 40:
                    wal.append(record)
            return payloads(wal)

    kept = elsewhere(body)
    assert pmwal.verify(path).outcome == "clean"
    return kept


@pytest.mark.parametrize("limit", [0, 4096, 8192, 150_000, 300_000])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_limit_below_an_existing_log_concerns_no_commit(tmp_path: Path, shm_dir: Path, limit: int, where: str) -> None:
    """RLIMIT_FSIZE is a rule for write(2); and no SIGXFSZ ends a program that does not ignore it."""
    path = (tmp_path if where == "disk" else shm_dir) / "test.wal"
    assert limited(path, limit, None) == [SMALL, PAGE] * 40


ACTIONS: dict[str, tuple[Callable[[pmwal.Wal], Any], list[bytes]]] = {
    "append": (lambda wal: wal.append(SMALL), [SMALL]),
    "append of many pages": (lambda wal: wal.append(bytes(60_000)), [bytes(60_000)]),
    "extend in pieces": (lambda wal: wal.extend(LARGE * 3), LARGE * 3),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_limit_that_is_set_while_the_log_is_open(tmp_path: Path, name: str) -> None:
    """Between two calls, and in the middle of what a call writes."""
    action, expected = ACTIONS[name]
    for number, limit in enumerate((0, 170_000, 200_000)):
        path = tmp_path / f"{number}.wal"
        assert limited(path, limit, action) == expected, limit


@pytest.mark.parametrize("limit", [0, 5000])
def test_limit_below_the_live_page_does_not_stop_a_follower(path: Path, limit: int) -> None:
    """It cannot announce that it waits, so it polls."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"a")

        def body(pipe: Any) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pmwal.open(path, "r") as reader:
                for record in reader.follow():
                    pipe.send(record.data)

        with child(body) as follower:
            assert follower.hear() == b"a"
            wal.append(b"b")
            assert follower.hear() == b"b"


def test_threads_that_commit_together_are_not_concerned(tmp_path: Path) -> None:
    """Group commit stores and syncs through the mapping."""
    path = tmp_path / "test.wal"
    pmwal.open(path, size="1MiB").close()

    def body() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        with pmwal.open(path) as wal:
            threads = [threading.Thread(target=lambda: [wal.append(SMALL) for _ in range(30)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return len(wal)

    assert elsewhere(body) == 120


# -- seals and filters

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h


def test_sealed_memfd_takes_stores_through_its_mapping(log_bytes: bytes) -> None:
    """F_SEAL_FUTURE_WRITE forbids write(2), and lets an existing mapping be."""
    fd = os.memfd_create("pmwal-test", os.MFD_ALLOW_SEALING)
    os.write(fd, log_bytes)
    large = [b"l" * 1000] * 40
    with pmwal.open(f"/proc/self/fd/{fd}", medium="file", on_full="overwrite") as wal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
        wal.truncate(before=wal.next_seq)
        if wal.capacity < 50_000:
            large = large[: wal.capacity // 1100]
        wal.extend(large)
        wal.append(SMALL)
        assert payloads(wal)[-1] == SMALL
    os.close(fd)


_X86_64 = {"pwrite64": 18, "pwritev": 296, "pwritev2": 328, "statx": 332}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_LOAD, _EQUAL, _RETURN, _ALLOW, _ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000  # linux/filter.h


def filter_calls(numbers: list[int], number: int) -> None:
    """From now on these system calls of this process fail."""
    program = [(_LOAD, 0, 0, 0)]
    program += [(_EQUAL, len(numbers) - place, 0, call) for place, call in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | number)]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    described = struct.pack("<H6xQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0)):
        if libc.prctl(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of x86-64's system calls only")
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("at_open", [True, False], ids=["before", "after"])
def test_filter_of_system_calls_is_no_fault_of_the_disk(tmp_path: Path, number: int, at_open: bool) -> None:
    """A sandbox forbids pwritev2, pwritev and statx, in a process that was forked from one that used them."""
    path = tmp_path / "test.wal"
    with pmwal.open(path, size="1MiB") as wal:
        for _ in range(WARM_UP):
            wal.append(SMALL)

    def body() -> list[bytes]:
        if at_open:
            filter_calls(list(_X86_64.values()), number)
        with pmwal.open(path) as wal:
            wal.truncate(before=wal.next_seq)
            for _ in range(WARM_UP):
                wal.append(SMALL)
            if not at_open:
                filter_calls(list(_X86_64.values()), number)
            wal.extend(LARGE)
            wal.append(PAGE)
            assert not wal.stats().unlinked
            return payloads(wal)

    try:
        kept = elsewhere(body)
    except Died as death:
        pytest.skip(f"no filter can be installed here: {death}")
    assert kept == [*[SMALL] * WARM_UP, *LARGE, PAGE]
    assert pmwal.verify(path).outcome == "clean"


# -- what a file system is worth


@pytest.mark.parametrize(
    ("kind", "filesystem", "durability", "synced", "cached"),
    [
        ("file", "ext4", "power", True, True),
        ("file", "xfs", "power", True, True),
        ("file", "btrfs", "power", True, True),
        ("file", "f2fs", "power", False, True),
        ("file", "overlay", "power", False, True),
        ("file", "fuse", "unknown", False, False),
        ("file", "nfs", "power", False, False),
        ("file", "0x1234", "power", False, False),
        ("file", "tmpfs", "process", False, True),
        ("memory", "tmpfs", "process", False, True),
        ("emulated-dax", "ramfs", "process", False, True),
        ("dax", "ext4", "power", False, True),
    ],
)
def test_medium_claims_only_what_was_seen(kind: str, filesystem: str, durability: str, synced: bool, cached: bool) -> None:
    """A write with RWF_DSYNC is a barrier on the file systems of the rig only; an unknown one gets msync."""
    medium = Medium(kind, filesystem)
    assert (medium.durability, medium.synced_writes, medium.cached_writes) == (durability, synced, cached)
    assert Medium("file", "overlay", volatile=True).durability == "process"
    assert Medium("file", "overlay", volatile=None).durability == "unknown"


FDINFO = "pos:\t0\nflags:\t02100002\nmnt_id:\t68\nino:\t13\n"
MOUNT = "68 65 0:40 / /m\\040m rw,relatime shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w"


@pytest.mark.parametrize(
    ("fdinfo", "mounts", "expected"),
    [
        (FDINFO, f"{MOUNT},uuid=on\n", False),
        (FDINFO, f"{MOUNT},volatile\n", True),
        (FDINFO, f"{MOUNT},uuid=on,fsync=volatile\n", True),
        (FDINFO, f"{MOUNT},fsync=auto\n", False),
        (FDINFO, f"{MOUNT.replace('/u', '/volatile')}\n", False),
        (FDINFO, f"6{MOUNT},volatile\n{MOUNT}\n", False),
        (FDINFO, f"6{MOUNT}\n", None),
        (FDINFO, "", None),
        ("", f"{MOUNT}\n", None),
        ("pos:\t0\n", f"{MOUNT},volatile\n", None),
    ],
)
def test_volatile_overlay_is_known_by_its_mount(fdinfo: str, mounts: str, expected: bool | None) -> None:
    """Older kernels show "volatile", newer ones "fsync=volatile"; a mount that cannot be seen is unknown."""
    assert volatile_mount(fdinfo, mounts) is expected
