"""Sealing from end to end, with answers from ONNX's reference evaluator in the worker's place."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from hermetic.enclave import sealing
from hermetic.enclave.known_answer_file import NamedTensor, decode, verify_answers
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.description import Description
from hermetic.enclave.sealed.publish import Draft, Label, Publication, publish
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import SealedKey
from hermetic.errors import ConfigurationError, KnownAnswerError, ModelFormatError, SealedModelError
from tests.enclave.opening import open_all
from tests.enclave.sealed import small_models as small

SIGNER = PublisherKey.generate("acme")
TRUSTED = TrustedPublishers(publishers=(SIGNER.publisher(),))


class Evaluator:
    """Opens the draft as a worker would, and runs the graph in it; `bend` changes each answer."""

    def __init__(self, bend: float = 0.0) -> None:
        self.bend = bend
        self.calls = 0
        self.drafts: list[Draft] = []

    def __call__(self, draft: Draft, cases: Sequence[tuple[NamedTensor, ...]]) -> list[tuple[NamedTensor, ...]]:
        self.drafts.append(draft)
        manifest = sealing.verify_manifest(sealing.read_header(draft.fd), draft.publishers)
        assert manifest.known_answer is None
        with sealing.open_payload(draft.fd, manifest, bytearray(draft.key), 1) as opened:
            graph = onnx.ModelProto.FromString(bytes(opened.view("model.onnx")))
        return [self._run(ReferenceEvaluator(graph), case) for case in cases]

    def _run(self, graph: ReferenceEvaluator, case: tuple[NamedTensor, ...]) -> tuple[NamedTensor, ...]:
        self.calls += 1
        feeds = {tensor.name: np.frombuffer(tensor.raw, np.float32).reshape(tensor.shape) for tensor in case}
        outputs: Any = graph.run(["y"], feeds)
        y = outputs[0] + np.float32(self.bend * self.calls)
        return (NamedTensor("y", "FP32", y.shape, y.tobytes()),)


def publication(tmp_path: Path, **changes: Any) -> Publication:
    source = tmp_path / "model.onnx"
    if not source.exists():
        small.write(small.matmul(), source)
    values: dict[str, Any] = {
        "source": source,
        "target": tmp_path / "m-1.sealed",
        "label": Label("m", 1, "kbs:///models/m/1", "2026-11-22T12:00:00Z"),
        "description": Description(max_batch_size=8),
        "signer": SIGNER,
    }
    return Publication(**values | changes)


def published(what: Publication, answers: Any) -> tuple[Any, dict[str, bytes]]:
    keys: list[bytes] = []

    def keep(sealed: SealedKey) -> None:
        keys.append(bytes(sealed.key))

    manifest = publish(what, answers=answers, deliver=keep, threads=2)
    return manifest, open_all(what.target.read_bytes(), key=keys[0], trusted=TRUSTED.text)


def nobody(*_: object) -> Any:
    raise AssertionError


def test_answers_are_computed_and_sealed(tmp_path: Path) -> None:
    evaluator = Evaluator()
    manifest, files = published(publication(tmp_path), evaluator)
    assert list(files) == ["model.onnx", KNOWN_ANSWER_NAME]
    cases = decode(files[KNOWN_ANSWER_NAME])
    assert [case.inputs[0].shape for case in cases] == [(1, 4), (4, 4)]
    for case in cases:
        x = np.frombuffer(case.inputs[0].raw, np.float32).reshape(case.inputs[0].shape)
        right = (x @ small.WEIGHT + small.BIAS).astype(np.float32)
        verify_answers(case, [NamedTensor("y", "FP32", right.shape, right.tobytes())])
        wrong = right + np.float32(0.01)
        with pytest.raises(KnownAnswerError):
            verify_answers(case, [NamedTensor("y", "FP32", wrong.shape, wrong.tobytes())])
    assert manifest.key_id == "kbs:///models/m/1"
    assert (manifest.max_batch_size, manifest.inputs[0].shape) == (8, (4,))


def test_the_draft_is_gone_and_its_key_wiped(tmp_path: Path) -> None:
    evaluator = Evaluator()
    published(publication(tmp_path), evaluator)
    (draft,) = evaluator.drafts
    assert draft.key == bytes(32)
    names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]  # noqa: PTH115
    assert not any("hermetic-draft" in name for name in names)
    # A real host never opens a draft: its publisher is nobody's.
    with pytest.raises(SealedModelError, match="publisher-unknown"):
        TRUSTED.find(draft.manifest.publisher)


def test_a_model_that_does_not_agree_with_itself(tmp_path: Path) -> None:
    with pytest.raises(KnownAnswerError, match="twice"):
        published(publication(tmp_path), Evaluator(bend=0.1))
    assert not (tmp_path / "m-1.sealed").exists()


def golden(path: Path, **more: Any) -> Path:
    x = np.ones((2, 4), np.float32)
    arrays = {"inputs/x": x, "outputs/y": (x @ small.WEIGHT + small.BIAS).astype(np.float32)} | more
    np.savez(path, **arrays)
    return path


def test_a_publishers_own_answers_need_no_worker(tmp_path: Path) -> None:
    _, files = published(publication(tmp_path, golden=golden(tmp_path / "g.npz")), nobody)
    (case,) = decode(files[KNOWN_ANSWER_NAME])
    assert case.outputs[0].tensor.shape == (2, 2048)


def test_inputs_without_answers_get_them_computed(tmp_path: Path) -> None:
    document = {"cases": [{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}]}
    (tmp_path / "g.json").write_text(json.dumps(document))
    _, files = published(publication(tmp_path, golden=tmp_path / "g.json"), Evaluator())
    (case,) = decode(files[KNOWN_ANSWER_NAME])
    assert np.frombuffer(case.inputs[0].raw, np.float32).tolist() == [1, 2, 3, 4]
    assert case.outputs[0].tensor.shape == (1, 2048)


@pytest.mark.parametrize("shape", [(4,), (9, 4), (2, 5)])
def test_golden_inputs_that_do_not_fit_the_model(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = golden(tmp_path / "g.npz", **{"inputs/x": np.ones(shape, np.float32)})
    with pytest.raises(KnownAnswerError, match="case 0"):
        published(publication(tmp_path, golden=path), nobody)
    assert not (tmp_path / "m-1.sealed").exists()


def test_a_description_that_names_inputs_which_the_graph_has_not(tmp_path: Path) -> None:
    described = Description.model_validate(
        {
            "inputs": [{"name": "q", "datatype": "FP32", "shape": [1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2048]}],
        }
    )
    with pytest.raises(ModelFormatError, match="'x'"):
        published(publication(tmp_path, description=described), nobody)


def test_who_would_not_be_believed_does_not_seal(tmp_path: Path) -> None:
    other = TrustedPublishers(publishers=(PublisherKey.generate("acme").publisher(),))
    with pytest.raises(SealedModelError, match="signature-wrong"):
        published(publication(tmp_path, trusted=other), nobody)
    with pytest.raises(SealedModelError, match="publisher-unknown"):
        published(publication(tmp_path, trusted=TrustedPublishers(publishers=())), nobody)
    assert published(publication(tmp_path, trusted=TRUSTED), Evaluator())


def test_a_publisher_without_code_cannot_seal_a_program(tmp_path: Path) -> None:
    small.archive(tmp_path / "p" / "model.pt", small.TORCHSCRIPT)
    (tmp_path / "p" / "model.toml").write_text(small.DESCRIBED)
    description = Description.load(tmp_path / "p" / "model.toml", {})
    what = publication(tmp_path, source=tmp_path / "p", description=description, trusted=TRUSTED)
    with pytest.raises(SealedModelError, match="publisher-not-for-code"):
        published(what, nobody)


def test_what_exists_is_not_overwritten_and_nothing_is_computed_first(tmp_path: Path) -> None:
    what = publication(tmp_path)
    what.target.write_bytes(b"before")
    with pytest.raises(ConfigurationError, match="exists"):
        published(what, nobody)
