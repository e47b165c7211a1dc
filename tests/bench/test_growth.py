"""`bench growth` on a canned server: sizes, connections, and what is kept of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hermetic.bench import growth
from hermetic.bench.echo_server import Canned, echo_server
from hermetic.bench.growth import Settings, grow
from hermetic.bench.peers.models import MLP, peer_model
from hermetic.bench.target import Endpoint
from hermetic.bench.traffic import METHOD, right_reply


def test_both_axes_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    whole = peer_model(MLP, tmp_path)
    one = replace(whole, rows=whole.rows[:1], answers=whole.answers[:1])
    monkeypatch.setattr(growth, "peer_model", lambda _: one)
    loaded: list[int] = []

    @contextmanager
    def start(models: Any, _threads: int) -> Iterator[Endpoint]:
        loaded.append(len(models))
        with echo_server(Canned({METHOD: right_reply(MLP, one.answers[0][0].tolist())})) as endpoint:
            yield endpoint

    monkeypatch.setattr(growth, "STARTS", {"triton": start})
    settings = Settings(callers=(1, 20), models=(1, 3), servers=("triton",), rounds=2, seconds=0.05, calls=60)
    heard: list[tuple[str, int]] = []
    found = grow(settings, lambda _, axis, size: heard.append((axis, size)))
    assert [(one.axis, one.size) for one in found] == [("callers", 1), ("callers", 20), ("models", 1), ("models", 3)]
    assert loaded == [1, 1, 3]
    assert len(heard) == 8
    for one_size in found:
        assert one_size.throughput > 0
        assert one_size.memory_mib > 1
        assert 0 < one_size.p50_ms <= one_size.p99_ms
