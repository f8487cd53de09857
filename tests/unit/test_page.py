"""Tests of the status page: what it says, and how a real browser takes it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fmconsume.delivery import Outcome, Verdict
from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.service import history as history_module
from fmconsume.service import page
from fmconsume.service.history import STEP, STEPS, Entry, History
from fmconsume.service.monitoring import Monitoring
from tests.waiting import PATIENCE

from .fakes import make_delivery
from .test_monitoring import port_of

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;\"'"


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")


def history_of(name: str) -> History:
    """Make a history in which everything has this name."""
    history = History(Stats)
    history.on_state(State(Phase.WAITING, f"not consuming: {name}"))
    history.on_tick(Snapshot(history.state, Stats(), 0, 0, 0, 0, 0, name))
    history.on_depths({name: 3})
    delivery = make_delivery(queue=name, routing_key=name, message_id=name)
    history.on_outcome(Outcome(delivery, Verdict.ACK, None, 1.0))
    return history


def entries_of(text: str) -> list[Entry]:
    """Make log entries of this text."""
    return [Entry(0.0, text, text), Entry(0.0, "ERROR", f"{text}\n{text}")]


# -- what it says


def test_render_shows_everything() -> None:
    """State, counts, queues, slow callbacks and errors are all there."""
    history = History(lambda: Stats(received=12345, failed=2))
    history.on_state(State(Phase.CONSUMING, "consuming from fruit at far"))
    history.on_tick(Snapshot(history.state, Stats(received=1), 3, 4, 5, 0, 0, "far", 62.5))
    history.on_depths({"fruit": 9876})
    history.on_outcome(Outcome(make_delivery(), Verdict.DROP, None, 2.5))
    text = page.render(history, [Entry(0.0, "ERROR", "the disk is full\nTraceback")])
    for shown in (
        '<h1 class="good">Consuming</h1>\n<p>consuming from fruit at far</p>',
        "<dt>Last delivery</dt><dd>now</dd>",
        "<dt>Received</dt><dd>12,345</dd>",
        '<div class="bad"><dt>Failed</dt><dd>2</dd></div>',
        '<div class=""><dt>Set aside</dt><dd>0</dd></div>',
        "<dt>Nacks held</dt><dd>5</dd>",
        "<dt>Oldest held</dt><dd>62 s</dd>",
        '<td class="text" data-head="Queue">fruit</td>',
        '<td class="number" data-head="Ready">9,876</td>',
        '<td class="number" data-head="Took">2.5 s</td>',
        '<td class="text" data-head="Message">apple</td>',
        '<td class="text" data-head="Topic">fruit.ripe</td>',
        "<summary>the disk is full</summary><pre>Traceback</pre>",
    ):
        assert shown in text


def test_render_set_aside_and_failed() -> None:
    """Messages set aside, and failures, are in red: in the counts, by queue and by callback."""
    history = History(lambda: Stats(set_aside=2))
    for verdict in (Verdict.NACK, Verdict.SET_ASIDE, Verdict.SET_ASIDE):
        history.on_outcome(Outcome(make_delivery(), verdict, None, 2.5))
    text = page.render(history, [])
    assert '<div class="bad"><dt>Set aside</dt><dd>2</dd></div>' in text
    assert '<div class=""><dt>Failed attempts</dt><dd>3</dd></div>' in text
    assert '<td class="number bad" data-head="Set aside">2</td>' in text
    assert '<td class="number" data-head="Failed">0</td>' in text
    assert '<td class="number" data-head="Failed attempts">3</td>' in text
    assert text.count('<td class="bad" data-head="Outcome">set aside</td>') == 2


def test_render_counts_by_verdict() -> None:
    """Each column of the table of queues counts the verdict that its head names."""
    history = History(Stats)
    for number, verdict in enumerate(Verdict, 1):
        for _ in range(number):
            history.on_outcome(Outcome(make_delivery(), verdict))
    cells = re.findall('<td class="number.*?" data-head="(.*?)">(.*?)</td>', page._queues(history))
    assert cells == [
        ("Ready", "-"),
        ("Acknowledged", "1"),
        ("Requeued", "2"),
        ("Dropped", "3"),
        ("Rejected", "4"),
        ("Set aside", "5"),
        ("Failed", "6"),
        ("Failed attempts", "0"),
        ("Mean time", "-"),
    ]


def test_render_nothing_held() -> None:
    """While no Nack is held, none is the oldest."""
    assert "<dt>Oldest held</dt><dd>-</dd>" in page.render(History(Stats), [])


def test_render_names_the_state() -> None:
    """Where the state is, and how much it holds, is beside the other facts."""
    history = History(Stats)
    history.on_tick(Snapshot(history.state, Stats(), notes="state '/var/x' holds 7 notes"))
    assert " · state &#x27;/var/x&#x27; holds 7 notes</p>" in page.render(history, [])


def test_render_names_the_broker_once() -> None:
    """The broker is named by the state, or else beside it."""
    history = History(Stats)
    history.on_tick(Snapshot(history.state, Stats(), 0, 0, 0, 0, 0, "amqp://far"))
    assert page.render(history, []).count("amqp://far") == 1
    history.on_state(State(Phase.CONSUMING, "consuming from fruit at amqp://far"))
    assert page.render(history, []).count("amqp://far") == 1


def test_render_silent_supervisor() -> None:
    """A page whose supervisor is dead says so, and does not look well."""
    history = History(Stats)
    history.on_state(State(Phase.CONSUMING, "consuming from fruit at far"))
    history.seen -= 100
    text = page.render(history, [])
    assert "There is no sign of life from the supervisor for 100 s." in text
    assert '<h1 class="">Consuming</h1>' in text


def test_render_escapes() -> None:
    """Nothing that comes from outside becomes markup."""
    harmless, evil = (
        Tags(page.render(history_of(name), entries_of(name))) for name in ("fruit", EVIL)
    )
    assert evil.tags == harmless.tags
    assert evil.tags.count("script") == 1
    assert evil.attributes == harmless.attributes


def test_render_needs_nothing_from_elsewhere() -> None:
    """The page refers to nothing, and its policy allows its own script and style alone."""
    text = page.render(history_of(EVIL), entries_of(EVIL))
    assert Tags(text).attributes["href"] == ["data:,"]
    assert "src" not in Tags(text).attributes
    for tag in ("script", "style"):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert len(content) == 1
        assert f"{tag}-src 'sha256-{digest}';" in page.POLICY


def points_of(history: History) -> list[tuple[float, ...]]:
    """Return the points of the chart's line."""
    line = re.search('<polyline class="curve" points="(.*?)"', page.render(history, []))
    assert line is not None
    return [tuple(map(float, point.split(","))) for point in line[1].split()]


