"""``pmwal crashsim PROGRAM``: a program's own ``run`` and ``check`` under every crash of its log."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import linecache
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, NamedTuple

from pmwal.cli.atomic_file import check_place, replacing
from pmwal.cli.exit_status import FAILED, OK, USAGE
from pmwal.cli.terminal import print_json, say
from pmwal.cli.wording import count_in_words
from pmwal.format.layout import MAGIC
from pmwal.testing.process import scratch, using_engine
from pmwal.testing.programs import kept
from pmwal.testing.programs.campaign import LIMIT, LOG, Outcome, explore
from pmwal.testing.programs.judging import Judge, frames_of, message_of
from pmwal.testing.programs.recording import Check, NotSimulated, Run, Settings
from pmwal.testing.programs.report import shown

MEDIA = ("page", "pmem")
_TOLD_SECONDS = 0.5  # between two lines of progress


class Program(NamedTuple):
    """What a file defines."""

    run: Run
    check: Check


class _Unusable(Exception):
    """The program cannot be used. The message says what to change."""


def run(args: argparse.Namespace) -> int:
    """Run the program's check on what each crash leaves; 1 if it fails."""
    if sys.flags.optimize:
        say("Python removes assert here (-O or PYTHONOPTIMIZE), so a check may notice nothing; run it without")
        return USAGE
    try:
        program = _load(Path(args.program))
        if args.replay is not None:
            if args.keep is not None or args.json is not None:
                args.parser.error("--replay only repeats a check; leave out --keep and --json")
            return _replay(args, program)
        if args.json not in (None, "-"):
            check_place(args.json)
        if args.keep is not None:
            kept.prepare(Path(args.keep))
        return _explore(args, program)
    except (_Unusable, ValueError) as problem:  # ValueError: of --keep and --replay
        say(str(problem))
        return USAGE


def _explore(args: argparse.Namespace, program: Program) -> int:
    """Each medium with each engine, up to the first failure."""
    engines = {"both": ("native", "python"), None: (None,)}.get(args.engine, (args.engine,))
    outcomes: list[tuple[str | None, Outcome]] = []
    notes: dict[str, None] = {}
    for medium in args.medium or MEDIA:
        for engine in engines:
            outcome = _one(args, program, medium, engine)
            outcomes.append((engine, outcome))
            notes |= dict.fromkeys(outcome.notes)
            if args.json != "-":
                _print(args, engine, outcome)
            if outcome.account is not None:
                return _end(args, outcomes, notes)
    return _end(args, outcomes, notes)


def _one(args: argparse.Namespace, program: Program, medium: str, engine: str | None) -> Outcome:
    limit = LIMIT if args.limit is None else args.limit
    teller = _Teller(f"medium {medium}")
    with _place(medium, args.size) as settings, contextlib.nullcontext() if engine is None else using_engine(engine):
        try:
            return explore(program.run, program.check, settings, seed=args.seed or 0, limit=limit, progress=teller)
        except NotSimulated as problem:
            raise _Unusable(str(problem)) from problem
        except Exception as error:
            raise _Unusable(_told("run(path) failed without a crash, so there is nothing to simulate yet", error)) from error
        finally:
            teller.end()


@contextlib.contextmanager
def _place(medium: str, size: str | None) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="pmwal-program-", dir=scratch()) as name:
        yield Settings(Path(name) / LOG, medium, size)


