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
from time import monotonic

import pytest

from fmconsume.delivery import Outcome, Verdict
from fmconsume.engine.states import Phase, Run, Snapshot, State, Stats
from fmconsume.identity import Identity
from fmconsume.moments import clock
from fmconsume.service import history as history_module
from fmconsume.service import page, style, troubles
from fmconsume.service.history import STEP, STEPS, History
from fmconsume.service.monitoring import Monitoring
from fmconsume.service.recent import Entry
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
    history.on_tick(Snapshot(history.state, Stats(), broker=name))
    history.on_depths({name: 3})
    delivery = make_delivery(queue=name, routing_key=name, message_id=name)
    history.on_outcome(Outcome(delivery, Verdict.ACK, None, 1.0))
    return history


def entries_of(text: str) -> list[Entry]:
    """Make log entries of this text."""
    return [Entry(0.0, 0.0, text, text), Entry(0.0, 1.0, "ERROR", f"{text}\n{text}", 2)]


# -- what it says


def test_render_shows_everything() -> None:
    """State, counts, queues, slow callbacks and errors are all there."""
    history = History(lambda: Stats(received=12345, failed=2))
    history.on_state(State(Phase.CONSUMING, "consuming from fruit at far"))
    history.on_tick(
        Snapshot(history.state, Stats(received=1), 4, 5, broker="far", oldest_held=62.5)
    )
    history.on_depths({"fruit": 9876})
    history.on_outcome(Outcome(make_delivery(), Verdict.DROP, None, 2.5))
    text = page.render(history, [Entry(0.0, 0.0, "ERROR", "the disk is full\nTraceback")])
    for shown in (
        '<h1 class="good">Consuming <small>no trouble</small></h1>',
        "<p>consuming from fruit at far</p>",
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


def test_render_sets_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that sets messages aside looks it for ten minutes, and says it ever after."""
    now = [1_000_000.0]
    for module in (page, history_module):
        monkeypatch.setattr(module, "time", lambda: now[0])
    history = History(Stats)
    history.on_state(State(Phase.CONSUMING, "consuming"))
    assert '<h1 class="good">' in page.render(history, [])
    history.on_outcome(Outcome(make_delivery(), Verdict.SET_ASIDE, None, 2.5))
    assert f"1 message was set aside, the last one at {clock(now[0])}." in page.render(history, [])
    for _ in range(1199):
        history.on_outcome(Outcome(make_delivery(), Verdict.SET_ASIDE, None, 2.5))
    said = f"1,200 messages were set aside, the last one at {clock(now[0])}."
    for later, head in (
        (0, '<h1 class="care">Consuming <small>messages are set aside</small></h1>'),
        (599, '<h1 class="care">'),
        (2, '<h1 class="good">'),
    ):
        now[0] += later
        text = page.render(history, [])
        assert head in text
        assert f'<p class="bad">{said}</p>' in text


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
    history.on_tick(Snapshot(history.state, Stats(), broker="amqp://far"))
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
    assert '<h1 class="bad">Consuming <small>nothing is consumed</small></h1>' in text


@pytest.mark.parametrize(
    ("phase", "color", "word"),
    [
        (Phase.CONNECTING, "care", "nothing is consumed"),
        (Phase.WAITING, "bad", "nothing is consumed"),
        (Phase.CONSUMING, "good", "no trouble"),
        (Phase.BLOCKED, "care", "needs attention"),
        (Phase.BUSY, "care", "needs attention"),
        (Phase.PREFETCH_FULL, "care", "needs attention"),
        (Phase.PARTLY_STUCK, "care", "needs attention"),
        (Phase.STUCK, "bad", "nothing is consumed"),
        (Phase.STOPPING, "care", "nothing is consumed"),
        (Phase.STOPPED, "care", "nothing is consumed"),
    ],
)
def test_render_judges(phase: Phase, color: str, word: str) -> None:
    """A state is good, needs attention or is bad: by its color, and in words."""
    history = History(Stats)
    history.on_state(State(phase, "text"))
    head = f'<h1 class="{color}">{phase.capitalize()} <small>{word}</small></h1>'
    assert head in page.render(history, [])


def test_render_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage lasts from its begin on, whatever is tried meanwhile, and then is in the past."""
    now = [1_000_000.0]
    for module in (page, troubles):
        monkeypatch.setattr(module, "time", lambda: now[0])
    history = History(Stats)
    for phase in (Phase.CONSUMING, Phase.WAITING, Phase.CONNECTING):
        history.on_state(State(phase, f"{phase}: refused"))
        now[0] += 60
    text = page.render(history, [])
    assert '<h1 class="bad">Connecting <small>nothing is consumed</small></h1>' in text
    assert "waiting for 2 min · " in text
    assert '<td class="bad" data-head="Ended">not yet</td>' in text
    history.on_state(State(Phase.CONSUMING, "consuming"))
    text = page.render(history, [])
    ended = f'<td class="" data-head="Ended">{clock(now[0])}</td>'
    assert f'{ended}<td class="number" data-head="Lasted">2 min</td>' in text
    assert '<td class="text" data-head="Text">waiting: refused</td>' in text
    assert '<h1 class="good">' in text


def test_render_runs() -> None:
    """What runs is there, the longest first, and what is past its time in red and in words."""
    runs = [
        Run(f"fmconsume-worker-{number}", make_delivery(message_id=f"apple {number}"), began, late)
        for number, began, late in ((2, monotonic() - 90, True), (1, monotonic() - 3, False))
    ]
    history = History(Stats, lambda: runs)
    history.on_tick(Snapshot(history.state, Stats(), overdue=1, workers=4))
    text = page.render(history, [])
    cells = re.findall('data-head="(For|Worker|State|Message|Queue)">(.*?)<', page._runs(runs))
    assert [value for _, value in cells] == [
        *("90 s", "fmconsume-worker-2", "past callback_timeout", "apple 2", "fruit"),
        *("3.0 s", "fmconsume-worker-1", "in time", "apple 1", "fruit"),
    ]
    assert '<td class="bad" data-head="State">past callback_timeout</td>' in text
    assert "<dt>Busy workers</dt><dd>2 of 4</dd>" in text
    assert page._runs(runs * 50).count("<tr>") == 1 + 8


def test_render_identity() -> None:
    """The page and its title say which consumer this is."""
    identity = Identity("sample <3", "far.example", 4711)
    text = page.render(History(Stats, identity=identity), [])
    assert "<title>connecting - sample &lt;3</title>" in text
    assert '<p class="dim">sample &lt;3 on far.example, process 4711 · ' in text


def test_render_counts_entries() -> None:
    """An entry that came more than once says so in its first line."""
    entries = [Entry(0.0, 60.0, "ERROR", "no\nTraceback", 1234), Entry(0.0, 0.0, "ERROR", "yes")]
    text = page.render(History(Stats), entries)
    assert f"<summary>no (1,234 times, last {clock(60.0)})</summary><pre>Traceback</pre>" in text
    assert '<td class="text" data-head="Text">yes</td>' in text


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ([], "-"),
        ([400], "-"),
        ([400, 400], "steady"),
        ([0, 0], "empty"),
        ([400, 430], "growing by 120 a minute"),
        ([0, 1250], "growing by 5,000 a minute"),
        ([430, 400], "falling by 120 a minute, empty in about 3 min"),
        ([1000, 850], "falling by 600 a minute, empty in about 80 s"),
        ([1000, 1], "falling by 3,996 a minute, empty in about 1.0 s"),
        ([430, 0], "falling by 1,720 a minute, empty now"),
    ],
)
def test_render_trend(monkeypatch: pytest.MonkeyPatch, depths: list[int], expected: str) -> None:
    """Each queue says whether it grows, or when it will be empty."""
    now = [1000.0]
    monkeypatch.setattr(history_module, "monotonic", lambda: now[0])
    history = History(Stats, queues=["fruit"])
    for depth in depths:
        now[0] += 15
        history.on_depths({"fruit": depth})
    assert f'<td class="text" data-head="Trend">{expected}</td>' in page._queues(history)


def _brightness(color: str) -> float:
    """Return the relative luminance of a color, as WCAG 2 defines it."""
    digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
    parts = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "dim", "good", "care", "bad"])
@pytest.mark.parametrize("ground", ["paper", "ground"])
def test_style_contrast(theme: int, ink: str, ground: str) -> None:
    """Every text can be read: its contrast is that of WCAG 2, level AA, or more."""
    colors = [re.findall(f"--{name}: #(\\w+);", style.STYLE)[theme] for name in (ink, ground)]
    dark, bright = sorted(map(_brightness, colors))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


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
        assert f"{tag}-src 'sha256-{digest}';" in style.POLICY


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
    with Monitoring(History(lambda: Stats(received=next(count))), "127.0.0.1", 0) as server:
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
    history = History(lambda: Stats(received=1 // max(0, 1 - next(count))))
    with Monitoring(history, "127.0.0.1", 0) as server:
        shown = browse(server, tmp_path, 7000)
    assert '<body class="stale">' in shown
    assert "<dt>Received</dt><dd>1</dd>" in shown
