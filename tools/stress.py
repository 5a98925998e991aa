"""Kill writers and readers of a log at random moments, and check the log after each kill against the acknowledgements.

    python -m tools stress [--seconds N] [--path DIR] [--medium auto|any|...] [--engine both|native|python] [--seed N]
    python -m tools stress --json FILE --html FILE      write the figures, and a page with charts in one file
    python -m tools stress --mutant NAME | --mutants    run with a mistake, which must be noticed

Each call of a writer is recorded outside the log, in memory that survives the writer: the intent before the call, the result after
it. So the check is exact. Every record whose call returned is in the log, byte for byte and in order, committed or not; all others
belong to calls under way at the kill, and those are whole; nothing that was refused, abandoned, truncated or rolled back is there.
A kill leaves the page cache intact: a run shows what survives the death of a process, not what survives a power cut.

Another process opens, uses and closes a log of its own during the whole run. If its memory, descriptors or threads grow, or those
of a reader, that is a leak. A seed repeats the plan (policies, calls, sizes, payloads), but not the scheduling of threads. Exit
status: 0 no violation; 1 a violation, and the directory with log and journal is kept (with --mutant: the mistake was noticed; with
--mutants: one was not noticed); 2 wrong usage, or something is missing; 130 or 143 it was ended by Ctrl-C or SIGTERM, after
another check of the log and a report. A second signal ends it at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pmwal
from stressing import isolation, page
from stressing.interrupt import Interruption
from stressing.journal import LANES
from stressing.mutants import MUTANTS
from stressing.plan import Settings
from stressing.results import Results, environment_of
from stressing.supervisor import Supervisor
from violation import Violation

USAGE = 2
MEDIA = ("memory", "emulated-dax", "file", "dax")
MUTANT_SECONDS = 20.0


class WrongUsage(Exception):
    """This machine cannot do what the command line asks for."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, metavar="N", help=f"length of the run (default: 60; for a mutant {MUTANT_SECONDS:g})"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the plan (default: random)")
    parser.add_argument(
        "--path", type=Path, default=Path("/dev/shm"), metavar="DIR", help="directory for the logs (default: %(default)s)"
    )
    media_help = "as for pmwal.open; any: a random one for each life, of those possible in DIR (default: %(default)s)"
    parser.add_argument("--medium", choices=("auto", "any", *MEDIA), default="auto", help=media_help)
    engine_help = "both: a random one for each life (default: %(default)s)"
    parser.add_argument("--engine", choices=("both", "native", "python"), default="both", help=engine_help)
    parser.add_argument(
        "--writers-threads", type=int, default=4, metavar="N", help="threads of a writer, at most (default: %(default)s)"
    )
    parser.add_argument("--readers", type=int, default=2, metavar="N", help="reading processes (default: %(default)s)")
    isolated_help = "readers are another user, in a pid namespace and with a /proc of their own (needs root)"
    parser.add_argument("--isolated-readers", action="store_true", help=isolated_help)
    parser.add_argument(
        "--cpu-load", type=int, default=1, metavar="N", help="background threads that compute (default: %(default)s)"
    )
    parser.add_argument("--io-load", type=int, default=1, metavar="N", help="background threads that write (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts to this file; needs matplotlib")
    what = "; ".join(f"{name}: {mutant.what}" for name, mutant in MUTANTS.items())
    parser.add_argument("--mutant", choices=sorted(MUTANTS), metavar="NAME", help=f"run with a mistake ({what})")
    parser.add_argument("--mutants", action="store_true", help="run with each mistake, one after another")
    options = parser.parse_args(arguments)
    if not 1 <= options.writers_threads < LANES:
        parser.error(f"--writers-threads must be from 1 to {LANES - 1}")
    if options.readers < 1 or min(options.cpu_load, options.io_load) < 0:
        parser.error("there must be a reader: --readers must be at least 1, and the loads at least 0")
    if options.seconds is None:
        options.seconds = MUTANT_SECONDS if options.mutant or options.mutants else 60.0
    if options.seconds <= 0:
        parser.error("--seconds must be more than 0")
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options


def allowed_media(directory: Path, wanted: str) -> tuple[str, ...]:
    """The possible media of a log in this directory; ``WrongUsage`` if the wanted one is not possible."""
    found, problem = [], ""
    for medium in MEDIA if wanted == "any" else (wanted,):
        probe = directory / "probe.wal"
        try:
            pmwal.open(probe, "x", size="64KiB", medium=medium).close()
            found.append(medium)
        except pmwal.UnsupportedMedium as error:
            problem = str(error)
        probe.unlink(missing_ok=True)
    if not found:
        raise WrongUsage(problem)
    return tuple(found)


