"""Weights are nowhere but in memory: every byte that sealing and serving write or send is looked at, by strace.

strace sees what the locked processes do; it does not loosen them. The positive control is the log that the same trace
shows being written.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hermetic.enclave.memory_scan import forms
from tests.flows import trace
from tests.flows.networks import Network, dense
from tests.flows.scene import Ear, Running, Scene, best_tee, check_answers, scene
from tests.flows.sockets import TcpSocket, listeners, tcp_sockets
from tests.flows.trace import Trace

pytestmark = [
    pytest.mark.skipif(not trace.is_installed(), reason="needs strace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root traces processes of other uids"),
]


@dataclass(frozen=True, slots=True)
class Watched:
    """One model sealed and served, both under strace; and what sockets there were while it was served."""

    scene: Scene
    network: Network
    sealing: Trace
    serving: Trace
    server_port: int
    server_sockets: list[TcpSocket]
    broker_listeners: list[TcpSocket]

    @property
    def canaries(self) -> dict[str, bytes]:
        return {str(number): canary for number, canary in enumerate(self.network.canaries)}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with scene(best_tee()) as place:
        network = dense(place.workshop, "dense", seed=5)
        output = place.workshop / "seal.trace"
        with trace.start(place.installation.seal_arguments(network.sealable), output) as seal:
            text, _ = seal.communicate(timeout=120)
            assert seal.returncode == 0, text
        sealed = place.installation.sealed_file(network.sealable)
        output = place.workshop / "serve.trace"
        with trace.start(["serve", "--config", place.configuration([sealed])], output) as serve:
            port = wait_until_ready(serve)
            (supervisor,) = children_of(serve.pid)
            served = Running(place.installation, None, port, {}, Ear())  # type: ignore[arg-type]
            with served.client() as client:
                check_answers(client, network)
                sockets = tcp_sockets([supervisor, *children_of(supervisor)])
            os.kill(supervisor, signal.SIGTERM)
            text, _ = serve.communicate(timeout=60)
            assert serve.returncode == 0, text
        broker = listeners([place.installation.broker.pid])
        yield Watched(place, network, Trace(place.workshop / "seal.trace"), Trace(output), port, sockets, broker)


def wait_until_ready(serve: subprocess.Popen[str]) -> int:
    """Read what the server prints until its model is ready; returns its port."""
    seen = []
    for line in serve.stdout or ():
        seen.append(line)
        if line.endswith("READY\n"):
            return int(re.findall(r"^listening on .*:(\d+)$", "".join(seen), re.MULTILINE)[0])
    raise AssertionError("".join(seen))


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in tasks for child in children.read_text().split()]


def test_no_weight_is_written_or_sent(watched: Watched) -> None:
    assert watched.serving.sightings({"what the log is known to hold": b'"front-end.listening"'})
    manifest = watched.scene.inspect(watched.scene.installation.sealed_file(watched.network.sealable))["manifest"]
    assert watched.sealing.sightings({"what sealing is known to write": manifest["payload"]["header"].encode()})
    for run in (watched.sealing, watched.serving):
        assert run.sightings(watched.canaries) == []


def test_serving_writes_its_log_and_state_and_no_other_file(watched: Watched) -> None:
    server = watched.scene.folder / "server"
    allowed = re.compile(rf"^({re.escape(str(server))}/(log|state)(/.*)?|/dev/null|/proc/self/.*|/sys/fs/cgroup/.*)$")
    written = watched.serving.opened_for_writing()
    assert {path for path in written if path.startswith(str(server / "log"))}, "the trace's positive control"
    assert {path for path in written if not allowed.match(path)} == set()


def test_sealing_writes_the_sealed_file_and_no_other(watched: Watched) -> None:
    models = watched.scene.models
    allowed = re.compile(rf"^({re.escape(str(models))}(/.*)?|/dev/null|/proc/self/.*|/sys/fs/cgroup/.*)$")
    assert {path for path in watched.sealing.opened_for_writing() if not allowed.match(path)} == set()


def test_no_file_of_the_installation_holds_a_weight(watched: Watched) -> None:
    canaries = [form for name, one in watched.canaries.items() for form in forms(name, one).values()]
    assert any(canary in watched.network.file.read_bytes() for canary in canaries), "the search's positive control"
    files = [path for path in watched.scene.folder.rglob("*") if path.is_file()]
    assert watched.scene.installation.sealed_file(watched.network.sealable) in files
    assert [path for path in files if any(canary in path.read_bytes() for canary in canaries)] == []


def test_no_socket_but_the_servers_own(watched: Watched) -> None:
    for call in watched.serving.named("socket"):
        assert re.match(r"AF_(UNIX|INET|INET6), SOCK_STREAM", call.text), call
    broker = {found.local[1] for found in watched.broker_listeners}
    for call in watched.serving.named("connect"):
        if "sa_family=AF_UNIX" not in call.text:
            (port,) = re.findall(r"port=htons\((\d+)\)", call.text)
            assert int(port) in broker, call
            assert "127.0.0.1" in call.text or "::1" in call.text, call


def test_one_listener_for_the_server_and_two_for_the_broker(watched: Watched) -> None:
    local = [found.local for found in watched.server_sockets if found.remote is None]
    assert local == [("127.0.0.1", watched.server_port)]
    assert [found.local[0] for found in watched.broker_listeners] == ["127.0.0.1", "127.0.0.1"]
    remotes = {found.remote[0] for found in watched.server_sockets if found.remote is not None}
    assert remotes == {"127.0.0.1"}  # the client, and the broker
