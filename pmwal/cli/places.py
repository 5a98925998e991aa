"""The logs that arguments name: files, directories, and patterns that the shell did not expand; and short names for them."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from pmwal.cli.exit_status import OK, UNREADABLE
from pmwal.cli.parser import Parser
from pmwal.cli.terminal import say
from pmwal.logs.paths import SUFFIX, archives_at, gets_archives, is_archive, is_missing, is_pattern, logs_at


def add_paths(parser: Parser) -> None:
    """The arguments ``PATH...``."""
    parser.add_argument("paths", metavar="PATH", nargs="+", help="log files, directories of logs, or patterns")


def one_log(places: Sequence[str]) -> str | None:
    """The path, if one log is named. A directory or a pattern is several, however many logs there are: so is the output.

    An archive is read as a set, too.
    """
    if len(places) == 1 and not os.path.isdir(places[0]) and not is_pattern(places[0]) and not is_archive(places[0]):
        return places[0]
    return None


def logs_named(places: Iterable[str], *, archives: bool = False) -> tuple[list[str], int]:
    """All logs that are named, and ``archives``, each once; a place that has none is reported, and then the status is not 0.

    A file that is named and not there is among them: whoever opens it finds out. ``FileNotFoundError`` if nothing is left. For
    ``archives`` it is no error that a directory of archives has none yet, or none any more.
    """
    found: dict[str, None] = {}
    status, empty, known = OK, None, False
    for place in places:
        archived = list(archives_at(place))
        logs = [*(path for path in logs_of(place) if path not in archived), *(archived if archives else ())]
        if not logs and archives and gets_archives(place):
            known = True
        elif not logs:
            status = UNREADABLE
            if empty is not None:
                say(f"{empty.filename}: {empty.strerror}")
            empty = FileNotFoundError(errno.ENOENT, without_logs(place), place)
        found.update(dict.fromkeys(logs))
    if empty is not None:
        if not found and not known:
            raise empty
        say(f"{empty.filename}: {empty.strerror}")
    return list(found), status


def set_named(places: Sequence[str], *, follow: bool = False) -> tuple[list[str], int]:
    """The places of a set; one that is not there, or has no log, is reported, and then the status is not 0.

    A follow waits for the logs of a directory or a pattern. ``FileNotFoundError`` if there is nothing to read or to wait for.
    """
    there, status = _places_there(places)
    if not follow:
        _, empty = logs_named(there, archives=True)
        return there, max(status, empty)
    for place in there:
        if not logs_of(place) and next(archives_at(place), None) is None:
            say(f"{place}: {without_logs(place)} yet; waiting for one")
    return there, status


def _places_there(places: Sequence[str]) -> tuple[list[str], int]:
    """Those places that can be read as a set: a file that is named and not there is reported, and then the status is not 0.

    ``FileNotFoundError`` if none is left.
    """
    there: list[str] = []
    missing: list[str] = []
    for place in places:
        (missing if is_missing(place) else there).append(place)
    if not there:
        *missing, last = missing
    for place in missing:
        say(f"{place}: {os.strerror(errno.ENOENT)}")
    if not there:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), last)
    return there, UNREADABLE if missing else OK


def logs_of(place: str) -> list[str]:
    """The logs of a place; of a file that is named itself, whether it is there or not."""
    return [path for path, _ in logs_at(place)] if has_several(place) else [place]


def has_several(place: str) -> bool:
    """Whether it is a directory or a pattern."""
    return os.path.isdir(place) or is_pattern(place)


def without_logs(place: str) -> str:
    """What is wrong with a directory or a pattern that has no logs."""
    if next(archives_at(place), None) is not None:
        what = (
            "this is an archive, and no log" if is_archive(place) else f"these are archives, and no log (*{SUFFIX}) is among them"
        )
        return f"{what}; pmwal cat and logs read archives, and pmwal verify {shlex.quote(place)} checks them"
    return f"no log (*{SUFFIX}) is in this directory" if os.path.isdir(place) else "no log matches this pattern"


class ShortNames:
    """A short name for each log, by its path: as much of the path's end as tells it from the others.

    A name is never given to two logs, and stays once it is given.

    >>> names = ShortNames(["/srv/shop/00.wal", "/srv/shop/01.wal"])
    >>> names["/srv/shop/01.wal"], names["/srv/blog/01.wal"]
    ('01', 'blog/01')
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Name these logs, all with as many parts of their paths."""
        new = [path for path in dict.fromkeys(paths) if path not in self._names]
        parts = {path: PurePath(os.path.abspath(path).removesuffix(SUFFIX)).parts for path in new}
        for count in range(1, max(map(len, parts.values()), default=0) + 1):
            names = {path: os.path.join(*parts[path][-count:]) for path in new}
            if len(set(names.values()) - self._taken) == len(new):
                break
        else:
            names = {path: path for path in new}  # a log and a file that is called the same without a suffix
        self._names |= names
        self._taken |= set(names.values())

    def __getitem__(self, path: str) -> str:
        if path not in self._names:
            self.add([path])
        return self._names[path]

    @property
    def width(self) -> int:
        """The length of the longest."""
        return max(map(len, self._names.values()), default=0)
