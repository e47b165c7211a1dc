"""What is asked of Triton and of us: every method, and every way of asking it that matters.

A group is played in order against one server: what comes later may rest on what came before. Only `load` changes which
models there are, so its group has a server of its own.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.vectors.triton.models import KINDS


class Case(NamedTuple):
    """One call: the method, its messages (or their bytes, where they are no messages), and the caller's metadata."""

    name: str
    method: str
    messages: tuple[Message | bytes, ...]
    metadata: tuple[tuple[str, str], ...] = ()


def floats(*values: float) -> bytes:
    """Return raw FP32 content."""
    return struct.pack(f"<{len(values)}f", *values)


def integers(*values: int) -> bytes:
    """Return raw INT32 content."""
    return struct.pack(f"<{len(values)}i", *values)


def texts(*values: bytes) -> bytes:
    """Return raw BYTES content."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def infer(
    model: str = "echo",
    *tensors: tuple[str, str, Sequence[int], bytes | None],
    outputs: Sequence[str] = (),
    **fields: Any,
) -> pb.ModelInferRequest:
    """Return a request of these (name, datatype, shape, raw content); without any, one row that `echo` takes."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, raw in tensors or (("INPUT0", "FP32", (1, 4), floats(1, 2, 3, 4)),):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw is not None:
            request.raw_input_contents.append(raw)
    for output in outputs:
        request.outputs.add(name=output)
    return request