def command_of(options: argparse.Namespace, mutant: str | None) -> str:
    """The command line that repeats the plan."""
    words = ["python", "-m", "tools", "stress", "--seconds", f"{options.seconds:g}", "--seed", str(options.seed)]
    words += ["--path", str(options.path), "--medium", options.medium, "--engine", options.engine]
    words += ["--writers-threads", str(options.writers_threads), "--readers", str(options.readers)]
    words += ["--cpu-load", str(options.cpu_load), "--io-load", str(options.io_load)]
    words += ["--isolated-readers"] if options.isolated_readers else []
    return shlex.join(words + (["--mutant", mutant] if mutant else []))


def run(options: argparse.Namespace, mutant: str | None, interruption: Interruption) -> Results:
    """One run, in a directory of its own that is removed unless there was a violation."""
    from tqdm import tqdm  # noqa: PLC0415  (needed by then; ``missing`` has looked for it)

    engines = ("native", "python") if options.engine == "both" else (options.engine,)
    directory = Path(tempfile.mkdtemp(prefix="pmwal-stress-", dir=options.path))
    if options.isolated_readers:
        directory.chmod(0o755)
    results: Results | None = None
    try:
        chosen = allowed_media(directory, options.medium)
        settings = Settings(
            options.seed, options.seconds, chosen, engines, options.writers_threads, options.readers,
            options.cpu_load, options.io_load, mutant, options.isolated_readers,
        )  # fmt: skip
        command = command_of(options, mutant)
        results = Results(environment_of(directory, chosen), options.seed, command, mutant=mutant)
        known = results
        layout = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}"
        with tqdm(total=options.seconds, bar_format=layout, disable=None, leave=False) as bar:

            def tell(now: float) -> None:
                bar.set_postfix_str(f"{len(known.kills)} kills, {known.records_checked} records compared", refresh=False)
                bar.update(min(now, options.seconds) - bar.n)

            supervisor = Supervisor(settings, directory, results, tell, interruption)
            try:
                supervisor.run()
            except Violation as violation:
                results.violation = violation.kind, str(violation)
                results.kept = str(directory)
                supervisor.save_journal(directory / "journal.npy")
        results.interrupted = interruption.signal.name if interruption.signal is not None else None
    finally:
        if results is None or results.violation is None:
            shutil.rmtree(directory, ignore_errors=True)
    return results


def missing(options: argparse.Namespace) -> str | None:
    """What has to be installed first."""
    for module, extra in (("psutil", "test"), ("tqdm", "test")):
        if importlib.util.find_spec(module) is None:
            return f"this needs {module}: pip install 'pmwal[{extra}]'"
    if options.isolated_readers:
        problem = isolation.problem() or isolation.unreachable(options.path)
        if problem is not None:
            return problem
    return page.missing() if options.html is not None else None


def report(results: Results, options: argparse.Namespace) -> None:
    """Print the results and write the files."""
    print(results.summary())
    if results.violation is not None:
        kind, message = results.violation
        print(f"VIOLATION {kind}: {message}\nkept: {results.kept}\nthe same plan again: {results.command}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(results.as_dict(), indent=1) + "\n")
    if options.html is not None:
        options.html.write_text(page.render(results.as_dict()))


def check_mutants(options: argparse.Namespace, interruption: Interruption) -> int:
    """Run with each mistake, until interrupted; how many were not noticed, or called something else."""
    tried = missed = 0
    for name, mutant in MUTANTS.items():
        results = run(options, name, interruption)
        noticed = results.violation is not None and results.violation[0] in mutant.kinds
        if interruption and not noticed:
            print(f"{name:<24} interrupted by {results.interrupted}")
            break
        tried += 1
        missed += not noticed
        found = "nothing" if results.violation is None else f"{results.violation[0]} after {results.seconds:.1f} s"
        print(f"{name:<24} {'noticed' if noticed else 'NOT NOTICED'}: {found}", flush=True)
        if results.kept is not None:
            shutil.rmtree(results.kept, ignore_errors=True)
    print(f"{tried - missed} of {tried} mistakes noticed{f', of {len(MUTANTS)} in all' if tried < len(MUTANTS) else ''}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status."""
    options = parse(arguments)
    problem = missing(options)
    if problem is None and not (options.path.is_dir() and os.access(options.path, os.W_OK)):
        problem = f"{options.path} is not a directory that can be written to"
    if problem is not None:
        print(problem, file=sys.stderr)
        return USAGE
    interruption = Interruption()
    try:
        with interruption.watched():
            if options.mutants:
                wrong = check_mutants(options, interruption) > 0
            else:
                print(f"seed {options.seed}; the same plan again: {command_of(options, options.mutant)}", flush=True)
                results = run(options, options.mutant, interruption)
                report(results, options)
                wrong = results.violation is not None
    except (WrongUsage, ImportError) as error:
        print(error, file=sys.stderr)
        return USAGE
    if wrong:
        return 1
    return 0 if interruption.signal is None else 128 + interruption.signal


if __name__ == "__main__":
    sys.exit(main())
