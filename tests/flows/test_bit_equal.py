"""An answer has the same bits whether its request was batched or alone, where the model itself says so.

Through a real worker process and a real front end. First the runtime without us: alone against batched. Where that is
equal, our answers are those bits either way. Where it is not (a matrix product of one row may be another kernel than
one of sixteen), our answers have the runtime's own bits for the batch that was run.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.supervisor import Worker
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.messages import ModelReady
from tests.enclave.sealed_models import known_answers_of, open_in, sealed, settings, spec, started, tensor
from tests.flows.small_models import Rows, Subject, convolutions, scikit_learn, torch_classifier, transformer
from tests.server.calls import TIMEOUT_S, await_ready, method
from tests.server.conftest import pki, side  # noqa: F401 - fixtures: a front end's process
from tests.server.far_side import FarSide

ROWS = 16
TOGETHER_US = 10_000_000  # until a full batch is there
MODELS = (scikit_learn, transformer, convolutions, torch_classifier)
QUALIFY = 3  # of them at least give the same bits alone and together, by their runtime alone
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}


@contextmanager
def worker_of(subject: Subject) -> Iterator[Worker]:
    """A locked worker that has opened the model, sealed with a known answer."""
    profile = {"onnx": "onnx-cpu", "torch-export": "torch-cpu"}[subject.form]
    specs = [spec("x", "FP32", *subject.rows.shape[1:])], [spec("y", "FP32", *subject.answer_shape)]
    facts: dict[str, Any] = {"format": subject.form, "max_batch_size": ROWS, "name": subject.name}
    files = {FILES[subject.form]: subject.content}
    with sealed(files, *specs, **facts) as draft:
        cases = known_answers_of(draft, [(tensor("x", "FP32", subject.rows[:2]),)], profile=profile)
    with sealed(files, *specs, cases, **facts) as model, started(settings(profile, threads=1)) as worker:
        open_in(worker, model)
        yield worker


def attach(side: FarSide, worker: Worker, name: str, delay_us: int, *, number: int) -> None:  # noqa: F811
    """Let the front end, as if it were number so and so, serve the model under another name and queue delay."""
    described = worker.description.model_copy(update={"name": name})
    ready = ModelReady(
        description=described, instance=0, buffers=2, batches_in_flight=1, variable_tensor_bytes=1 << 16,
        max_queue_delay_us=delay_us, requests_waiting=ROWS,
    )  # fmt: skip
    memory = shared_memory(layout(described, ready.buffers, ready.variable_tensor_bytes).size)
    ours, theirs = data_channel()
    worker.attach(
        theirs, memory, front_end=number, buffers=ready.buffers, variable_tensor_bytes=ready.variable_tensor_bytes
    )
    side.channel.send(ready.encode(), (ours, memory))
    for descriptor in (ours, theirs, memory):
        os.close(descriptor)


def ask(side: FarSide, name: str, rows: Rows, shape: tuple[int, ...], *, at_once: bool) -> Rows:  # noqa: F811
    """One request for each row; all together, or one after the other."""
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, name)
        calls = []
        for row in rows:
            request = pb.ModelInferRequest(model_name=name, raw_input_contents=[row.tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=(1, *row.shape))
            calls.append(method(channel, "ModelInfer").future(request, timeout=TIMEOUT_S))
            if not at_once:
                calls[-1].result()
        answers = [call.result().raw_output_contents[0] for call in calls]
    return np.frombuffer(b"".join(answers), np.float32).reshape(len(rows), *shape)


def batches(side: FarSide, name: str) -> dict[int, int]:  # noqa: F811
    """Rows of a batch -> how many such were run."""
    with side.channel_as(side.pki.observe) as channel:
        statistics = method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(name=name), timeout=TIMEOUT_S)
    return {one.batch_size: one.compute_infer.count for one in statistics.model_stats[0].batch_stats}


def first_rows(subject: Subject) -> Rows:
    return np.ascontiguousarray(subject.rows[:ROWS])


def bare(make: Callable[[], Subject]) -> tuple[Subject, Rows, Rows]:
    """Return a model and what its runtime answers without us: each row alone, and all of them together."""
    torch.set_num_threads(1)
    subject = make()
    rows = first_rows(subject)
    return subject, np.concatenate([subject.run(row[None]) for row in rows]), subject.run(rows)


@pytest.mark.parametrize("make", MODELS)
def test_batched_or_alone(side: FarSide, make: Callable[[], Subject]) -> None:  # noqa: F811
    subject, bare_alone, bare_together = bare(make)
    rows = first_rows(subject)
    with worker_of(subject) as worker:
        attach(side, worker, f"{subject.name}-alone", 0, number=0)
        attach(side, worker, f"{subject.name}-together", TOGETHER_US, number=1)
        alone = ask(side, f"{subject.name}-alone", rows, subject.answer_shape, at_once=False)
        together = ask(side, f"{subject.name}-together", rows, subject.answer_shape, at_once=True)
    assert batches(side, f"{subject.name}-alone") == {1: ROWS}
    assert batches(side, f"{subject.name}-together") == {ROWS: 1}
    assert alone.tobytes() == bare_alone.tobytes()
    assert together.tobytes() == bare_together.tobytes()
    if bare_alone.tobytes() == bare_together.tobytes():
        assert alone.tobytes() == together.tobytes()


def test_most_models_have_the_same_bits_without_us() -> None:
    """So that the last line above is asserted: a runtime whose every model differs would leave it without a case."""
    equal = [subject.name for subject, alone, together in map(bare, MODELS) if alone.tobytes() == together.tobytes()]
    assert len(equal) >= QUALIFY, equal
