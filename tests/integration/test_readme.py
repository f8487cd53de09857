"""What the README shows does what it says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Broker

pytestmark = pytest.mark.long
HOUSE = Path(__file__).parents[2]
README = (HOUSE / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Give the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def config(broker: Broker, tmp_path: Path) -> Path:
    """A configuration that says only where the broker is."""
    path = tmp_path / "config.toml"
    path.write_text(f'amqp_url = "{broker.url()}"\n')
    return path


def test_readme_first_sample(broker: Broker, config: Path, tmp_path: Path) -> None:
    """The first sample prints what is published, and ends with 0 on SIGTERM."""
    sample = tmp_path / "sample.py"
    sample.write_text(blocks("python")[0])
    process = subprocess.Popen(
        [sys.executable, "-u", str(sample)],
        env={**os.environ, "FMCONSUME_CONF": str(config)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout

        def has_queue() -> bool:
            broker.publish("readme.first", [{"n": 1}], exchange="amq.topic")
            return "amq.topic" in bindings_of_nameless(broker)

        wait_until(has_queue)
        broker.publish("readme.first", [{"n": 2}], exchange="amq.topic")
        wait_until(lambda: "readme.first {'n': 2}" in process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def bindings_of_nameless(broker: Broker) -> str:
    """Give the bindings of queues that the broker named."""
    table = broker.ctl("list_bindings", "source_name", "destination_name")
    return "\n".join(line for line in table.splitlines() if "amq.gen-" in line)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of an ordinary user, who may write nowhere else."""
    with tempfile.TemporaryDirectory(prefix="fmconsume-readme-") as name:
        if not os.geteuid():
            os.chown(name, _NOBODY, _NOBODY)
        yield Path(name)


@pytest.fixture
def samples(broker: Broker, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The files of "Run it", with another broker; its queue goes afterwards."""
    code, settings = tmp_path / "recorder.py", tmp_path / "sample.toml"
    code.write_text(blocks("python")[1])
    toml = blocks("toml")[0].replace("amqp://guest:guest@localhost/", broker.url())
    settings.write_text(toml)
    yield code, settings
    broker.delete("topics")


_NOBODY = 65534
#: The capability to read and to search everything, as in a root's home, where Python may be.
_READER = 1 << 2


def ordinary() -> list[str]:
    """Give the beginning of a command line that runs the rest as a user who is not root."""
    if os.geteuid():
        return []
    change = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    (mine,) = re.findall(r"^CapPrm:\s+(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    if int(mine, 16) & _READER:
        change += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return change


def commands(title: str, prompt: str) -> list[str]:
    """Give the commands of a section, without the prompt."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    shown = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^{re.escape(prompt)} (.*)", "".join(shown), re.MULTILINE)


def with_python(**more: str) -> dict[str, str]:
    """Give an environment with the tests' Python on the path, and no home."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": "/nonexistent", **more}


@contextmanager
def shell(*before: str, command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command line of the README, with the tests' Python on the path."""
    line = [*before, "sh", "-euc", command]
    with subprocess.Popen(line, env=with_python(), text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for_consumer(broker: Broker) -> None:
    """Wait until the samples consume."""
    wait_until(lambda: "topics" in broker.ctl("list_consumers", "queue_name"))


def test_readme_run_it(broker: Broker, place: Path, samples: tuple[Path, ...]) -> None:
    """The commands of "Run it" do what it says, for a user who may write to one folder only."""
    for sample in samples:
        shutil.copy(sample, place)
    check, consume, *publish, show = commands("Run it", "$")

    def finish(command: str) -> str:
        pipe = subprocess.PIPE
        with shell(*ordinary(), command=command, cwd=place, stdout=pipe) as process:
            printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
        return printed

    assert "Recorder" in finish(check)
    with shell(*ordinary(), command=f"exec {consume}", cwd=place) as process:
        wait_for_consumer(broker)
        finish("\n".join(publish))
        wait_until(lambda: broker.depth("topics") == (0, 0))
        assert finish(show) == "org.centos.prod.hello\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.fixture
def host(tmp_path: Path, samples: tuple[Path, ...]) -> Path:
    """The folder that stands for / of a host, once "Keep it running" has been followed."""
    source, root = tmp_path / "source", tmp_path / "host"
    names = ("tests", "benchmarks", "build", "dist", ".*", "__pycache__", "*.egg-info")
    shutil.copytree(HOUSE, source, ignore=shutil.ignore_patterns(*names))
    for sample in samples:
        shutil.copy(sample, source)
    *lines, enable = commands("Keep it running", "#")
    assert enable == "systemctl enable --now fm-consumer@sample"
    # The package's requirements, and what builds it, are those of the tests: 0 is no isolation.
    env = with_python(PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_CONFIG_FILE=os.devnull)
    env.pop("PYTHONPATH", None)
    for line in lines:
        command = ["sh", "-euc", below(root, line)]
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if "-m venv" in line:
            (packages,) = root.glob("opt/sample/lib/python*/site-packages")
            (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    return root


def below(root: Path, text: str) -> str:
    """Put the absolute paths of a text below a folder."""
    return re.sub(r"(?<![\w/.])/(?=(opt|etc|var)/)", f"{root}/", text)


def test_readme_keep_it_running(broker: Broker, host: Path, place: Path) -> None:
    """systemd accepts the unit; its command works as the unit says, for a user who is not root."""
    (unit,) = host.glob("etc/systemd/system/*.service")
    unit.write_text(below(host, unit.read_text()))
    verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    settings = re.findall(r"^(\w+)=(.*)", unit.read_text().replace("%i", "sample"), re.MULTILINE)
    (command,) = (value for key, value in settings if key == "ExecStart")
    (folder,) = (value for key, value in settings if key == "WorkingDirectory")
    variables = dict(value.split("=", 1) for key, value in settings if key == "Environment")
    env = {**variables, "STATE_DIRECTORY": str(place)}
    with subprocess.Popen(
        [*ordinary(), *command.split()], cwd=folder.lstrip("-"), env=env
    ) as process:
        try:
            wait_for_consumer(broker)
            broker.publish("org.centos.prod.hello", [{"n": 0}], exchange="amq.topic")
            written = place / "topics.txt"
            wait_until(lambda: written.exists() and broker.depth("topics") == (0, 0))
            assert written.read_text() == "org.centos.prod.hello\n"
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
    assert (place / "state").is_dir()


def test_readme_testing_sample() -> None:
    """The testing sample passes."""
    code = next(block for block in blocks("python") if "deliver" in block)
    subprocess.run([sys.executable, "-c", f"{code}\ntest_callback()"], check=True, timeout=PATIENCE)
