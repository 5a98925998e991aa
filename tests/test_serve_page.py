"""The page of ``pmwal serve`` in headless Chromium: what it shows, what it asks for, and what hostile records cannot do."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pmwal
from chromium import Browser, Page, browsing
from processes import PATIENCE, child
from serving import Served, serving

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from crash import needs

pytestmark = pytest.mark.rigs

ROWS_MAX = 1000

COLOURS = "(c) => new Set(c.getContext('2d').getImageData(50, 0, c.width - 50, c.height - 20).data).size"
"""How many values the pixels of a canvas have."""

SCRIPTS = [
    "<script>window.hurt=1</script>",
    "<img src=x onerror='window.hurt=1'>",
    "<svg onload=window.hurt=1>",
    "\"><iframe srcdoc='<script>parent.hurt=1</script>'>",
    "</span></div><style>body{display:none}</style>",
    "javascript:window.hurt=1",
    "{{constructor.constructor('window.hurt=1')()}}",
    "\u202e<script>\u0000window.hurt=1</script>",
    "data: x\n\nevent: message\ndata: {}",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; its name says what to install if there is none."""
    needs.require("chromium")
    with browsing(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab, wide and light."""
    made = browser.page()
    made.show(1280, 800)
    yield made
    made.close()


@pytest.fixture
def served(shm_dir: Path) -> Iterator[Served]:
    """A server of a directory."""
    (shm_dir / "logs").mkdir()
    with serving(shm_dir / "logs") as running:
        yield running


@pytest.fixture
def shop(shm_dir: Path, served: Served) -> Iterator[logging.Logger]:
    """A logger whose lines the server shows."""
    handler = pmwal.LogHandler(shm_dir / "logs" / "00.wal", size="4MiB", structured=True)
    logger = logging.Logger("shop.orders")
    logger.addHandler(handler)
    yield logger
    handler.close()


def texts(page: Page) -> list[str]:
    """The messages in the rows."""
    found: list[str] = page.run("[...document.querySelectorAll('.row .text')].map((row) => row.firstChild.data)")
    return found


def opened(page: Page, served: Served, count: int) -> None:
    """Open the page, and wait for so many rows."""
    page.go(served.line)
    page.wait(f"document.querySelectorAll('.row').length >= {count}")


def test_page_shows_entries_as_they_come(page: Page, served: Served, shop: logging.Logger) -> None:
    """What is there first, then each new one, with its level, logger, message and fields."""
    shop.info("paid", extra={"user": 17})
    opened(page, served, 1)
    shop.error("failed")
    page.wait("document.querySelectorAll('.row').length === 2")
    assert texts(page) == ["paid", "failed"]
    row = page.run("document.querySelector('.row').innerText")
    assert all(part in row for part in ("INFO", "shop.orders", "paid", "user=17"))
    assert page.run("document.querySelectorAll('.row')[1].className") == "row error"
    page.wait("document.getElementById('state').textContent === 'live'")
    assert page.errors == []


def test_token_leaves_the_url_and_the_page_asks_only_its_server(page: Page, served: Served, shop: logging.Logger) -> None:
    """It is in no request's URL, in no cookie and not in the history; a reload needs no new one, another tab does."""
    shop.info("x")
    opened(page, served, 1)
    assert page.run("location.href") == f"http://127.0.0.1:{served.port}/"
    assert page.run("document.cookie") == ""
    page.call("Page.reload")
    page.wait("document.querySelectorAll('.row').length === 1")
    entries = page.call("Page.getNavigationHistory")["entries"]
    assert [entry["url"] for entry in entries if served.token in entry["url"]] == []
    own = f"http://127.0.0.1:{served.port}/"
    assert [
        url for url in page.requests if not url.startswith((own, "about:")) or served.token in url.removeprefix(served.line)
    ] == []


def test_page_without_a_token_asks_for_it(page: Page, served: Served, shop: logging.Logger) -> None:
    """And shows nothing before."""
    shop.info("secret")
    page.go(f"http://127.0.0.1:{served.port}/")
    page.wait("document.getElementById('sign-in').open")
    assert "secret" not in page.run("document.documentElement.outerHTML")
    page.run("document.getElementById('token').focus()")
    page.type(served.token)
    page.key("Enter")
    page.wait("document.querySelectorAll('.row').length === 1")


@pytest.mark.parametrize("place", ["message", "fields", "logger", "level", "traceback", "payload"])
def test_hostile_records_are_text(page: Page, served: Served, shm_dir: Path, place: str) -> None:
    """Nothing of a record becomes an element or runs, in the rows and in what opens; the policy had nothing to refuse."""
    with pmwal.open(shm_dir / "logs" / "00.wal", size="1MiB") as wal:
        for script in SCRIPTS:
            document: dict[str, Any] = {"message": "m", "logger": "l", "level": "ERROR"}
            if place == "payload":
                wal.append(script.encode())
                continue
            if place == "fields":
                document |= {"extra": {script: script, "__proto__": script, "list": [script, {script: None}]}}
            elif place == "traceback":
                document |= {"exc_info": script}
            else:
                document |= {place: script}
            wal.append(json.dumps(document).encode(), kind=40)
    opened(page, served, len(SCRIPTS))
    page.run("document.querySelectorAll('.row').forEach((row) => row.click())")
    page.wait("document.querySelectorAll('.detail').length > 0")
    time.sleep(0.3)
    assert page.run("window.hurt === undefined && getComputedStyle(document.body).display !== 'none'")
    assert page.run("document.querySelectorAll('#rows :is(script, img, svg, iframe, style, a)').length") == 0
    if place == "message":
        assert page.run("document.querySelector('.row .text').firstChild.data") == SCRIPTS[0]
    assert [ord(each) for each in page.run("document.getElementById('rows').textContent") if each in "\u202e\u0000"] == []
    assert page.errors == []


def test_filters_and_their_url(page: Page, served: Served, shop: logging.Logger) -> None:
    """Level, logger, field and pattern; the URL has them, so that a reload keeps them, and what is no pattern is said."""
    for number in range(10):
        shop.log(logging.INFO if number % 2 else logging.ERROR, "line %d", number, extra={"user": number % 3})
    opened(page, served, 10)
    for _ in range(3):
        page.key("l")
    page.wait("document.querySelectorAll('.row').length === 5")
    page.key("/")
    page.type("LINE [0-4]")
    page.wait("document.querySelectorAll('.row').length === 0 && !document.getElementById('nothing').hidden")
    page.run("document.getElementById('grep').value = ''")
    page.type("line [0-4]")
    page.wait("document.querySelectorAll('.row').length === 3")
    assert "level=err" in page.run("location.hash")
    page.call("Page.reload")
    page.wait("document.querySelectorAll('.row').length === 3")
    page.key("x")
    page.wait("document.querySelectorAll('.row').length === 10")
    page.run("document.getElementById('field').focus()")
    page.type("user=1")
    page.wait("document.querySelectorAll('.row').length === 3")
    page.run("document.getElementById('field').value = ''; document.getElementById('grep').focus()")
    page.type("(")
    page.wait("document.getElementById('wrong').textContent.includes('no pattern')")
    assert page.run("document.getElementById('grep').getAttribute('aria-invalid')") == "true"


def test_keys_pause_move_and_open(page: Page, served: Served, shop: logging.Logger) -> None:
    """A pause misses nothing; an open entry has its fields, and a click on one filters by it."""
    for number in range(5):
        shop.info("line %d", number, extra={"user": number})
    opened(page, served, 5)
    page.key("p")
    page.wait("document.getElementById('state').textContent === 'paused'")
    shop.info("meanwhile")
    time.sleep(0.5)
    assert len(texts(page)) == 5
    page.key("p")
    page.wait("document.querySelectorAll('.row').length === 6")
    assert texts(page)[-1] == "meanwhile"
    for key in ("j", "j", "k", "j", "Enter"):
        page.key(key)
    page.wait("document.querySelector('.detail') !== null")
    assert page.run("document.querySelector('.chosen .text').firstChild.data") == "line 1"
    page.run("document.querySelector('.detail button').click()")
    page.wait("document.querySelectorAll('.row').length === 1")
    assert page.run("document.getElementById('field').value") == "user=1"
    page.run("document.activeElement.blur()")
    page.key("?")
    page.wait("document.getElementById('help').open")
    page.key("Escape")


def test_page_continues_when_the_server_comes_back(page: Page, shm_dir: Path) -> None:
    """It says that the server is gone, and continues after the last entry, none lost and none twice."""
    (shm_dir / "token").write_text("token-for-this-test-0123")
    (shm_dir / "token").chmod(0o600)
    with pmwal.open(shm_dir / "app.wal", size="64KiB") as wal:
        with serving(shm_dir / "app.wal", "--token-file", shm_dir / "token") as served:
            wal.extend([b"a", b"b"])
            opened(page, served, 2)
            port = served.port
            served.end()
            page.wait("document.getElementById('state').className === 'state lost'")
        wal.append(b"c")
        with serving(shm_dir / "app.wal", "--token-file", shm_dir / "token", "--port", port):
            page.wait("document.querySelectorAll('.row').length >= 3")
            wal.append(b"d")
            page.wait("document.querySelectorAll('.row').length >= 4")
            assert texts(page) == ["a", "b", "c", "d"]


def test_figures_show_rates_fill_and_latencies(page: Page, served: Served, shm_dir: Path, tmp_path: Path) -> None:
    """Numbers, and pictures that are drawn."""
    with pmwal.open(shm_dir / "logs" / "00.wal", size="4MiB", medium="file", on_full="overwrite") as wal:
        wal.append(b"x")
        opened(page, served, 1)
        deadline = time.monotonic() + PATIENCE
        while page.run("document.getElementById('p99').textContent") == "\u2013" and time.monotonic() < deadline:
            for _ in range(50):
                wal.append(b"y")
        page.wait("document.getElementById('records').textContent !== '\u2013'")
        assert page.run("document.querySelector('#logs .share').textContent").endswith("%")
        assert page.run("document.querySelector('#logs li').className") == "running"
        assert page.wait(f"({COLOURS})(document.getElementById('heat')) > 4")


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_every_window(page: Page, served: Served, shop: logging.Logger, width: int, dark: bool) -> None:
    """Nothing overflows sideways, text has contrast in both colour schemes, and every control can be reached."""
    for number in range(30):
        shop.warning("a rather long line %d %s", number, "x" * 300, extra={"user": number})
    page.show(width, 800, dark=dark, mobile=width < 500)
    opened(page, served, 30)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("document.getElementById('tail').scrollWidth <= document.getElementById('tail').clientWidth")
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) < 300) is dark
    page.run("document.getElementById('figures-button').click()")
    assert page.run("document.getElementById('heat').clientWidth") > 200
    named = "(each) => each.ariaLabel || each.textContent"
    assert page.run(f"[...document.querySelectorAll('button, input, select')].every({named})")


