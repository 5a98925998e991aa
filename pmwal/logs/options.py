"""The options of ``LogHandler`` and of the adapters that concern the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

from pmwal.format.payload import as_integer, parse_size
from pmwal.opening.options import Commit, Options, UnlinkedPolicy
from pmwal.opening.spelling import one_of
from pmwal.opening.units import check_has_unit, parse_duration

SinkFullPolicy: TypeAlias = Literal["overwrite", "raise", "consumed"]
CorruptPolicy: TypeAlias = Literal["set-aside", "raise"]
CORRUPT_POLICIES: tuple[str, ...] = get_args(CorruptPolicy)


@dataclass(frozen=True, kw_only=True)
class SinkOptions(Options):
    """These options, checked. A logging call never waits for a truncate, or for a consumer."""

    full_policies: ClassVar[tuple[str, ...]] = get_args(SinkFullPolicy)

    commit: Commit = 1.0
    on_full: SinkFullPolicy = "overwrite"
    timeout: float | None = 0.0  # of on_full="consumed"
    sync_level: int | str = logging.CRITICAL
    on_corrupt: CorruptPolicy = "set-aside"
    on_unlinked: UnlinkedPolicy = "raise"  # to the sink, which then opens the path anew
    max_files: int = 64
    keep: float | str | None = None
    max_total: int | str | None = None
    is_slot: bool = False  # of a directory in which others may put links

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sync_level", _level_number(self.sync_level))
        object.__setattr__(self, "max_files", as_integer("max_files", self.max_files))
        one_of("on_corrupt", self.on_corrupt, CORRUPT_POLICIES)
        if self.consumers and self.on_full != "consumed":
            raise ValueError(f'consumers= names those for whom on_full="consumed" keeps records; on_full={self.on_full!r} does not')
        if self.max_files < 1:
            raise ValueError(f"max_files must be at least 1, not {self.max_files}")
        check_has_unit(self.keep, "s", " days")
        check_has_unit(self.max_total, "MiB", "B")
        if self.keep is not None:
            object.__setattr__(self, "keep", parse_duration(self.keep))
        if self.max_total is not None:
            object.__setattr__(self, "max_total", parse_size(self.max_total))

    @property
    def sync_number(self) -> int:
        """``sync_level`` as a number."""
        assert isinstance(self.sync_level, int)
        return self.sync_level

    @property
    def follows_links(self) -> bool:
        """Whether the log may be opened through a symbolic link."""
        return not self.is_slot

    @property
    def limits(self) -> Limits:
        """``keep`` and ``max_total`` as numbers."""
        assert not isinstance(self.keep, str)
        assert not isinstance(self.max_total, str)
        return Limits(None if self.keep is None else int(self.keep * 1e9), self.max_total)


class Limits(NamedTuple):
    """How long records are kept, in nanoseconds, and how large the slots of a directory may be together; None for no limit."""

    keep_ns: int | None
    total: int | None


def _level_number(level: int | str) -> int:
    if isinstance(level, str):
        levels = logging.getLevelNamesMapping()
        if level not in levels:
            raise ValueError(f"sync_level must be a number or one of {', '.join(levels)}, not {level!r}")
        return levels[level]
    return level
