"""What ``pmwal verify`` says of archives: a verdict for each file, and one for the files of each log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.wording import count_in_words, numbers_in_words, records_in_words
from pmwal.logs.archives.checking import Chain, Checked, check_chains, check_file
from pmwal.opening.units import format_size


class Verdict(NamedTuple):
    """An exit status, the line, and the JSON value. ``of_file``: of one file, not of those of a log."""

    status: int
    line: str
    value: dict[str, Any]
    of_file: bool = True


def verdicts_of(paths: Sequence[str], named: Iterable[str]) -> Iterator[Verdict]:
    """One for each of these archives as it was read, then one for each log of which there are several.

    Files that were removed meanwhile are passed over, but for those that are ``named``.
    """
    checked: list[Checked] = []
    directories: dict[str, str] = {}
    kept = set(named)
    for path in paths:
        began = time.monotonic()
        try:
            file = check_file(path)
            size = os.stat(path).st_size
        except FileNotFoundError as error:
            if path not in kept:
                continue
            file, size = Checked(path, None, None, error), 0
        checked.append(file)
        if file.claim is not None:
            directories.setdefault(file.claim.uuid, os.path.dirname(path))
        yield _of_file(file, size, time.monotonic() - began)
    for chain in check_chains(checked):
        if chain.files > 1:
            yield _of_chain(chain, directories[chain.claim.uuid])


def _of_file(file: Checked, size: int, seconds: float) -> Verdict:
    error, claim = file.error, file.claim
    value: dict[str, Any] = {"path": file.path, "status": OK, "archive": True}
    if claim is not None:
        value |= {"log": claim.log, "uuid": claim.uuid, "first": claim.first, "last": claim.last, "branch": claim.branch}
    if error is None:
        assert claim is not None, "a sound file has a summary"
        words = f"sound: {records_in_words(claim.first, claim.last)} of {claim.log} [{format_size(size)} read in {seconds:.2f} s]"
        return Verdict(OK, f"{file.path}: {words}", value)
    if isinstance(error, OSError):
        status, word = UNREADABLE, "cannot be opened"
        reason = error.strerror or str(error)
    else:
        status, word = CORRUPT, "CORRUPT"
        reason = str(error).removeprefix(f"{file.path}: ").partition("; its records are missing")[0]
    return Verdict(status, f"{file.path}: {word}: {reason}", value | {"status": status, "error": reason})


def _of_chain(chain: Chain, directory: str) -> Verdict:
    path = os.path.join(directory, f"{chain.claim.log}-{chain.claim.uuid[:8]}")
    status = CORRUPT if chain.missing else FAILED if chain.twice else OK
    words = [f"{count_in_words(chain.files, 'archive')} of a log, {records_in_words(chain.first, chain.last)}"]
    words += [f"{numbers_in_words(*numbers)} in no archive" for numbers in chain.missing]
    words += [f"{numbers_in_words(first, last)} in both {one} and {two}; move one away" for first, last, one, two in chain.twice]
    words += [f"{numbers_in_words(*numbers)} gone from the log before they were archived" for numbers in chain.gone]
    words += [f"{count_in_words(chain.replaced, 'record')} rolled back since, and replaced"] if chain.replaced else []
    value = {
        "path": path,
        "status": status,
        "archives": chain.files,
        "log": chain.claim.log,
        "uuid": chain.claim.uuid,
        "first": chain.first,
        "last": chain.last,
        "missing": chain.missing,
        "gone": chain.gone,
        "twice": [{"first": first, "last": last, "paths": [one, two]} for first, last, one, two in chain.twice],
        "replaced": chain.replaced,
    }
    word = {OK: "", FAILED: "twice: ", CORRUPT: "INCOMPLETE: "}[status]
    return Verdict(status, f"{path}: {word}{'; '.join(words)}", value, of_file=False)
