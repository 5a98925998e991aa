"""``pmwal serve``: entries, ranges, filters, streams and figures over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest

import pmwal
from pmwal.cli.filters import Choice
from pmwal.cli.serving import walks
from pmwal.cli.serving.names import Names, parse_position
from pmwal.cli.serving.patterns import PATTERN_MAX, compile_pattern
from pmwal.cli.serving.queries import Query, Range, parse_query, parse_range
from pmwal.cli.serving.stream import COUNT_MAX, WAITING_MAX, Outbox
from pmwal.events import Logger
from processes import PATIENCE
from serving import Served, serving

LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


def log_lines(directory: Path, count: int = 40) -> None:
    """Two logs of a set, whose lines alternate."""
    handlers = [pmwal.LogHandler(directory / f"{number:02}.wal", size="256KiB", structured=True) for number in range(2)]
    for number in range(count):
        logger = logging.Logger("shop.orders" if number % 4 < 2 else "shop.web")
        logger.addHandler(handlers[number % 2])
        logger.log(LEVELS[number % 4], "line %d", number, extra={"user": number % 5, "order": f"o{number}"})
        time.sleep(0.000_002)
    for handler in handlers:
        handler.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the logs of two processes."""
    made = tmp_path_factory.mktemp("logs")
    log_lines(made)
    return made


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Served]:
    """A server of that directory."""
    with serving(directory) as running:
        yield running


def numbers(messages: list[str]) -> list[int]:
    """The numbers in the messages of ``log_lines``."""
    return [int(message.removeprefix("line ")) for message in messages]


# -- entries


def test_entries_are_json_lines_in_the_order_of_time(served: Served) -> None:
    """Without parameters all entries of all logs come, each an object with all that a person reads."""
    answer = served.get("/entries")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert numbers(answer.messages) == list(range(40))
    entry = answer.entries[6]
    assert (entry["log"], entry["seq"], entry["levelno"], entry["level"]) == ("00", 4, 30, "WARNING")
    assert (entry["logger"], entry["fields"]["user"], entry["fields"]["order"]) == ("shop.web", 1, "o6")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", entry["time"])


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("level=warning", [number for number in range(40) if number % 4 >= 2]),
        ("level=info..warning", [number for number in range(40) if number % 4 in (1, 2)]),
        ("level=3", [number for number in range(40) if number % 4 == 3]),
        ("logger=shop.web", [number for number in range(40) if number % 4 >= 2]),
        ("logger=*.orders&level=info", [number for number in range(40) if number % 4 == 1]),
        ("field=user%3D3", [3, 8, 13, 18, 23, 28, 33, 38]),
        ("field=user%3D3&field=order%3Do13", [13]),
        ("field=absent%3D1", []),
        ("field=absent", []),
        ("field=order&limit=2", [0, 1]),
        ("field=user%3D3&field=user%3D4&limit=3", [3, 4, 8]),
        ("grep=line%201%5B0-2%5D%24", [10, 11, 12]),
        ("grep=LINE%2017%24", []),
        ("grep=%28%3Fi%29LINE%2017%24", [17]),
        ("since=1970&until=tomorrow&limit=3", [0, 1, 2]),
        ("since=tomorrow", []),
        ("until=1970", []),
        ("limit=0", []),
        ("limit=2&grep=%5C%5B", []),
    ],
)
def test_filters_select_entries(served: Served, parameters: str, wanted: list[int]) -> None:
    """Level, logger, fields, a pattern and time select, together where several are given."""
    assert numbers(served.get(f"/entries?{parameters}").messages) == wanted


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("entries=", list(range(40))),
        ("entries=:3", [0, 1, 2]),
        ("entries=:5:3", [5, 6, 7]),
        ("entries=:-4:", [36, 37, 38, 39]),
        ("entries=:-4:2", [36, 37]),
        ("entries=:-1000:2", [0, 1]),
        ("entries=:1000:2", []),
    ],
)
def test_ranges_count_from_either_end(served: Served, header: str, wanted: list[int]) -> None:
    """A range without a cursor begins at the oldest entry, or goes back from the newest."""
    assert numbers(served.get("/entries", headers={"Range": header}).messages) == wanted


