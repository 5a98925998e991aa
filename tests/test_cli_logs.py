"""``pmwal logs``: which entries it shows, in which order and form, and what it says of those that it cannot."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import MAKERS, Cli, Ran, damage_record, make_foreign, make_log, make_torn
from pmwal import events
from pmwal.cli.commands.logs import lines_option
from pmwal.cli.filters import field_option
from pmwal.cli.reading import spans as spans_module
from pmwal.cli.viewing.view import FORMS, Lines
from pmwal.errors import Overrun
from pmwal.format.ring import Clock
from pmwal.logs import merge as merging
from support import BarrierRecorder, open_small

NOON = 1_700_000_000 * 10**9
SECOND = 10**9


class AtSecond(BarrierRecorder):
    """A seam whose clock is set."""

    def now_ns(self) -> int:
        return self.time_ns


def store(path: Path, *records: tuple[int, int, Any]) -> Path:
    """A log of records with these seconds after noon, kinds and payloads; a dict is stored as JSON."""
    path.parent.mkdir(exist_ok=True)
    seam = AtSecond(uuid=os.urandom(16))
    with open_small(path, seam=seam, size="64KiB") as wal:
        for second, kind, data in records:
            seam.time_ns = NOON + second * SECOND
            wal.append(data if isinstance(data, bytes) else json.dumps(data).encode(), kind=kind)
    return path


@pytest.fixture
def shop(shm_dir: Path) -> Path:
    """A directory with two logs whose records alternate, and documents among the texts."""
    directory = shm_dir / "shop"
    paid = {"message": "paid", "logger": "shop.orders", "extra": {"user": 17, "cart": {"items": [1, 2], "gift": True}}}
    failed = {
        "message": "Refused",
        "logger": "shop.cards",
        "exc": "Traceback (most recent call last):\nValueError: no",
        "extra": {"user": "17"},
    }
    store(directory / "00.wal", (0, 20, b"one"), (2, 30, b"three"), (4, 20, paid), (6, 10, b"seven"))
    store(directory / "01.wal", (1, 20, b"two"), (3, 40, failed), (5, 50, {"event": "down", "name": "shop"}))
    return directory


def messages(ran: Ran) -> list[str]:
    """The messages of output in JSON; nothing was complained of."""
    assert (ran.status, ran.err) == (0, "")
    return [json.loads(line)["message"] for line in ran.lines]


ALL = ["one", "two", "three", "Refused", "paid", "down", "seven"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ALL),
        (("-r",), ALL[::-1]),
        (("-n", "3"), ALL[-3:]),
        (("-n3",), ALL[-3:]),
        (("-n", "3", "-r"), ALL[:-4:-1]),
        (("-n", "+3"), ALL[:3]),
        (("-n", "+3", "-r"), ALL[2::-1]),
        (("-n", "0"), []),
        (("-n", "all"), ALL),
        (("-n", "99"), ALL),
        (("-e",), ALL),
        (("-e", "-n", "2"), ALL[-2:]),
        (("--no-tail",), ALL),
        (("-p", "warning"), ["three", "Refused", "down"]),
        (("-p", "4"), ["three", "Refused", "down"]),
        (("-p", "info..warning"), ["one", "two", "three", "paid"]),
        (("-p", "err..alert"), ["Refused", "down"]),
        (("-p", "err", "-n", "1"), ["down"]),
        (("-p", "debug..debug"), ["seven"]),
        (("--logger", "shop.*"), ["Refused", "paid"]),
        (("--logger", "shop", "--logger", "*.cards"), ["Refused", "down"]),
        (("--logger", "SHOP"), []),
        (("--field", "user=17"), ["Refused", "paid"]),
        (("--field", "user"), ["Refused", "paid"]),
        (("--field", "user=1"), []),
        (("--field", "user=1", "--field", "user=17"), ["Refused", "paid"]),
        (("--field", "cart.gift=true"), ["paid"]),
        (("--field", "cart.items=[1, 2]", "--field", "user=17"), ["paid"]),
        (("--field", "cart.items.x"), []),
        (("--field", "cart", "--field", "none"), []),
        (("-g", "^t[wh]"), ["two", "three"]),
        (("-g", "refused"), ["Refused"]),
        (("-g", "REFUSED"), []),
        (("-g", "(?-i:refused)"), []),
        (("-g", "valueerror"), ["Refused"]),
        (("-g", "^t[wh]", "-n", "1", "-p", "info"), ["three"]),
        (("-S", "2023-11-14T22:13:24Z"), ["paid", "down", "seven"]),
        (("-U", "2023-11-14 22:13:21 UTC"), ["one", "two"]),
        (("-S", "2023-11-14T22:13:21Z", "--until", "2023-11-14T22:13:23Z", "-r"), ["Refused", "three", "two"]),
        (("-S", "2023-11-14T22:13:21Z", "-n", "1", "-U", "@1700000003"), ["Refused"]),
        (("-S", "-1h"), []),
    ],
)
def test_what_is_selected_of_a_set_and_in_which_order(
    cli: Cli, shop: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    """By time, oldest first; the newest N and reverse read backwards and give the same order turned round."""
    assert messages(cli("logs", "-q", "-o", "json", *arguments, shop)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["one", "three", "paid", "seven"]),
        (("-r", "-n", "2"), ["seven", "paid"]),
        (("-n", "+1"), ["one"]),
        (("-p", "warning"), ["three"]),
        (("--field", "user=17", "-g", "paid"), ["paid"]),
        (("-S", "@1700000002", "-U", "@1700000004"), ["three", "paid"]),
    ],
)
def test_the_same_of_a_single_log(cli: Cli, shop: Path, arguments: tuple[str, ...], expected: list[str]) -> None:
    """Read directly, and so records name no log."""
    ran = cli("logs", "-q", "-o", "json", *arguments, shop / "00.wal")
    assert messages(ran) == expected
    assert "log" not in json.loads(ran.lines[0])


def test_places_may_be_files_directories_and_patterns(cli: Cli, shop: Path) -> None:
    """Together they are one set, and a log that is named twice is there once."""
    expected = cli("logs", shop).out
    for places in ((shop / "*.wal",), (shop / "00.wal", shop / "01.wal"), (shop, shop / "0?.wal")):
        assert cli("logs", *places).out == expected
    assert messages(cli("logs", "-o", "json", shop / "*1.wal")) == ["two", "Refused", "down"]


def test_many_records_come_in_the_same_order_from_either_end(cli: Cli, shm_dir: Path) -> None:
    """More than a piece of each log, with stamps that many of them share and clocks that go back."""
    for name in range(3):
        records = [(number // 7 - (number % 50 == 49), 20 + number % 2 * 20, b"%d of %d" % (number, name)) for number in range(300)]
        store(shm_dir / f"{name}.wal", *records)
    forwards = messages(cli("logs", "-o", "json", shm_dir))
    assert len(forwards) == 900
    for name in range(3):
        own = [message for message in messages(cli("logs", "-o", "json", "-r", shm_dir)) if message.endswith(f"of {name}")]
        assert own[::-1] == [message for message in forwards if message.endswith(f"of {name}")]
    single = messages(cli("logs", "-o", "json", shm_dir / "1.wal"))
    assert messages(cli("logs", "-o", "json", "-r", shm_dir / "1.wal")) == single[::-1]
    assert messages(cli("logs", "-o", "json", "-n", 170, shm_dir / "1.wal")) == single[-170:]
    assert messages(cli("logs", "-o", "json", "-n", 99, "-p", "err", shm_dir / "1.wal")) == single[1::2][-99:]


def test_records_of_one_time_come_in_one_order_from_either_end(cli: Cli, shm_dir: Path) -> None:
    """That of the logs."""
    for name in range(3):
        store(shm_dir / f"{name}.wal", *((number // 2, 20, b"%d of %d" % (number, name)) for number in range(6)))
    forwards = messages(cli("logs", "-o", "json", shm_dir))
    assert messages(cli("logs", "-o", "json", "-n", 99, shm_dir)) == forwards
    assert messages(cli("logs", "-o", "json", "-r", shm_dir)) == forwards[::-1]


# -- forms


def test_short_lines_are_time_log_level_and_text(cli: Cli, shop: Path) -> None:
    """Fields follow, and further lines are indented."""
    assert cli("logs", "--utc", shop).text == (
        "Nov 14 22:13:20 00 INFO     one\n"
        "Nov 14 22:13:21 01 INFO     two\n"
        "Nov 14 22:13:22 00 WARNING  three\n"
        "Nov 14 22:13:23 01 ERROR    shop.cards: Refused  user=17\n"
        "    Traceback (most recent call last):\n"
        "    ValueError: no\n"
        'Nov 14 22:13:24 00 INFO     shop.orders: paid  user=17 cart.items="[1, 2]" cart.gift=true\n'
        "Nov 14 22:13:25 01 CRITICAL shop: down\n"
        "Nov 14 22:13:26 00 DEBUG    seven\n"
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("short", "Nov 14 22:13:21 INFO     two"),
        ("short-iso", "2023-11-14T22:13:21+00:00 INFO     two"),
        ("short-precise", "Nov 14 22:13:21.000000 INFO     two"),
        ("short-iso-precise", "2023-11-14T22:13:21.000000+00:00 INFO     two"),
        ("logfmt", "time=2023-11-14T22:13:21.000000000Z level=info msg=two"),
        ("cat", "two"),
    ],
)
def test_forms_of_a_text(cli: Cli, shop: Path, form: str, expected: str) -> None:
    """A single log has no label."""
    assert cli("logs", "--utc", "-o", form, "-n", "+1", shop / "01.wal").text == expected + "\n"


@pytest.mark.parametrize(
    ("zone", "shown"), [("UTC", "22:13:20+00:00"), ("America/Caracas", "18:13:20-04:00"), ("Asia/Kolkata", "03:43:20+05:30")]
)
def test_times_are_local_unless_utc_is_asked_for(
    cli: Cli, shop: Path, monkeypatch: pytest.MonkeyPatch, zone: str, shown: str
) -> None:
    """By the zone in the environment."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert shown in cli("logs", "-o", "short-iso", "-n", "+1", shop / "00.wal").text
        assert "22:13:20+00:00" in cli("logs", "-o", "short-iso", "-n", "+1", "--utc", shop / "00.wal").text
    finally:
        monkeypatch.undo()
        time.tzset()


