"""One run from the request to its results: what is possible in the place, what it proves there, the command that repeats it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import pmwal
from pmwal.storage.medium import MediumName
from pmwal.testing import machine
from pmwal.testing.stress import cost, isolation
from pmwal.testing.stress.controls import CONTROLS
from pmwal.testing.stress.interrupt import Interruption
from pmwal.testing.stress.plan import Settings
from pmwal.testing.stress.results import Results, environment_of
from pmwal.testing.stress.scope import scope
from pmwal.testing.stress.supervisor import Supervisor
from pmwal.testing.stress.violation import Violation

MEDIA: tuple[MediumName, ...] = ("memory", "emulated-dax", "file", "dax")
_SPARE = 1 << 30  # bytes of memory that must stay free when a file system in memory is filled
_ROOM = 32 << 20  # bytes of the file system for the logs and journals of a run

Tell = Callable[[float, Results], None]
"""Called regularly with the seconds since the start, and the results so far."""


class NotPossible(Exception):
    """This machine or this place cannot do what was asked for; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    path: Path
    seconds: float
    seed: int
    medium: MediumName | Literal["any"]
    engines: tuple[str, ...]
    threads: int
    readers: int
    cpu_load: int
    io_load: int
    isolated: bool
    fill_disk: bool
    control: str | None

    @property
    def command(self) -> str:
        """The command line that repeats the plan."""
        engine = "both" if len(self.engines) > 1 else self.engines[0]
        words = ["pmwal", "stress", str(self.path), "--seconds", f"{self.seconds:g}", "--seed", str(self.seed)]
        words += ["--medium", self.medium, "--engine", engine, "--writers-threads", str(self.threads)]
        words += ["--readers", str(self.readers), "--cpu-load", str(self.cpu_load), "--io-load", str(self.io_load)]
        words += ["--isolated-readers"] if self.isolated else []
        words += ["--fill-disk"] if self.fill_disk else []
        return shlex.join(words + (["--control", self.control] if self.control else []))

    def check(self) -> None:
        """``NotPossible`` if the place cannot be used so."""
        status = os.statvfs(self.path)
        free = status.f_bavail * status.f_frsize
        if free < _ROOM and not self.fill_disk:
            raise NotPossible(
                f"{self.path} has {free >> 20} MiB free, and a run needs {_ROOM >> 20}; name another directory, or fill the file "
                "system on purpose with --fill-disk"
            )
        if self.isolated and (problem := isolation.problem() or isolation.unreachable(str(self.path))) is not None:
            raise NotPossible(problem)
        if self.fill_disk and machine.look(self.path).in_memory and free + _SPARE > machine.available_memory():
            raise NotPossible(
                f"--fill-disk would fill the memory of this machine: {self.path} is in memory and has {free >> 20} MiB free; "
                f"use a small file system (mount -t tmpfs -o size=64m none DIR)"
            )


def ground(directory: Path, wanted: MediumName | Literal["any"]) -> tuple[tuple[MediumName, ...], tuple[str, ...]]:
    """The possible media of a log in this directory, and the durability of each; ``NotPossible`` if the wanted one is not."""
    found: dict[MediumName, str] = {}
    refusal: Exception | None = None
    for medium in MEDIA if wanted == "any" else (wanted,):
        probe = directory / "probe.wal"
        try:
            with pmwal.open(probe, "x", size="64KiB", medium=medium) as wal:
                stats = wal.stats()
                found[cast(MediumName, stats.medium) if medium == "auto" else medium] = stats.durability
        except pmwal.UnsupportedMedium as error:
            refusal = error
        probe.unlink(missing_ok=True)
    if not found:
        raise NotPossible(str(refusal)) from refusal
    return tuple(found), tuple(found.values())


def perform(request: Request, interruption: Interruption, tell: Tell, begin: Callable[[Results], None]) -> Results:
    """One run, in a directory of its own that is removed unless there was a violation. ``begin`` is told before it starts."""
    directory = Path(tempfile.mkdtemp(prefix="pmwal-stress-", dir=request.path))
    if request.isolated:
        directory.chmod(0o755)
    results: Results | None = None
    try:
        media, durability = ground(directory, request.medium)
        site = machine.look(directory)
        environment = {"path": str(request.path), **environment_of(site, media), "load": f"{machine.load()} at the start"}
        results = Results(environment, request.seed, request.command, scope(site, media, durability))
        results.control = request.control
        results.costs = [each for medium in media for each in cost.measure(directory, medium, site.disk)]
        begin(results)
        settings = Settings(
            request.seed, request.seconds, media, request.engines, request.threads, request.readers,
            request.cpu_load, request.io_load, request.control, request.isolated, request.fill_disk,
        )  # fmt: skip
        known = results
        sys.stdout.flush()  # a fork copies what is in the buffer
        supervisor = Supervisor(settings, directory, site.disk, results, lambda now: tell(now, known), interruption)
        try:
            supervisor.run()
        except Violation as violation:
            results.violation = violation.kind, str(violation)
            results.kept = str(directory)
            supervisor.save(directory)
        environment["load"] += f", {machine.load()} at the end"
        results.interrupted = interruption.signal.name if interruption.signal is not None else None
    finally:
        if results is None or results.violation is None:
            shutil.rmtree(directory, ignore_errors=True)
    return results


def perform_controls(request: Request, interruption: Interruption, tell: Tell, say: Callable[[str], None]) -> int:
    """Run with each mistake, until interrupted; how many were not noticed, or as something else."""
    tried = missed = 0
    for name, control in CONTROLS.items():
        started = time.monotonic()
        results = perform(replace(request, control=name), interruption, tell, lambda _: None)
        noticed = results.violation is not None and results.violation[0] in control.kinds
        if interruption and not noticed:
            say(f"{name:<24} interrupted by {results.interrupted}")
            break
        tried += 1
        missed += not noticed
        seconds = f"after {time.monotonic() - started:.1f} s"
        if results.violation is None:
            say(f"{name:<24} NOT NOTICED {seconds}\nthe same plan again: {results.command}")
            continue
        kind, message = results.violation
        say(f"{name:<24} {'noticed' if noticed else 'NOTICED AS SOMETHING ELSE'}: {kind} {seconds}")
        if noticed:
            shutil.rmtree(str(results.kept), ignore_errors=True)
        else:
            say(f"{kind}: {message}, but this mistake is to be noticed as {' or '.join(control.kinds)}\n{results.again}")
    say(f"{tried - missed} of {tried} mistakes noticed{f', of {len(CONTROLS)} in all' if tried < len(CONTROLS) else ''}")
    return missed