@pytest.mark.parametrize(
    ("rest", "wanted"),
    [("", list(range(20, 40))), (":2", [20, 21]), (":1:2", [21, 22]), (":-3:4", [17, 18, 19, 20]), (":-100:2", [0, 1])],
)
def test_range_begins_with_the_entry_of_its_cursor(served: Served, rest: str, wanted: list[int]) -> None:
    """As with systemd-journal-gatewayd: the entry itself is the first, unless it is skipped."""
    cursor = served.get("/entries").entries[20]["cursor"]
    assert numbers(served.get("/entries", headers={"Range": f"entries={cursor}{rest}"}).messages) == wanted


def test_ranges_count_matching_entries(served: Served) -> None:
    """What a filter leaves out is not skipped either."""
    assert numbers(served.get("/entries?level=err", headers={"Range": "entries=:-3:2"}).messages) == [31, 35]
    assert numbers(served.get("/entries?level=err", headers={"Range": "entries=:1:2"}).messages) == [7, 11]
    assert numbers(served.get("/entries?grep=nothing", headers={"Range": "entries=:-3:2"}).messages) == []


@pytest.mark.parametrize("index", [0, 1, 17, 38, 39])
def test_every_cursor_continues_after_its_entry(served: Served, index: int) -> None:
    """In a set of logs too, nothing is left out and nothing comes twice."""
    cursor = served.get("/entries").entries[index]["cursor"]
    assert numbers(served.get(f"/entries?cursor={quote(cursor)}").messages) == list(range(index + 1, 40))


def test_newest_are_those_of_all_logs_together(shm_dir: Path) -> None:
    """A log that writes much does not hide the newer entries of one that writes little, filtered or not."""
    with pmwal.open(shm_dir / "quiet.wal", size="64KiB") as quiet, pmwal.open(shm_dir / "busy.wal", size="4MiB") as busy:
        for number in range(20):
            quiet.append(b"quiet %d x" % number, kind=20)
            busy.extend([b"busy %d %d %b" % (number, part, b"x" if part == 0 else b"-") for part in range(300)])
    with serving(shm_dir) as served:
        every = served.get("/entries").messages
        assert served.get("/entries", headers={"Range": "entries=:-700:"}).messages == every[-700:]
        matching = [message for message in every if message.endswith("x")]
        assert served.get("/entries?grep=x%24", headers={"Range": "entries=:-25:"}).messages == matching[-25:]
        assert served.get("/entries?level=info", headers={"Range": "entries=:-3:"}).messages == [
            f"quiet {n} x" for n in (17, 18, 19)
        ]


@pytest.mark.parametrize(
    ("parameters", "headers", "said"),
    [
        ("nothing=1", {}, "'nothing' is no parameter"),
        ("level=loud", {}, "is no level"),
        ("since=someday", {}, "cannot parse the time"),
        ("field=%3D17", {}, "NAME=VALUE"),
        ("grep=%28", {}, "is no pattern"),
        ("grep=%28%3F%3Dx%29", {}, "no look-around"),
        ("cursor=x", {}, "is no cursor"),
        ("cursor=00%40x", {}, "is no cursor"),
        ("limit=-1", {}, "whole number"),
        ("limit=1&limit=2", {}, "too often"),
        ("follow=maybe", {}, "follow is 1 or 0"),
        ("follow=1&until=now", {}, "leave it out to follow"),
        ("&".join(f"field=a%3D{number}" for number in range(17)), {}, "too often"),
        ("logger=" + "x" * 600, {}, "500 characters"),
        ("", {"Range": "bytes=0-10"}, "entries=CURSOR"),
        ("", {"Range": "entries=:1:2:3"}, "entries=CURSOR"),
        ("", {"Range": "entries=:x:2"}, "SKIP"),
        ("", {"Range": "entries=::x"}, "COUNT"),
        ("", {"Range": "entries=:-1000000:2"}, "at most 100000"),
        ("limit=1", {"Range": "entries=:1"}, "not both"),
        ("", {"Accept": "text/event-stream", "Last-Event-ID": "x"}, "is no cursor"),
    ],
)
def test_wrong_requests_say_what_is_wrong(served: Served, parameters: str, headers: dict[str, str], said: str) -> None:
    """Each is refused with 400 and a sentence."""
    answer = served.get(f"/entries?{parameters}", headers=headers)
    assert answer.status == 400
    assert said in answer.json["error"]


