"""Shipping to a collector that fails in every way: at least once, in order, and nothing acknowledged before the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pmwal
from collectors import Answer, Collector, Drop, Hang, Reply, Watch, collector, firsts, position, refusing_port, rejecting
from pmwal import events
from pmwal.events.definition import DEFINITION_KIND
from pmwal.reading.consumer import Consumer
from pmwal.ship.otlp import OtlpProgress, OtlpShipper, shipper
from pmwal.ship.otlp.exporter import PAUSE_MAX, pause_before
from pmwal.ship.otlp.sources import source_of
from processes import PATIENCE

Pauses = list[tuple[int, float | None]]
"""The arguments of each pause."""
CERTIFICATE = Path(__file__).parent / "data" / "collector.pem"


def written(path: Path, count: int) -> Path:
    """A closed log with so many records."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.extend([b"record %d" % number for number in range(1, count + 1)], kind=logging.INFO)
    return path


def ship(path: Path, to: Collector, **options: Any) -> OtlpProgress:
    """Ship all that a log has."""
    return asyncio.run(OtlpShipper(path, to=to.url, **({"timeout": PATIENCE} | options)).run(once=True))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """What the pauses are made of, which are none here."""
    asked: Pauses = []

    def pause(attempt: int, after: float | None) -> float:
        asked.append((attempt, after))
        return 0.0

    monkeypatch.setattr(shipper, "pause_before", pause)
    return asked