def changed(request: pb.ModelInferRequest, change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    """Return the request after a change."""
    change(request)
    return request


def without_inputs(request: pb.ModelInferRequest) -> None:
    """Take out every input, and its contents."""
    request.ClearField("inputs")
    request.ClearField("raw_input_contents")


def with_parameters(request: pb.ModelInferRequest, **parameters: Any) -> pb.ModelInferRequest:
    """Return the request with these parameters; the type of a value chooses the field."""
    for name, value in parameters.items():
        _set(request.parameters[name], value)
    return request


def _set(parameter: pb.InferParameter, value: object) -> None:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    if isinstance(value, Unsigned):
        parameter.uint64_param = int(value)
    else:
        setattr(parameter, fields[type(value)], value)


class Unsigned(int):
    """A parameter that is a uint64_param."""


def row(*shape: int, name: str = "INPUT0", datatype: str = "FP32", raw: bytes | None = floats(1, 2, 3, 4)) -> Any:
    """Return an input, by default one row of `echo`'s."""
    return name, datatype, shape, raw


def _infer_cases() -> list[Case]:
    requests: dict[str, pb.ModelInferRequest | bytes] = {
        "one row": infer(),
        "two rows, with an id": infer("echo", row(2, 4, raw=floats(*range(8))), id="a request"),
        "an id that is not ASCII": infer(id="grüße"),
        "the version that is named": infer(model_version="1"),
        "no such model": infer("nope"),
        "no such version": infer(model_version="9"),
        "version that is no number": infer(model_version="x"),
        "version zero": infer(model_version="0"),
        "version below zero": infer(model_version="-1"),
        "version with a sign": infer(model_version="+1"),
        "version with a space": infer(model_version=" 1"),
        "version with letters after it": infer(model_version="1x"),
        "version that overflows": infer(model_version="99999999999999999999"),
        "model that did not load": infer("broken"),
        "version of a model that did not load": infer("broken", model_version="1"),
        "no model named": infer(""),
        "empty message": b"",
        "no inputs": infer("echo", row(1, 4), outputs=["OUTPUT0"], id="bare"),
        "not a message": b"\xff\xff\xff",
        "wrong input": infer("echo", row(1, 4, name="INPUT9")),
        "wrong input, with an id": infer("echo", row(1, 4, name="INPUT9"), id="mine"),
        "missing input": infer("pair", row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4))),
        "extra input": infer("echo", row(1, 4), row(1, 4, name="EXTRA")),
        "duplicate input": infer("echo", row(1, 4), row(1, 4)),
        "duplicate input, and one is missing": infer(
            "pair",
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
        ),
        "wrong datatype": infer("echo", row(1, 4, datatype="INT32")),
        "wrong datatype, other size": infer("echo", row(1, 4, datatype="FP64", raw=b"\0" * 32)),
        "no such datatype": infer("echo", row(1, 4, datatype="FP33")),
        "no datatype": infer("echo", row(1, 4, datatype="")),
        "wrong width": infer("echo", row(1, 5, raw=floats(1, 2, 3, 4, 5))),
        "one dimension too many": infer("echo", row(1, 4, 1)),
        "no batch dimension": infer("echo", row(4)),
        "no shape": infer("echo", row()),
        "batch too large": infer("echo", row(9, 4, raw=floats(*range(36)))),
        "batch too large, of a model that does not combine": infer("unbatched", row(9, 4, raw=floats(*range(36)))),
        "no rows": infer("echo", row(0, 4, raw=b"")),
        "rows below zero": infer("echo", row(-1, 4, raw=b"")),
        "width below zero": infer("echo", row(1, -4, raw=b"")),
        "rows that overflow": infer("echo", row(2**62, 4)),
        "elements that overflow": infer("overflowing", row(2**61, 2, raw=b"")),
        "huge dimension": infer("plain", row(2**40, 2)),
        "batches that differ": infer(
            "pair",
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
            row(2, 4, name="INPUT1", datatype="INT32", raw=integers(*range(8))),
        ),
        "without batching": infer("plain", row(2, 2)),
        "without batching, no elements": infer("plain", row(0, 2, raw=b"")),
        "without batching, free dimension below zero": infer("plain", row(-1, 2)),
        "without batching, wrong width": infer("plain", row(1, 4)),
        "without batching, one dimension too many": infer("plain", row(1, 2, 2)),
        "too few bytes": infer("echo", row(1, 4, raw=floats(1, 2, 3))),
        "too many bytes": infer("echo", row(1, 4, raw=floats(1, 2, 3, 4, 5))),
        "no bytes": infer("echo", row(1, 4, raw=b"")),
        "neither raw nor typed contents": infer("echo", row(1, 4, raw=None)),
        "too few raw contents": infer(
            "pair",
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
            row(1, 4, name="INPUT1", datatype="INT32", raw=None),
        ),
        "too many raw contents": changed(infer(), lambda r: r.raw_input_contents.append(b"")),
        "raw and typed contents": changed(infer(), lambda r: r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])),
        "one raw, one typed": changed(
            infer(
                "pair",
                row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
                row(1, 4, name="INPUT1", datatype="INT32", raw=None),
            ),
            lambda r: r.inputs[1].contents.int_contents.extend([1, 2, 3, 4]),
        ),
        "inputs in another order": infer(
            "pair",
            row(1, 4, name="INPUT1", datatype="INT32", raw=integers(5, 6, 7, 8)),
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
        ),
        "one output of two": infer(
            "pair",
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
            row(1, 4, name="INPUT1", datatype="INT32", raw=integers(5, 6, 7, 8)),
            outputs=["OUTPUT1"],
        ),
        "outputs in another order": infer(
            "pair",
            row(1, 4, datatype="INT32", raw=integers(1, 2, 3, 4)),
            row(1, 4, name="INPUT1", datatype="INT32", raw=integers(5, 6, 7, 8)),
            outputs=["OUTPUT1", "OUTPUT0"],
        ),
        "unknown output": infer("echo", outputs=["OUTPUT9"]),
        "unknown output beside a known one": infer("echo", outputs=["OUTPUT0", "OUTPUT9"]),
        "duplicate output": infer("echo", outputs=["OUTPUT0", "OUTPUT0"]),
        "the model fails": infer("failing"),
        "optional input given": infer("optional", row(1, 4), row(1, 4, name="INPUT1")),
        "optional input left out": infer("optional", row(1, 4)),
        "required input left out": infer("optional", row(1, 4, name="INPUT1")),
        "reshaped": infer("reshaped", row(2, 4, raw=floats(*range(8)))),
        "reshaped, in the model's own shape": infer("reshaped", row(2, 2, 2, raw=floats(*range(8)))),
        "decoupled": infer("decoupled", row(1, datatype="INT32", raw=integers(1))),
    }
    requests["no inputs"] = changed(infer(), without_inputs)
    requests["raw contents without inputs"] = changed(infer(), lambda r: r.ClearField("inputs"))
    return [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]


def _bytes_cases() -> list[Case]:
    truth = row(1, 1, name="INPUT1", datatype="BOOL", raw=b"\1")

    def words(raw: bytes) -> pb.ModelInferRequest:
        return infer("strings", row(1, 2, datatype="BYTES", raw=raw), truth)

    requests = {
        "two words": words(texts(b"", b"a\0b")),
        "one word too few": words(texts(b"a")),
        "one word too many": words(texts(b"a", b"b", b"c")),
        "nothing": words(b""),
        "a length that is cut": words(texts(b"a") + b"\1\0"),
        "a word that is cut": words(texts(b"a") + struct.pack("<I", 5) + b"abc"),
        "a length that is huge": words(texts(b"a") + b"\xff\xff\xff\xff"),
        "bytes after the last word": words(texts(b"a", b"b") + b"x"),
        "truth that is neither 0 nor 1": infer(
            "strings",
            row(1, 2, datatype="BYTES", raw=texts(b"a", b"b")),
            row(1, 1, name="INPUT1", datatype="BOOL", raw=b"\2"),
        ),
    }
    return [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]


CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
SIZES: Final = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "UINT64": 8, "INT64": 8}
SIZES_OF_REST: Final = {"FP64": 8, "UINT32": 4, "INT32": 4, "FP32": 4}


def _kinds(*, typed: bool) -> pb.ModelInferRequest:
    """Every datatype at once."""
    request = pb.ModelInferRequest(model_name="kinds")
    for at, kind in enumerate(KINDS):
        tensor = request.inputs.add(name=f"INPUT{at}", datatype=kind, shape=[1, 3])
        if typed:
            values = [b"a", b"", b"bc"] if kind == "BYTES" else [True, False, True] if kind == "BOOL" else [1, 2, 3]
            getattr(tensor.contents, CONTENTS[kind]).extend(values)
        else:
            size = SIZES | SIZES_OF_REST
            raw = texts(b"a", b"", b"bc") if kind == "BYTES" else bytes([1]) * 3 * size[kind]
            request.raw_input_contents.append(raw)
    return request


def _typed_cases() -> list[Case]:
    def typed(field: str, values: Sequence[Any], model: str = "echo", **changes: Any) -> pb.ModelInferRequest:
        request = infer(model, row(1, 4, **{"raw": None, **changes}))
        getattr(request.inputs[0].contents, field).extend(values)
        return request

    requests = {
        "every datatype, raw": _kinds(typed=False),
        "every datatype, typed": _kinds(typed=True),
        "half floats, raw": infer("halves", row(1, 4, datatype="FP16", raw=b"\0<" * 4)),
        "half floats, typed": typed("fp32_contents", [1, 2, 3, 4], "halves", datatype="FP16"),
        "floats": typed("fp32_contents", [1, 2, 3, 4]),
        "floats with an id": changed(typed("fp32_contents", [1, 2, 3, 4]), lambda r: setattr(r, "id", "typed")),
        "too few": typed("fp32_contents", [1, 2, 3]),
        "too many": typed("fp32_contents", [1, 2, 3, 4, 5]),
        "in a field of another datatype": typed("int_contents", [1, 2, 3, 4]),
        "in two fields": changed(
            typed("fp32_contents", [1, 2, 3, 4]), lambda r: r.inputs[0].contents.int_contents.extend([1])
        ),
        "empty contents": changed(infer("echo", row(1, 4, raw=None)), lambda r: r.inputs[0].contents.SetInParent()),
    }
    cases = [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]
    for at, kind in enumerate(KINDS):  # one request per datatype: what does each do with values out of its range?
        request = _kinds(typed=True)
        if kind in ("INT8", "INT16"):
            request.inputs[at].contents.int_contents[0] = 2**20
            cases.append(Case(f"{kind} out of range", "ModelInfer", (request,)))
        elif kind in ("UINT8", "UINT16"):
            request.inputs[at].contents.uint_contents[0] = 2**20
            cases.append(Case(f"{kind} out of range", "ModelInfer", (request,)))
    return cases


