"""What ``pmwal.integrations.prometheus`` exports of logs."""

from __future__ import annotations

import os
import socket
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

import pmwal
from pmwal.integrations.prometheus import COUNTERS, GAUGES, Collector
from support import open_small
from test_metrics import Stopwatch

pytestmark = pytest.mark.both_engines


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry of its own for each test."""
    return CollectorRegistry()


def test_prometheus_sees_every_counter(path: Path, registry: CollectorRegistry) -> None:
    """Each figure has the value in stats(), labelled with the path."""
    with open_small(path, medium="file", on_full="overwrite") as wal:
        registry.register(Collector(wal))
        for _ in range(400):
            wal.append(bytes(100))
        stats, labels = wal.stats(), {"log": str(path)}
        assert stats.overwritten > 0
        for name, (attribute, _) in COUNTERS.items():
            assert registry.get_sample_value(f"pmwal_{name}_total", labels) == getattr(stats, attribute), name
        for name, (attribute, _) in GAUGES.items():
            holder, _, inner = attribute.rpartition(".")
            value = getattr(stats.recovery if holder else stats, inner)
            assert registry.get_sample_value(f"pmwal_{name}", labels) == value, name
        facts = labels | {key: getattr(stats, key) for key in ("engine", "medium", "durability", "filesystem", "flush", "ordering")}
        assert registry.get_sample_value("pmwal_log_info", facts) == 1


def test_prometheus_sees_the_latencies_in_buckets(path: Path, registry: CollectorRegistry) -> None:
    """Buckets are cumulative, in seconds, and the last one holds everything."""
    durations = [90, 100, 150, 900_000, 2_000_000, 20 * 10**9]
    with open_small(path, medium="file", seam=Stopwatch(durations)) as wal:
        registry.register(Collector(wal))
        for _ in durations:
            wal.append(b"x")
        name, labels = "pmwal_commit_latency_seconds", {"log": str(path)}
        found = {
            bound: registry.get_sample_value(f"{name}_bucket", labels | {"le": bound})
            for bound in ("1e-07", "2e-07", "0.001", "0.005", "10.0", "+Inf")
        }
        assert list(found.values()) == [2, 3, 4, 5, 5, 6]
        assert registry.get_sample_value(f"{name}_count", labels) == 6
        assert registry.get_sample_value(f"{name}_sum", labels) == pytest.approx(sum(durations) / 1e9)


def test_one_collector_serves_many_logs_and_lets_go_of_closed_ones(shm_dir: Path, registry: CollectorRegistry) -> None:
    """A closed log is no longer reported, a dropped one is not kept alive, and one may be added later."""
    one, two, three = (open_small(shm_dir / f"{name}.wal") for name in ("one", "two", "three"))
    collector = Collector(one, two)
    registry.register(collector)
    collector.add(three)
    one.close()
    with pytest.warns(ResourceWarning, match="without close"):
        del two
    text = generate_latest(registry).decode()
    assert [name for name in ("one", "two", "three") if f"/{name}.wal" in text] == ["three"]
    three.close()
    assert 'log="' not in generate_latest(registry).decode()


def test_forked_child_is_scraped_without_its_parents_logs(path: Path, registry: CollectorRegistry) -> None:
    """A worker that inherited the collector reports nothing of its parent's, and does not fail."""
    with open_small(path) as wal:
        registry.register(Collector(wal))
        child = os.fork()
        if child == 0:
            try:
                os._exit(1 if str(path).encode() in generate_latest(registry) else 0)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert str(path).encode() in generate_latest(registry)


NAMES = [
    'say "hi".wal',
    "two\nlines.wal",
    "back\\slash\\n.wal",
    "größe.wal",
    "{a=b},.wal",
    "tab\t\r.wal",
    b"\xff\xfe.wal",
    b"\xed\xa0\x80.wal",
]
"""Names that a text format could trip over; the last two are not UTF-8."""


@pytest.mark.parametrize("form", ["text", "openmetrics"])
@pytest.mark.parametrize("name", NAMES)
def test_prometheus_survives_any_path(shm_dir: Path, registry: CollectorRegistry, name: str | bytes, form: str) -> None:
    """The export is UTF-8, and a parser finds the path in it; bytes that are not UTF-8 are escaped."""
    path = os.path.join(os.fsencode(shm_dir), os.fsencode(name))
    with open_small(os.fsdecode(path)) as wal:
        registry.register(Collector(wal))
        wal.append(b"x")
        if form == "text":
            families = text_string_to_metric_families(generate_latest(registry).decode())
        else:
            families = openmetrics_families(openmetrics_latest(registry).decode())
        samples = {sample.name: sample for family in families for sample in family.samples}
    expected = path.decode(errors="backslashreplace")
    assert (samples["pmwal_appends_total"].labels["log"], samples["pmwal_appends_total"].value) == (expected, 1)
    assert expected.isprintable() or isinstance(name, str)


@pytest.mark.filterwarnings("ignore::pmwal.UnlinkedWarning")
def test_two_logs_with_one_path_are_one_sample(path: Path, registry: CollectorRegistry) -> None:
    """Prometheus refuses a scrape with the same sample twice; the log that was added last has the name."""
    with open_small(path) as old:
        path.unlink()
        with open_small(path) as new:
            registry.register(Collector(old, new))
            new.append(b"x")
            lines = [line for line in generate_latest(registry).decode().splitlines() if line.startswith("pmwal_appends_total{")]
    assert lines == [f'pmwal_appends_total{{log="{path}"}} 1.0']


def test_log_that_is_closed_during_a_scrape_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may close it after the collector has looked."""
    with open_small(path) as wal:
        collector = Collector(wal)

        def closed(*_: object) -> None:
            raise pmwal.WalClosed(f"{path}: closed")

        monkeypatch.setattr(type(wal), "stats", closed)
        assert all(not family.samples for family in collector.collect())


def test_two_servers_survive_clients_that_hang_up(path: Path, registry: CollectorRegistry) -> None:
    """Two servers of one registry are scraped while clients close their connections without reading."""
    with open_small(path) as wal:
        registry.register(Collector(wal))
        wal.append(b"x")
        servers = [start_http_server(0, addr="127.0.0.1", registry=registry) for _ in range(2)]
        try:
            for server, _ in servers:
                for request in (b"GET /metrics HTTP/1.0\r\n\r\n", b"GET /met", b""):
                    with socket.create_connection(server.server_address[:2]) as client:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
                        client.sendall(request)
                url = f"http://127.0.0.1:{server.server_port}/metrics"
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert b'pmwal_appends_total{log="%b"} 1.0' % bytes(path) in answer.read()
        finally:
            for server, thread in servers:
                server.shutdown()
                server.server_close()
                thread.join()