def test_only_reading_is_answered(served: Served) -> None:
    """Other methods and paths are refused, and HEAD has no body."""
    assert [served.get("/entries", method=method).status for method in ("POST", "PUT", "DELETE", "PATCH")] == [405] * 4
    assert served.get("/other").status == 404
    assert served.get("/../etc/passwd").status == 404
    head = served.get("/entries?follow=1", method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_cursor_of_a_record_that_was_rolled_back_is_gone(shm_dir: Path) -> None:
    """410 tells the client to begin again, in streams too."""
    with pmwal.open(shm_dir / "app.wal", size="64KiB") as wal:
        wal.extend([b"a", b"b"])
        with serving(shm_dir / "app.wal") as served:
            cursor = served.get("/entries").entries[1]["cursor"]
            wal.rollback(after=1)
            wal.append(b"c")
            for headers in ({}, {"Accept": "text/event-stream"}):
                answer = served.get(f"/entries?cursor={cursor}", headers=headers)
                assert (answer.status, "rolled back" in answer.json["error"]) == (410, True)


def test_entries_that_were_overwritten_are_counted(shm_dir: Path) -> None:
    """A client that comes late learns how many it missed, and gets the rest."""
    with pmwal.open(shm_dir / "app.wal", size="64KiB", on_full="overwrite") as wal, serving(shm_dir / "app.wal") as served:
        wal.append(b"first")
        cursor = served.get("/entries").entries[0]["cursor"]
        for number in range(1000):
            wal.append(b"%d" % number * 100)
        entries = served.get(f"/entries?cursor={cursor}").entries
        missed = sum(entry.get("missed", 0) for entry in entries)
        assert missed > 0
        assert missed + sum("message" in entry for entry in entries) == 1000


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe not utf-8",
        b"",
        b'{"message": "deep", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"message": "nan", "x": NaN, "y": Infinity, "z": 1e999}',
        b'{"message": "large", "x": 123456789012345678901234567890, "y": 9007199254740993}',
        b'{"message": "\\ud800\\u2028\\u0000", "\\udfff": "\\n\\r"}',
        b'{"message": "line\\n\\ndata: forged\\n\\n"}',
        b"<script>alert(1)</script>\r\nid: forged\r\n\r\n",
        b"[" * 100_000,
        "\U0001f4a9 \u202e".encode(),
    ],
    ids=range(10),
)
def test_any_payload_is_one_line_that_strict_parsers_take(shm_dir: Path, payload: bytes) -> None:
    """Whatever was stored, each entry is one line of ASCII, JSON to the letter, as a line and as an event."""
    with pmwal.open(shm_dir / "app.wal", size="1MiB") as wal:
        wal.extend([payload, b"after"])
    with serving(shm_dir / "app.wal") as served:
        body = served.get("/entries").body

        def refuse(constant: str) -> Any:
            raise ValueError(constant)

        entries = [json.loads(line, parse_constant=refuse) for line in body.decode("ascii").split("\n")[:-1]]
        assert [entry["seq"] for entry in entries] == [1, 2]
        for value in entries[0].get("fields", {}).values():
            assert not isinstance(value, int | float) or abs(value) <= 2**53
        with served.events("/entries?follow=0") as events:
            assert [(event.name, event.data["seq"]) for event in events] == [("message", 1), ("message", 2)]


def test_events_and_their_arguments_are_entries(shm_dir: Path) -> None:
    """What ``pmwal.events`` stores has its level, name and arguments, and values that JSON lacks are text."""
    with pmwal.open(shm_dir / "app.wal", size="64KiB") as wal:
        fill = Logger(wal, name="trades").event("order {id} at {px} {raw}", level=logging.WARNING)
        fill(17, math.inf, b"\x00\xff")
    with serving(shm_dir / "app.wal") as served:
        (entry,) = served.get("/entries?level=warning&logger=trades&field=id%3D17").entries
        assert (entry["level"], entry["logger"]) == ("WARNING", "trades")
        assert entry["fields"] == {"id": 17, "px": "inf", "raw": {"base64": "AP8="}}
        assert served.get("/entries?level=err").entries == []
        assert served.get("/entries").messages == [entry["message"]]


def test_long_entries_are_cut_on_request(shm_dir: Path) -> None:
    """``cut`` limits the characters of an entry, which then says so; without it everything comes."""
    with pmwal.open(shm_dir / "app.wal", size="4MiB") as wal:
        wal.extend([b"x" * 1_000_000, json.dumps({"message": "m", "list": list(range(100_000))}).encode(), b"short"])
    with serving(shm_dir / "app.wal") as served:
        whole, cut = served.get("/entries").entries, served.get("/entries?cut=1000")
        assert (len(whole[0]["message"]), len(whole[1]["fields"]["list"])) == (1_000_000, 100_000)
        assert [entry.get("cut", False) for entry in cut.entries] == [True, True, False]
        assert len(cut.body) < 8000


