"""What is imported when: ``import pmwal`` and the commands load what they use, and the public names are the same as ever.

How long that takes is measured by the gate of ``tools/bench.py``.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import COMMANDS
from pmwal.native import native
from processes import run_script
from support import file_offset, kill, superblock

SLOW = ("argparse", "asyncio", "crc32c", "ctypes", "dataclasses", "logging", "multiprocessing", "numpy", "subprocess", "threading")
"""Modules that take long to import, or that bring in many others."""

LOG_NEEDS = ("ctypes", "dataclasses", "threading")
"""Those of them that every open log needs."""


def loaded_by(source: str, *args: object) -> set[str]:
    """The modules that a script imports in a new interpreter beyond those that are there when it starts."""
    script = f"import sys\nbefore = set(sys.modules)\n{source}\nimport json\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    result = run_script(script, *args)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def declared() -> dict[str, str]:
    """The names that type checkers see in ``pmwal``, each with the module that they take it from."""
    tree = ast.parse(Path(pmwal.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_import_loads_nothing_but_the_package() -> None:
    """A program that imports pmwal and does not use it pays for one small module, and for typing."""
    loaded = loaded_by("import pmwal")
    assert {name for name in loaded if name.startswith("pmwal")} == {"pmwal"}
    assert loaded & set(SLOW) == set()


@pytest.mark.skipif(native is None, reason="without the C engine the package crc32c is needed")
def test_log_in_use_loads_no_numpy_and_no_crc32c(path: Path) -> None:
    """Writing, reading and statistics of a log without damage and without arrays need neither."""
    loaded = loaded_by(
        """
import pmwal
path = sys.argv[1]
with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
    wal.extend([b"a", b"b", b"c"])
    wal.truncate(before=2)
    wal.rollback(3)
    wal.stats().commit_latency.p99
    assert [record.data for record in reader] == [record.data for record in wal.read()] == [b"b", b"c"]
assert pmwal.verify(path).outcome == "clean"
""",
        path,
    )
    assert loaded & set(SLOW) <= set(LOG_NEEDS)


@pytest.mark.skipif(native is None, reason="the reference engine searches in numpy")
@pytest.mark.parametrize("size", ["64KiB", "17MiB"])
def test_recovery_after_a_kill_loads_no_numpy(path: Path, size: str) -> None:
    """The search past the end, which finds nothing as a rule, needs none; it took longer to load than a small log to recover."""
    wal = pmwal.open(path, size=size, commit="manual")
    wal.append(b"a")
    wal.commit()
    wal.append(b"not committed")
    kill(wal)
    source = """
import pmwal
assert pmwal.verify(sys.argv[1]).outcome == "recovered"
with pmwal.open(sys.argv[1], "r") as reader:
    assert len(list(reader)) == 2
with pmwal.open(sys.argv[1]) as wal:
    assert wal.recovery.outcome == "recovered"
"""
    loaded = loaded_by(source, path)
    assert "pmwal.recovery.search" in loaded
    assert "numpy" not in loaded


@pytest.mark.skipif(native is None, reason="the reference engine searches in numpy")
def test_recovery_that_finds_dropped_records_loads_numpy(path: Path) -> None:
    """The check above can fail; and what the search finds is weighed in a program that has not imported numpy."""
    wal = pmwal.open(path, size="64KiB", commit="manual")
    wal.append(b"a")
    wal.commit()
    end = wal.stats().used
    wal.extend([b"b", b"c", b"d"])
    kill(wal)
    with path.open("r+b") as file:
        file.seek(file_offset(superblock(path), end) + 8)
        file.write(b"\xff" * 8)
    source = """
import pmwal
with pmwal.open(sys.argv[1]) as wal:
    assert (wal.recovery.records, wal.recovery.dropped_records) == (1, 2)
"""
    assert "numpy" in loaded_by(source, path)


def test_arrays_load_numpy_when_they_are_used(path: Path) -> None:
    """The check above can fail; and an array can be read by a program that has not imported numpy."""
    source = 'import pmwal\nwith pmwal.open(sys.argv[1], size="64KiB") as wal:\n    wal.read_array("i8")'
    assert "numpy" in loaded_by(source, path)


def test_every_public_name_comes_from_where_type_checkers_see_it() -> None:
    """The names that are imported when they are used are the declared ones, neither more nor fewer."""
    found = declared()
    submodules = {name for name, module in found.items() if module == "pmwal"}
    assert {*found, "__version__"} == {*pmwal.__all__, *submodules}
    for name, module in found.items():
        expected: Any = import_module(f"pmwal.{name}") if module == "pmwal" else getattr(import_module(module), name)
        assert getattr(pmwal, name) is expected, name


def test_names_can_be_listed_and_imported_before_they_are_used() -> None:
    """In a new interpreter ``dir`` and ``import *`` give all names, and each of them can be the first that is used."""
    result = run_script(
        """
        import pmwal
        assert set(pmwal.__all__) <= set(dir(pmwal)), dir(pmwal)
        names = {}
        exec("from pmwal import *", names)
        assert set(pmwal.__all__) <= set(names)
        assert pmwal.errors.WalFull is pmwal.WalFull is names["WalFull"]
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", sorted(declared()))
def test_each_name_can_be_the_first_that_is_used(name: str) -> None:
    """No name needs an earlier import of another one."""
    result = run_script("import pmwal, sys; print(getattr(pmwal, sys.argv[1]) is not None)", name)
    assert result.stdout.split() == ["True"], result.stderr