def write_fast(pipe: Any, path: Path, rate: int, seconds: float) -> None:
    """Log ``rate`` records a second; their number is the answer."""
    with pmwal.open(path, size="16MiB", commit=0.05, on_full="overwrite") as wal:
        pipe.send("open")
        begun, count = time.monotonic(), 0
        while (passed := time.monotonic() - begun) < seconds:
            due = int(passed * rate) - count
            if due > 0:
                wal.extend(
                    [
                        b'{"message": "order paid", "level": "INFO", "logger": "shop", "order": %d}' % (count + n)
                        for n in range(due)
                    ],
                    kind=20,
                )
                count += due
            time.sleep(0.01)
    pipe.send(count)


def memory_of(browser: Browser) -> int:
    """Private memory of the browser's processes, in bytes."""
    processes = [browser.process.pid, *(each.pid for each in psutil.Process(browser.process.pid).children(recursive=True))]
    return sum(psutil.Process(pid).memory_full_info().uss for pid in processes)


@pytest.mark.parametrize("seconds", [8, pytest.param(600, marks=pytest.mark.nightly)])
def test_page_takes_ten_thousand_records_a_second(
    browser: Browser, page: Page, served: Served, shm_dir: Path, seconds: int
) -> None:
    """Memory is bounded in server and browser, the rows are few, and every entry was shown or is counted as dropped."""
    server = psutil.Process(served.process.pid)
    with child(write_fast, shm_dir / "logs" / "00.wal", 10_000, seconds) as writer:
        assert writer.hear() == "open"
        opened(page, served, 100)
        time.sleep(3)
        page.run("gc()")
        before = server.memory_full_info().uss, memory_of(browser)
        while not writer.heard(0.5):
            assert page.run("document.querySelectorAll('#rows > *').length") <= ROWS_MAX
        written = writer.hear()
    page.wait("!document.getElementById('drops').hidden")
    page.run("gc()")
    time.sleep(1)
    assert page.run("Number(document.getElementById('drops').textContent.replace(/[^0-9]/g, ''))") > written / 4
    assert server.memory_full_info().uss - before[0] < 32 << 20
    assert memory_of(browser) - before[1] < 128 << 20
    assert page.errors == []
