"""Every hostile model is refused by its own name before a runtime sees it: where it is sealed, and where it is loaded.

Whoever seals may use another tool than ours, so the worker's rules are what counts; those of `hermetic seal` are the
same code, for whoever is about to seal somebody else's model.
"""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from hermetic.enclave import runtimes
from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT
from hermetic.enclave.manifest import ModelFormat
from hermetic.enclave.runtimes import safetensors
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.refusals import ModelRefusal, model_refusal_of
from hermetic.enclave.runtimes.safetensors_header import DTYPE_BYTES
from hermetic.enclave.sealed.collect import collect
from hermetic.enclave.sealed.description import Description
from hermetic.errors import ModelFormatError
from tests.enclave.hostile import archives, onnx_models, tensors
from tests.enclave.sealed_models import open_in, sealed, settings, spec, started

ROOT = Path(__file__).resolve().parents[3]
SPECS = (spec("x", "FP32", 96),), (spec("y", "FP32", 96),)
SECONDS, MEMORY = 60, 1 << 20  # what the worst of them may cost, by the clock and in KiB of memory
KINDS: dict[str, tuple[str, ModelFormat, dict[str, tuple[Callable[[], bytes], str]]]] = {
    "onnx": ("model.onnx", "onnx", dict(onnx_models.CORPUS)),
    "pt2": ("model.pt2", "torch-export", dict(archives.EXPORTED)),
    "pt": ("model.pt", "torchscript", dict(archives.SCRIPTED)),
    "safetensors": ("model.safetensors", "safetensors", dict(tensors.CORPUS)),
}
CORPUS = [
    pytest.param(file, kind, build, refusal, id=name)
    for file, kind, models in KINDS.values()
    for name, (build, refusal) in models.items()
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime may be asked."""

    def asked(*_: object, **__: object) -> None:
        pytest.fail("a runtime was asked")

    monkeypatch.setattr(onnxruntime, "InferenceSession", asked)
    monkeypatch.setattr(torch.jit, "load", asked)
    monkeypatch.setattr(torch.export, "load", asked)
    monkeypatch.setattr(safetensors, "build", asked)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("file", "kind", "build", "refusal"), CORPUS)
def test_it_is_refused_at_load_and_at_seal(
    tmp_path: Path, file: str, kind: ModelFormat, build: Callable[[], bytes], refusal: str
) -> None:
    content = build()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    architecture = "mlp-classifier" if kind == "safetensors" else None
    model = ModelToLoad(kind, architecture, {file: memoryview(bytearray(content))}, *SPECS, max_batch_size=8, threads=1)
    with pytest.raises(ModelFormatError) as loading:
        runtimes.load(model)
    assert model_refusal_of(loading.value) == refusal
    (tmp_path / file).write_bytes(content)
    description = Description(max_batch_size=8, inputs=SPECS[0], outputs=SPECS[1], architecture=architecture)
    with pytest.raises(ModelFormatError) as sealing, collect(tmp_path, description):
        pass
    if kind != "onnx" or refusal != "external-data":  # there the file's own name is at fault: test_collect.py
        assert model_refusal_of(sealing.value) == refusal
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


ONE_OF_EACH = {
    refusal: (file, kind, build) for file, kind, models in KINDS.values() for build, refusal in models.values()
}
IN_A_WORKER = ("graph-functions", "protobuf-text", "pickle")


@pytest.mark.parametrize("refusal", IN_A_WORKER)
def test_a_worker_says_which_it_was_and_ends(refusal: str) -> None:
    """Sealed by a publisher's own tool, which looks at nothing."""
    file, kind, build = ONE_OF_EACH[refusal]
    profile = PROFILE_OF_FORMAT[kind]
    facts: dict[str, Any] = {"format": kind, "architecture": "mlp-classifier" if kind == "safetensors" else None}
    with (
        sealed({file: build()}, *SPECS, **facts) as model,
        started(settings(profile, draft=True)) as worker,
        pytest.raises(ModelFormatError, match=f"^{refusal}: "),
    ):
        open_in(worker, model)


def test_every_refusal_has_a_model_that_meets_it_and_a_line_in_the_specification() -> None:
    met = {refusal for _, _, models in KINDS.values() for _, refusal in models.values()}
    assert met | {ModelRefusal.LOADER} == set(ModelRefusal)  # which is what nobody foresaw
    page = (ROOT / "docs" / "spec" / "model-content.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == set(ModelRefusal)


def test_the_reader_and_torch_know_the_same_types() -> None:
    known = {name: dtype.itemsize for name, dtype in safetensors._DTYPES.items()}
    assert known == dict(DTYPE_BYTES)
