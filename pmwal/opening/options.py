"""The options of a log: their defaults, the values they take, and what follows from them.

The public functions name each option in their signatures, for editors and ``help()``, and pass them all on to ``Options`` at once.
``tests/test_api.py`` compares their names and defaults with these.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import ClassVar, Literal, TypeAlias, TypedDict, get_args

from pmwal.format.layout import ALIGN_DEFAULT, ALIGN_MAX, APPLICATION_SIZE
from pmwal.format.payload import as_capacity, as_integer, as_seconds, parse_size
from pmwal.format.position import check_name
from pmwal.opening.spelling import did_you_mean, one_of
from pmwal.storage.descriptors import FILE_MODE
from pmwal.storage.medium import MEDIUMS, Medium, MediumName

Mode: TypeAlias = Literal["a", "x", "r+", "r"]
Ordering: TypeAlias = Literal["auto", "strict", "pipelined"]
CommitPolicy: TypeAlias = Literal["each", "manual"]
Commit: TypeAlias = CommitPolicy | float  # a number of seconds
FullPolicy: TypeAlias = Literal["raise", "wait", "overwrite", "consumed"]
Recovery: TypeAlias = Literal["strict", "salvage"]
UnlinkedPolicy: TypeAlias = Literal["warn", "raise"]

MODES: tuple[str, ...] = get_args(Mode)
ORDERINGS: tuple[str, ...] = get_args(Ordering)
COMMIT_POLICIES: tuple[str, ...] = get_args(CommitPolicy)
FULL_POLICIES: tuple[str, ...] = get_args(FullPolicy)
RECOVERIES: tuple[str, ...] = get_args(Recovery)
UNLINKED_POLICIES: tuple[str, ...] = get_args(UnlinkedPolicy)


class Keywords(TypedDict, total=False):
    """The options that ``open`` takes by keyword, for signatures that pass them on."""

    size: int | str | None
    align: int | None
    medium: MediumName
    ordering: Ordering
    commit: Commit
    on_full: FullPolicy
    timeout: float | None
    recover: Recovery
    on_unlinked: UnlinkedPolicy
    file_mode: int | str
    label: str | None
    consumers: Iterable[str]


@dataclass(frozen=True)
class Options:
    """The options of ``pmwal.open``, checked. A bad value is a ``ValueError``, a value of the wrong type a ``TypeError``.

    >>> Options(size="1MiB").capacity
    1048576
    >>> Options(on_full="overwite")
    Traceback (most recent call last):
    ValueError: on_full must be one of 'raise', 'wait', 'overwrite', 'consumed', not 'overwite'; did you mean 'overwrite'?
    """

    full_policies: ClassVar[tuple[str, ...]] = FULL_POLICIES

    mode: Mode = "a"
    _: KW_ONLY
    size: int | str | None = None
    align: int | None = None
    medium: MediumName = "auto"
    ordering: Ordering = "auto"
    commit: Commit = "each"
    on_full: FullPolicy = "raise"
    timeout: float | None = None
    recover: Recovery = "strict"
    on_unlinked: UnlinkedPolicy = "warn"
    file_mode: int | str = FILE_MODE
    label: str | None = None
    consumers: Iterable[str] = ()

    def __post_init__(self) -> None:
        _check_mode(self.mode)
        for name, allowed in (
            ("medium", MEDIUMS),
            ("ordering", ORDERINGS),
            ("on_full", self.full_policies),
            ("recover", RECOVERIES),
            ("on_unlinked", UNLINKED_POLICIES),
        ):
            one_of(name, getattr(self, name), allowed)
        object.__setattr__(self, "commit", check_commit(self.commit))
        object.__setattr__(self, "timeout", as_seconds("timeout", self.timeout))
        object.__setattr__(self, "file_mode", check_file_mode(self.file_mode))
        check_label(self.label)
        object.__setattr__(self, "consumers", check_consumers(self.consumers))
        if self.consumers and self.mode == "r":
            raise ValueError(
                "consumers= names those for whom a writer keeps records; a reader begins one with reader.consumer(NAME)"
            )
        if self.align is not None:
            object.__setattr__(self, "align", as_integer("align", self.align))
        if self.salvaging and self.mode != "r":
            raise ValueError('recover="salvage" reads around damage and needs mode="r"; to write again, use pmwal repair')
        if self.align is not None and (not ALIGN_DEFAULT <= self.align <= ALIGN_MAX or self.align & (self.align - 1)):
            raise ValueError(f"align must be a power of two from {ALIGN_DEFAULT} to {ALIGN_MAX}, or None, not {self.align!r}")
        if self.size is not None:
            as_capacity(self.size)

    @property
    def capacity(self) -> int | None:
        """``size`` in bytes, rounded up to whole pages; None when no size was given."""
        return None if self.size is None else as_capacity(self.size)

    @property
    def application(self) -> bytes:
        """``label`` as the superblock has it."""
        return b"" if self.label is None else self.label.encode()

    @property
    def mode_of_file(self) -> int:
        """``file_mode`` as a number."""
        assert isinstance(self.file_mode, int)
        return self.file_mode

    @property
    def required_consumers(self) -> tuple[str, ...]:
        """``consumers``, checked."""
        assert isinstance(self.consumers, tuple)
        return self.consumers

    @property
    def counts_consumers(self) -> bool:
        """Whether the log is opened to keep what is not consumed."""
        return bool(self.consumers) or self.on_full == "consumed"

    @property
    def salvaging(self) -> bool:
        """Whether a reader skips damage."""
        return self.recover == "salvage"

    @property
    def follows_links(self) -> bool:
        """Whether the log may be opened for writing through a symbolic link."""
        return True

    def pipelined_on(self, medium: Medium) -> bool:
        """Whether the commit pointer may lag: ``ordering``, or for "auto" what suits this medium."""
        return medium.pipelined if self.ordering == "auto" else self.ordering == "pipelined"


def _check_mode(mode: object) -> None:
    """``ValueError`` for another mode, with the one that was meant, or the option."""
    try:
        one_of("mode", mode, MODES)
    except ValueError as error:
        if mode in ("w", "w+", "wb"):
            raise ValueError(f'{error}; "a" creates a log or continues it, "x" creates one and fails if it exists') from None
        try:
            parse_size(mode)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            raise error from None
        raise ValueError(f"{error}; give a size as size={mode!r}") from None


def check_commit(commit: Commit) -> Commit:
    """The commit policy; ``ValueError`` or ``TypeError`` when this is none."""
    policies = ", ".join(map(repr, COMMIT_POLICIES))
    message = f"commit must be {policies} or a number of seconds above 0, not {commit!r}{did_you_mean(commit, COMMIT_POLICIES)}"
    if isinstance(commit, bool) or not isinstance(commit, str | Real):
        raise TypeError(message)
    if commit not in COMMIT_POLICIES if isinstance(commit, str) else not 0 < commit < threading.TIMEOUT_MAX:
        raise ValueError(message)
    return commit if isinstance(commit, str) else float(commit)


def check_label(label: str | None) -> None:
    """``ValueError`` or ``TypeError`` when the superblock has no room for it, or could not give it back as it was."""
    if label is None:
        return
    if not isinstance(label, str):
        raise TypeError(f"label must be text or None, not {label!r}")
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise ValueError(f"label must be text that UTF-8 can encode, not {label!r}") from None
    if not 0 < size <= APPLICATION_SIZE or "\0" in label:
        raise ValueError(f"label must be text of 1 to {APPLICATION_SIZE} bytes in UTF-8, without NUL; {label!r} has {size}")


def check_consumers(names: Iterable[str]) -> tuple[str, ...]:
    """The names of consumers; ``ValueError`` for one that cannot be, ``TypeError`` for one that is no text."""
    if isinstance(names, str):
        raise TypeError(f"consumers is a list of names, such as [{names!r}], not text")
    return tuple(sorted({check_name(name) for name in names}))


def check_file_mode(mode: int | str) -> int:
    """The mode of a new file, from a number or from octal text, for configuration files that have no octal numbers."""
    message = f"file_mode must be a number like 0o640, or octal text like '640', with read and write for the owner, not {mode!r}"
    if isinstance(mode, bool) or not isinstance(mode, int | str):
        raise TypeError(message)
    try:
        number = int(mode, 8) if isinstance(mode, str) else mode
    except ValueError:
        raise ValueError(message) from None
    if not 0 <= number <= 0o777 or number & FILE_MODE != FILE_MODE:
        raise ValueError(message)
    return number