def test_verbose_shows_every_part(cli: Cli, shop: Path) -> None:
    """Each on a line."""
    first, *parts = cli("logs", "--utc", "-o", "verbose", "-p", "err..err", shop).lines
    assert re.fullmatch(rf"Tue 2023-11-14 22:13:23\.000000000\+00:00  {shop}/01\.wal  record 2  kind 40  \d+ bytes", first)
    assert parts == [
        "    level=ERROR",
        "    logger=shop.cards",
        "    message=Refused",
        "    fields.user=17",
        "    traceback=Traceback (most recent call last):",
        "        ValueError: no",
    ]


def test_json_is_one_object_for_each_entry(cli: Cli, shop: Path) -> None:
    """Pretty or on one line, it is the same."""
    lines = cli("logs", "-o", "json", "-p", "err..err", shop).lines
    assert json.loads(lines[0]) == {
        "seq": 2,
        "log": f"{shop}/01.wal",
        "kind": 40,
        "time_ns": NOON + 3 * SECOND,
        "time": "2023-11-14T22:13:23.000000000Z",
        "level": "ERROR",
        "logger": "shop.cards",
        "message": "Refused",
        "fields": {"user": "17"},
        "traceback": "Traceback (most recent call last):\nValueError: no",
    }
    pretty = cli("logs", "-o", "json-pretty", "-p", "err..err", shop).text
    assert json.loads(pretty) == json.loads(lines[0])
    assert '\n    "seq": 2,\n' in pretty