# -- names


@pytest.mark.parametrize(
    ("places", "paths", "names"),
    [
        (["logs"], ["logs/00.wal", "logs/01.wal"], ["00", "01"]),
        (["app.wal"], ["app.wal"], ["app"]),
        (["a", "b"], ["a/00.wal", "b/00.wal"], ["a/00", "b/00"]),
        (["x/a", "y/a"], ["x/a/00.wal", "y/a/00.wal"], ["a/00", "a/00~2"]),
        (["x/app.wal", "y/app.wal"], ["x/app.wal", "y/app.wal"], ["app", "app~2"]),
        (["*/app.wal"], ["x/app.wal", "y/app.wal"], ["x/app", "y/app"]),
        (["logs", "app.wal"], ["logs/00.wal", "app.wal"], ["logs/00", "app"]),
        (["a.wal"], [b"\xff.wal".decode(errors="surrogateescape")], ["\\xff"]),
    ],
)
def test_names_are_short_and_unique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[str], paths: list[str], names: list[str]
) -> None:
    """The stem of the file, after the name of the directory where several are served; never a longer path."""
    monkeypatch.chdir(tmp_path)
    for place in places:
        if not place.endswith(".wal"):
            (tmp_path / place).mkdir(parents=True)
    made = Names(places)
    assert [made.of(path) for path in paths] == names
    assert [made.of(path) for path in paths] == names


def test_position_survives_any_name() -> None:
    """Names with separators, spaces and other characters come back."""
    text = f"{quote('a b,@:~ü/00', safe='/')}@17-0badcafe,b@2-00000000"
    position = parse_position(text)
    assert (position.newest, dict(position.cursors)) == ("a b,@:~ü/00", {"a b,@:~ü/00": "17-0badcafe", "b": "2-00000000"})
    assert parse_position(str(position)) == position
    assert ":" not in str(position)
    with pytest.raises(ValueError, match="characters"):
        parse_position("a@1-00000000," * 2000)


def test_answers_have_no_path_and_no_uuid(shm_dir: Path) -> None:
    """Neither in entries, cursors, figures and metrics, nor in errors, also where a log cannot be read."""
    log_lines(shm_dir)
    (shm_dir / "broken.wal").write_bytes(b"no log at all\n" * 1000)
    with serving(shm_dir) as served, pmwal.LogSet(sorted(shm_dir.glob("0?.wal"))) as logs:
        secrets = [str(shm_dir), shm_dir.name, ".wal", *(reader.uuid for reader in logs.logs.values())]
        cursor = served.get("/entries").entries[3]["cursor"]
        bodies = [
            served.get(path).body.decode()
            for path in (
                "/entries",
                f"/entries?cursor={cursor}",
                "/stats?after=0",
                "/metrics",
                "/other",
                "/entries?cursor=00%401-00000000",
            )
        ]
    assert [secret for secret in secrets for body in bodies if secret in body] == []


# -- following


def follow_all(log: Path) -> pmwal.Wal:
    """A log whose records are durable at once."""
    return pmwal.open(log, size="256KiB")


def test_stream_sends_what_is_there_and_what_comes(shm_dir: Path) -> None:
    """Each entry is an event whose id is its cursor."""
    with follow_all(shm_dir / "app.wal") as wal, serving(shm_dir / "app.wal") as served:
        wal.append(b"before")
        with served.events("/entries") as events:
            first = next(events)
            assert (first.data["message"], first.id) == ("before", first.data["cursor"])
            wal.append(b"after")
            assert next(events).data["message"] == "after"


def test_stream_continues_after_the_last_event(shm_dir: Path) -> None:
    """``Last-Event-ID`` wins over the range and the cursor that a browser sends again with it."""
    with follow_all(shm_dir / "app.wal") as wal, serving(shm_dir / "app.wal") as served:
        wal.extend([b"a", b"b", b"c"])
        with served.events("/entries", {"Range": "entries=:-2:"}) as events:
            begun = next(events)
            assert begun.data["message"] == "b"
        wal.append(b"d")
        with served.events("/entries", {"Range": "entries=:-2:", "Last-Event-ID": begun.id}) as events:
            assert [next(events).data["message"] for _ in range(2)] == ["c", "d"]
        with served.events(f"/entries?cursor={begun.id}", {"Last-Event-ID": next(iter([begun.id]))}) as events:
            assert next(events).data["message"] == "c"


