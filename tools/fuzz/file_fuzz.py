"""Open mutated log files with both engines: only documented errors, and the same answers.

    python tools/fuzz/file_fuzz.py [--seconds N | --cases N] [--seed N] [--only CASE] [--replay FILE] [--keep DIRECTORY]

Each case is a small log, made from the seed, with a few mutations: damage, and lies with a right checksum. It is judged by
``verify``, read by ``open(.., "r")`` with and without salvaging, then opened by ``open(.., "r+")`` and written to. The Python
engine is the reference: the native one must answer the same, down to the words of an error and the bytes of the file. Exit status
1 when a case fails; its file is kept.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from mutate import mutated
from small_logs import FixedSeam, images_of_a_log, scratch_directory

import pmwal
from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.opening import open_log
from pmwal.opening.options import Recovery
from pmwal.testing.process import using_engine

SLOW = 20.0  # seconds: a file of a few pages that takes longer to open is a failure
ENGINES = ("python", "native")
_FOLLOWERS = 50  # records read at most where numbers are forged

Answer = tuple[Any, ...]


class Failure(Exception):
    """A case that failed, in words."""


def records(found: Any) -> list[Answer]:
    """Records as plain values."""
    return [(record.seq, record.kind, record.time_ns, record.data) for record in found]


def report(found: pmwal.RecoveryReport) -> Answer:
    """A report without the time it took."""
    return tuple((name, value) for name, value in found.as_dict().items() if name != "seconds")


def documented(what: str, function: Callable[[], Any]) -> Answer:
    """What a call answers, or its error if that is documented; ``Failure`` for any other."""
    try:
        return what, function()
    except (pmwal.PmwalError, OSError) as error:
        facts = sorted((name, value) for name, value in vars(error).items() if isinstance(value, int | str | type(None)))
        return what, type(error).__name__, str(error), facts
    except Exception as error:
        raise Failure(f"{what}: {type(error).__name__}, which is not documented\n{traceback.format_exc()}") from error


def read_part(log: Any, start: int) -> list[Answer]:
    """Records from a number on, as far as they go; then the error, where there is one."""
    found: list[Answer] = []
    try:
        for record in log.read(start=start):
            found += records([record])
            if len(found) >= _FOLLOWERS:
                break
    except (pmwal.PmwalError, OSError) as error:
        found.append((type(error).__name__, str(error)))
    return found


def read_all(path: Path, recover: Recovery, random: Random) -> Answer:
    """What a reader sees."""
    with pmwal.open(path, "r", recover=recover) as log:
        first, count = log.first_seq, len(log)
        part = read_part(log, first + random.randrange(count)) if count and recover == "strict" else []
        return first, count, report(log.recovery), records(log), part


def take_over(path: Path, options: dict[str, Any], fixed: bool, random: Random) -> Answer:
    """What a writer finds, and what it makes of it."""
    seam: dict[str, Any] = {"seam": FixedSeam()} if fixed else {}
    wal = open_log(path, "r+", **seam, **options)
    assert isinstance(wal, pmwal.Wal)
    with wal:
        first, following = wal.first_seq, wal.next_seq
        before = records(wal)
        part = read_part(wal, random.randrange(first, following)) if first < following else []
        steps = [documented("append", lambda: wal.append(b"appended")), documented("extend", lambda: wal.extend([b"x", bytes(70)]))]
        if wal.next_seq > wal.first_seq:
            cut = random.randint(wal.first_seq, wal.next_seq)
            steps.append(documented("truncate", lambda: wal.truncate(before=cut)))
        steps.append(documented("append", lambda: wal.append(bytes(500))))
        after = [(seq, data) for seq, _, _, data in records(wal)]
        return report(wal.recovery), first, following, before, part, steps, after


def stored(path: Path, fixed: bool) -> bytes:
    """The file without what depends on the clock and on the process."""
    raw = path.read_bytes()
    return raw[:LIVE_OFFSET] + raw[LIVE_OFFSET + PAGE :] if fixed else b""


def answers(engine: str, image: bytes, path: Path, seed: str) -> list[Answer]:
    """All that one engine says of a file."""
    with using_engine(engine):
        return _answers(engine, image, path, seed)


def _answers(engine: str, image: bytes, path: Path, seed: str) -> list[Answer]:
    random = Random(seed)
    path.write_bytes(image)
    options = {
        "medium": random.choice(("auto", "file", "emulated-dax")),
        "ordering": random.choice(("auto", "strict", "pipelined")),
        "on_full": random.choice(("raise", "overwrite")),
        "commit": random.choice(("each", "manual")),
    }
    fixed = random.random() < 0.5
    found = [
        documented("verify", lambda: report(pmwal.verify(path))),
        documented("read", lambda: read_all(path, "strict", random)),
        documented("salvage", lambda: read_all(path, "salvage", random)),
    ]
    if path.read_bytes() != image:
        raise Failure(f"{engine}: reading changed the file")
    random = Random(seed)  # however much the calls above drew
    found.append(documented("take over", lambda: take_over(path, options, fixed, random)))
    corrupt = found[-1][1:2] in (("CorruptWal",), ("ShortenedWal",))
    if corrupt and path.read_bytes() != image:
        raise Failure(f"{engine}: a refused log was changed")
    found.append(("stored", stored(path, fixed)))
    found.append(documented("verify again", lambda: report(pmwal.verify(path))))
    return found


def difference(expected: Any, found: Any, where: str = "") -> str:
    """Where two answers differ first, in words."""
    if isinstance(expected, tuple | list) and isinstance(found, tuple | list) and len(expected) == len(found):
        for number, (one, two) in enumerate(zip(expected, found, strict=True)):
            if one != two:
                return difference(one, two, f"{where}[{number}]")
    if isinstance(expected, bytes) and isinstance(found, bytes) and len(expected) == len(found):
        at = next(at for at, (one, two) in enumerate(zip(expected, found, strict=True)) if one != two)
        return f"{where} at byte {at}: python {expected[at : at + 64].hex()}, native {found[at : at + 64].hex()}"
    return f"{where}: python {expected!r:.1000}\n    native {found!r:.1000}"


def check(image: bytes, path: Path, seed: str) -> str:
    """Run one case; how it came out. ``Failure`` when it fails."""
    started = time.monotonic()
    expected, found = (answers(engine, image, path, seed) for engine in ENGINES)
    took = time.monotonic() - started
    for one, two in zip(expected, found, strict=True):
        if one != two:
            raise Failure(f"the engines differ in {one[0]}{difference(one[1:], two[1:])}")
    if took > SLOW:
        raise Failure(f"it took {took:.0f} s")
    return expected[0][1] if len(expected[0]) > 2 else str(dict(expected[0][1])["case"])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, help="a number of cases instead of a time")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--only", type=int, metavar="CASE", help="this case of the seed alone")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="a kept file; its name says how it was opened")
    parser.add_argument("--keep", type=Path, default=Path("."), help="where a file that fails is kept (default: here)")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first failure")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run cases, print what was seen."""
    options = parse(arguments)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    outcomes: dict[str, int] = {}
    failed = 0

    def run(image: bytes, path: Path, name: str) -> None:
        nonlocal failed
        faulthandler.dump_traceback_later(3 * SLOW, exit=True, file=2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of bytes that follow the log
                outcome = check(image, path, name)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        except Failure as failure:
            failed += 1
            kept = options.keep / f"file-fuzz-{name}.wal"
            kept.write_bytes(image)
            number = name.rpartition("-")[2]
            print(f"case {number} of seed {seed} fails: {failure}\n  kept as {kept}; again with:", file=sys.stderr)
            print(f"  python tools/fuzz/file_fuzz.py --replay {kept}", file=sys.stderr)
        finally:
            faulthandler.cancel_dump_traceback_later()

    with scratch_directory() as scratch:
        path = Path(scratch) / "case.wal"
        if options.replay is not None:
            run(options.replay.read_bytes(), path, options.replay.stem.removeprefix("file-fuzz-"))
            return 1 if failed else 0
        started = time.monotonic()
        done = 0
        while not (failed and not options.go_on):
            if done >= options.cases if options.cases is not None else time.monotonic() - started >= options.seconds:
                break
            if options.only is None or done == options.only:
                name = f"{seed}-{done}"
                random = Random(name)
                images = images_of_a_log(random, Path(scratch))
                run(mutated(images, random), path, name)
            elif done > options.only:
                break
            done += 1
        took = time.monotonic() - started
    seen = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
    print(f"seed {seed}: {done} cases in {took:.1f} s, {failed} failed; {seen}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