def test_logfmt_is_quoted_where_it_must_be(cli: Cli, shm_dir: Path) -> None:
    """A line for each entry, whatever names and values hold; a name that clashes is told apart."""
    extra = {"a b": 'say "no"', "path": "C:\\x", "empty": "", "n": None, "msg": "own", "t": "two\nlines\x1b\x9b", "é=": "ü"}
    store(shm_dir / "a.wal", (0, 20, {"message": "it's on", "extra": extra}), (1, 20, b""))
    first, second = cli("logs", "-o", "logfmt", shm_dir / "a.wal").lines
    assert first.split(" level=info ")[1] == (
        'msg="it\'s on" a_b="say \\"no\\"" path="C:\\\\x" n=null fields.msg=own t="two\\nlines\\u001b\\u009b" é_=ü'
    )
    assert second.endswith('level=info msg=""')


def test_events_are_entries_and_their_definitions_are_not(cli: Cli, shm_dir: Path) -> None:
    """Their arguments can be asked for, and the text has them already."""
    with open_small(shm_dir / "a.wal") as wal:
        fill = events.Logger(wal, name="trades").event("order {id} at {when}", level=logging.WARNING)
        fill(7, datetime(2026, 1, 1, tzinfo=UTC))
        fill(8, b"\x00")
    ran = cli("logs", "-p", "warning", "--field", "id=7", shm_dir / "a.wal")
    assert ran.text.endswith(" WARNING  trades: order 7 at 2026-01-01 00:00:00+00:00\n")
    assert len(cli("logs", "-p", "warning", shm_dir / "a.wal").lines) == len(cli("logs", shm_dir / "a.wal").lines) == 2
    assert cli("logs", "-p", "err", shm_dir / "a.wal").out == b""
    assert cli("logs", "-o", "logfmt", "-g", "order 8", shm_dir / "a.wal").text.endswith("id=8 when=\"b'\\\\x00'\"\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"WARNING late", "WARNING  late"),
        (b"WARNING:shop:late", "WARNING  shop:late"),
        (b"WARNINGS are late", "WARNING  WARNINGS are late"),
        (b"WARNING", "WARNING  WARNING"),
        (b"INFO late", "WARNING  INFO late"),
        (b"WARNING late\x00", "WARNING  late\\x00"),
    ],
)
def test_a_level_that_the_text_begins_with_is_not_shown_twice(cli: Cli, shm_dir: Path, text: bytes, shown: str) -> None:
    """Formatters put it there; the other forms keep the text."""
    log = store(shm_dir / "a.wal", (0, 30, text))
    assert cli("logs", "--utc", log).text == f"Nov 14 22:13:20 {shown}\n"
    assert cli("logs", "-o", "json", log).json["message"] == text.decode()


