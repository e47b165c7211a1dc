"""Two front ends that are one server: who is revoked at one is at the other, a reload is taken by both or by none."""

import contextlib
import json
import os
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, scene

FRONT_END = "hermetic.server.frontend"
TWO = ('profile = "demo"', 'profile = "demo"\nfront_ends = 2')
CONNECTIONS = 12
"""Each of its own, which the kernel gives to one of two front ends: all to the same once in 2048 runs."""


@pytest.fixture(scope="module")
def place() -> Iterator[Scene]:
    with scene("sample") as place:
        yield place


@pytest.fixture(scope="module")
def network(place: Scene) -> Network:
    network = dense(place.workshop, "shared", seed=5)
    place.seal(network)
    return network


@contextlib.contextmanager
def connections(served: Running, network: Network) -> Iterator[list[Client]]:
    """Open connections to both front ends; each has been answered."""
    with contextlib.ExitStack() as resources:
        clients = [resources.enter_context(served.client()) for _ in range(CONNECTIONS)]
        for client in clients:
            while not client.is_model_ready(network.name):
                pass
            check_answers(client, network)
        yield clients


def change(place: Scene, text: str, served: Running, *, wanted: str) -> str:
    """Write to the end of the test's server.toml, have it read again, and wait for what is said of it."""
    path = place.folder / "server" / "server-of-test.toml"
    path.write_text(text)
    before = served.ear.now
    os.kill(served.server.pid, signal.SIGHUP)
    return served.ear.wait_for(wanted, before)


def text_of(place: Scene) -> str:
    return (place.folder / "server" / "server-of-test.toml").read_text()


def refusals(clients: list[Client]) -> set[str]:
    """What each connection is told."""
    told = set()
    for client in clients:
        try:
            client.is_server_live()
            told.add("live")
        except InferenceServerException as error:
            told.add(str(error.status()))
    return told


def wait_for_listening(place: Scene, times: int) -> None:
    """Wait until so many front ends of the newest server have begun to listen."""

    def count() -> int:
        kinds = [record.kind for record in place.records("server")]
        return kinds[len(kinds) - kinds[::-1].index("server.stopped") if "server.stopped" in kinds else 0 :].count(
            "front-end.listening"
        )

    while count() < times:
        pass


def revoking(served: Running) -> str:
    serial = x509.load_pem_x509_certificate(served.certificate_file.read_bytes()).serial_number
    return f'\n[[revoked]]\nauthority = "clients"\nserial = "{serial:x}"\n'


def test_who_is_revoked_is_refused_at_every_front_end_and_its_successor(place: Scene, network: Network) -> None:
    with place.serve([place.sealed["shared"]], replace=[TWO]) as served, connections(served, network) as clients:
        before = text_of(place)
        assert refusals(clients) == {"live"}
        change(place, before + revoking(served), served, wanted="^configuration 2: applied$")
        assert refusals(clients) == {"StatusCode.UNAUTHENTICATED"}
        one, other = served.children(FRONT_END)
        os.kill(one, signal.SIGKILL)
        wait_for_listening(place, 3)
        assert other in served.children(FRONT_END)
        with contextlib.ExitStack() as resources:
            again = [resources.enter_context(served.client()) for _ in range(CONNECTIONS)]
            assert "live" not in refusals(again)
        change(place, before, served, wanted="^configuration 3: applied$")
        for client in clients[:1]:  # those of the front end that was killed connect anew
            check_answers(client, network)
    kinds = [record.kind for record in place.records("server")]
    assert kinds.count("epoch.applied") == 2


def inferences(client: Client, network: Network) -> int:
    (statistics,) = client.get_inference_statistics(network.name).model_stats
    assert statistics.inference_stats.success.count == statistics.execution_count
    return int(statistics.inference_count)


def test_statistics_are_those_of_all_whichever_is_asked(place: Scene, network: Network) -> None:
    """Counts rise by what was asked, on whichever connection one looks, also over the death of a front end."""
    rows = len(network.rows())
    with (
        place.serve([place.sealed["shared"]], replace=[TWO]) as served,
        connections(served, network) as clients,
        contextlib.ExitStack() as resources,
    ):
        operators = [resources.enter_context(served.client(operator=True)) for _ in range(CONNECTIONS)]
        asked = CONNECTIONS * rows
        assert {inferences(operator, network) for operator in operators} == {asked}
        for client, operator in zip(clients, operators, strict=True):
            check_answers(client, network)
            asked += rows
            assert inferences(operator, network) == asked
        one, _ = served.children(FRONT_END)
        os.kill(one, signal.SIGKILL)
        wait_for_listening(place, 3)
        again = [resources.enter_context(served.client(operator=True)) for _ in range(CONNECTIONS)]
        for operator in again:
            while not operator.is_model_ready(network.name):
                pass
            assert inferences(operator, network) == asked


def scrape(address: str, context: ssl.SSLContext | None = None) -> dict[tuple[str, str], float]:
    """Metric and model (or ""), as Prometheus' own parser reads them."""
    scheme = "http" if context is None else "https"
    with urllib.request.urlopen(f"{scheme}://{address}/metrics", timeout=60, context=context) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(one.name, one.labels.get("model", "")): one.value for family in families for one in family.samples}