def test_stream_from_the_newest_sends_only_what_comes(shm_dir: Path) -> None:
    """Going back by none of the matches there are, it begins at the end."""
    with follow_all(shm_dir / "app.wal") as wal, serving(shm_dir / "app.wal") as served:
        wal.extend([b"old 1", b"old 2"])
        with served.events("/entries?grep=new", {"Range": "entries=:-5:"}) as events:
            wal.extend([b"new 3", b"other", b"new 4"])
            assert [next(events).data["message"] for _ in range(2)] == ["new 3", "new 4"]


def test_lines_can_be_followed_and_limited(shm_dir: Path) -> None:
    """``follow`` works for JSON lines, and ``limit`` ends it."""
    with follow_all(shm_dir / "app.wal") as wal, serving(shm_dir / "app.wal") as served:
        wal.append(b"one")
        with served.stream("/entries?follow=1&limit=2") as response:
            assert json.loads(response.readline())["message"] == "one"
            wal.append(b"two")
            assert json.loads(response.readline())["message"] == "two"
            assert response.read() == b""


def test_logs_that_appear_are_followed(shm_dir: Path) -> None:
    """A new slot of a directory is part of a stream that has begun, and of a directory that was empty at start."""
    (shm_dir / "logs").mkdir()
    with serving(shm_dir / "logs") as served, served.events("/entries") as events:
        for name in ("00", "01"):
            with follow_all(shm_dir / "logs" / f"{name}.wal") as wal:
                wal.append(name.encode())
                assert (event := next(events).data)["message"] == event["log"] == name


def test_stream_ends_with_the_server(shm_dir: Path) -> None:
    """SIGTERM ends streams and the server, without a message and within its time."""
    with follow_all(shm_dir / "app.wal") as wal, serving(shm_dir / "app.wal") as served, served.events("/entries") as events:
        wal.append(b"x")
        next(events)
        begun = time.monotonic()
        assert served.end() == (0, "")
        assert time.monotonic() - begun < PATIENCE / 2
        assert list(events) == []


# -- figures


def test_stats_show_what_writers_do(shm_dir: Path) -> None:
    """Fill, numbers, rates and the percentiles of commits of each log, and samples for a picture."""
    with pmwal.open(shm_dir / "app.wal", size="4MiB") as wal, serving(shm_dir) as served:
        wal.extend([b"x"] * 10)
        ticks, deadline = [0], time.monotonic() + PATIENCE
        while ticks[-1] < 3 and time.monotonic() < deadline:
            for _ in range(100):
                wal.append(b"y" * 10)
            time.sleep(0.1)  # the server looks once a second: far more would not fit
            stats = served.get("/stats?after=0").json
            ticks.append(stats["tick"])
        (log,) = stats["logs"]
        assert (log["name"], log["writer"]["alive"], log["bounds"]["first_seq"]) == ("app", True, 1)
        assert 10 < log["bounds"]["last_seq"] <= wal.committed_seq
        assert 0 < log["bounds"]["fill"] < 1
        assert log["commit_latency"]["since_open"]["count"] > 0
        assert {"p50_ns", "p99_ns", "max_ns"} <= set(log["commit_latency"]["since_open"])
        assert ticks == sorted(ticks)
        sample = stats["samples"][-1]
        assert {"tick", "time_ms", "records", "bytes", "commits", "latency"} == set(sample)
        assert served.get(f"/stats?after={stats['tick'] + 100}").json["samples"] == []
        assert served.get("/stats?after=x").status == 400


