"""Build the fuzzer of pmwal/native/ring.c with sanitizers (address, undefined behaviour) and checks, and run it for a while.

    python tools/fuzz/run.py [--seconds N] [--engine auto|libfuzzer|standalone] [--seed N] [--keep FILE]
    python tools/fuzz/run.py --replay FILE           one kept input
    python tools/fuzz/run.py --mutant NAME | --mutants

"libfuzzer" needs clang and its runtime, and is guided by coverage; "standalone" needs only gcc (or $CC) and mutates blindly. A
mutant is a copy of ring.c without one test, which the fuzzer must notice: the negative control. Exit status: 0 nothing was found;
1 something was, and the input is kept; 2 it could not be built. With --mutants, 1 means that a mutant was not noticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "pmwal" / "native"
CORPUS = HERE / "corpus"
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-DPMWAL_CHECKS"]
MUTANT_SECONDS = 20

MUTANTS: dict[str, tuple[str, str]] = {
    "no-room-check": (r"record_size\(g, header->length\) <= room", "true"),
    "room-off-by-one": (r"record_size\(g, header->length\) <= room", "record_size(g, header->length) <= room + g->alignment"),
    "no-largest-payload": ("header->length <= g->payload_max", "true"),
    "no-durable-check": ("header->durable <= position", "true"),
    "no-batch-check": ("header->batch_index < header->batch_count", "true"),
    "no-window-check": (r"if \(offset - window->start \+ PMWAL_HEADER \+ \S*length > window->length\)", "if (false)"),
    "window-without-header": (r"PMWAL_HEADER \+ (\S*length) > window->length", r"\1 > window->length"),
    "window-off-by-one": (r"(PMWAL_HEADER \+ \S*length) > window->length", r"\1 > window->length + 1"),
    "header-past-window": (r"offset - window->start \+ PMWAL_HEADER > window->length", "offset - window->start >= window->length"),
    "header-before-window": (r"offset < window->start \|\| ", ""),
    "no-header-at-the-end": ("room < PMWAL_HEADER", "room < 1"),
    "no-checksum": (r"== (\S+)crc \? WHOLE", r"|| \1crc ? WHOLE"),
    "checksum-of-another-place": (r"record_crc\(g->uuid_crc, position,", "record_crc(g->uuid_crc, position % g->capacity,"),
    "one-too-many": ("seq < rules->stop_seq", "seq <= rules->stop_seq"),
    "starts-before-limit": ("end > rules->limit", "position >= rules->limit"),
    "epochs-fall": (r"\|\| header.epoch < epoch_min", ""),
    "any-epoch": (r"!epoch_fits\(&rules->epochs, seq, header.epoch, &passed\)", "false"),
    "any-number": (r"\|\| header.seq != seq", ""),
    "past-two-of-a-number": ("seq == rules->lap_seq && room < g->size_max", "false"),
    "half-a-batch": (r"if \(batch_index == 0\) \{", "if (true) {"),
    "batch-without-count": (r"\|\| header.batch_count != batch_count", ""),
    "mark-of-the-last": (r"if \(header.durable > mark\)", "if (true)"),
    "never-outside": ("run->outside = true", "run->outside = false"),
    "join-anywhere": (r"run->position != began->position \|\| ", ""),
    "join-any-number": (r" \|\| run->seq != began->seq", ""),
    "join-older-epoch": (r" \|\| run->epoch_min > began->epoch_min", ""),
    "start-of-any-number": (r"header.record.seq <= start->seq \|\| ", ""),
    "start-not-whole": (r"if \(record_at\(g, window, at, &header\) != WHOLE\)", "if (false)"),
    "row-of-another-length": (r"header->length != rules->length \|\| ", ""),
    "row-not-whole": (r"record_crc\(g->uuid_crc, position, &copied, rows\) != header->crc", "0"),
    "row-past-the-limit": (r"bytes > rules->limit - position", "0"),
    "row-outside": (r"held < room \? held : room", "room"),
    "row-of-any-epoch": (r"!epoch_fits\(&rules->epochs, seq, header->epoch, &passed\)", "false"),
    "row-of-two-places": (r" && room - \(rules->lap_seq - seq\) \* size < g->size_max", " && 0"),
    "frame-not-whole": (r"record_crc\(g->uuid_crc, at\.position, &copied, payload\) != header->crc", "0"),
    "frame-of-any-number": (r"header->seq != at\.seq \|\| ", ""),
    "frame-of-any-epoch": (r"!epoch_fits\(&rules->epochs, at\.seq, header->epoch, &passed\)", "false"),
    "frame-of-impossible-headers": (r"!header_possible\(g, header, at\.position, room\) \|\| ", ""),
    "frame-past-the-limit": (r"at\.position \+ size > rules->limit", "false"),
    "frame-past-its-room": (r"needed > at\.room", "needed > at.room + 1"),
    "frame-outside": (r"begin \+ PMWAL_HEADER \+ header->length > window->length", "false"),
    "frame-of-two-places": (r"at\.seq == rules->lap_seq && room < g->size_max", "false"),
    "entry-past-the-end": ("left - PMWAL_FRAME_ENTRY < entry->length", "false"),
    "entry-without-a-header": ("left < PMWAL_FRAME_ENTRY", "left < 1"),
    "notes-too-often": (">= PMWAL_INDEX_STEP", ">= PMWAL_INDEX_STEP / 2"),
}
"""What is replaced in ring.c (a regular expression): without that test a hostile file would pass."""


class Result(NamedTuple):
    """How a run of the fuzzer ended."""

    found: bool
    executions: int
    output: str


class CannotBuild(Exception):
    """The compiler is missing, or failed."""


def _compiles(command: list[str]) -> bool:
    """Whether this compiler makes a program with these flags."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "probe.c"
        source.write_text(
            "#include <stddef.h>\n#include <stdint.h>\n"
            "int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { (void)d; (void)n; return 0; }\n"
        )
        made = subprocess.run([*command, str(source), "-o", str(Path(work) / "probe")], capture_output=True, check=False)
    return made.returncode == 0