HOSTILE = "\x1b[31m\x9b\x00\x7f\u202e\u2028\u2029\u2066"
SHOWN = "\\x1b[31m\\x9b\\x00\\x7f\\u202e\\u2028\\u2029\\u2066"


@pytest.mark.parametrize("color", ["never", "always"])
@pytest.mark.parametrize("form", FORMS)
def test_no_control_character_reaches_the_terminal(cli: Cli, shm_dir: Path, form: str, color: str) -> None:
    """Not from messages, names of fields, values, loggers, levels, tracebacks, nor paths; colours are the only ones.

    Nor what turns the direction of text around, or begins a new line in some terminals.
    """
    document = {
        "message": HOSTILE,
        "level": HOSTILE,
        "logger": HOSTILE,
        "exc": HOSTILE + "\n" + HOSTILE,
        "extra": {HOSTILE: HOSTILE},
    }
    document["module"] = HOSTILE
    with open_small(shm_dir / "a\x1b.wal") as wal:
        wal.append(json.dumps(document).encode())
        wal.append(HOSTILE.encode(), kind=30)
        wal.append(b"\xff" + HOSTILE.encode())
        events.Logger(wal, name=HOSTILE).event("{x} " + HOSTILE)(HOSTILE)
    text = cli("logs", "-o", form, "--color", color, "-g", ".", shm_dir).text
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text) if color == "always" else text
    assert [char for char in bare if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")] == []
    assert "[31m" in bare


def test_surrogates_of_documents_end_nothing(cli: Cli, shm_dir: Path) -> None:
    """UTF-8 lacks them: they are shown escaped."""
    log = store(shm_dir / "a.wal", (0, 20, b'{"message": "\\ud800", "logger": "\\udfff", "extra": {"\\ud800": 1}}'))
    for form in FORMS:
        ran = cli("logs", "-o", form, log)
        assert (ran.status, "\\ud800" in ran.text) == (0, True)


def test_colours_tell_levels_and_logs_apart(cli: Cli, shop: Path) -> None:
    """Only when asked for, or on a terminal; a log always has the same colour."""
    plain, colour = cli("logs", shop).text, cli("logs", "--color", "always", shop).text
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colour) == plain
    assert "\x1b[1;31mERROR   \x1b[0m" in colour
    (mark,) = set(re.findall(r"(\x1b\[\d+m)01\x1b", colour))
    assert mark + "01" in cli("logs", "--color", "always", shop / "*1.wal").text
    assert cli("logs", "--color", "always", "-g", "thr", shop).text.count("\x1b[1;7mthr") == 1