class _Teller:
    """A line on a terminal that says how far the command is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._next = monotonic() + _TOLD_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if self._shown and monotonic() >= self._next:
            self._next = monotonic() + _TOLD_SECONDS
            print(f"\r{self._what}: {done} of {total} states checked ", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            print(file=sys.stderr)


# -- results


def _print(args: argparse.Namespace, engine: str | None, outcome: Outcome) -> None:
    recording = outcome.recording
    where = f"medium {recording.medium}" + (f", {engine} engine" if engine else "")
    share = f"; {outcome.looked_at} of them chosen by seed {args.seed or 0}" if _is_share(outcome) else ""
    print(
        f"{where}: {count_in_words(len(recording.steps), 'step')}, "
        f"{count_in_words(len(recording.values), 'acknowledgement')}, "
        f"{outcome.total} states that a crash may leave{share}"
    )
    if outcome.account is not None:
        print(f"state {outcome.looked_at} fails, and was reduced to this one:", *outcome.account.lines(), sep="\n", flush=True)


def _is_share(outcome: Outcome) -> bool:
    return outcome.account is None and outcome.looked_at < outcome.total


def _end(args: argparse.Namespace, outcomes: list[tuple[str | None, Outcome]], notes: dict[str, None]) -> int:
    """Keep the failure, write the JSON, and print the verdict."""
    engine, last = outcomes[-1]
    command = f"pmwal crashsim {shlex.quote(args.program)}"
    if last.account is None:
        looked_at = sum(outcome.looked_at for _, outcome in outcomes)
        media = " and ".join(dict.fromkeys(outcome.recording.medium for _, outcome in outcomes))
        verdict = f"SOUND: no violation in {looked_at} states ({media})"
    else:
        medium = last.recording.medium
        verdict = f"VIOLATION on medium {medium}: check raised {last.account.least.message}"
        command += f" --medium {medium}" + (f" --engine {engine}" if engine else "")
        command += f" --seed {args.seed}" if args.seed else ""
        command += f" --size {args.size}" if args.size else ""
        command += f" --limit {args.limit}" if args.limit is not None else ""
        if args.keep is not None:
            kept.keep(Path(args.keep), last.account)
            command = f"pmwal crashsim {shlex.quote(args.program)} --replay {shlex.quote(args.keep)}"
    if args.json is not None:
        _write(
            args.json,
            {"verdict": verdict, "program": args.program, "again": command, "notes": list(notes), "runs": _runs(outcomes)},
        )
    for note in notes:
        say(f"warning: {note}")
    if args.json != "-":
        if last.account is not None:
            print(f"again with: {command}")
        print(verdict)
    return OK if last.account is None else FAILED


def _runs(outcomes: list[tuple[str | None, Outcome]]) -> list[dict[str, Any]]:
    return [
        {
            "medium": outcome.recording.medium,
            "engine": engine,
            "steps": len(outcome.recording.steps),
            "acknowledged": len(outcome.recording.values),
            "states": outcome.total,
            "looked_at": outcome.looked_at,
            "crash": None if outcome.account is None else outcome.account.as_dict(),
        }
        for engine, outcome in outcomes
    ]


def _write(name: str, value: dict[str, Any]) -> None:
    if name == "-":
        print_json(value)
        return
    with replacing(name) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def _replay(args: argparse.Namespace, program: Program) -> int:
    """Run the check on a crash that was kept."""
    crash, done, medium = kept.kept(Path(args.replay))
    with _place(medium, args.size) as settings:
        raised = Judge(program.check, settings)(crash, done)
    if raised is None:
        print("SOUND: the check passes on the crash that was kept")
        return OK
    error, frames = raised
    print(*shown(frames, ""), sep="\n")
    print(f"VIOLATION on medium {medium}: check raised {message_of(error)}")
    return FAILED


# -- the program


def _load(path: Path) -> Program:
    """Run the file, as Python runs a script, and take ``run`` and ``check`` from it."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise _Unusable(
            f"{path}: {error.strerror or error}; name the Python file that defines run(path) and check(path, done)"
        ) from error
    if b"\0" in source:
        what = "a pmwal log" if source.startswith(MAGIC) else "no Python source: it contains null bytes"
        raise _Unusable(f"{path} is {what}; name the Python file that defines run(path) and check(path, done)")
    linecache.checkcache(str(path))
    module = ModuleType("pmwal_program")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise _Unusable(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise _Unusable(_told(f"{path} failed before run(path) was called", error)) from error
    return Program(_function(module, "run", "path"), _function(module, "check", "path", "done"))


def _function(module: ModuleType, name: str, *parameters: str) -> Callable[..., object]:
    """A function of the program that takes these parameters."""
    called = f"{name}({', '.join(parameters)})"
    function = getattr(module, name, None)
    if not callable(function):
        raise _Unusable(f"{module.__file__} does not define {called}; see the example in pmwal crashsim --help")
    if inspect.iscoroutinefunction(function):
        raise _Unusable(
            f"{module.__file__}: {called} must be a plain function: only one thread can be followed, and pmwal.aio uses others"
        )
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        raise _Unusable(f"{module.__file__}: {name} must take {' and '.join(parameters)}: {called}") from error
    return function  # type: ignore[no-any-return]


def _told(what: str, error: BaseException) -> str:
    """An exception of the program with its place there."""
    return "\n".join([f"{what}: {message_of(error)}", *shown(frames_of(error.__traceback__))])
