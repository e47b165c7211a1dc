"""Real sealed models and real workers for the tests of this folder: seal in memory, start, open, ask."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from hermetic.enclave.answering import answer
from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer, NamedTensor, encode
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME, Manifest
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import MemoryFile, ModelFacts, new_key, write_sealed
from hermetic.enclave.supervisor import Worker, WorkerSettings

UID = 61000
MEMORY = 2 << 30  # bytes
PUBLISHER = PublisherKey.generate("tests")

NUMPY_OF = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip


def publishers(*, code: bool = True, native_code: bool = False) -> str:
    """The list of trusted publishers, as text."""
    entry = PUBLISHER.publisher(code=code, native_code=native_code).model_dump(by_alias=True, exclude_none=True)
    return json.dumps({"publishers": [entry]})


def settings(profile: Any = "onnx-cpu", **more: Any) -> WorkerSettings:
    values: dict[str, Any] = {
        "profile": profile,
        "publishers": publishers(),
        "threads": 2,
        "memory_limit_bytes": MEMORY,
        "waived": (),
        "uid": UID,
        "gid": UID,
    }
    return WorkerSettings(**(values | more))


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def tensor(name: str, datatype: str, array: npt.NDArray[Any]) -> NamedTensor:
    assert array.dtype == NUMPY_OF[datatype]
    return NamedTensor(name, datatype, array.shape, array.tobytes())


@dataclass
class Sealed:
    """A sealed model in memory, and its key."""

    fd: int
    manifest: Manifest
    key: bytes

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def sealed(
    files: Mapping[str, bytes],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    cases: Sequence[KnownAnswer] = (),
    **facts: Any,
) -> Iterator[Sealed]:
    """Seal `files` (the model first) with known answers (none: a draft); `facts` override those of the manifest."""
    values: dict[str, Any] = {
        "name": "model",
        "version": 1,
        "format": "onnx",
        "architecture": None,
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
        "max_batch_size": 0,
        "key_id": "kbs:///default/model/1",
        "created": "2026-01-01T00:00:00Z",
    }
    sources = [MemoryFile(name, content) for name, content in files.items()]
    if cases:
        sources.append(MemoryFile(KNOWN_ANSWER_NAME, bytes(encode(cases))))
    fd = os.memfd_create("sealed")
    key = new_key()
    try:
        manifest = write_sealed(fd, ModelFacts(**(values | facts)), sources, PUBLISHER, key)
        yield Sealed(fd, manifest, bytes(key))
    finally:
        os.close(fd)


@contextmanager
def started(worker_settings: WorkerSettings) -> Iterator[Worker]:
    """A locked worker."""
    worker = Worker.start(worker_settings)
    try:
        yield worker
    finally:
        worker.kill()


def open_in(worker: Worker, model: Sealed, *, key: bytes | None = None) -> None:
    jwe = wrap_to(worker.public_key, bytearray(model.key if key is None else key))
    worker.open(model.fd, jwe, model.manifest.digest())


@contextmanager
def serving(model: Sealed, **more: Any) -> Iterator[Worker]:
    """A worker that serves `model`."""
    with started(settings(**more)) as worker:
        open_in(worker, model)
        yield worker


def known_answers_of(model: Sealed, cases: Sequence[tuple[NamedTensor, ...]], **more: Any) -> list[KnownAnswer]:
    """What a worker answers now, as known answers."""
    with serving(model, draft=True, **more) as worker:
        return [KnownAnswer(inputs, tuple(map(ExpectedOutput.of, answer(worker, inputs)))) for inputs in cases]


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any]]],
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """An ONNX model; inputs and outputs are name -> (ONNX type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def linear(*, seed: int = 0, size: int = 96) -> tuple[onnx.ModelProto, npt.NDArray[np.float32]]:
    """The graph y = x W + b, with a weight large enough to be lifted out of the graph; and W."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((size, size)).astype(np.float32)
    bias = random.standard_normal(size).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    shape = ["rows", size]
    model = onnx_model(
        nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, {"w": weight, "b": bias}
    )
    return model, weight