def test_logs_of_one_name_are_told_apart(cli: Cli, shm_dir: Path) -> None:
    """By their directories, as by cat; labels have one width."""
    for name in ("a/00", "b/00", "b/worker"):
        store(shm_dir / f"{name}.wal", (0, 20, b"x"))
    lines = cli("logs", shm_dir / "*").lines
    assert [line[16:29] for line in lines] == ["a/00     INFO", "b/00     INFO", "b/worker INFO"]


# -- what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", "many"), "'many' is not a whole number from 0, +N for the oldest N, or all"),
        (("-n", "-1"), "'-1' is not a whole number"),
        (("-p", "loud"), "'loud' is no level: use debug, info"),
        (("-g", "("), "'(' is not a regular expression"),
        (("--field", "=3"), "'=3' names no field; use NAME=VALUE"),
        (("-S", "soonish"), "argument -S/--since"),
        (("-S", "@2", "-U", "@1"), "--until is before --since; exchange the two"),
        (("-o", "xml"), "invalid choice: 'xml'"),
        (("--color", "red"), "invalid choice: 'red'"),
        (("-f", "-r"), "-f shows new entries last; leave -r out"),
        (("-f", "-U", "@1"), "-f has no end; leave --until out"),
        (("-f", "-n", "+3"), "-f shows the last entries first; use -n without +, or --no-tail"),
        (("--no-tail", "-n", "3"), "--no-tail shows all entries; leave -n out"),
    ],
)
def test_wrong_arguments_are_named(cli: Cli, shop: Path, arguments: tuple[str, ...], said: str) -> None:
    """Status 64, and what to use instead."""
    ran = cli("logs", *arguments, shop)
    assert (ran.status, ran.out) == (64, b"")
    assert said in ran.err


def test_options_of_the_command_are_parsed() -> None:
    """As the view takes them."""
    assert [lines_option(text) for text in ("all", "3", "+3")] == [Lines(None), Lines(3), Lines(3, oldest=True)]
    assert [field_option(text) for text in ("a", "a=", "a.b=c=d")] == [("a", None), ("a", ""), ("a.b", "c=d")]


def test_no_log_at_all_is_an_error(cli: Cli, shm_dir: Path) -> None:
    """A name that is not there; a directory or a pattern without a log says so and shows nothing."""
    assert (cli("logs", shm_dir / "none").status, "none: No such file" in cli("logs", shm_dir / "none").err) == (3, True)
    for place, words in ((shm_dir, "no log (*.wal) is in this directory"), (shm_dir / "*.wal", "no log matches this pattern")):
        ran = cli("logs", place)
        assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: {place}: {words}\n")


@pytest.mark.parametrize("options", [(), ("-r",), ("-n", "9")], ids=str)
def test_a_missing_file_among_others_is_reported_and_the_others_shown(cli: Cli, shop: Path, options: tuple[str, ...]) -> None:
    """As cat(1) does: status 3."""
    ran = cli("logs", *options, shop / "00.wal", shop / "gone.wal", shop / "01.wal")
    assert (ran.status, ran.err) == (3, f"pmwal: {shop}/gone.wal: No such file or directory\n")
    assert ran.out == cli("logs", *options, shop).out


