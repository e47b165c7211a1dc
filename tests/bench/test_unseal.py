"""`bench unseal` on a model of one layer: a real locked worker, real plain processes, no assertion on time."""

import json
from pathlib import Path

import numpy as np
import pytest

from hermetic.bench import unseal, unseal_report
from hermetic.bench.context import context
from hermetic.bench.models import LARGE_LAYER_BYTES, Large, write_large
from hermetic.bench.plain_load import DEFAULT, WAYS, Loading, plain_load
from hermetic.bench.sealed_large import seal_large
from hermetic.errors import KnownAnswerError, MeasurementError

NEEDS_MUCH: tuple[str, ...] = ()  # nothing is waived: this host must offer every isolation property


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    return write_large(tmp_path_factory.mktemp("large"), LARGE_LAYER_BYTES)


def test_every_way_answers_rightly_and_is_reported(tmp_path: Path) -> None:
    rounds: list[None] = []
    result = unseal.unseal(2, size=LARGE_LAYER_BYTES, threads=1, on_round=lambda: rounds.append(None))
    document = unseal_report.unseal_document(result, context())
    (tmp_path / "out.json").write_text(json.dumps(document))

    assert len(rounds) == 2
    assert result.model_bytes == LARGE_LAYER_BYTES
    assert [row["way"] for row in document["results"]] == [unseal.SEALED, *WAYS]
    for row in document["results"]:
        assert row["seconds"] > 0
        assert row["peak_growth_of_model"] > 0
    assert document["context"]["ratios"].keys() == {f"sealed / {way}" for way in WAYS}
    steps = document["context"]["rounds"][unseal.SEALED]["median_steps_ms"]
    assert steps.keys() == {"start and lock down", "unseal", "load", "known answer"}
    notes = "\n".join(unseal_report.unseal_notes(document["context"]))
    assert "no-network by" in notes
    assert "zeroing: " in notes
    unseal_report.unseal_table(document)


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_model_with_another_weight_is_noticed(large: Large, tmp_path: Path, way: str) -> None:
    graph, data = (tmp_path / path.name for path in large.files)
    graph.write_bytes(large.files[0].read_bytes())
    changed = bytearray(large.files[1].read_bytes())
    changed[:4] = np.float32(1000).tobytes()
    data.write_bytes(changed)
    row, answer = large.row[0].tolist(), large.answer[0].tolist()
    assert plain_load(way, large.files, 1, row, answer).seconds > 0
    with pytest.raises(MeasurementError, match="wanted numpy's, got another"):
        plain_load(way, (graph, data), 1, row, answer)


def test_a_sealed_model_that_answers_otherwise_gives_no_number(large: Large, tmp_path: Path) -> None:
    other = Large(large.files, large.row, large.answer + 1, large.weights_bytes)
    sealed = seal_large(other, tmp_path / "large.sealed")
    with pytest.raises(KnownAnswerError):
        unseal.open_sealed(sealed, LARGE_LAYER_BYTES, 1, NEEDS_MUCH)


def test_ratios_are_over_rounds() -> None:
    def loadings(*seconds: float) -> list[Loading]:
        return [Loading(value, 100, 100 + int(10 * value), {}) for value in seconds]

    result = unseal.Unsealing(20, {unseal.SEALED: loadings(1, 9, 2), DEFAULT: loadings(0.5, 1, 4)}, {})
    assert result.ratio(DEFAULT) == 2.0  # of 2, 9 and 0.5
    assert result.median_seconds(unseal.SEALED) == 2
    assert result.memory_ratio() == 4.5  # the largest round: 90 of 20