def pick_engine(wanted: str) -> str:
    """ "libfuzzer" where clang has it, unless something else is wanted."""
    if wanted != "auto":
        return wanted
    clang = shutil.which("clang")
    return "libfuzzer" if clang and _compiles([clang, "-fsanitize=fuzzer,address,undefined"]) else "standalone"


def mutated_source(name: str) -> str:
    """The text of ring.c without one test."""
    source = (NATIVE / "ring.c").read_text()
    old, new = MUTANTS[name]
    changed, count = re.subn(old, new, source)
    if not count:
        raise CannotBuild(f"mutant {name}: nothing in ring.c matches {old!r}")
    return changed


def build(directory: Path, engine: str, mutant: str | None = None) -> Path:
    """Compile the fuzzer; the path of the program."""
    ring = NATIVE / "ring.c"
    if mutant is not None:
        ring = directory / f"ring-{mutant}.c"
        ring.write_text(mutated_source(mutant))
    program = directory / f"ring-fuzz-{mutant or 'real'}"
    if engine == "libfuzzer":
        compiler = [os.environ.get("CLANG", "clang"), "-fsanitize=fuzzer,address,undefined"]
    else:
        compiler = [os.environ.get("CC", "gcc"), "-fsanitize=address,undefined"]
    warnings = ["-Wno-unused"] if mutant else ["-Werror"]
    sources = [str(HERE / "ring_fuzz.c"), str(ring), str(NATIVE / "crc32c.c")]
    sources += [str(HERE / "standalone.c")] if engine == "standalone" else []
    command = [*compiler, *FLAGS, *warnings, f"-I{NATIVE}", *sources, "-o", str(program)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotBuild(f"{command[0]} is missing") from error
    if made.returncode:
        raise CannotBuild(f"{' '.join(command)}\n{made.stderr}")
    return program


def run(program: Path, engine: str, seconds: float, seed: int, keep: Path, inputs: Path = CORPUS) -> Result:
    """Run the fuzzer, starting from the corpus."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    with tempfile.TemporaryDirectory() as grown:
        if engine == "standalone":
            command = [str(program), "-s", str(seconds), "-r", str(seed), "-k", str(keep), str(inputs)]
        else:
            # What it finds worth keeping goes into the first directory; the corpus in the checkout stays as it is.
            stop = ["-runs=1"] if inputs.is_file() else [f"-max_total_time={max(int(seconds), 1)}", grown]
            command = [str(program), f"-seed={seed or 1}", "-max_len=8192", f"-exact_artifact_path={keep}", "-timeout=20"]
            command += ["-print_final_stats=1", "-verbosity=0", *stop, str(inputs)]
        ended = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
    counts = re.findall(r"^(?:stat::number_of_executed_units: *)?(\d+)(?: executions)?$", ended.stdout, re.MULTILINE)
    return Result(ended.returncode != 0, int(counts[-1]) if counts else 0, ended.stdout)


def first_lines(output: str, count: int = 30) -> str:
    """The lines of a report that say what was found."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if re.search(r"ERROR|runtime error|not true|check failed", line)), 0)
    return "\n".join(lines[start : start + count])


def check_mutants(names: list[str], engine: str, seconds: float, seed: int) -> list[str]:
    """The mutants that were not noticed."""
    missed = []
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            program = build(Path(work), engine, name)
            result = run(program, engine, seconds, seed, Path(work) / "crash")
            program.unlink()
            what = re.search(r"ERROR: AddressSanitizer: \S+|not true: .*|check failed: .*|runtime error: .*", result.output)
            print(f"{name:<24} {'noticed: ' + what.group(0)[:90] if what and result.found else 'NOT NOTICED'}", flush=True)
            if not (what and result.found):
                missed.append(name)
    return missed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help=f"default: 60, for a mutant at most {MUTANT_SECONDS}")
    parser.add_argument("--engine", choices=("auto", "libfuzzer", "standalone"), default="auto")
    parser.add_argument("--seed", type=int, help="default: another one each time; for mutants 1")
    parser.add_argument("--keep", type=Path, default=Path("ring-fuzz-crash"), help="where an input is kept (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input only")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="remove this test from a copy of ring.c: the fuzzer must notice")
    parser.add_argument("--mutants", action="store_true", help="all of them, one after the other")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build, run, say what was found."""
    options = parse(arguments)
    engine = pick_engine(options.engine)
    try:
        if options.mutants:
            seed = 1 if options.seed is None else options.seed
            missed = check_mutants(list(MUTANTS), engine, options.seconds or MUTANT_SECONDS, seed)
            print(f"{len(MUTANTS) - len(missed)} of {len(MUTANTS)} mutants noticed")
            return 1 if missed else 0
        seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big") + 1
        seconds = options.seconds or (MUTANT_SECONDS if options.mutant else 60)
        with tempfile.TemporaryDirectory() as work:
            program = build(Path(work), engine, options.mutant)
            if options.replay is not None:
                result = run(program, engine, 0, seed, Path(work) / "crash", options.replay)
            else:
                result = run(program, engine, seconds, seed, options.keep.resolve())
    except CannotBuild as error:
        print(error, file=sys.stderr)
        return 2
    again = f"python tools/fuzz/run.py --engine {engine}" + (f" --mutant {options.mutant}" if options.mutant else "")
    print(f"{engine}, seed {seed}: {result.executions} executions; again with: {again} --seconds {seconds:g} --seed {seed}")
    if result.found:
        print(first_lines(result.output), file=sys.stderr)
        if options.replay is None:
            print(f"kept as {options.keep}; again with: {again} --replay {options.keep}", file=sys.stderr)
    return 1 if result.found else 0


if __name__ == "__main__":
    sys.exit(main())