def _parameter_cases() -> list[Case]:
    requests: dict[str, pb.ModelInferRequest] = {
        "one of the caller's own": with_parameters(infer(), color="red", weight=1.5, count=3, really=True),
        "of triton's own": with_parameters(infer(), triton_enable_empty_final_response=True),
        "triton_ something": with_parameters(infer(), triton_whatever="x"),
        "timeout as text": with_parameters(infer(), timeout="soon"),
        "timeout as a truth value": with_parameters(infer(), timeout=True),
        "timeout below zero": with_parameters(infer(), timeout=-1),
        "timeout unsigned": with_parameters(infer(), timeout=Unsigned(5_000_000)),
        "priority as text": with_parameters(infer(), priority="high"),
        "priority signed": with_parameters(infer(), priority=1),
        "priority of a model without levels": with_parameters(infer(), priority=Unsigned(7)),
        "priority as a float": with_parameters(infer(), priority=1.0),
        "sequence id of a model without sequences": with_parameters(infer(), sequence_id=7, sequence_start=True),
        "sequence id as a float": with_parameters(infer(), sequence_id=7.0),
        "sequence id as a truth value": with_parameters(infer(), sequence_id=True),
        "sequence start as a number": with_parameters(infer(), sequence_start=1),
        "sequence end as text": with_parameters(infer(), sequence_end="yes"),
        "final response as text": with_parameters(infer(), triton_enable_empty_final_response="yes"),
        "headers": with_parameters(infer(), headers="x"),
        "binary data": with_parameters(infer(), binary_data_output=True),
        "without a value": changed(infer(), lambda r: r.parameters["empty"].SetInParent()),
        "priority without a value": changed(infer(), lambda r: r.parameters["priority"].SetInParent()),
    }

    def tensor(where: str, name: str, value: object, model: str = "labels") -> pb.ModelInferRequest:
        request = infer(model, row(*((1, 4) if model == "labels" else (4,))), outputs=["OUTPUT0"])
        part = request.inputs[0] if where == "input" else request.outputs[0]
        _set(part.parameters[name], value)
        return request

    requests |= {
        "input in shared memory": tensor("input", "shared_memory_region", "region"),
        "input in shared memory, without its size": tensor("input", "shared_memory_byte_size", 16),
        "output in shared memory": tensor("output", "shared_memory_region", "region"),
        "own parameter of an input": tensor("input", "mine", 1),
        "own parameter of an output": tensor("output", "mine", 1),
        "binary data of an output": tensor("output", "binary_data", True),
        "classification of one": tensor("output", "classification", 1),
        "classification of two": tensor("output", "classification", 2),
        "classification of more than there are": tensor("output", "classification", 9),
        "classification without labels": tensor("output", "classification", 2, "labelless"),
        "classification of none": tensor("output", "classification", 0),
        "classification below zero": tensor("output", "classification", -1),
        "classification as text": tensor("output", "classification", "two"),
        "classification unsigned": tensor("output", "classification", Unsigned(2)),
    }
    requests["classification of two rows"] = changed(
        infer("labels", row(2, 4, raw=floats(0, 3, 2, 1, 9, 8, 7, 6)), outputs=["OUTPUT0"]),
        lambda r: _set(r.outputs[0].parameters["classification"], 2),
    )
    requests["classification of texts"] = changed(
        infer(
            "strings",
            row(1, 2, datatype="BYTES", raw=texts(b"a", b"b")),
            row(1, 1, name="INPUT1", datatype="BOOL", raw=b"\1"),
            outputs=["OUTPUT0"],
        ),
        lambda r: _set(r.outputs[0].parameters["classification"], 1),
    )
    requests["classification of truth values"] = changed(
        infer(
            "strings",
            row(1, 2, datatype="BYTES", raw=texts(b"a", b"b")),
            row(1, 1, name="INPUT1", datatype="BOOL", raw=b"\1"),
            outputs=["OUTPUT1"],
        ),
        lambda r: _set(r.outputs[0].parameters["classification"], 1),
    )
    return [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]


def _policy_cases() -> list[Case]:
    def one(name: str, **parameters: Any) -> Case:
        return Case(name, "ModelInfer", (with_parameters(infer("priorities"), **parameters),))

    def queued(name: str, *parameters: Mapping[str, Any]) -> Case:
        """Requests that wait for one another: `slow` takes one at a time."""
        requests = [with_parameters(infer("slow", id=str(at)), **values) for at, values in enumerate(parameters)]
        return Case(name, "ModelStreamInfer", tuple(requests))

    return [
        one("no priority"),
        one("highest priority", priority=Unsigned(1)),
        one("lowest priority", priority=Unsigned(2)),
        one("priority zero is the default", priority=Unsigned(0)),
        one("priority above the levels", priority=Unsigned(3)),
        one("time-out that is long", timeout=60_000_000),
        Case("batch too large", "ModelInfer", (infer("priorities", row(9, 4, raw=floats(*range(36)))),)),
        queued("time-out while waiting", {}, {"timeout": 1000}),
        queued("long time-out while waiting", {}, {"timeout": 60_000_000}),
        queued("too many wait", {}, {}, {}, {}, {}),
    ]