def test_metrics_are_totals_and_follow_the_configuration(place: Scene, network: Network) -> None:
    metrics = ("[log]", "[metrics]\nport = 0\n\n[log]")
    with (
        place.serve([place.sealed["shared"]], replace=[TWO, metrics]) as served,
        connections(served, network) as clients,
    ):
        for client in clients:
            check_answers(client, network)
        port = served.ear.wait_for("^metrics on ", 0).rsplit(":", 1)[1]
        context = ssl.create_default_context(cafile=served.ca_file)
        drawer = place.folder / "authority" / "operator"
        context.load_cert_chain(drawer / "operator.pem", drawer / "operator.key")
        wanted = 2 * CONNECTIONS * len(network.rows())
        page: dict[tuple[str, str], float] = {}
        while page.get(("nv_inference_count_total", "shared")) != wanted:
            page = scrape(f"localhost:{port}", context)
        assert page["hermetic_front_ends", ""] == 2
        assert page["hermetic_config_epoch", ""] == 1
        caller = ssl.create_default_context(cafile=served.ca_file)
        caller.load_cert_chain(served.certificate_file, served.key_file)
        assert scrape(f"localhost:{port}", caller)  # the demo's caller may observe
        before = served.ear.now
        change(place, text_of(place) + revoking(served), served, wanted="^configuration 2: applied$")
        assert served.ear.wait_for("^metrics on ", before).rsplit(":", 1)[1] == port
        assert scrape(f"localhost:{port}", context)["hermetic_config_epoch", ""] == 2
        with pytest.raises(urllib.error.HTTPError, match="401"):
            scrape(f"localhost:{port}", caller)
    kinds = [record.kind for record in place.records("server")]
    assert kinds.count("metrics.listening") == 2


def test_traces_of_all_front_ends_are_in_the_operators_file(place: Scene, network: Network) -> None:
    """Turned on and off over the network, on any connection; what the file names is the operator's."""
    file = place.folder / "server" / "traces.json"
    traces = ("[log]", '[trace]\nfile = "traces.json"\n\n[log]')
    with (
        place.serve([place.sealed["shared"]], replace=[TWO, traces]) as served,
        connections(served, network) as clients,
        served.client(operator=True) as operator,
        served.client(operator=True) as another,
    ):
        with pytest.raises(InferenceServerException, match="it would write callers' data"):
            operator.update_trace_settings(settings={"trace_level": "TENSORS"})
        with pytest.raises(InferenceServerException, match="this method wants one of the roles"):
            clients[0].update_trace_settings(settings={"trace_level": "TIMESTAMPS"})
        assert not file.exists()
        operator.update_trace_settings(model_name="shared", settings={"trace_level": "TIMESTAMPS", "trace_rate": "1"})
        assert another.get_trace_settings("shared", as_json=True)["settings"]["trace_rate"]["value"] == ["1"]
        assert another.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]
        for client in clients:
            check_answers(client, network)
        while written(file) < CONNECTIONS:
            pass
        another.update_trace_settings(model_name="shared", settings={"trace_level": "OFF"})
        for client in clients:
            check_answers(client, network)
    found = traced(file)
    assert len(found) == CONNECTIONS
    assert {name for name, _ in found} == {"shared"}
    for _, moments in found:
        assert list(moments) == sorted(moments, key=moments.__getitem__)
        assert {"REQUEST_START", "COMPUTE_INPUT_END", "REQUEST_END"} <= moments.keys()
    applied = [record.fields for record in place.records("server") if record.kind == "epoch.applied"]
    assert str(applied[-1]["by"]).startswith("operators:")
    assert applied[-1]["asked"] == {"model": "shared", "trace": {"level": "OFF"}}


def written(file: Path) -> int:
    """How many traces there are so far; 0 while the file is not there, or is being written."""
    try:
        return len(traced(file))
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def traced(file: Path) -> list[tuple[str, dict[str, int]]]:
    """Model and moments of each trace."""
    entries = json.loads(file.read_text())
    models = {entry["id"]: entry["model_name"] for entry in entries if "model_name" in entry}
    stamps = {entry["id"]: entry["timestamps"] for entry in entries if "timestamps" in entry}
    return [(models[number], {one["name"]: one["ns"] for one in stamps[number]}) for number in models]


def test_a_reload_that_is_wrong_leaves_everything_as_it_was(place: Scene, network: Network) -> None:
    with place.serve([place.sealed["shared"]], replace=[TWO]) as served, connections(served, network) as clients:
        before = text_of(place)
        wrong = before + revoking(served)
        line = change(
            place, wrong.replace("front_ends = 2", "front_ends = 3"), served, wanted="^configuration 1: stays"
        )
        assert "got front_ends" in line
        line = change(place, wrong + "colour = 1\n", served, wanted="^configuration 1: stays")
        assert "colour" in line
        assert refusals(clients) == {"live"}
    refused = [record.fields for record in place.records("server") if record.kind == "epoch.refused"]
    assert [(record["epoch"], record["stays"]) for record in refused] == [(2, 1), (3, 1)]