def test_nothing_selected_is_said_unless_quiet(cli: Cli, shop: Path) -> None:
    """On standard error; it is no failure."""
    assert cli("logs", "-g", "nowhere", shop) == Ran(0, b"", "pmwal: no entries\n")
    assert cli("logs", "-q", "-g", "nowhere", shop) == Ran(0, b"", "")
    for option in (("--logger", "nobody"), ("--field", "nothing")):
        ran = cli("logs", *option, shop)
        assert ran == Ran(0, b"", "pmwal: no entries; --logger and --field select structured records and events only\n")


@pytest.mark.parametrize("options", [(), ("-r",), ("-n", "9"), ("-n", "+9")], ids=str)
@pytest.mark.parametrize(
    ("state", "make", "status"),
    [("damaged", lambda path: damage_record(make_log(path), 5), 2), ("foreign", make_foreign, 3), ("short", MAKERS["short"], 3)],
)
def test_of_several_logs_the_unreadable_one_is_reported_and_the_others_shown(
    cli: Cli, shop: Path, options: tuple[str, ...], state: str, make: Callable[[Path], Path], status: int
) -> None:
    """Once, with its name; the status is as of a single one."""
    expected = cli("logs", *options, shop).out
    make(shop / "bad.wal")
    ran = cli("logs", *options, shop)
    assert (ran.status, ran.err.count("\n"), "bad.wal" in ran.err) == (status, 1, True)
    assert "pmwal.open" not in ran.err
    if state != "damaged":  # of which the whole records before the damage are shown
        assert ran.out.replace(b" 00  ", b" 00 ").replace(b" 01  ", b" 01 ") == expected
    single = cli("logs", *options, shop / "bad.wal")
    assert (single.status, "bad.wal" in single.err) == (status, True)


def test_a_torn_end_is_mentioned_unless_quiet(cli: Cli, shm_dir: Path) -> None:
    """As by cat."""
    log = make_torn(shm_dir / "a.wal")
    assert cli("logs", log).err == cli("cat", log).err != ""
    assert cli("logs", "-q", log).err == ""
    assert len(cli("logs", shm_dir).lines) == 9


