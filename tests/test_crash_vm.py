"""The virtual machine rig: its parts one by one, and, if QEMU is installed, power cuts of real kernels."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from crash import needs
from crash.vm import __main__ as vm
from crash.vm import image, judge
from crash.vm import kernel as guest_kernel
from crash.vm.campaign import Cut, Kept, boot
from crash.vm.guest import examiner, workload, writer
from crash.vm.initramfs import Archive
from support import kill

pytestmark = pytest.mark.rigs

SEED = 1
MORE_DEVICES = pytest.mark.nightly
HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine


def logs_after(ack: judge.Ack) -> dict[str, dict[str, Any]]:
    """An examiner's answer for a log of exactly the acknowledged records."""
    number, done = ack
    life = workload.life(SEED, number)
    state = max(workload.allowed(life, done), key=lambda state: state.next_seq - state.first_seq)
    return {
        life.name: {
            "case": "R2",
            "verified_case": "R2",
            "first_seq": state.first_seq,
            "numbers": [*range(state.first_seq, state.next_seq)],
            "digests": [*state.digests],
            "medium": "dax",
            "takes_more": True,
        }
    }


def wrong_after(ack: judge.Ack, found: dict[str, dict[str, Any]]) -> str:
    """The violations that the judge finds, as one text."""
    return "; ".join(judge.violations(SEED, ack, 0, found, "dax"))


