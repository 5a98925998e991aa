"""The command line as a whole: usage, errors, help, messages and progress."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pmwal
from commands import COMMANDS, Cli, Ran, make_log
from pmwal.cli import terminal
from pmwal.cli.commands import truncate


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("create",),
        ("create", "x", "--size", "3 apples"),
        ("create", "x", "--size", "1000TiB"),
        ("create", "x", "--align", "100"),
        ("create", "x", "--label", "ü" * 33),
        ("write", "x", "--kind", "65536"),
        ("write", "x", "--ack", "--json"),
        ("write", "x", "--on-full", "wait"),
        ("cat", "x", "-g", "("),
        ("cat", "x", "--since", "whenever"),
        ("cat", "x", "--length-prefixed", "-o", "json"),
        ("cat", "x", "-n", "-1"),
        ("tail", "x", "-o", "xml"),
        ("tail", "x", "--length-prefixed", "-o", "hex"),
        ("write", "x", "--commit", "soon"),
        ("write", "x", "--commit", "0"),
        ("write", "x", "--commit", "nan"),
        ("stat", "x", "--watch", "0"),
        ("stat", "--watch", "x"),
        ("export", "x", "--format", "xml"),
        ("completion", "cmd"),
        ("verify",),
        ("truncate", "x"),
        ("truncate", "x", "--all", "--before", "3"),
        ("demo", "--cycles", "0"),
        ("demo", "--seconds", "nan"),
    ],
)
def test_wrong_usage_is_status_64(cli: Cli, arguments: tuple[str, ...]) -> None:
    """Usage errors have their own status, because 2 means corrupt, and print nothing to standard output."""
    ran = cli(*arguments)
    assert (ran.status, ran.out) == (64, b"")
    assert "pmwal" in ran.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_each_command_has_examples(cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--help`` has examples to copy, and fits a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    ran = cli(*command.split(), "--help")
    assert (ran.status, ran.err) == (0, "")
    assert f"pmwal {command}" in ran.text.partition("Examples:\n")[2]
    assert max(map(len, ran.lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_error_of_usage_names_its_command(cli: Cli, command: str) -> None:
    """Also for an argument that no parser knows."""
    needed = {
        "completion": ("bash",),
        "truncate": ("x", "--all"),
        "copy": ("x", "y"),
        "resize": ("x", "1MiB"),
        "demo": (),
        "crashsim": (),
    }
    arguments = needed.get(command, ("x",))
    for given in (arguments, ()):  # an argument that is missing, too, is not what is said
        ran = cli(command, *given, "--nonsense")
        assert (ran.status, ran.out) == (64, b"")
        assert ran.err == f"pmwal {command}: unrecognized arguments: --nonsense\nTry 'pmwal {command} --help'.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verfy", "x"), "pmwal: there is no command 'verfy'; did you mean 'verify'?\n"),
        (("log",), "pmwal: there is no command 'log'; did you mean 'logs'?\n"),
        (("cta", "x"), "pmwal: there is no command 'cta'; did you mean 'cat'?\n"),
        (("help", "tail"), "pmwal: there is no command 'help'; did you mean '--help'?\n"),
        (("version",), "pmwal: there is no command 'version'; did you mean '--version'?\n"),
        (("ls",), "pmwal: there is no command 'ls'; did you mean 'info'?\n"),
        (("nonsense",), "pmwal: there is no command 'nonsense'\n"),
        (("tail", "-3", "x"), "pmwal tail: -3 is neither an option nor a log; for the last 3 records give -n 3\n"),
        (("cat", "x", "-r", "12"), "pmwal cat: 12 is neither an option nor a log; for the last 12 records give -n 12\n"),
        (("logs", "-7"), "pmwal logs: -7 is neither an option nor a log; for the last 7 records give -n 7\n"),
        (("resize", "x", "128"), "argument SIZE: 128 is in bytes, and less than the smallest ring, 4 KiB; did you mean 128MiB?\n"),
        (("create", "x", "--size", "64"), "--size: 64 is in bytes, and less than the smallest ring, 4 KiB; did you mean 64MiB?\n"),
        (("create", "x", "--size=4095"), "did you mean 4095MiB?\n"),
        (("consumers", "x", "--set", "mail=old"), "'old' is no CURSOR; give oldest, newest, the number of the next record, or "),
        (("consumers", "x", "--set", "mail=newst"), "cat --json' prints it; did you mean 'newest'?\n"),
        (("archive", "--hlep"), "pmwal archive: unrecognized arguments: --hlep; did you mean '--help'?\n"),
        (("archive", "x", "--onse=1", "--every=1h"), "unrecognized arguments: --onse=1; did you mean '--once'?\n"),
        (("archive", "x", "--on"), "the following arguments are required: TO\n"),
        (("archive", "--", "--hlep"), "the following arguments are required: TO\n"),
        (("archive", "--every", "1h"), "the following arguments are required: PATH, TO\n"),
        (("create", "x", "--sise", "1MiB"), "unrecognized arguments: --sise 1MiB; did you mean '--size'?\n"),
        (("create", "x", "--lable=a"), "unrecognized arguments: --lable=a; did you mean '--label'?\n"),
        (("cat", "x", "--salvge"), "unrecognized arguments: --salvge; did you mean '--salvage'?\n"),
        (("write", "x", "--on-full", "overwite"), "'overwite' (choose from raise, overwrite); did you mean 'overwrite'?\n"),
        (("create", "x", "--medium", "memroy"), "; did you mean 'memory'?\n"),
        (("completion", "fihs"), "'fihs' (choose from bash, zsh, fish); did you mean 'fish'?\n"),
    ],
    ids=str,
)
def test_error_of_usage_names_the_word_that_was_meant(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    """A misspelt command, option or choice is answered by the one that looks like it, if any does."""
    ran = cli(*arguments)
    assert (ran.status, ran.out) == (64, b"")
    assert said in ran.err


def test_version_is_that_of_the_package(cli: Cli) -> None:
    """``--version`` prints program and version."""
    assert cli("--version") == Ran(0, f"pmwal {pmwal.__version__}\n".encode(), "")


def test_version_follows_the_changelog() -> None:
    """While it has unreleased changes, the version is a later one than the last that was released, and says so."""
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    newest, *older = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    if newest != "Unreleased":
        assert pmwal.__version__ == newest
    else:
        released, _, suffix = pmwal.__version__.partition(".dev")
        assert suffix.isdecimal()
        assert [int(part) for part in released.split(".")] > [int(part) for part in older[0].split(".")]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("boom"), 1, "pmwal: unexpected RuntimeError: boom"),
        (OSError(28, "No space left on device"), 3, "pmwal: a.wal: No space left on device"),
        (pmwal.PersistError(5, "a.wal: msync failed", committed_seq=3), 3, "pmwal: a.wal: msync failed"),
        (pmwal.UnsupportedMedium("no DAX here"), 1, "pmwal: no DAX here"),
        (pmwal.CorruptWal("x", reason="torn", first_seq=3), 2, "pmwal: a.wal: corrupt: torn; records from 3 on lost"),
        (KeyboardInterrupt(), 130, ""),
        (ImportError("the C engine is missing: install gcc"), 1, "pmwal: the C engine is missing: install gcc\n"),
        (ImportError("no x", name="x"), 1, "pmwal: unexpected ImportError: no x (set PMWAL_TRACEBACK=1 to see where)\n"),
        (
            pmwal.PersistError(5, "a.wal: EIO. This handle is finished: open the log again to find what the medium holds"),
            3,
            "pmwal: a.wal: EIO. To find what the medium has, run pmwal verify\n",
        ),
        (ValueError("a.wal: it exists with a size; leave size out"), 1, "pmwal: a.wal: it exists with a size; leave --size out\n"),
        (ValueError("a.wal: it exists; leave label out"), 1, "pmwal: a.wal: it exists; leave --label out\n"),
    ],
)
def test_error_is_one_line_and_a_status(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    """No error prints a traceback."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(truncate, "open", fail)
    ran = cli("truncate", "a.wal", "--all")
    assert (ran.status, ran.out) == (status, b"")
    assert ran.err.startswith(words)
    assert "Traceback" not in ran.err


