"""Tests of the image, run as OpenShift runs it with the configuration of the sample manifest."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers import EMPTY, GROUP, HOUSE, USER, Image, stop
from tests.waiting import PATIENCE, wait_until

from .broker import Broker, free_port

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image that the Containerfile makes."""
    return Image(tmp_path_factory.mktemp("image"))


def readable(folder: Path) -> Path:
    """Make a folder that any user may read."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    return folder


class Pod:
    """A pod of the manifest, on this machine.

    Args:
        document: A Deployment or a ScaledJob.
        port: Of its HTTP server, which is on the host's network here.
    """

    def __init__(self, folder: Path, document: dict[str, Any], port: int) -> None:
        spec = document["spec"].get("jobTargetRef", document["spec"])["template"]["spec"]
        (self.container,) = spec["containers"]
        self.port = port
        self._config = readable(folder / "config")
        self._out = folder / "out"

    def configure(self, name: str, text: str) -> None:
        """Write a file of the ConfigMap."""
        (self._config / name).write_text(text.replace("8070", str(self.port)), encoding="utf-8")

    @contextmanager
    def running(
        self, image: Image, *more: str, srv: str = EMPTY
    ) -> Iterator[subprocess.Popen[str]]:
        """Run its container, with more arguments and a folder in /srv; it is gone afterwards."""
        sources = {"config": str(self._config), "state": EMPTY, "tmp": EMPTY}
        mounts = {each["mountPath"]: each["name"] for each in self.container["volumeMounts"]}
        ours = {path: sources[name] for path, name in mounts.items() if name in sources}
        arguments = [*self.container["args"], *more]
        with self._out.open("w") as out:
            container = image.start(
                *arguments, volumes={**ours, "/srv": srv}, stdout=out, stderr=out
            )
        try:
            yield container
        finally:
            container.kill()
            container.wait()

    def said(self) -> str:
        """Give what it has written."""
        return self._out.read_text(encoding="utf-8")

    def answers(self, path: str) -> int:
        """Give the status of an HTTP answer, or 0."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


@pytest.fixture
def pods(tmp_path: Path, broker: Broker, queue: str) -> dict[str, Pod]:
    """The pods of the manifest, by kind, for the broker and the queue of this test."""
    text = (HOUSE / "etc" / "openshift.yaml").read_text(encoding="utf-8")
    documents = {each["kind"]: each for each in yaml.safe_load_all(text)}
    pods = {}
    for kind in ("Deployment", "ScaledJob"):
        pods[kind] = Pod(tmp_path / kind, documents[kind], free_port())
        for name, config in documents["ConfigMap"]["data"].items():
            ours = config.replace(name.partition(".")[0], queue)
            pods[kind].configure(name, f'amqp_url = "{broker.url()}"\n{ours}')
    return pods


def test_image_holds_no_tools(image: Image) -> None:
    """Nothing that builds or installs is left, and root owns all that runs."""
    assert image.final.packages == {"ca-certificates", "python3", "tini"}
    place = image.final.place("/opt/fmconsume")
    names = {path.name.partition("-")[0] for path in place.glob("lib/python3*/site-packages/*")}
    assert {"fmconsume", "pika", "tomli", "prometheus_client"} <= names
    assert not names & {"pip", "setuptools", "wheel", "_distutils_hack"}
    assert not list(place.glob("bin/pip*"))
    assert re.fullmatch(r"[1-9]\d*:0", image.final.user)


def test_image_is_confined(image: Image) -> None:
    """What these tests run has the user id that OpenShift gives, and a root that is read-only."""
    script = "id -u; id -g; touch /srv/x /opt/fmconsume/x /etc/x || exit 7"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    container = image.final.start("sh", "-c", script, volumes={"/tmp": EMPTY}, **pipes)
    out, err = container.communicate(timeout=PATIENCE)
    assert container.returncode == 7
    assert err.count("Read-only file system") == 3
    # Who is not root cannot have another id.
    assert out.split() == [str(USER if os.getuid() == 0 else 0), str(GROUP)]


def test_image_without_arguments(image: Image) -> None:
    """It reads the file that fedora-messaging reads, which has to be mounted."""
    container = image.start(volumes={}, stderr=subprocess.PIPE)
    _, err = container.communicate(timeout=PATIENCE)
    assert container.returncode == 2
    assert "/etc/fedora-messaging/config.toml" in err


def test_deployment(image: Image, pods: dict[str, Pod], broker: Broker, queue: str) -> None:
    """The pod consumes, its probes and metrics answer, and it ends with 0 when it is told to."""
    pod = pods["Deployment"]
    probes = [
        pod.container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")
    ]
    with pod.running(image) as container:
        for path in (*probes, "/metrics"):
            wait_until(lambda path=path: pod.answers(path) == 200 or container.poll() is not None)
        broker.publish(queue, [{"for": "the pod"}])
        wait_until(lambda: "the pod" in pod.said() or container.poll() is not None)
        assert container.poll() is None, pod.said()
        stop(container)
        assert container.wait(PATIENCE) == 0, pod.said()
    assert "WARNING" not in pod.said()


def test_job(
    image: Image, pods: dict[str, Pod], broker: Broker, queue: str, tmp_path: Path
) -> None:
    """The job handles what waits with a callback from /srv, and ends with 0."""
    broker.publish(queue, [{"for": "the job"}])
    srv = readable(tmp_path / "srv")
    (srv / "recorder.py").write_text("def record(message):\n    print('recorded', message.body)\n")
    pod = pods["ScaledJob"]
    with pod.running(image, "--callback", "recorder:record", srv=str(srv)) as container:
        assert container.wait(PATIENCE) == 0, pod.said()
    assert "recorded {'for': 'the job'}" in pod.said()
    assert broker.ready(queue) == 0