def test_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line ends at the right, is as high as the rate, and begins when the consumer did."""
    now = [1000.0]
    for module in (history_module, page):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    history = History(Stats)
    assert points_of(history) == []
    for count in (50, 0, 100):
        for _ in range(count):
            history.on_outcome(Outcome(make_delivery(), Verdict.ACK))
        now[0] += STEP
    (_, half), (_, bottom), (right, top) = points_of(history)
    assert (top, half, bottom, right) == (0, 60, 120, 720)
    assert ">20</text>" in page.render(history, [])
    assert "<dt>Per second</dt><dd>10.0</dd>" in page.render(history, [])
    now[0] += STEP * STEPS * 2
    history.on_tick(history.snapshot)
    assert len(points_of(history)) == STEPS
    assert points_of(history)[0] == (0, 120)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 1), (1, 1), (1.1, 2), (2.1, 5), (99, 100), (100, 100), (101, 200)]
)
def test_round_up(value: float, expected: float) -> None:
    """An axis ends at a round number."""
    assert page._round_up(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00012, "0.1 ms"),
        (0.9999, "999.9 ms"),
        (1, "1.0 s"),
        (59.6, "60 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (864000, "10 d"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    """Times are written as a person would."""
    assert page._duration(seconds) == expected


# -- in a browser


def browse(server: Monitoring, folder: Path, milliseconds: int) -> str:
    """Open the page for a while, as the browser counts time, and return what it shows then."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "chromium is not installed: run `make test`, which installs it"
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder}", "--enable-logging=stderr", "--dump-dom"),
        *(f"--virtual-time-budget={milliseconds}", f"http://127.0.0.1:{port_of(server)}/"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert "Content Security Policy" not in done.stderr
    return done.stdout


def test_page_in_browser(tmp_path: Path) -> None:
    """The page refreshes itself, and no message takes it over."""
    count = itertools.count(1)
    with Monitoring(lambda: Stats(received=next(count)), "127.0.0.1", 0) as server:
        vars(server.history).update({**vars(history_of(EVIL)), "stats": server.history.stats})
        shown = browse(server, tmp_path, 7000)
    assert "<title>waiting - fmconsume</title>" in shown
    assert '<body class="">' in shown
    received = re.search("<dt>Received</dt><dd>(.*?)</dd>", shown)
    assert received is not None
    assert int(received[1]) > 1


def test_page_in_browser_consumer_gone(tmp_path: Path) -> None:
    """A page whose consumer answers no more says that it is old."""
    count = itertools.count()
    with Monitoring(lambda: Stats(received=1 // max(0, 1 - next(count))), "127.0.0.1", 0) as server:
        shown = browse(server, tmp_path, 7000)
    assert '<body class="stale">' in shown
    assert "<dt>Received</dt><dd>1</dd>" in shown