def test_longer_file_is_a_one_line_warning(cli: Cli, shm_dir: Path) -> None:
    """A warning of the library looks like any other message, without its position in the source."""
    path = make_log(shm_dir / "a.wal")
    with path.open("ab") as file:
        file.write(b"tail")
    ran = cli("truncate", path, "--all")
    assert (ran.status, ran.err) == (0, f"pmwal: warning: {path}: 4 bytes follow the log; they are left alone\n")


def test_progress_needs_a_terminal_and_time(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """There is no bar in a file; without tqdm there is one hint, and only if the work is long."""
    with terminal.progress_bar("verify") as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    now = time.monotonic()
    monkeypatch.setattr(terminal, "monotonic", lambda: now)
    with terminal.progress_bar("verify") as progress:
        assert progress is not None
        progress(1, 100)
        assert capsysbinary.readouterr().err == b""
        now += 2
        progress(2, 100)
        progress(3, 100)
    assert capsysbinary.readouterr().err.count(b"pip install 'pmwal[cli]'") == 1


def test_progress_bar_accepts_any_order(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bar accepts progress in any order, because a log with a running writer may be judged again from its start."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(terminal, "_BAR_DELAY", 0)
    with terminal.progress_bar("verify") as progress:
        assert progress is not None
        for done in (0, 50, 100, 10, 100):
            progress(done, 100)
    assert b"verify" in capsysbinary.readouterr().err


# -- completion


def complete(script: Path, *words: str) -> list[str]:
    """The completions that bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"""
        source {script}
        COMP_WORDS=({quoted})
        COMP_CWORD={len(words) - 1}
        _shtab_pmwal
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent)
    return result.stdout.split()


def test_bash_completes_commands_options_and_files(cli: Cli, shm_dir: Path) -> None:
    """bash runs the script and offers commands, options and file names."""
    script = shm_dir / "script"
    script.write_bytes(cli("completion", "bash").out)
    assert complete(script, "pmwal", "ta") == ["tail"]
    assert set(COMMANDS) <= set(complete(script, "pmwal", ""))
    assert complete(script, "pmwal", "tail", "--cursor") == ["--cursor-file"]
    make_log(shm_dir / "app.wal")
    assert complete(script, "pmwal", "tail", "app") == ["app.wal"]
    assert complete(script, "pmwal", "tail", "--cursor-file", "app") == ["app.wal"]


def test_zsh_accepts_the_script(cli: Cli, shm_dir: Path) -> None:
    """The script announces itself to compinit, and zsh, where installed, can parse it."""
    script = shm_dir / "_pmwal"
    script.write_bytes(cli("completion", "zsh").out)
    assert script.read_bytes().startswith(b"#compdef pmwal\n")
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", str(script)], check=True)


def test_fish_completes_commands_options_and_files(cli: Cli, shm_dir: Path) -> None:
    """The script describes every command; fish, where installed, runs it and offers commands, options and file names."""
    script = shm_dir / "pmwal.fish"
    script.write_bytes(cli("completion", "fish").out)
    assert [name for name in COMMANDS if f"_npos -eq 0' -a {name} " not in script.read_text()] == []
    make_log(shm_dir / "app.wal")
    fish = shutil.which("fish")
    for line, expected in {"ta": "tail", "tail --cur": "--cursor-file", "tail app": "app.wal"}.items() if fish else ():
        code = f"source {script}; complete -C 'pmwal {line}'"
        ran = subprocess.run([fish, "--no-config", "-c", code], capture_output=True, text=True, check=True, cwd=shm_dir)
        assert [found.split("\t")[0] for found in ran.stdout.splitlines()] == [expected]


def test_completion_needs_a_library_that_knows_the_shell(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older shtab has no fish; the advice is to upgrade, and not a traceback."""
    monkeypatch.setattr("shtab.SUPPORTED_SHELLS", ["bash", "zsh"])
    ran = cli("completion", "fish")
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == "pmwal: this version of shtab knows no fish; upgrade it: pip install -U 'pmwal[cli]'\n"


def test_completion_without_its_library_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shtab the status is 1, with advice."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = cli("completion", "bash")
    assert (ran.status, ran.out) == (1, b"")
    assert "pip install 'pmwal[cli]'" in ran.err