def _sequence_cases() -> list[Case]:
    def one(name: str, model: str, value: int = 1, rows: int = 1, **parameters: Any) -> Case:
        tensor = row(rows, 1, datatype="INT32", raw=integers(*[value] * rows))
        return Case(name, "ModelInfer", (with_parameters(infer(model, tensor), **parameters),))

    cases = []
    for model, first, other in (("direct", 7, 8), ("oldest", 17, 18)):
        cases += [
            one(f"{model}: no id", model),
            one(f"{model}: id zero", model, sequence_id=0, sequence_start=True),
            one(f"{model}: empty id", model, sequence_id="", sequence_start=True),
            one(f"{model}: start missing", model, sequence_id=first),
            one(f"{model}: start", model, 1, sequence_id=first, sequence_start=True),
            one(f"{model}: goes on", model, 2, sequence_id=first),
            one(f"{model}: another sequence", model, 3, sequence_id=other, sequence_start=True),
            one(f"{model}: another sequence, at once ended", model, 4, sequence_id=other, sequence_end=True),
            one(f"{model}: end", model, 5, sequence_id=first, sequence_end=True),
            one(f"{model}: after the end", model, 6, sequence_id=first),
            one(f"{model}: start and end in one", model, 7, sequence_id=first, sequence_start=True, sequence_end=True),
            one(f"{model}: two rows", model, 8, rows=2, sequence_id=other, sequence_start=True, sequence_end=True),
            one(f"{model}: end without start", model, 9, sequence_id=first, sequence_end=True),
            one(f"{model}: id that is a text", model, 1, sequence_id="seven",
                sequence_start=True, sequence_end=True),
            one(f"{model}: id that is unsigned", model, 1, sequence_id=Unsigned(9), sequence_start=True,
                sequence_end=True),
            one(f"{model}: id below zero", model, 1, sequence_id=-1, sequence_start=True, sequence_end=True),
            one(f"{model}: id that is long", model, 1, sequence_id="x" * 129, sequence_start=True, sequence_end=True),
            one(f"{model}: start again without end", model, 1, sequence_id=first, sequence_start=True),
            one(f"{model}: start again", model, 1, sequence_id=first, sequence_start=True, sequence_end=True),
            Case(f"{model}: a control given as an input", "ModelInfer", (with_parameters(
                infer(model, row(1, 1, datatype="INT32", raw=integers(1)),
                      row(1, 1, name="START", datatype="INT32", raw=integers(1))),
                sequence_id=first, sequence_start=True, sequence_end=True),)),
        ]  # fmt: skip
    return cases