@pytest.mark.parametrize("name", ["no_such_name", "aio", "testing", "opening_"])
def test_other_names_are_attribute_errors(name: str) -> None:
    """A misspelt name is refused as by any module, and the package does not import its other modules on a guess."""
    result = run_script("import pmwal, sys; print(getattr(pmwal, sys.argv[1], None))", name)
    assert result.stdout.split() == ["None"], result.stderr
    with pytest.raises(AttributeError, match="module 'pmwal' has no attribute 'no_such_name'"):
        pmwal.no_such_name  # noqa: B018


@pytest.mark.slow
def test_type_checkers_know_the_names_and_refuse_others(tmp_path: Path) -> None:
    """A module with a ``__getattr__`` that type checkers see has every attribute, and each is of any type."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text('import pmwal\nreveal_type(pmwal.open("a", "r"))\nreveal_type(pmwal.events.read)\npmwal.no_such_name\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", os.devnull, script.name]
    environment = os.environ | {"MYPYPATH": str(Path(pmwal.__file__).parents[1])}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    assert 'script.py:2: note: Revealed type is "pmwal.reading.reader.Reader"' in said
    assert 'script.py:3: note: Revealed type is "def (source: ' in said
    assert 'script.py:4: error: Module has no attribute "no_such_name"' in said
    assert "Found 1 error in 1 file" in said


ELSEWHERE = {
    "win32": """
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("MAP_SHARED", "MAP_PRIVATE", "PROT_READ", "PROT_WRITE"):
    delattr(mmap, name)
for name in (
    "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "O_DIRECTORY", "fork", "register_at_fork", "sysconf", "pread", "pwrite",
    "readv", "WNOHANG", "fstatvfs", "geteuid", "killpg",
):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGPIPE", "SIGBUS", "SIGALRM", "SIGUSR1", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)
for name in ("poll", "POLLIN", "POLLOUT"):
    delattr(select, name)
""",
    "darwin": "",
}
"""What other platforms lack, beside what only Linux has."""


@pytest.mark.parametrize("platform", ELSEWHERE)
def test_package_can_be_imported_where_logs_cannot_be_opened(platform: str) -> None:
    """On another platform the import works, and every call says what it needs; there the standard library lacks much, too."""
    source = f"""
import crc32c, ctypes, mmap, os, select, shutil, signal, sys  # those that need other modules there
sys.platform = {platform!r}
for name in ("O_PATH", "O_TMPFILE", "O_DIRECT", "posix_fallocate", "posix_fadvise", "sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
for name in [name for name in dir(mmap) if name.startswith("MADV_")]:
    delattr(mmap, name)
{ELSEWHERE[platform]}
sys.modules["pmwal.native._native"] = None
import pmwal
assert pmwal.errors.WalFull is pmwal.WalFull
assert pmwal.__version__
calls = {{
    "open": lambda: pmwal.open("app.wal"),
    "read": lambda: pmwal.open("app.wal", "r"),
    "verify": lambda: pmwal.verify("app.wal"),
    "events": lambda: pmwal.events.Logger(directory="logs").event("x"),
    "handler": lambda: pmwal.LogHandler("app.wal"),
}}
for name, call in calls.items():
    try:
        call()
    except pmwal.UnsupportedMedium as error:
        print(name, error)
"""
    result = run_script(source)
    said = f"pmwal runs on little-endian Linux, not on {platform} (little-endian)"
    assert result.stdout.splitlines() == [f"{name} {said}" for name in ("open", "read", "verify", "events", "handler")], (
        result.stderr
    )


# -- the command line


def loaded_by_command(*arguments: object) -> set[str]:
    """The modules that a command loads, started as the script that pip installs starts it."""
    return loaded_by(
        """
import pmwal_command
sys.argv[0] = "pmwal"
try:
    pmwal_command.main()
except SystemExit:
    pass
""",
        *arguments,
    )


def test_version_loads_no_command() -> None:
    """``pmwal --version`` parses its arguments, opens its streams and prints; nothing of the library is needed for that."""
    loaded = loaded_by_command("--version")
    commands = ("entry", "exit_status", "hints", "parser", "streams", "terminal")
    assert {name for name in loaded if name.startswith("pmwal.")} == {
        "pmwal.cli",
        "pmwal.errors",
        *(f"pmwal.cli.{name}" for name in commands),
    }
    assert loaded & set(SLOW) == {"argparse"}


@pytest.mark.skipif(native is None, reason="without the C engine the package crc32c is needed")
@pytest.mark.parametrize("is_open", [True, False])
def test_info_loads_what_judges_a_sound_log(path: Path, is_open: bool) -> None:
    """No numpy, and nothing of what writes, reads records or logs: whether the log is closed, or a writer has it open."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"a", b"b"])
        loaded = loaded_by_command("info", path) if is_open else set()
    if not is_open:
        loaded = loaded_by_command("info", path)
    naming = {"pmwal.logs", "pmwal.logs.paths"}  # which files are meant
    packages = {name.split(".")[1] for name in loaded - naming if name.startswith("pmwal.")}
    assert packages == {"cli", "cursor", "errors", "format", "latency", "native", "opening", "records", "recovery", "storage"}
    assert loaded & set(SLOW) == {"argparse", *LOG_NEEDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_loads_itself_alone(name: str) -> None:
    """A command does not load the others, but for completion, which describes them all."""
    loaded = {module.split(".")[3] for module in loaded_by_command(name, "--help") if module.startswith("pmwal.cli.commands.")}
    module = {"import": "import_"}
    assert loaded == {module.get(one, one) for one in (COMMANDS if name == "completion" else [name])}


def test_help_names_every_command() -> None:
    """Without a command all are loaded, because the help lists them."""
    loaded = {module.split(".")[3] for module in loaded_by_command("--help") if module.startswith("pmwal.cli.commands.")}
    assert len(loaded) == len(COMMANDS)