@pytest.mark.parametrize("number", range(6))
def test_the_model_follows_a_real_log(tmp_path: Path, shm_dir: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step of a life the log has the contents of the model, and it never runs full."""
    life = workload.life(SEED, number)
    monkeypatch.setenv("PMWAL_ENGINE", life.engine)
    state = workload.EMPTY
    wal = writer.create(shm_dir / life.name, life, writer.SYSTEM)
    for step in life.steps[1:-1]:
        writer.perform(wal, step)
        state = workload.follow(state, step)
        assert (state.first_seq, state.next_seq) == (wal.first_seq, wal.next_seq)
        assert not workload.durable_after(step) or wal.committed_seq == wal.next_seq - 1
    assert [*state.digests] == [workload.digest(record.data) for record in wal]
    writer.perform(wal, life.steps[-1])
    assert workload.final(life) == state


def test_an_examined_kill_is_allowed(shm_dir: Path) -> None:
    """Writer, examiner and judge agree about a log whose writer was killed in the middle of a life."""
    life, done = workload.life(SEED, 0), 40
    wal = writer.create(shm_dir / life.name, life, writer.SYSTEM)
    for step in life.steps[1 : done + 1]:
        writer.perform(wal, step)
    kill(wal)
    found = examiner.examine(shm_dir)
    assert found[life.name]["takes_more"]
    assert judge.violations(SEED, (0, done), 0, found, "memory") == []


def test_the_judge_accepts_what_was_acknowledged() -> None:
    """A log with the acknowledged records is no violation, nor is an unfinished first creation."""
    assert wrong_after((3, 30), logs_after((3, 30))) == ""
    assert judge.violations(SEED, None, 0, {}, "dax") == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"digests": [], "numbers": []}, "acknowledged records are missing"),
        ({"case": "R4", "verified_case": "R4"}, "not one that a crash can cause"),
        ({"verified_case": "R1"}, "verify says R1, but recovery R2"),
        ({"medium": "file"}, "the medium is file, not dax"),
        ({"takes_more": False}, "after recovery"),
        ({"numbers": [1, 3]}, "are not consecutive"),
        ({"error": "CorruptWal"}, "CorruptWal"),
    ],
    ids=["lost", "corrupt", "verify", "medium", "append", "hole", "exception"],
)
def test_the_judge_sees_what_is_wrong(changed: dict[str, Any], said: str) -> None:
    """Each kind of violation is named."""
    ack = (3, 30)
    found = logs_after(ack)
    found["3.wal"] |= changed
    assert said in wrong_after(ack, found)


def test_the_judge_sees_a_changed_payload_a_lost_and_a_returned_log() -> None:
    """A changed payload, a missing file, and one that was removed long ago."""
    ack = (3, 30)
    found = logs_after(ack)
    found["3.wal"]["digests"][-1] = "another"
    assert "the payload of" in wrong_after(ack, found)
    assert "is missing" in wrong_after(ack, {})
    assert "removed long ago" in wrong_after(ack, logs_after(ack) | logs_after((1, 5)))


def test_the_info_block_is_what_linux_checks() -> None:
    """The signature, the data offset, and a checksum over all words with its own field zero."""
    block = image.info_block(64 << 20)
    assert len(block) == 4096
    assert block.startswith(b"NVDIMM_PFN_INFO\0")
    assert struct.unpack_from("<Q", block, 56) == (image.DATA_OFFSET,)
    assert struct.unpack_from("<Q", block, 4088) == (image.fletcher64(block[:4088] + bytes(8)),)
    assert image.fletcher64(struct.pack("<3I", 1, 2, 3)) == (1 + 3 + 6) << 32 | 6


def test_a_copied_image_is_equal(shm_dir: Path) -> None:
    """Holes in the source are zeros in the target, whatever the target had there."""
    source, target, random_bytes = shm_dir / "source", shm_dir / "target", random.Random(SEED).randbytes
    for path, offsets in ((source, (0, 3 << 20)), (target, (1 << 20, 3 << 20))):
        with path.open("wb") as file:
            file.truncate((8 << 20) + 512)
            for offset in (*offsets, (8 << 20)):
                file.seek(offset)
                file.write(random_bytes(512))
    copied = image.copy_image(source, target)
    assert source.read_bytes() == target.read_bytes()
    assert copied < 8 << 20


def test_the_archive_is_one_that_the_kernel_unpacks(tmp_path: Path) -> None:
    """Headers, names and padding of the newc format; a path through a symbolic link adds the link and its target."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    archive = Archive()
    archive.add_path(tmp_path / "link" / "file")
    entries, data, at = {}, archive.bytes(), 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = -(-(at + 110 + fields[11]) // 4) * 4
        entries[name] = data[start : start + fields[6]]
        at = -(-(start + fields[6]) // 4) * 4
    inside = str(tmp_path)[1:]
    assert entries[f"{inside}/link"] == b"real"
    assert entries[f"{inside}/real/file"] == b"content"
    assert [*entries][-1] == "TRAILER!!!"


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    """The order comes from the modules themselves; built-in ones are omitted, and missing ones are named."""
    (tmp_path / "modules.builtin").write_text("kernel/lib/built-in.ko\n")
    for name, needed in (("top", "mid_dle,built_in"), ("mid-dle", "low"), ("low", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"\0license=GPL\0depends=" + needed.encode() + b"\0name=x\0")
    kernel = guest_kernel.Kernel(tmp_path / "vmlinuz", tmp_path)
    assert [*guest_kernel.load_order(kernel, ["top", "low"])] == ["low", "mid_dle", "top"]
    with pytest.raises(LookupError, match="no module other"):
        guest_kernel.load_order(kernel, ["other"])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without QEMU and a kernel the exit status is 2, and the message says how to get them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(guest_kernel, "_in", lambda root: [])
    assert vm.main(["--cuts", "1"]) == vm.CANNOT_RUN
    said = capsys.readouterr().err
    assert "apt-get install qemu-system-x86" in said
    assert "--fetch-kernel" in said


def test_why_a_kernel_cannot_be_fetched_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without apt, and with an apt that lacks the package: the exit status is 2, and nothing is left in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vm.main(["--fetch-kernel"]) == vm.CANNOT_RUN
    assert "apt-cache is missing" in capsys.readouterr().err
    apt = tmp_path / "apt-cache"
    apt.write_text("#!/bin/sh\necho 'W: a warning' >&2\necho 'E: No packages found' >&2\nexit 100\n")
    apt.chmod(0o700)
    assert vm.main(["--fetch-kernel"]) == vm.CANNOT_RUN
    said = capsys.readouterr().err
    assert "E: No packages found (Debian's main archive is needed; try apt-get update)" in said
    assert "a warning" not in said
    assert [*(tmp_path / "cache" / "pmwal").iterdir()] == []


def test_a_control_that_cannot_be_seen_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory that is durable at once does not need the sync, so its absence is no control there."""
    with pytest.raises(SystemExit):
        vm.main(["--device", "nvdimm", "--control", "no-sync"])
    assert "does not show on nvdimm" in capsys.readouterr().err


def need_machine(filesystem: str) -> None:
    """Skip, or fail if all rigs are required, when the virtual machine cannot run here."""
    needs.require("linux-x86_64", "qemu-system-x86_64", f"mkfs.{filesystem}")
    if vm.missing(filesystem):
        message = f"needs {guest_kernel.REMEDY}"
        if os.environ.get(needs.ALL_REQUIRED) == "1":
            pytest.fail(message)
        pytest.skip(message)


def test_what_is_kept_is_judged_again(
    tmp_path: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device without a log is allowed before the first acknowledgement and a violation after it, each time it is replayed."""
    need_machine("ext4")
    empty = tmp_path / "empty.img"
    image.make_image(empty, "ext4", nvdimm=False)
    with boot(vm.prepare("virtio-blk", "ext4", SEED), shm_dir, print) as rig:
        monkeypatch.setattr(vm, "boot", lambda *_: nullcontext(rig))
        for name, ack, status in (("before", None, 0), ("after", (0, 3), vm.VIOLATION), ("after", (0, 3), vm.VIOLATION)):
            kept, directory = Kept("virtio-blk", "ext4", SEED, Cut(0, ack)), tmp_path / name
            if not directory.exists():
                kept.save(directory, empty)
            assert Kept.load(directory) == kept
            assert vm.main(["--replay", str(directory)]) == status
            said = capsys.readouterr().out
            assert ("nothing wrong" in said) == (status == 0)
            assert ("0.wal: its creation was acknowledged, but it is missing" in said) == (status != 0)
            assert (directory / "cut.img").read_bytes() == empty.read_bytes()


def test_replay_of_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory in which nothing was kept is named."""
    assert vm.main(["--replay", str(tmp_path / "nowhere")]) == vm.CANNOT_RUN
    assert "nowhere/cut.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "filesystem", "cuts", "kills", "seen"),
    [
        pytest.param("nvdimm", "ext4", 20, 1, "MAP_SYNC yes, medium dax, flush by clwb", id="nvdimm-ext4"),
        pytest.param("nvdimm", "xfs", 3, 0, "MAP_SYNC yes, medium dax, flush by clwb", id="nvdimm-xfs", marks=MORE_DEVICES),
        pytest.param("virtio-blk", "ext4", 5, 1, "MAP_SYNC no, medium file, flush by msync", id="virtio-blk", marks=MORE_DEVICES),
        pytest.param("virtio-pmem", "ext4", 3, 0, "MAP_SYNC no, medium file, flush by msync", id="virtio-pmem", marks=MORE_DEVICES),
    ],
)
def test_a_power_cut_takes_nothing_acknowledged(
    device: str, filesystem: str, cuts: int, kills: int, seen: str, tmp_path: Path
) -> None:
    """After each cut every acknowledged record is there, on the detected medium; each mistake is noticed on the same machine."""
    need_machine(filesystem)
    where = ["--device", device, "--filesystem", filesystem, "--keep", tmp_path / "kept"]
    command = [sys.executable, vm.__file__, *where, "--cuts", str(cuts), "--kills", str(kills), "--seed", str(SEED), "--controls"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert seen in ended.stdout
    assert f"no mistake: {cuts} cuts" in ended.stdout
    for control, devices in vm.CONTROLS.items():
        assert (f"{control}: " in ended.stdout) == (device in devices)