@pytest.mark.parametrize("options", [(), ("-r",)], ids=str)
def test_records_that_a_writer_overwrites_meanwhile_are_reported(
    cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """By number, and status 1; what is left is shown."""
    log = make_log(shm_dir / "a.wal", 200)
    real = spans_module.runs_of

    def runs_of(reader: pmwal.Reader, chosen: Any, clock: Clock, start: int, stop: int) -> Any:
        if start < 100:
            raise Overrun(f"record {start} is gone", 100 - start)
        return real(reader, chosen, clock, start, stop)

    monkeypatch.setattr(spans_module, "runs_of", runs_of)
    ran = cli("logs", *options, log)
    assert (ran.status, len(ran.lines)) == (1, 101)
    assert re.fullmatch(rf"pmwal: {log}: records \d+ to 99 overwritten or truncated before they were read\n", ran.err)


@pytest.mark.parametrize(
    ("gone", "said"), [(1, "1 record was overwritten before it"), (2, "2 records were overwritten before they")]
)
def test_records_that_a_writer_overwrites_during_a_merge_are_counted(
    cli: Cli, shop: Path, monkeypatch: pytest.MonkeyPatch, gone: int, said: str
) -> None:
    """Status 1; what is left is shown."""
    real, before = merging.runs_of, len(cli("logs", shop).lines)

    def runs_of(reader: pmwal.Reader, chosen: Any, clock: Clock, start: int, stop: int) -> Any:
        if reader.path.endswith("00.wal") and start <= gone:
            raise Overrun(f"record {start} is gone", gone + 1 - start)
        return real(reader, chosen, clock, start, stop)

    monkeypatch.setattr(merging, "runs_of", runs_of)
    ran = cli("logs", shop)
    assert (ran.status, ran.err, len(ran.lines)) == (1, f"pmwal: {said} could be shown\n", before - gone)


# -- cursors


@pytest.mark.parametrize("place", ["", "00.wal"])
@pytest.mark.parametrize("options", [(), ("-r",), ("-n", "all"), ("-p", "info")], ids=str)
def test_each_run_continues_after_the_last(cli: Cli, shop: Path, options: tuple[str, ...], place: str) -> None:
    """What the first run showed is not shown again, of a log or a set."""
    cursor, log = shop / "cursor", shop / place
    arguments = ("logs", "-q", "-o", "json", *options, "--cursor-file", cursor, log)
    assert len(messages(cli(*arguments))) >= 3
    assert messages(cli(*arguments)) == []
    with pmwal.open(shop / "00.wal") as wal:
        wal.extend([b"new", b"newer"], kind=20)
    assert sorted(messages(cli(*arguments))) == ["new", "newer"]
    assert messages(cli(*arguments)) == []


def test_a_cursor_file_of_tail_is_taken_up(cli: Cli, shop: Path) -> None:
    """And one of several logs serves for one of them; what was read of the others is kept."""
    cursor = shop / "cursor"
    cli("tail", "--cursor-file", cursor, shop / "00.wal")
    assert messages(cli("logs", "-q", "-o", "json", "--cursor-file", cursor, shop / "00.wal")) == []
    assert messages(cli("logs", "-q", "-o", "json", "--cursor-file", cursor, shop)) == ["two", "Refused", "down"]
    assert messages(cli("logs", "-q", "-o", "json", "--cursor-file", cursor, shop / "01.wal")) == []
    assert len(json.loads(cursor.read_text())) == 2


def test_until_ends_where_the_next_run_begins(cli: Cli, shop: Path) -> None:
    """The cursor is after what was shown, not after what there is."""
    arguments = ("logs", "-q", "-o", "json", "--cursor-file", shop / "cursor")
    for place in (shop / "00.wal", shop):
        (shop / "cursor").unlink(missing_ok=True)
        first = messages(cli(*arguments, "-U", "@1700000002", place))
        assert first == [message for message in ("one", "two", "three") if place == shop or message != "two"]
        assert first + messages(cli(*arguments, place)) == messages(cli("logs", "-o", "json", place))


@pytest.mark.parametrize("text", ["hello", "[]", "{", '{"a": 3}', '{"a": "x"}', "[" * 100000])
def test_a_file_that_is_no_cursor_is_named_and_left_alone(cli: Cli, shop: Path, text: str) -> None:
    """Also a single cursor for several logs."""
    cursor = shop / "cursor"
    cursor.write_text(text)
    ran = cli("logs", "--cursor-file", cursor, shop)
    assert (ran.status, ran.out, cursor.read_text()) == (1, b"", text)
    assert ran.err.startswith(f"pmwal: {cursor}: ")
    assert "name another file" in ran.err


@pytest.mark.parametrize("several", [False, True])
def test_a_cursor_whose_record_is_gone_is_reported_and_the_oldest_shown(cli: Cli, shop: Path, several: bool) -> None:
    """Rolled back or truncated: status 1, and nothing that is there is left out."""
    cursor, log = shop / "cursor", shop if several else shop / "00.wal"
    arguments = ("logs", "-q", "-o", "json", "--cursor-file", cursor, log)
    cli(*arguments)
    with pmwal.open(shop / "00.wal") as wal:
        wal.rollback(after=1)
        wal.append(b"other")
    ran = cli(*arguments)
    assert (ran.status, [json.loads(line)["message"] for line in ran.lines]) == (1, ["one", "other"])
    assert ran.err == (
        f"pmwal: {shop}/00.wal: there is no record 4, which the cursor names: it was rolled back, or the log is a new one; "
        "the log holds 1 to 2; continuing with the oldest record\n"
    )


def test_the_cursor_is_saved_only_after_everything_was_written(shop: Path) -> None:
    """A reader that has gone leaves the old one."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pmwal", "logs", "--cursor-file", shop / "cursor", shop]
    status = subprocess.run(command, stdout=write, check=False).returncode
    os.close(write)
    assert (status, (shop / "cursor").exists()) == (141, False)
