"""Computing known answers while a model is sealed: by the same locked worker that will serve it, on the same path.

The model is sealed as a draft (without known answers) under a key of its own, into memory; the worker opens that draft
as it would open any sealed model. Used by `hermetic seal`; nothing here runs on a serving host.
"""

import os
from collections.abc import Sequence
from typing import Final

from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.batch_frames import STATUS_OK, decode_done, encode_batch
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import Channel, data_channel, map_shared_memory, shared_memory
from hermetic.enclave.known_answer import outputs_in, write_inputs
from hermetic.enclave.known_answer_file import NamedTensor
from hermetic.enclave.supervisor import Worker, WorkerSettings
from hermetic.errors import KnownAnswerError

__all__ = ["answer", "answers_of_draft"]

ANSWER_TIMEOUT_S: Final = 300.0
VARIABLE_TENSOR_BYTES: Final = 16 << 20  # of an output whose size nobody knows yet


def answers_of_draft(
    draft: int,
    manifest_digest: bytes,
    key: bytearray,
    settings: WorkerSettings,
    cases: Sequence[tuple[NamedTensor, ...]],
) -> list[tuple[NamedTensor, ...]]:
    """Return the outputs for each case's inputs, of the sealed draft behind the descriptor `draft`.

    `settings` must say `draft=True`; `key` stays the caller's. Raises what `Worker.start` and `Worker.open` raise, and
    `KnownAnswerError` where the model gives no answer.
    """
    worker = Worker.start(settings)
    try:
        worker.open(draft, wrap_to(worker.public_key, key, hybrid=worker.hybrid_key), manifest_digest)
        outputs = [answer(worker, inputs) for inputs in cases]
        worker.unload()
        return outputs
    finally:
        worker.kill()


def answer(
    worker: Worker, inputs: tuple[NamedTensor, ...], *, timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[NamedTensor, ...]:
    """Return the outputs of an open model for one batch, as a front end would get them.

    Raises `KnownAnswerError` where it gives none within `timeout_s`; what it does then is the caller's to end.
    """
    variable = max(VARIABLE_TENSOR_BYTES, *(len(tensor.raw) for tensor in inputs))
    places = layout(worker.description, 1, variable)
    memory = shared_memory(places.size)
    ours, theirs = data_channel()
    buffers = SharedBuffers(map_shared_memory(memory, places.size), places)
    try:
        with Channel.of_descriptor(ours) as channel:
            worker.attach(theirs, memory, front_end=0, buffers=1, variable_tensor_bytes=variable)
            channel.settimeout(timeout_s)
            channel.send(encode_batch(0, 0, write_inputs(buffers, inputs)))
            done = decode_done(channel.receive_data())
            if done.status != STATUS_OK:
                raise KnownAnswerError(f"model {worker.description.name}: wanted an answer, got none: {done.text}")
            return outputs_in(buffers, done.outputs)
    except TimeoutError:
        raise KnownAnswerError(
            f"model {worker.description.name}: wanted an answer within {timeout_s:g} s, got none"
        ) from None
    finally:
        buffers.close()
        os.close(theirs)
        os.close(memory)
