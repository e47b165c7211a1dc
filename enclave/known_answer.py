"""The known-answer test: a loaded model must give the answers that its publisher sealed with it.

It runs through `BatchRunner`, the path that serves. The file and the comparison are in known_answer_file.py; computing
answers while sealing is in answering.py.
"""

import mmap

from hermetic.enclave.batch_frames import STATUS_OK, Batch, Tensor, decode_done
from hermetic.enclave.batch_runner import BatchRunner, SharedBuffers
from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.gpus import Accuracy
from hermetic.enclave.known_answer_file import (
    KnownAnswer,
    NamedTensor,
    Tolerance,
    allowing,
    check_cases,
    decode,
    verify_answers,
)
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import inputs_of
from hermetic.errors import KnownAnswerError

__all__ = ["layout_for", "outputs_in", "verify_known_answers", "write_inputs"]


def verify_known_answers(
    runner: BatchRunner | DeviceRunner,
    description: ModelDescription,
    manifest: Manifest,
    content: memoryview,
    accuracy: Accuracy | None = None,
) -> int:
    """Return how many cases passed: all in the known-answer file `content`, else `KnownAnswerError`.

    `accuracy`: the model computes in a lower precision than the answers were; how far off floats may be then.
    """
    cases = decode(content)
    check_cases(cases, manifest)
    for case in cases:
        places = layout_for(description, case.inputs, _expected(case))
        memory = mmap.mmap(-1, places.size)
        buffers = SharedBuffers(memory, places)
        try:
            tensors = write_inputs(buffers, case.inputs)
            done = decode_done(runner.run(Batch(0, 0, tensors), buffers))
            if done.status != STATUS_OK:
                raise KnownAnswerError(f"known answer: wanted an answer, got none: {done.text}")
            _verify(case, outputs_in(buffers, done.outputs), accuracy)
        finally:
            memory[:] = bytes(len(memory))
            buffers.close()
    return len(cases)


def _verify(case: KnownAnswer, got: tuple[NamedTensor, ...], accuracy: Accuracy | None) -> None:
    if accuracy is None:
        verify_answers(case, got)
        return
    try:
        verify_answers(allowing(case, Tolerance(accuracy.relative, accuracy.absolute)), got)
    except KnownAnswerError as error:
        raise KnownAnswerError(f"accuracy of {accuracy.precision} against fp32: {error}") from None


def layout_for(
    description: ModelDescription, inputs: tuple[NamedTensor, ...], outputs: tuple[NamedTensor, ...]
) -> BufferLayout:
    """Return one buffer with room for exactly one batch of this size."""
    if any(tensor.whole for tensor in inputs_of(description)):
        rows = description.max_batch_size  # the first input may have no rows
    else:
        rows = inputs[0].shape[0] if description.max_batch_size else 0
    variable = max(1, *(len(tensor.raw) for tensor in (*inputs, *outputs)))
    return layout(description.model_copy(update={"max_batch_size": rows, "front_end_files": ()}), 1, variable)


def write_inputs(buffers: SharedBuffers, inputs: tuple[NamedTensor, ...]) -> tuple[Tensor, ...]:
    """Write a batch into the only buffer; return its tensors in the model's order. What is not given is absent."""
    by_name = {tensor.name: tensor for tensor in inputs}
    tensors = []
    for region in buffers.layout.inputs:
        tensor = by_name.get(region.spec.name)
        if tensor is None:
            tensors.append(Tensor(0, ABSENT_SHAPE))
            continue
        view, _ = buffers.region(0, region)
        view[: len(tensor.raw)] = tensor.raw
        tensors.append(Tensor(len(tensor.raw), tuple(tensor.shape)))
    return tuple(tensors)


def outputs_in(buffers: SharedBuffers, outputs: tuple[Tensor, ...]) -> tuple[NamedTensor, ...]:
    """Return copies of the outputs that lie in the only buffer."""
    return tuple(
        NamedTensor(region.spec.name, region.spec.datatype, shape, bytes(buffers.region(0, region)[0][:nbytes]))
        for region, (nbytes, shape) in zip(buffers.layout.outputs, outputs, strict=True)
    )


def _expected(case: KnownAnswer) -> tuple[NamedTensor, ...]:
    return tuple(output.tensor for output in case.outputs)
