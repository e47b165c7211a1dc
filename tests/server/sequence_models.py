"""Models of sequences for the stand-in worker, and requests for them."""

import struct
from typing import Any

import grpc

from hermetic.enclave.configuration import (
    FINAL_OUTPUT,
    MAX_ITERATIONS,
    Control,
    ModelConfiguration,
    SequenceBatching,
    State,
)
from hermetic.enclave.model_description import FrontEndFile, ModelDescription
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import infer, infer_request
from tests.server.far_side import description

CONTROLS = (
    Control(name="START", kind="START", datatype="FP32", false_true=(0, 1)),
    Control(name="END", kind="END", datatype="INT32", false_true=(0, 1)),
    Control(name="READY", kind="READY", datatype="BOOL", false_true=(0, 1)),
    Control(name="CORRID", kind="CORRID", datatype="UINT64"),
)
STATE = State(input_name="STATE_IN", output_name="STATE_OUT", datatype="FP32", shape=(1,))
OBSERVED = 6  # elements of OUTPUT0: INPUT0, START, END, READY, CORRID, STATE_IN


def accumulator(
    name: str,
    *,
    strategy: str = "oldest",
    rows: int = 4,
    shared: bool = False,
    decoupled: bool = False,
    files: tuple[FrontEndFile, ...] = (),
    **options: Any,
) -> ModelDescription:
    """Return a model that adds up what it is given, and shows what came; `options` are those of sequence batching."""
    values = {"controls": CONTROLS, "states": (STATE,), "max_idle_us": 60_000_000, **options}
    if strategy == "oldest":
        values = {"max_candidate_sequences": 8, **values}
    configuration = ModelConfiguration(
        sequence_batching=SequenceBatching.model_validate({"strategy": strategy, **values}), decoupled=decoupled
    )
    plain = description(
        name,
        inputs=(("INPUT0", "FP32", (1,)),),
        outputs=(("OUTPUT0", "FP32", (OBSERVED,)),),
        max_batch_size=rows,
        shared=shared,
    )
    return plain.model_copy(update={"configuration": configuration, "front_end_files": files})


def countdown(name: str, *, rows: int = 4, most: int | None = None, **options: Any) -> ModelDescription:
    """Return an iterative model that answers as often as it is told to."""
    sequence = SequenceBatching(
        strategy="oldest",
        iterative=True,
        states=(STATE,),
        **{"max_candidate_sequences": 8, **options},
    )
    parameters = [(FINAL_OUTPUT, "FINAL")] + ([(MAX_ITERATIONS, str(most))] if most else [])
    configuration = ModelConfiguration(sequence_batching=sequence, decoupled=True, parameters=tuple(parameters))
    plain = description(
        name,
        inputs=(("INPUT0", "FP32", (1,)),),
        outputs=(("OUTPUT0", "FP32", (1,)), ("FINAL", "BOOL", (1,))),
        max_batch_size=rows,
    )
    return plain.model_copy(update={"configuration": configuration})


def request(
    model: str, value: float, sequence: int | str = 0, *, start: bool = False, end: bool = False, request_id: str = ""
) -> pb.ModelInferRequest:
    """Return a request of a sequence."""
    made = infer_request(model, (value,), request_id=request_id)
    if isinstance(sequence, str):
        made.parameters["sequence_id"].string_param = sequence
    elif sequence:
        made.parameters["sequence_id"].int64_param = sequence
    for name, flag in (("sequence_start", start), ("sequence_end", end)):
        if flag:
            made.parameters[name].bool_param = True
    return made


def observed(response: pb.ModelInferResponse) -> tuple[float, ...]:
    """Return the first output."""
    raw = response.raw_output_contents[0]
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def ask(channel: grpc.Channel, *args: Any, **options: Any) -> tuple[float, ...]:
    """Call ModelInfer; return what the model has seen."""
    return observed(infer(channel, request(*args, **options)))


def refused(channel: grpc.Channel, asked: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Call ModelInfer; return how it was refused."""
    try:
        infer(channel, asked)
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("it was answered")