def test_records_arrive_once_in_order_where_nothing_fails(path: Path) -> None:
    """In full requests over one connection, as the specification has them; then all is acknowledged."""
    watch = Watch(written(path, 1300))
    with collector(look=watch) as got:
        progress = ship(path, got, headers={"api-key": "a"}, batch=512)
    assert got.seqs == list(range(1, 1301))
    assert [len(request) for request in got.taken] == [512, 512, 276]
    assert (got.connections, set(got.paths)) == (1, {"/v1/logs"})
    assert got.headers[0].items() >= {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", "api-key": "a"}.items()
    assert got.records[-1].body == "record 1300"
    assert (progress.acknowledged, progress.records, progress.requests, progress.retries) == (1300, 1300, 3, 0)
    assert progress.lag_records == 0
    assert (position(path), watch.early) == (1300, [])


@pytest.mark.parametrize(
    "reply",
    [
        *(Answer(status) for status in (429, 502, 503, 504)),
        *(Drop(), Drop(unread=True), Answer(cut=0), Answer(cut=9)),
        rejecting(0, "x" * 50)._replace(cut=100),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(path: Path, pauses: Pauses, reply: Reply) -> None:
    """The same records in the same order, until the collector has answered; the pauses count from each success."""
    watch = Watch(written(path, 30))
    with collector(reply, reply, Answer(cut=1 << 20), reply, look=watch) as got:
        progress = ship(path, got, batch=10)
    assert firsts(got.seqs) == list(range(1, 31))
    assert {tuple(record.seq for record in request) for request in got.seen} == {(*range(at, at + 10),) for at in (1, 11, 21)}
    assert progress.requests == 3
    assert (progress.retries, [attempt for attempt, _ in pauses]) == (3, [1, 2, 1])
    assert watch.early == []


def test_connection_that_ended_while_idle_is_no_failure(path: Path, pauses: Pauses) -> None:
    """A server may end a connection after an answer; the next request gets another one at once."""
    written(path, 30)
    with collector(Answer(cut=1 << 20)) as got:
        progress = ship(path, got, batch=10)
    assert got.seqs == list(range(1, 31))
    assert (progress.retries, got.connections, pauses) == (0, 2, [])


@pytest.mark.parametrize(("header", "after"), [("7", 7.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None)])
def test_server_says_when_to_come_back(path: Path, pauses: Pauses, header: str, after: float | None) -> None:
    """``Retry-After`` in seconds or as a date; anything else is ignored."""
    written(path, 1)
    with collector(Answer(503, {"Retry-After": header})) as got:
        ship(path, got)
    assert pauses == [(1, after)]


def test_pauses_grow_and_differ() -> None:
    """Twice as long each time up to a limit, never shorter than the server asks, and not the same for all shippers."""
    found = [[pause_before(attempt, None) for _ in range(20)] for attempt in range(1, 9)]
    assert all(max(shorter) <= 2 * min(longer) for shorter, longer in pairwise(found))
    assert max(found[-1]) <= PAUSE_MAX
    assert len(set(found[0])) > 1
    assert 100.0 <= pause_before(1, 100.0) < 1e9
    assert pause_before(1, 1e9) <= 3600.0


def test_refused_connection_acknowledges_nothing(path: Path, pauses: Pauses) -> None:
    """It is tried again until the shipper ends; the next one sends everything."""
    written(path, 3)
    bound, port = refusing_port()

    async def try_for_a_while() -> OtlpProgress:
        async with OtlpShipper(path, to=f"otlp+http://127.0.0.1:{port}") as refused:
            while refused.progress.retries < 3:
                await asyncio.sleep(0.01)
            assert "refused" in refused.problem
        return refused.progress

    progress = asyncio.run(asyncio.wait_for(try_for_a_while(), PATIENCE))
    bound.close()
    assert (progress.acknowledged, progress.records, progress.lag_records, position(path)) == (0, 0, 3, 0)
    with collector() as got:
        ship(path, got)
    assert got.seqs == [1, 2, 3]


def test_run_that_is_to_end_gives_up(path: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that runs once must not hang while a collector is down; the next run sends what is left."""
    monkeypatch.setattr(shipper, "_PATIENCE", 0.0)
    written(path, 20)
    with collector(Answer(), Answer(503)) as got:
        with pytest.raises(pmwal.ShipError, match=r"503 Service Unavailable; given up after 0 seconds"):
            ship(path, got, batch=10)
        assert position(path) == 10
        ship(path, got)
    assert got.seqs == list(range(1, 21))


def test_server_that_speaks_no_http_is_named_in_one_line(path: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says instead, which has a line's end and differs each time, is not repeated."""
    monkeypatch.setattr(shipper, "_PATIENCE", 0.0)
    written(path, 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b'INFO {"client_id":7}\r\n')
                while connection.recv(1 << 16):
                    pass

        greeting = threading.Thread(target=greet, daemon=True)
        greeting.start()
        shipping = OtlpShipper(path, to=f"otlp+http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(pmwal.ShipError, match=r"its answer is not one of HTTP; check the port; given up"):
            asyncio.run(shipping.run(once=True))
        greeting.join(PATIENCE)


def test_silent_server_is_left(path: Path, pauses: Pauses) -> None:
    """After the timeout the records are sent again; nothing is acknowledged meanwhile."""
    watch = Watch(written(path, 3))
    with collector(Hang(), look=watch) as got:
        progress = ship(path, got, timeout=1.0)
    assert firsts(got.seqs) == [1, 2, 3]
    assert progress.retries >= 1
    assert watch.early == []


def test_rejected_records_are_counted_and_not_sent_again(path: Path) -> None:
    """A partial success is one: the collector would reject the same records again."""
    written(path, 20)
    with collector(rejecting(2, "too old"), rejecting(0, "slow down")) as got:
        progress = ship(path, got, batch=10)
    assert got.seqs == list(range(1, 21))
    assert (progress.rejected, progress.rejection, progress.retries, position(path)) == (2, "slow down", 0, 20)


def test_partial_success_in_json_is_understood(path: Path) -> None:
    """Some servers answer in JSON whatever they were asked in; an answer that is neither is a success without details."""
    written(path, 20)
    body = b'{"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "no"}}'
    with collector(Answer(body=body, headers={"Content-Type": "application/json"}), Answer(body=b"\xff\xff")) as got:
        progress = ship(path, got, batch=10)
    assert (progress.rejected, progress.rejection, progress.acknowledged) == (3, "no", 20)


STATUS = b"\x08\x03\x12\x07no\nroom"  # a google.rpc.Status with a code and a message


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Answer(400, body=STATUS), "400 Bad Request: no room;"),
        (Answer(401, {"Content-Type": "application/json"}, b'{"message": "who?"}'), "401 Unauthorized: who?;"),
        (Answer(404, {"Content-Type": "text/plain"}, b"page not \x1b[1m found"), "404 Not Found: page not [1m found;"),
        (Answer(413, {"Content-Type": "text/html"}, b"<html>"), "413 "),
        *((Answer(status), f": {status} ") for status in (301, 403, 500, 501)),
    ],
    ids=str,
)
def test_refusal_stops_the_shipper_with_the_reason(path: Path, reply: Reply, said: str) -> None:
    """What was acknowledged before stays so, nothing else is, and the next shipper begins there."""
    watch = Watch(written(path, 30))
    with collector(Answer(), reply, look=watch) as got:
        with pytest.raises(pmwal.ShipError) as refused:
            ship(path, got, batch=10)
        assert got.url in str(refused.value)
        assert said in str(refused.value)
        assert position(path) == 10
        ship(path, got)
    assert got.seqs == list(range(1, 31))
    assert watch.early == []


def test_answer_before_the_request_was_read_counts(path: Path) -> None:
    """A proxy refuses a large request from its header, and ends the connection while the shipper is still sending."""
    with pmwal.open(path, size="32MiB") as wal:
        wal.append(Random(0).randbytes(12 << 20))
    with collector(*[Answer(413, unread=True)] * 3) as got, pytest.raises(pmwal.ShipError, match="413 "):
        ship(path, got)
    assert position(path) == 0


class Early(OtlpShipper):
    """A mistake: it acknowledges before it sends."""

    def _until_taken(self, run: Any, source: Any, body: bytes) -> Any:
        source.ack()
        return super()._until_taken(run, source, body)


def test_acknowledgement_before_the_answer_is_noticed(path: Path) -> None:
    """Negative control of ``Watch``; and the records of a request that is refused are lost so."""
    watch = Watch(written(path, 20))
    with collector(Answer(), Answer(400), look=watch) as got:
        with pytest.raises(pmwal.ShipError):
            asyncio.run(Early(path, to=got.url, batch=10).run(once=True))
        ship(path, got)
    assert watch.early == list(range(1, 21))
    assert got.seqs == list(range(1, 11))


def test_acknowledgements_are_durable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the collector would else be sent again what the writer may have freed."""
    durable, ack = [], Consumer.ack

    def noted(self: Consumer, seq: int | str, **options: Any) -> None:
        durable.append(options.get("durable"))
        ack(self, seq, **options)

    monkeypatch.setattr(Consumer, "ack", noted)
    written(path, 20)
    with collector() as got:
        ship(path, got, batch=10)
    assert durable == [True, True]


# -- in the background


def test_writer_learns_what_the_collector_has(path: Path) -> None:
    """``acked`` returns when a record has arrived, while the shipper follows the log."""

    async def main(got: Collector) -> list[list[int]]:
        seen = []
        with pmwal.open(path, size="64KiB") as wal:
            async with OtlpShipper(path, to=got.url) as running:
                for _ in range(3):
                    await running.acked(wal.append(b"x"))
                    seen.append(got.seqs)
                await running.acked(1)
        return seen

    with collector() as got:
        assert asyncio.run(main(got)) == [[1], [1, 2], [1, 2, 3]]


def test_refusal_reaches_those_who_wait(path: Path) -> None:
    """``acked`` raises what stopped the shipper, and so does the end of ``async with``."""

    async def main(got: Collector) -> None:
        async with OtlpShipper(path, to=got.url) as running:
            with pytest.raises(pmwal.ShipError, match="403 Forbidden"):
                await running.acked(1)

    written(path, 1)
    with collector(Answer(403)) as got, pytest.raises(pmwal.ShipError, match="403 Forbidden"):
        asyncio.run(main(got))


@pytest.mark.parametrize("reply", [Hang(), Answer(503, {"Retry-After": "3000"})], ids=str)
def test_shipper_ends_while_the_server_is_silent(path: Path, reply: Reply) -> None:
    """It waits neither for an answer nor for a pause to pass, and acknowledges nothing; those who wait for a record are told."""

    async def main(got: Collector) -> None:
        async with OtlpShipper(path, to=got.url, timeout=10 * PATIENCE) as running:
            waiting = asyncio.create_task(running.acked(1))
            await asyncio.to_thread(got.arrived.wait, PATIENCE)
        with pytest.raises(RuntimeError, match="ended before record 1"):
            await waiting

    written(path, 1)
    with collector(reply) as got:
        asyncio.run(asyncio.wait_for(main(got), PATIENCE))
        assert position(path) == 0
        ship(path, got)
        assert got.seqs == [1]


def test_cancelled_run_ends_its_thread(path: Path) -> None:
    """The name of the consumer is free afterwards, and nothing was acknowledged."""

    async def main(got: Collector) -> None:
        task = asyncio.create_task(OtlpShipper(path, to=got.url, timeout=10 * PATIENCE).run())
        await asyncio.to_thread(got.arrived.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pmwal.open(path, "r") as reader, reader.consumer("otlp") as consumer:
            assert consumer.position == 0

    written(path, 1)
    with collector(Hang()) as got:
        asyncio.run(asyncio.wait_for(main(got), PATIENCE))


def test_shipper_runs_once_at_a_time(path: Path) -> None:
    """A second run, and a wait without one, are mistakes of the program; runs one after another count on."""
    written(path, 2)

    async def main(got: Collector) -> None:
        one = OtlpShipper(path, to=got.url)
        with pytest.raises(RuntimeError, match="not running"):
            await one.acked(1)
        await one.run(once=True)
        async with one:
            with pytest.raises(RuntimeError, match="running already"):
                await one.run()
        with pmwal.open(path) as wal:
            wal.append(b"x")
        assert (await one.run(once=True)).records == 3

    with collector() as got:
        asyncio.run(main(got))


def test_log_that_cannot_be_read_is_an_error_at_once(path: Path) -> None:
    """Before anything runs in the background: no log, or another process that is this consumer."""
    with collector() as got:
        with pytest.raises(FileNotFoundError):
            ship(path, got)
        with (
            pmwal.open(written(path, 1), "r") as reader,
            reader.consumer("otlp"),
            pytest.raises(pmwal.ConsumerHeld),
        ):
            ship(path, got)


@pytest.mark.parametrize(("options", "message"), [({"batch": 0}, "use at least 1"), ({"timeout": 0}, "more than 0")])
def test_impossible_argument_is_refused(path: Path, options: dict[str, Any], message: str) -> None:
    """The message says what to use."""
    with pytest.raises(ValueError, match=message):
        OtlpShipper(path, to="otlp+http://h", **options)


# -- what the log does meanwhile


def test_overwritten_records_are_counted_and_the_rest_follows(path: Path) -> None:
    """Their numbers are missing at the collector, too."""
    with pmwal.open(path, size="16KiB", on_full="overwrite") as wal, collector() as got:
        wal.append(b"x")
        ship(path, got)
        last = wal.extend([b"y" * 1000] * 12)[1]
        for _ in range(20):
            last = wal.append(b"y" * 1000)
        progress = ship(path, got)
        assert got.seqs == [1, *range(wal.first_seq, last + 1)]
        assert (progress.gaps, progress.acknowledged, position(path)) == (wal.first_seq - 2, last, last)


def test_gap_is_passed_after_what_came_before_it_is_acknowledged(path: Path) -> None:
    """Else a shipper that is killed between the two would lose what it had not sent yet."""
    with pmwal.open(path, size="16KiB", on_full="overwrite") as wal:
        wal.extend([b"x"] * 3)
        source = source_of(path, "otlp")
        records = source.follow(once=True)
        first = next(records)
        for _ in range(40):
            wal.append(b"y" * 1000)
        before = [first.seq, *(record.seq for record in records)]
        assert (source.position, source.missed) == (0, 0)
        source.ack()
        assert list(source.follow(once=True)) == []
        assert (source.position, source.missed) == (wal.first_seq - 1, wal.first_seq - 1 - before[-1])
        assert [record.seq for record in source.follow(once=True)] == list(range(wal.first_seq, wal.next_seq))
        source.close()


def test_rollback_of_what_was_sent_stops_the_shipper(path: Path) -> None:
    """The collector has what the log has discarded, so whoever did that has to say where to continue."""
    written(path, 10)
    with collector() as got:
        ship(path, got)
        with pmwal.open(path) as wal:
            wal.rollback(5)
            wal.append(b"x")
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            ship(path, got)
    assert got.seqs == list(range(1, 11))


def test_definitions_are_acknowledged_without_a_request(path: Path) -> None:
    """They are a part of the events that they explain."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"", kind=DEFINITION_KIND)
    with collector() as got:
        progress = ship(path, got)
        assert (got.seen, progress.requests, progress.acknowledged) == ([], 0, 1)
        with pmwal.open(path) as wal:
            events.Logger(wal).event("{user} left")("ada")
        progress = ship(path, got)
    assert (got.seqs, progress.requests, progress.acknowledged) == ([3], 1, 3)


# -- a set of logs


def test_logs_of_a_set_are_shipped_each_in_its_order(shm_dir: Path, pauses: Pauses) -> None:
    """Each record names its log, each log has its position, and a failure repeats no more than a request."""
    paths = [shm_dir / f"{number:02}.wal" for number in range(3)]
    wals = [pmwal.open(path, size="64KiB") for path in paths]
    for number in range(60):
        wals[number % 3].append(b"%d" % number)
    with collector(Answer(), Answer(503), Drop()) as got:
        progress = ship(shm_dir, got, batch=7)
        wals[0].append(b"60")
        ship(shm_dir, got)
        of_log: dict[str, list[int]] = {}
        for record in got.records:
            of_log.setdefault(record.attributes["pmwal.log.uuid"]["stringValue"], []).append(record.seq)
        uuids = []
        for path in paths:
            with pmwal.open(path, "r") as reader:
                uuids.append(reader.uuid)
    for wal in wals:
        wal.close()
    assert {uuid: firsts(seqs) for uuid, seqs in of_log.items()} == {
        uuid: list(range(1, 22 if number == 0 else 21)) for number, uuid in enumerate(uuids)
    }
    assert [position(path) for path in paths] == [21, 20, 20]
    assert (progress.acknowledged, progress.records, progress.retries, progress.lag_records) == (0, 60, 1, 0)


def test_set_follows_new_logs(shm_dir: Path) -> None:
    """A log that another process makes meanwhile is shipped from its first record."""

    async def main(got: Collector) -> None:
        async with OtlpShipper(shm_dir, to=got.url) as running:
            with pmwal.open(shm_dir / "00.wal", size="64KiB") as wal:
                wal.append(b"x")
                while running.progress.records < 1:
                    await asyncio.sleep(0.01)
            with pytest.raises(ValueError, match="no common number"):
                await running.acked(1)

    with collector() as got:
        asyncio.run(asyncio.wait_for(main(got), PATIENCE))
    assert [record.body for record in got.records] == ["x"]


def test_set_follows_a_log_that_was_made_anew(path: Path) -> None:
    """The old log and the new one are two logs, and each record is said to be of its own."""
    uuids = []

    async def main(got: Collector) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(1, 4):
                with pmwal.open(path, size="64KiB") as wal:
                    wal.append(b"%d" % number)
                    uuids.append(wal.uuid)
                    if number == 1:
                        running = await stack.enter_async_context(OtlpShipper([path], to=got.url))
                    while running.progress.records < number:
                        await asyncio.sleep(0.01)
                path.unlink()

    with collector() as got:
        asyncio.run(asyncio.wait_for(main(got), PATIENCE))
    found = [(each.body, each.attributes["pmwal.log.uuid"]["stringValue"]) for each in got.records]
    assert found == list(zip("123", uuids, strict=True))


# -- TLS and the environment


@pytest.fixture
def tls() -> ssl.SSLContext:
    """A server with a certificate that signs itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def test_records_are_shipped_by_tls(path: Path, tls: ssl.SSLContext) -> None:
    """With the CA that the program trusts."""
    written(path, 3)
    with collector(tls=tls) as got:
        ship(path, got, tls=ssl.create_default_context(cafile=CERTIFICATE))
    assert got.seqs == [1, 2, 3]


def test_certificate_that_is_not_trusted_stops_the_shipper(path: Path, tls: ssl.SSLContext) -> None:
    """Nothing is sent, and trying again would not help."""
    written(path, 3)
    with collector(tls=tls) as got, pytest.raises(pmwal.ShipError, match="is not trusted: self-signed certificate"):
        ship(path, got)
    assert (got.seen, position(path)) == ([], 0)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the environment of a service says."""
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b")
        patched.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=x")
        patched.setenv("OTEL_SERVICE_NAME", "shop")
        yield


@pytest.mark.usefixtures("variables")
def test_environment_says_what_the_program_does_not(path: Path) -> None:
    """The variables of OpenTelemetry hold unless there is an argument."""
    written(path, 2)
    with collector() as got:
        ship(path, got, batch=1, resource={"service.version": 3})
        with pmwal.open(path) as wal:
            wal.append(b"x")
        ship(path, got, headers={}, resource={"service.name": "pay"})
    assert [headers.get("api-key") for headers in got.headers] == ["a b", "a b", None]
    first, _, last = got.records
    assert first.resource.items() >= {"service.name": {"stringValue": "shop"}, "service.version": {"intValue": "3"}}.items()
    assert first.resource["deployment.environment.name"] == {"stringValue": "test"}
    assert last.resource["service.name"] == {"stringValue": "pay"}


def test_context_for_an_address_without_tls_is_refused(path: Path) -> None:
    """What was meant to be private would be sent in plain text."""
    with pytest.raises(ValueError, match="in plain text; write otlp"):
        OtlpShipper(path, to="otlp+http://127.0.0.1:4318", tls=ssl.create_default_context())