def test_metrics_are_what_prometheus_reads(shm_dir: Path) -> None:
    """The text parses, and has the figures of each log under its name."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    with follow_all(shm_dir / 'a"b\\c.wal') as wal, serving(shm_dir) as served:
        for _ in range(200):
            wal.append(b"x")
        answer = served.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        for name, value in (("pmwal_writer_running", 1), ("pmwal_last_seq", 200), ("pmwal_first_seq", 1)):
            assert [(sample.labels, sample.value) for sample in families[name].samples] == [({"log": 'a"b\\c'}, value)]
        buckets = [sample.value for sample in families["pmwal_commit_latency_seconds"].samples]
        assert buckets == sorted(buckets)
        assert buckets[-1] > 0
        assert families["pmwal_serve_dropped"].samples[0].value == 0


# -- parsing


def test_range_is_that_of_gatewayd() -> None:
    """CURSOR[[:SKIP]:COUNT], each part may be empty."""
    assert parse_range("entries=a@1-00000000:2:3") == Range(parse_position("a@1-00000000"), 2, 3)
    assert parse_range("entries=a@1-00000000:3") == Range(parse_position("a@1-00000000"), 0, 3)
    assert parse_range("entries=") == Range(None, 0, None)


@pytest.mark.parametrize(("text", "follow"), [(None, True), ("0", False), ("1", True), ("", True), ("false", False)])
def test_event_streams_follow_unless_told_otherwise(text: str | None, follow: bool) -> None:
    """A browser's EventSource would connect again and again to one that ends."""
    parameters = [] if text is None else [("follow", text)]
    assert parse_query(parameters, {"accept": "text/event-stream"}).follow is follow


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){25}$", "(?:x+x+)+y", "([a-z]+)*!"])
def test_patterns_cost_linear_time(pattern: str) -> None:
    """What makes a backtracking engine take years ends at once."""
    begun = time.process_time()
    assert compile_pattern(pattern).search("a" * 50_000 + "x" * 50_000 + "-") is None or pattern
    assert time.process_time() - begun < 30


@pytest.mark.parametrize("pattern", ["x" * (PATTERN_MAX + 1), "((a{100}){100}){100}", "(", "(?=a)", r"(a)\1", "\\"])
def test_patterns_that_are_too_large_or_none_are_refused(pattern: str) -> None:
    """A sentence says why; memory is limited, too."""
    with pytest.raises(ValueError, match="pattern"):
        compile_pattern(pattern)


@pytest.mark.parametrize("skip", [0, -3])
@pytest.mark.parametrize("follow", [False, True])
def test_search_ends_when_its_time_is_up(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, skip: int, follow: bool) -> None:
    """The client is told where it was; one that follows waits for new entries then."""
    monkeypatch.setattr(walks, "SEARCH_SECONDS", -1.0)
    monkeypatch.setattr(walks, "_CHECKED", 1)
    log, told = shm_dir / "app.wal", []
    with follow_all(log) as wal:
        wal.extend([b"old"] * 100)
        logs = walks.StoppableSet([str(log)])
        query = Query(Choice(pattern=compile_pattern("new")), skip=skip, follow=follow, limit=1)
        walk = walks.Walk(logs, Names([str(log)]), query, lambda: told.append(str(walk.position)))
        wal.append(b"new")
        if follow and not skip:  # what is followed from the beginning is no search: the client may go
            assert [record.data for record, _ in walk.found()] == [b"new"]
            assert told == []
            return
        if follow:
            Thread(target=lambda: [time.sleep(0.3), wal.append(b"new too")], daemon=True).start()
        assert [record.data for record, _ in walk.found()] == ([b"new too"] if follow else [])
        assert len(told) == 1
        logs.close()


def test_walk_ends_when_it_is_stopped(shm_dir: Path) -> None:
    """A walk that waits for records ends soon after its client has gone."""
    log = shm_dir / "app.wal"
    with follow_all(log) as wal:
        wal.append(b"x")
        logs = walks.StoppableSet([str(log)])
        walk = walks.Walk(logs, Names([str(log)]), Query(follow=True), lambda: None)
        found = walk.found()
        next(found)
        logs.stopped.set()
        with pytest.raises(walks.Stopped):
            next(found)
        logs.close()


def test_what_waits_for_a_client_is_limited() -> None:
    """Bytes and entries; a larger entry waits alone."""

    async def body() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        counts = [0, 0]
        while outbox.put(b"x", wait=False):
            counts[0] += 1
        await outbox.take(1)
        while outbox.put(b"x" * 10_000, wait=False):
            counts[1] += 1
        await outbox.take(1)
        assert counts == [COUNT_MAX, WAITING_MAX // 10_000]
        assert outbox.put(b"x" * (2 * WAITING_MAX), wait=False)
        assert not outbox.put(b"x", wait=False)
        outbox.note(dropped=3, missed=4)
        chunk, dropped, missed = await outbox.take(1) or (b"", 0, 0)
        assert (len(chunk), dropped, missed) == (2 * WAITING_MAX, 3, 4)
        outbox.close()
        assert await outbox.take(1) is None

    asyncio.run(body())
