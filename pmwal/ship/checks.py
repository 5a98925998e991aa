"""What of a stream's settings, or of a server, breaks the chain of a log or loses its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from pmwal.opening.spelling import one_of
from pmwal.ship.chain import HEADERS_MAX, check_prefix, check_stream, subject_of
from pmwal.ship.forms import Form
from pmwal.ship.link import Link, NoStream, Options, StreamState, Unavailable

_ROOM_MIN = 4096  # bytes of a body
_REPLICAS_SINCE, _BATCHES_SINCE = (2, 11), (2, 12)


class Problem(NamedTuple):
    """One setting that does not suit, and what to do. ``refused``: a shipper does not begin with it."""

    setting: str
    text: str
    refused: bool

    def __str__(self) -> str:
        return self.text


async def check(
    *,
    to: str | Sequence[str],
    stream: str,
    prefix: str = "pmwal",
    form: Form = "frame",
    options: Options = Options(),  # noqa: B008 - immutable
) -> list[Problem]:
    """The problems of a stream that logs are to be shipped to, in this form; none if it suits. ``ShipError`` for wrong credentials.

    Those that are ``refused`` break the chain: a shipper does not begin with them. The others lose records that were acknowledged.
    """
    one_of("form", form, get_args(Form))
    link = Link(to, check_stream(stream), options)
    try:
        state = await link.state()
        return problems_of(state, link.version, subject_of(check_prefix(prefix), "0" * 32), form)
    except NoStream as error:
        return [Problem("stream", f"{error}; create it first, for example: nats stream add {stream}", True)]
    except Unavailable as error:
        return [Problem("server", str(error), True)]
    finally:
        await link.close()


def problems_of(state: StreamState, version: tuple[int, int], subject: str, form: Form) -> list[Problem]:
    """What does not suit logs on subjects like this one."""
    batches = _without_batches(state.config, version) if form == "atomic" else []
    return [*_refused(state.config, version, subject), *batches, *_losing(state.config)]


def _refused(config: dict[str, Any], version: tuple[int, int], subject: str) -> list[Problem]:
    found = []

    def refuse(setting: str, text: str) -> None:
        found.append(Problem(setting, text, True))

    if config.get("mirror"):
        refuse("mirror", "it is a mirror, which takes no messages; ship to the stream that it mirrors")
    elif not any(matches(pattern, subject) for pattern in config.get("subjects") or ()):
        refuse("subjects", f"it does not take {subject}; add the subject {subject.rpartition('.')[0]}.*")
    if config.get("max_msgs_per_subject", -1) > 0:
        refuse("max_msgs_per_subject", "max_msgs_per_subject removes the oldest records of each log; set it to -1 (unlimited)")
    if config.get("subject_transform"):
        refuse("subject_transform", "subject_transform changes the subjects, so the chain cannot be checked; remove it")
    if config.get("num_replicas", 1) > 1 and version < _REPLICAS_SINCE:
        refuse(
            "num_replicas",
            f"num_replicas: the server has version {version[0]}.{version[1]}, and before 2.11 replicas may store a message twice; "
            "use a newer server, or one replica",
        )
    if config.get("no_ack"):
        refuse("no_ack", "no_ack: it acknowledges nothing; set it to false")
    if config.get("sealed"):
        refuse("sealed", "it is sealed and takes no messages; use another stream")
    if config.get("allow_msg_counter"):
        refuse("allow_msg_counter", "allow_msg_counter: it takes counters only; use another stream")
    if 0 < config.get("max_msg_size", -1) < _ROOM_MIN + HEADERS_MAX:
        refuse("max_msg_size", f"max_msg_size leaves no room; set it to at least {_ROOM_MIN + HEADERS_MAX}, or to -1 (unlimited)")
    return found


def _without_batches(config: dict[str, Any], version: tuple[int, int]) -> list[Problem]:
    """Why the stream takes no atomic batches."""
    if version < _BATCHES_SINCE:
        text = (
            f"form: the server has version {version[0]}.{version[1]}, and atomic batches need 2.12; use a newer server, or "
            'form="frame"'
        )
        return [Problem("form", text, True)]
    if not config.get("allow_atomic"):
        text = (
            f"allow_atomic: it takes no atomic batches; set it to true (nats stream edit {config['name']} --allow-batch), or use "
            'form="frame"'
        )
        return [Problem("allow_atomic", text, True)]
    return []


def _losing(config: dict[str, Any]) -> list[Problem]:
    found = []
    if config.get("storage") == "memory":
        found.append(Problem("storage", "it is in memory: a restart of the server loses all; use file storage", False))
    if config.get("persist_mode") == "async":
        text = "persist_mode async acknowledges before it writes: a server that is killed loses records; use the default"
        found.append(Problem("persist_mode", text, False))
    if config.get("retention") == "interest":
        text = "retention by interest drops what no consumer has asked for; use limits, or create the consumers before"
        found.append(Problem("retention", text, False))
    if config.get("discard", "old") == "old":
        for setting in ("max_msgs", "max_bytes"):
            if config.get(setting, -1) > 0:
                text = f"when {setting} is reached it drops the oldest records, consumed or not; use discard=new"
                found.append(Problem(setting, text, False))
    return found


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject of a stream, with wildcards, takes this one."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(given) > at
        if at >= len(given) or token not in ("*", given[at]):
            return False
    return len(wanted) == len(given)