def _stream_cases() -> list[Case]:
    grpc_error = (("triton_grpc_error", "true"),)
    repeat = [row(1, datatype="INT32", raw=integers(count)) for count in range(4)]

    def final(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
        return with_parameters(request, triton_enable_empty_final_response=True)

    def case(name: str, *requests: pb.ModelInferRequest | bytes, metadata: Any = ()) -> Case:
        return Case(name, "ModelStreamInfer", requests, metadata)

    return [
        case("nothing sent"),
        case("one request", infer(id="1")),
        case("three requests in order", *(infer(id=str(at)) for at in range(3))),
        case("empty final response asked of a model that answers once", final(infer(id="1"))),
        case("an error, then an answer", infer("nope", id="1"), infer(id="2")),
        case("an error in the input", infer("echo", row(1, 5, raw=floats(*range(5))), id="1")),
        case("an answer, then an error", infer(id="1"), infer("echo", row(1, 4, name="INPUT9"), id="2")),
        case("the model fails", infer("failing", id="1")),
        case("version that is no number", infer(model_version="x", id="1")),
        case("errors end the stream", infer("nope", id="1"), metadata=grpc_error),
        case("errors end the stream: in the input", infer("echo", row(1, 4, name="INPUT9"), id="1"),
             metadata=grpc_error),
        case("errors end the stream: the model fails", infer("failing", id="1"), metadata=grpc_error),
        case("errors end the stream: no error", infer(id="1"), metadata=grpc_error),
        case("errors end the stream: not true", infer("nope", id="1"), metadata=(("triton_grpc_error", "false"),)),
        case("empty message", b""),
        case("decoupled: one", infer("decoupled", repeat[1], id="1")),
        case("decoupled: three", infer("decoupled", repeat[3], id="1")),
        case("decoupled: none", infer("decoupled", repeat[0], id="1")),
        case("decoupled: none, empty final response", final(infer("decoupled", repeat[0], id="1"))),
        case("decoupled: two, empty final response", final(infer("decoupled", repeat[2], id="1"))),
        case("decoupled: two requests", infer("decoupled", repeat[1], id="1"), infer("echo", id="2")),
        case("an ensemble", infer("chain", id="1")),
        case(
            "a sequence",
            *(
                with_parameters(
                    infer("direct", row(1, 1, datatype="INT32", raw=integers(at)), id=str(at)),
                    sequence_id=21,
                    sequence_start=at == 0,
                    sequence_end=at == 2,
                )
                for at in range(3)
            ),
        ),
    ]  # fmt: skip


def _decoupled_cases() -> list[Case]:
    """A model that sends as many responses as it is asked for, the last of which says that it is the last."""
    grpc_error = (("triton_grpc_error", "true"),)

    def asks(count: int, *outputs: str, **changes: Any) -> pb.ModelInferRequest:
        tensor = row(1, datatype="INT32", raw=integers(count))
        return infer("generator", tensor, outputs=outputs, **{"id": "1", **changes})

    def final(request: pb.ModelInferRequest, *, wanted: bool = True) -> pb.ModelInferRequest:
        return with_parameters(request, triton_enable_empty_final_response=wanted)

    def case(name: str, *requests: pb.ModelInferRequest, metadata: Any = ()) -> Case:
        return Case(name, "ModelStreamInfer", requests, metadata)

    def alone(name: str, request: pb.ModelInferRequest) -> Case:
        return Case(name, "ModelInfer", (request,), ())

    return [
        case("one", asks(1)),
        case("three", asks(3)),
        case("many", asks(20)),
        case("without an id", asks(2, id="")),
        case("one, empty final response", final(asks(1))),
        case("three, empty final response", final(asks(3))),
        case("three, no empty final response", final(asks(3), wanted=False)),
        case("one output of two", asks(2, "OUTPUT0")),
        case("the flag alone", asks(2, "FINAL")),
        case("an error at once", asks(-1)),
        case("an error after two", asks(-3)),
        case("an error after two, empty final response", final(asks(-3))),
        case("an error after two, which ends the stream", asks(-3), metadata=grpc_error),
        case("an error that would end the stream, but there is none", asks(2), metadata=grpc_error),
        case("no such output", asks(1, "OUTPUT9")),
        case("of another datatype", infer("generator", row(1), id="1")),
        case("of another shape", infer("generator", row(2, datatype="INT32", raw=integers(1, 1)), id="1")),
        case("no such version", asks(1, model_version="7")),
        case("the flag is a number", with_parameters(asks(1), triton_enable_empty_final_response=1)),
        case("empty final response of a model that answers once", final(infer(id="1"))),
        alone("by ModelInfer", asks(1)),
        alone("by ModelInfer, three", asks(3)),
        alone("by ModelInfer, none", asks(0)),
        alone("by ModelInfer, empty final response", final(asks(1))),
        alone("by ModelInfer, wrong input", infer("generator", row(1), id="1")),
        alone("by ModelInfer, no such version", asks(1, model_version="7")),
        alone("empty final response by ModelInfer of a model that answers once", final(infer(id="1"))),
    ]  # fmt: skip


def _ensemble_cases() -> list[Case]:
    requests = {
        "one row": infer("chain", id="1"),
        "eight rows": infer("chain", row(8, 4, raw=floats(*range(32)))),
        "batch too large": infer("chain", row(9, 4, raw=floats(*range(36)))),
        "wrong input": infer("chain", row(1, 4, name="INPUT9")),
        "wrong datatype": infer("chain", row(1, 4, datatype="INT32")),
        "wrong width": infer("chain", row(1, 5, raw=floats(*range(5)))),
        "missing input": changed(infer("chain"), without_inputs),
        "unknown output": infer("chain", outputs=["OUTPUT9"]),
        "a tensor between as an output": infer("chain", outputs=["between"]),
        "a step fails": infer("chain-that-fails", id="1"),
        "a step is given what it does not take": infer("chain-that-narrows", row(2, 3, raw=floats(*range(6))), id="1"),
        "a step is given what it takes": infer("chain-that-narrows", row(2, 2), id="1"),
        "version": infer("chain", model_version="1"),
        "no such version": infer("chain", model_version="2"),
        "priority": with_parameters(infer("chain"), priority=Unsigned(3)),
        "own parameters": with_parameters(infer("chain"), color="red"),
    }
    cases = [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]
    return [*cases, *(_about(method, "chain") for method in ("ModelReady", "ModelMetadata", "ModelConfig"))]


def _about(method: str, model: str, version: str = "", name: str = "") -> Case:
    message = getattr(pb, f"{method}Request")(name=model, version=version)
    return Case(name or f"{method} {model or 'without a name'}{' ' + version if version else ''}", method, (message,))


def _server_cases() -> list[Case]:
    models = ("echo", "plain", "pair", "strings", "kinds", "labels", "optional", "reshaped", "unbatched", "priorities",
              "direct", "oldest", "decoupled")  # fmt: skip
    cases = [
        Case("ServerLive", "ServerLive", (pb.ServerLiveRequest(),)),
        Case("ServerLive, unknown field", "ServerLive", (b"\x9a\x01\x00",)),
        Case("ServerLive, not a message", "ServerLive", (b"\xff",)),
        Case("ServerReady", "ServerReady", (pb.ServerReadyRequest(),)),
        Case("ServerMetadata", "ServerMetadata", (pb.ServerMetadataRequest(),)),
        Case("no such method", "Nope", (b"",)),
    ]
    for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
        cases += [
            _about(method, ""),
            _about(method, "nope"),
            _about(method, "echo"),
            _about(method, "echo", "1"),
            _about(method, "echo", "3"),
            _about(method, "echo", "9"),
            _about(method, "echo", "x"),
            _about(method, "echo", "0"),
            _about(method, "echo", "-1"),
            _about(method, "broken"),
            _about(method, "broken", "1"),
        ]
    for method in ("ModelMetadata", "ModelConfig"):
        cases += [_about(method, model) for model in models if model != "echo"]
    index = pb.RepositoryIndexRequest
    return [
        *cases,
        Case("index", "RepositoryIndex", (index(),)),
        Case("index of what is ready", "RepositoryIndex", (index(ready=True),)),
        Case("index of another repository", "RepositoryIndex", (index(repository_name="other"),)),
        Case("load in mode none", "RepositoryModelLoad", (pb.RepositoryModelLoadRequest(model_name="echo"),)),
        Case("unload in mode none", "RepositoryModelUnload", (pb.RepositoryModelUnloadRequest(model_name="echo"),)),
    ]


def _statistics_cases() -> list[Case]:
    return [
        _about("ModelStatistics", "echo", "1", "before anything"),
        Case("one row", "ModelInfer", (infer(model_version="1"),)),
        Case("three rows", "ModelInfer", (infer("echo", row(3, 4, raw=floats(*range(12))), model_version="1"),)),
        Case("refused", "ModelInfer", (infer("echo", row(1, 5, raw=floats(*range(5))), model_version="1"),)),
        Case("the model fails", "ModelInfer", (infer("failing"),)),
        Case("an ensemble", "ModelInfer", (infer("chain"),)),
        Case("an ensemble that fails", "ModelInfer", (infer("chain-that-fails"),)),
        _about("ModelStatistics", "echo", "1", "of a version"),
        _about("ModelStatistics", "echo", "", "of all versions"),
        _about("ModelStatistics", "failing", "", "of a model that failed"),
        _about("ModelStatistics", "chain", "", "of an ensemble"),
        _about("ModelStatistics", "chain-that-fails", "", "of an ensemble that failed"),
        _about("ModelStatistics", "nope", "", "of no such model"),
        _about("ModelStatistics", "echo", "9", "of no such version"),
        _about("ModelStatistics", "echo", "x", "of a version that is no number"),
        _about("ModelStatistics", "broken", "", "of a model that did not load"),
        _about("ModelStatistics", "", "1", "of a version of no model"),
    ]


def _settings(method: str, model: str = "", **settings: Any) -> Message:
    request = getattr(pb, f"{method}Request")()
    if model:
        request.model_name = model
    for name, value in settings.items():
        if isinstance(value, list):
            request.settings[name].value.extend(value)
        elif isinstance(value, bool):
            request.settings[name].bool_param = value
        elif isinstance(value, int):
            request.settings[name].uint32_param = value
        else:
            request.settings[name].string_param = value
    assert isinstance(request, Message)
    return request


def _settings_cases() -> list[Case]:
    def trace(name: str, model: str = "", **settings: Any) -> Case:
        return Case(f"trace: {name}", "TraceSetting", (_settings("TraceSetting", model, **settings),))

    def log(name: str, **settings: Any) -> Case:
        return Case(f"log: {name}", "LogSettings", (_settings("LogSettings", **settings),))

    return [
        trace("of the server"),
        trace("of a model", "echo"),
        trace("of no such model", "nope"),
        trace("a level", "", trace_level=["TIMESTAMPS"]),
        trace("two levels", "", trace_level=["TIMESTAMPS", "TENSORS"]),
        trace("no such level", "", trace_level=["EVERYTHING"]),
        trace("off", "", trace_level=["OFF"]),
        trace("rate", "echo", trace_rate=["10"]),
        trace("two rates", "", trace_rate=["10", "20"]),
        trace("rate that is no number", "", trace_rate=["often"]),
        trace("rate below zero", "", trace_rate=["-1"]),
        trace("count", "", trace_count=["5"]),
        trace("count below minus one", "", trace_count=["-2"]),
        trace("frequency", "", log_frequency=["3"]),
        trace("a file", "", trace_file=["/tmp/elsewhere"]),
        trace("mode", "", trace_mode=["opentelemetry"]),
        trace("no such setting", "", colour=["red"]),
        trace("cleared", "echo", trace_rate=[]),
        trace("all cleared", "", trace_level=[], trace_rate=[], trace_count=[], log_frequency=[]),
        log("as they are"),
        log("verbose", log_verbose_level=1),
        log("quiet", log_verbose_level=0),
        log("information off", log_info=False),
        log("information on", log_info=True),
        log("warnings off", log_warning=False),
        log("errors off", log_error=False),
        log("all on", log_warning=True, log_error=True),
        log("format", log_format="ISO8601"),
        log("format as before", log_format="default"),
        log("no such format", log_format="prose"),
        log("a file", log_file="/tmp/elsewhere"),
        log("number for a truth value", log_info=1),
        log("truth value for a number", log_verbose_level=True),
        log("text for a number", log_verbose_level="1"),
        log("no such setting", colour="red"),
    ]


def _shared_memory_cases() -> list[Case]:
    system, cuda = "SystemSharedMemory", "CudaSharedMemory"
    return [
        Case("system: status", system + "Status", (pb.SystemSharedMemoryStatusRequest(),)),
        Case("system: status of no such region", system + "Status", (pb.SystemSharedMemoryStatusRequest(name="no"),)),
        Case(
            "system: register what is not there",
            system + "Register",
            (pb.SystemSharedMemoryRegisterRequest(name="region", key="/not-there", byte_size=64),),
        ),
        Case("system: unregister", system + "Unregister", (pb.SystemSharedMemoryUnregisterRequest(name="region"),)),
        Case("cuda: status", cuda + "Status", (pb.CudaSharedMemoryStatusRequest(),)),
        Case(
            "cuda: register",
            cuda + "Register",
            (pb.CudaSharedMemoryRegisterRequest(name="region", raw_handle=b"x" * 64, byte_size=64),),
        ),
        Case("cuda: unregister", cuda + "Unregister", (pb.CudaSharedMemoryUnregisterRequest(name="region"),)),
    ]


def _load_cases() -> list[Case]:
    def load(name: str, model: str, **parameters: str | bytes | bool) -> Case:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        for key, value in parameters.items():
            field = {str: "string_param", bytes: "bytes_param", bool: "bool_param"}[type(value)]
            setattr(request.parameters[key], field, value)
        return Case(name, "RepositoryModelLoad", (request,))

    def unload(name: str, model: str, **parameters: str | bool) -> Case:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        for key, value in parameters.items():
            setattr(request.parameters[key], {str: "string_param", bool: "bool_param"}[type(value)], value)
        return Case(name, "RepositoryModelUnload", (request,))

    def index(name: str) -> Case:
        return Case(name, "RepositoryIndex", (pb.RepositoryIndexRequest(),))

    config = '{"max_batch_size": 4, "backend": "python", "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", '
    config += '"dims": [4]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]}]}'
    file = {"file:1/model.py": b"raise ValueError('a file from the network')"}
    return [
        index("nothing is loaded"),
        Case("server ready", "ServerReady", (pb.ServerReadyRequest(),)),
        Case("infer before the load", "ModelInfer", (infer(),)),
        _about("ModelReady", "echo", "", "ready before the load"),
        load("load", "echo"),
        load("load again", "echo"),
        Case("infer after the load", "ModelInfer", (infer(),)),
        load("load what is not there", "nope"),
        load("load without a name", ""),
        load("load what does not load", "broken"),
        load("load with a configuration", "echo", config=config),
        _about("ModelConfig", "echo", "", "the configuration after it"),
        load("load with a configuration that is no JSON", "echo", config="{"),
        load("load with a configuration that is no text", "echo", config=True),
        load("load with no such parameter", "echo", colour="red"),
        load("load with a file and no configuration", "echo", **file),
        load("load with a file that is text", "echo", config=config, **{"file:1/model.py": "text"}),
        load("load with a file", "echo", config=config, **file),
        index("after the loads"),
        load("load an ensemble", "chain"),
        index("an ensemble is loaded"),
        unload("unload a step", "echo"),
        index("a step is unloaded"),
        unload("unload the ensemble and what it needs", "chain", unload_dependents=True),
        index("the ensemble is unloaded"),
        unload("unload again", "chain"),
        unload("unload what is not there", "nope"),
        unload("unload without a name", ""),
        unload("unload with a text for a truth value", "echo", unload_dependents="yes"),
        unload("unload with no such parameter", "echo", colour="red"),
        Case("infer after the unload", "ModelInfer", (infer(),)),
        Case("infer of a version after the unload", "ModelInfer", (infer(model_version="1"),)),
        _about("ModelReady", "echo", "", "ready after the unload"),
        _about("ModelStatistics", "echo", "", "statistics after the unload"),
    ]


GROUPS: Final[Mapping[str, Callable[[], list[Case]]]] = {
    "server": _server_cases,
    "infer": _infer_cases,
    "bytes": _bytes_cases,
    "typed": _typed_cases,
    "parameters": _parameter_cases,
    "policies": _policy_cases,
    "sequences": _sequence_cases,
    "streams": _stream_cases,
    "decoupled": _decoupled_cases,
    "ensembles": _ensemble_cases,
    "statistics": _statistics_cases,
    "settings": _settings_cases,
    "shared-memory": _shared_memory_cases,
    "load": _load_cases,
}
