"""`bench peers` on stand-ins: real processes, canned answers, no assertion on time. No real peer is installed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermetic.bench.echo_server import Canned, echo_server
from hermetic.bench.load import PythonLoad
from hermetic.bench.peers import compare
from hermetic.bench.peers.compare import BARE, HERMETIC, Plan
from hermetic.bench.peers.models import MLP, PeerModel, peer_model
from hermetic.bench.peers.report import cpu_rows, goals, notes, peers_document, peers_table, rows
from hermetic.bench.peers.servers import KSERVE, MLSERVER, TRITON
from hermetic.bench.point import Point
from hermetic.bench.target import Endpoint
from hermetic.bench.traffic import METHOD, right_reply
from hermetic.errors import ConfigurationError, MeasurementError

TINY = Plan(MLP, (1, 4), seconds=0.05, warm_up_s=0.0, calls=50)
CONTEXT: dict[str, Any] = {
    "load_client": PythonLoad.name,
    "settings": {"rounds": 2},
    "machine": {"cores": 2, "processor": "a processor", "load_average": [0.0, 0.0, 0.0]},
}


@pytest.fixture
def one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PeerModel:
    """The small model with a single question: canned servers know one answer."""
    whole = peer_model(MLP, tmp_path)
    model = replace(whole, rows=whole.rows[:1], answers=whole.answers[:1])
    monkeypatch.setattr(compare, "peer_model", lambda _: model)
    return model


def canned(answer: Sequence[float]) -> Any:
    @contextmanager
    def start(_models: Sequence[PeerModel], _threads: int) -> Iterator[Endpoint]:
        with echo_server(Canned({METHOD: right_reply(MLP, answer)})) as endpoint:
            yield endpoint

    return start


def test_servers_take_turns_and_the_document_says_it_all(
    one_question: PeerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = one_question.answers[0][0].tolist()
    monkeypatch.setattr(compare, "STARTS", {TRITON: canned(right), KSERVE: canned(right)})
    monkeypatch.setattr(compare, "staged", lambda _: _staged(right))
    heard: list[tuple[str, int]] = []
    names = (HERMETIC, TRITON, KSERVE, BARE)
    monkeypatch.setattr(compare, "BATCHES", (1, 2))

    def hear(server: str, model: str, at: int, _: Point) -> None:
        assert model == MLP
        heard.append((server, at))

    compared = compare.compare([TINY], names, PythonLoad(), 2, hear)

    document = peers_document(compared, CONTEXT)
    assert [(row["server"], row["concurrency"]) for row in document["results"]] == [
        (name, at) for name in names for at in TINY.concurrencies
    ]
    for row in document["results"]:
        assert row.keys() == {"model", "concurrency", "server", "throughput", "p50_ms", "p99_ms"}
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert [server for server, at in heard[:4]] == list(names)
    assert [server for server, at in heard[8:12]] == [*names[1:], names[0]]  # the second round begins with another
    context = document["context"]
    assert context["bare_batches"].keys() == {MLP}
    assert set(context["ratios"]) == {f"{HERMETIC} / {name}" for name in names[1:]}
    assert context["ratios"][f"{HERMETIC} / {TRITON}"]["p99_ms"][MLP].keys() == {"1", "4"}
    assert {row["errors"] for row in context["rounds"]} == {0}
    assert len(rows(document, MLP)) == 8
    # All but the bare loop, by callers.
    assert [row[1:3] for row in cpu_rows(document)] == [[at, name] for at in "14" for name in names[:3]]
    assert {goal[1] for goal in goals(document)} == {"1"}
    assert PythonLoad.name in "\n".join(notes(context))
    peers_table(document)


@contextmanager
def _staged(answer: Sequence[float]) -> Iterator[tuple[Endpoint, dict[str, Any]]]:
    with canned(answer)([], 1) as endpoint:
        yield endpoint, {"front end": {"no-exec": ["seccomp"]}}


def test_a_wrong_answer_ends_the_run(one_question: PeerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "STARTS", {KSERVE: canned([0.0] * 10)})
    with pytest.raises(MeasurementError, match=r"kserve at concurrency 1: .*wrong answer: \d+"):
        compare.compare([TINY], (KSERVE,), PythonLoad(), 1)


def test_what_a_client_cannot_talk_to_is_left_out_and_said(
    one_question: PeerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "STARTS", {TRITON: canned(one_question.answers[0][0].tolist())})
    client = PythonLoad()
    client.speaks_to_any_server = False
    compared = compare.compare([TINY], (TRITON, KSERVE, MLSERVER), client, 1)
    assert {series.server for series in compared.series} == {TRITON}
    assert compared.left_out.keys() == {KSERVE, MLSERVER}
    assert any(note.startswith("kserve: not measured") for note in notes(peers_document(compared, CONTEXT)["context"]))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="servers: wanted some of hermetic, triton"):
        compare.check_servers(["nginx"])
    with pytest.raises(ConfigurationError, match="servers: wanted some of"):
        compare.check_servers([])
    with pytest.raises(ConfigurationError, match="models: wanted some of mlp"):
        compare.plans(["alexnet"])
