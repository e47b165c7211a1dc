"""The torch formats, in a real locked worker; and what is refused before torch sees it."""

import io
import json
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from hermetic.enclave.answering import answer
from hermetic.enclave.runtimes.architectures import build
from hermetic.enclave.runtimes.safetensors import read_tensors
from hermetic.errors import ModelFormatError, SealedModelError
from tests.enclave.sealed_models import open_in, publishers, sealed, serving, settings, spec, started, tensor

CONFIG = {"layers": [6, 16, 3], "activation": "tanh", "output": "softmax"}
SPECS = [spec("x", "FP32", 6)], [spec("y", "FP32", 3)]
ROWS = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)


def network() -> torch.nn.Module:
    """The registered architecture with weights of its own."""
    torch.manual_seed(7)
    module = build("mlp-classifier", CONFIG).to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    return module.eval()


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The format, written from its description."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        raw = value.detach().numpy().tobytes()
        header[name] = {
            "dtype": f"F{8 * value.itemsize}",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def scripted(module: torch.nn.Module) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; models in it are not gone
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 6)), content)  # type: ignore[no-untyped-call]
    return content.getvalue()


def exported(module: torch.nn.Module) -> bytes:
    content = io.BytesIO()
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 6),), dynamic_shapes={"x": {0: rows}}), content)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "torch-export"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_each_format_answers_as_the_module_does(kind: str) -> None:
    module = network()
    files = {
        "safetensors": lambda: {
            "model.safetensors": safetensors(module.state_dict()),
            "config.json": json.dumps(CONFIG).encode(),
        },
        "torchscript": lambda: {"model.pt": scripted(module)},
        "torch-export": lambda: {"model.pt2": exported(module)},
    }[kind]()
    architecture = "mlp-classifier" if kind == "safetensors" else None
    facts: dict[str, Any] = {"format": kind, "architecture": architecture, "max_batch_size": 8}
    with sealed(files, *SPECS, **facts) as model, serving(model, profile="torch-cpu", draft=True) as worker:
        for rows in (ROWS, ROWS[:1], ROWS):
            (got,) = answer(worker, (tensor("x", "FP32", rows),))
            with torch.inference_mode():
                wanted = module(torch.from_numpy(rows.copy())).numpy()
            np.testing.assert_allclose(np.frombuffer(got.raw, np.float32).reshape(-1, 3), wanted, rtol=1e-5)
        assert worker.report.zeroing == "enforced"
        assert worker.unload()


def test_a_program_of_a_publisher_who_may_not_publish_programs_is_refused() -> None:
    with (
        sealed({"model.pt": b"program"}, *SPECS, format="torchscript") as model,
        started(settings(publishers=publishers(code=False), draft=True)) as worker,
        pytest.raises(SealedModelError, match="publisher-not-for-code"),
    ):
        open_in(worker, model)


def lie(**changes: Any) -> bytes:
    """A safetensors file of one tensor whose header is changed."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    text = json.dumps({"w": entry}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        b"", bytes(7), struct.pack("<Q", 2**63) + bytes(8), struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}" + bytes(1), struct.pack("<Q", 3) + b"nul",
        lie(shape=[2, 3]), lie(shape=[-2, -2]), lie(shape=[2.0, 2]), lie(shape=[True, 4]), lie(data_offsets=[0, 8]),
        lie(data_offsets=[16, 0]), lie(data_offsets=[4, 20]), lie(dtype="F31"), lie(extra=1), lie(shape=[1] * 17),
        lie(data_offsets=[0, 16, 16]), lie(shape=[2**40, 2**40]), lie()[:-1], lie() + bytes(1),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies_is_refused(content: bytes) -> None:
    with pytest.raises(ModelFormatError, match="safetensors: "):
        read_tensors(memoryview(bytearray(content)))


def test_safetensors_are_views_and_not_copies() -> None:
    memory = bytearray(lie())
    tensors = read_tensors(memoryview(memory))
    memory[-16:] = np.arange(4, dtype=np.float32).tobytes()
    assert tensors["w"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("unknown", {}, "wanted one of"),
        ("mlp-classifier", {}, "wrong members"),
        ("mlp-classifier", {"layers": [1]}, "layers"),
        ("mlp-classifier", {"layers": [1, 2], "code": "import os"}, "code"),
        ("mlp-classifier", {"layers": [1, 2**40]}, "layers"),
    ],
)
def test_an_architecture_that_is_not_registered_or_not_so_is_refused(name: str, config: Any, reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        build(name, config)
