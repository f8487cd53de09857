"""The benchmark's own rules: a run that lost or repeated a message counts for nothing."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.clients.contract import Tally
from benchmarks.measures import MEASURES, Figure, Target, compare
from benchmarks.messages import make_body
from benchmarks.report import plot, table, write
from benchmarks.runner import CLIENTS, OURS, ROOT, Bench, Run, Settings, Void, finish, read

RUN = Run(messages=3, seconds=0.5, cpu_seconds=0.1, rss_kb=20_480, latencies_us=[])


def tally(capsys: pytest.CaptureFixture[str], *numbers: int) -> str:
    """Return what a client prints that has seen these messages."""
    tally = Tally(len(numbers))
    for number in numbers:
        tally.see({"n": number})
    tally.report()
    return capsys.readouterr().out


def test_read_each_number_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages may come in any order."""
    assert read("pika", tally(capsys, 2, 0, 1), 3).messages == 3


def test_read_repeated_number(capsys: pytest.CaptureFixture[str]) -> None:
    """A message that came twice, so that another is missing, makes the run void."""
    with pytest.raises(Void, match="pika: of 3 messages 1 missing, 1 repeated"):
        read("pika", tally(capsys, 0, 1, 1), 3)


def test_read_other_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A client that counted to another number than it was told makes the run void."""
    with pytest.raises(Void):
        read("pika", tally(capsys, 0, 1), 3)


def test_report_before_the_end() -> None:
    """A client that ends too early fails instead of printing a result."""
    with pytest.raises(RuntimeError, match="before it had seen every message"):
        Tally(2).report()


def test_see_tells_the_last() -> None:
    """A client stops at the last message, however the numbers are ordered."""
    tally = Tally(2)
    assert [tally.see({"n": 1}), tally.see({"n": 0})] == [False, True]


def test_finish_failed_client() -> None:
    """A client that fails makes the run void, and its last words are shown."""
    command = [sys.executable, "-c", "raise SystemExit('no broker')"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    with process, pytest.raises(Void, match="kombu failed: no broker"):
        finish("kombu", process, 1)


@pytest.mark.parametrize("number", [0, 9, 10, 19_999])
def test_make_body_size(number: int) -> None:
    """Every body has the same size, and its number first, where the client in C looks for it."""
    text = json.dumps(make_body(number, 512))
    assert len(text) == 512
    assert text.startswith(f'{{"n": {number}, ')


def test_compare_pairs_rounds() -> None:
    """A ratio compares what was measured in the same round, not two medians."""
    figure = compare("speed", "/s", [10, 30, 90], [10, 10, 10])
    assert figure.ratios == [1, 3, 9]
    assert (figure.ours, figure.theirs, figure.ratio, figure.is_met) == (30, 10, 3, None)


def test_table_shows_spread_and_verdict() -> None:
    """Each row tells the median, the extremes, the target and whether it is met."""
    rows = table(
        [
            Figure("speed", 9000, 4500, "/s", [1.9, 2.0, 2.5], Target(">=", 2.0)),
            Figure("memory", 30, 20, " MB", [1.5], Target("<=", 1.2), "as seen by the kernel"),
        ]
    ).splitlines()
    speed, memory, note = (" ".join(row.split()) for row in rows[1:])
    assert speed == "speed 9,000/s 4,500/s 2.00 (1.90..2.50) >= 2 met"
    assert memory == "memory 30 MB 20 MB 1.50 (1.50..1.50) <= 1.2 NOT MET"
    assert note == "as seen by the kernel"


def test_plot_names_every_client() -> None:
    """The plot is well-formed and has two bars for each client."""
    root = ElementTree.fromstring(plot({name: [RUN] for name in CLIENTS}, "R & D"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    bars = [element for element in root.iter() if "bar" in element.get("class", "")]
    assert set(CLIENTS.values()) <= set(texts)
    assert len(bars) == 2 * len(CLIENTS)


def test_write_results(tmp_path: Path) -> None:
    """The JSON file holds the circumstances, each figure, and each round of each client."""
    figure = compare("speed", "/s", [4.0], [2.0], Target(">=", 2.0))
    write(tmp_path, [figure], {"pika": [RUN, RUN]}, {"python": "3.9", "size_bytes": 512})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["python"] == "3.9"
    assert (results["figures"][0]["ratio"], results["figures"][0]["met"]) == (2.0, True)
    assert results["clients"]["pika"]["messages_per_second"] == [4, 4]
    assert (tmp_path / "throughput.svg").exists()


@pytest.mark.parametrize("client", [OURS, "pika", "pika_batched"])
def test_consume_stream(client: str) -> None:
    """A client takes each message from the peer once, whether it acknowledges one or many."""
    bench = Bench(None, Settings())  # type: ignore[arg-type]
    run = bench.consume_stream(client, 450, prefetch=100)
    assert run.messages == 450


def test_clients_have_scripts() -> None:
    """Each client has a script, in Python or in C."""
    scripts = {path.stem for path in (Path(main.__code__.co_filename).parent / "clients").iterdir()}
    assert set(CLIENTS) <= scripts


def test_main_unknown_measure(capsys: pytest.CaptureFixture[str]) -> None:
    """A measure that does not exist is refused before a broker is started."""
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no measure speed" in capsys.readouterr().err
    assert all(measure.__doc__ for measure in MEASURES.values())


def test_readme_quotes_the_results() -> None:
    """The README's ratios and picture are those of the results that stand beside the code."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks/results/results.json").read_text())
    quoted = {figure["name"]: _quote(figure["ratios"]) for figure in results["figures"]}
    rows = re.findall(r"^\| (.+) \| (\d.+) \| (\d.+) \|$", readme.partition("## Speed")[2], re.M)
    assert rows == [
        (client, quoted[f"throughput vs {client}"], quoted[f"CPU for a message vs {client}"])
        for client in (CLIENTS[name] for name in CLIENTS if name != OURS)
    ]
    (ratio,) = re.findall(r"([\d.]+) times the throughput of pika by hand", readme)
    assert quoted["prefetch 10 vs pika by hand"].startswith(f"{ratio} ")
    (picture,) = re.findall(r"!\[.*\]\((.+svg)\)", readme)
    labels = [text.text for text in ElementTree.parse(ROOT / picture).iter() if text.text]
    assert {CLIENTS[name] for name in results["clients"]} <= set(labels)


def _quote(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
