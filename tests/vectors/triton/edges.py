"""More of what is asked of Triton and of us (calls.py): the edges of fields, two mistakes at once, what is counted."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.vectors.triton.calls import (
    Case,
    Unsigned,
    changed,
    floats,
    infer,
    integers,
    row,
    texts,
    with_parameters,
    without_inputs,
)

ALL_BITS: Final = 2**64 - 1
MICROSECONDS: Final = 60_000_000
TRUTH: Final = row(1, 1, name="INPUT1", datatype="BOOL", raw=b"\1")


def _classes(model: str, tensor: Any, count: object = 2, **fields: Any) -> pb.ModelInferRequest:
    return _with_classes(infer(model, tensor, outputs=["OUTPUT0"], **fields), 0, count)


def _with_classes(request: pb.ModelInferRequest, output: int, count: object) -> pb.ModelInferRequest:
    parameter = request.outputs[output].parameters["classification"]
    fields = {bool: "bool_param", int: "int64_param", float: "double_param"}
    setattr(parameter, fields[type(count)], count)
    return request


def _typed(field: str, values: Sequence[Any], model: str = "echo", **changes: Any) -> pb.ModelInferRequest:
    shape = changes.pop("shape", (1, 4))
    request = infer(model, row(*shape, raw=None, **changes))
    getattr(request.inputs[0].contents, field).extend(values)
    return request


def _pair(*outputs: str, first: Sequence[int] = (5, -5, 5, 7)) -> pb.ModelInferRequest:
    one = row(1, 4, datatype="INT32", raw=integers(*first))
    return infer("pair", one, row(1, 4, name="INPUT1", datatype="INT32", raw=integers(1, 1, 1, 1)), outputs=outputs)


def _words(raw: bytes, rows: int = 1, truth: Any = TRUTH, **fields: Any) -> pb.ModelInferRequest:
    return infer("strings", row(rows, 2, datatype="BYTES", raw=raw), truth, **fields)


def _input_parameter(name: str, value: int) -> pb.ModelInferRequest:
    return changed(infer(), lambda r: setattr(r.inputs[0].parameters[name], "int64_param", value))


def _class_requests() -> dict[str, pb.ModelInferRequest | bytes]:
    return {
        "classes of ties": _classes("labels", row(1, 4, raw=floats(2, 2, 2, 2)), 4),
        "classes of ties, fewer": _classes("labels", row(1, 4, raw=floats(1, 2, 1, 2)), 3),
        "classes of NaN": _classes("labels", row(1, 4, raw=floats(math.nan, 2, 1, math.nan)), 4),
        "classes of infinities": _classes("labels", row(1, 4, raw=floats(math.inf, -math.inf, 1, 0)), 4),
        "classes of large and small": _classes("labels", row(1, 4, raw=floats(1e30, 1e-30, -0.0, 123456789.0)), 4),
        "classes of integers": _with_classes(_pair("OUTPUT0"), 0, 3),
        "classes of one output of two": _with_classes(_pair("OUTPUT0", "OUTPUT1"), 1, 2),
        "classes, the output asked for twice": _with_classes(_pair("OUTPUT0", "OUTPUT0"), 1, 2),
        "classes of nothing": _classes("plain", row(0, 2, raw=b"")),
        "classes without batching": _classes("plain", row(2, 2, raw=floats(1, 2, 4, 3))),
        "classes of a reshaped model": _classes("reshaped", row(2, 4, raw=floats(0, 3, 2, 1, 9, 8, 7, 6))),
        "classes of an ensemble": _classes("chain", row(1, 4)),
        "classes: more than 32 bits of them": _classes("labels", row(1, 4), 2**40),
        "classes as a float": _classes("labels", row(1, 4), 1.0),
        "classes as a truth value": _classes("labels", row(1, 4), True),
        "classes below zero, with an id": _classes("labels", row(1, 4), -1, id="me"),
    }


def _name_requests() -> dict[str, pb.ModelInferRequest | bytes]:
    def broken(field: int) -> bytes:
        return infer(id="x").SerializeToString(deterministic=True) + bytes((field << 3 | 2, 2, 0xFF, 0xFE))

    sound = infer(id="u").SerializeToString(deterministic=True)
    return {
        "an id that is long": infer(id="x" * 5000),
        "an id of two lines": infer(id="a\nb"),
        "an id with NUL": infer(id="a\0b"),
        "an id of two lines, in an error": infer("echo", row(1, 5, raw=floats(*range(5))), id="a\nb%41"),
        "an id that is not UTF-8": broken(3),
        "a model's name that is not UTF-8": broken(1),
        "a model's name of two lines": infer("a\nb"),
        "a model's name that is not ASCII": infer("größe"),
        "an input without a name": infer("echo", row(1, 4, name="")),
        "an input of a long name": infer("echo", row(1, 4, name="N" * 300)),
        "an output without a name": infer(outputs=[""]),
        "an output of the input's name": infer(outputs=["INPUT0"]),
        "an output three times": infer(outputs=["OUTPUT0"] * 3),
        "a datatype in lower case": infer("echo", row(1, 4, datatype="fp32")),
        "a datatype as configurations say it": infer("echo", row(1, 4, datatype="TYPE_FP32")),
        "a datatype with a space": infer("echo", row(1, 4, datatype="FP32 ")),
        "a datatype of the same size": infer("halves", row(1, 4, datatype="BF16", raw=b"\0" * 8)),
        "BYTES for numbers": infer("echo", row(1, 4, datatype="BYTES", raw=texts(b"a", b"b", b"c", b"d"))),
        "forty dimensions": infer("plain", row(*[1] * 40, raw=floats(1))),
        "version with a point": infer(model_version="1.0"),
        "version in hexadecimal": infer(model_version="0x1"),
        "version with zeros before it": infer(model_version="001"),
        "no such model, with a version": infer("nope", model_version="1"),
        "no such model, with version zero": infer("nope", model_version="0"),
        "no such model, with a version that is no number": infer("nope", model_version="x"),
        "no model named, with a version": infer("", model_version="1"),
        "no such version of an ensemble": infer("chain", model_version="2"),
        "no such version of what did not load": infer("broken", model_version="2"),
        "a field that is not known": sound + b"\x9a\x06\x03abc",
        "a number that is not known": sound + b"\x98\x06\x05",
        "a group that is not known": sound + b"\x9b\x06\x9c\x06",
        "two models named, the last one holds": sound + b"\x0a\x04nope",
    }


def _parameter_requests() -> dict[str, pb.ModelInferRequest | bytes]:
    ranked = "priorities"
    return {
        "priority of all bits": with_parameters(infer(ranked), priority=Unsigned(ALL_BITS)),
        "priority signed": with_parameters(infer(ranked), priority=1),
        "priority signed, above the levels": with_parameters(infer(ranked), priority=9),
        "priority below zero": with_parameters(infer(ranked), priority=-1),
        "time-out of zero": with_parameters(infer(ranked), timeout=0),
        "time-out that is the longest": with_parameters(infer(ranked), timeout=2**63 - 1),
        "time-out as a float": with_parameters(infer(), timeout=1.5),
        "sequence id of all bits": with_parameters(infer(), sequence_id=Unsigned(ALL_BITS)),
        "sequence id, a text, of a model without sequences": with_parameters(infer(), sequence_id="abc"),
        "sequence start alone": with_parameters(infer(), sequence_start=True),
        "own, an empty text": with_parameters(infer(), color=""),
        "own, unsigned": with_parameters(infer(), color=Unsigned(1)),
        "own, NaN": with_parameters(infer(), color=math.nan),
        "own, without a name": changed(infer(), lambda r: setattr(r.parameters[""], "int64_param", 1)),
        "own, a hundred": with_parameters(infer(), **{f"p{at}": at for at in range(100)}),
        "own, final response": with_parameters(infer(), triton_final_response=True),
        "own of an input, as HTTP has it": _input_parameter("binary_data_size", 16),
        "classification of an input": _input_parameter("classification", 1),
        "shared memory's offset alone": _input_parameter("shared_memory_offset", 16),
        "a model that does not combine": with_parameters(infer("unbatched"), priority=Unsigned(2), timeout=1000),
        "an ensemble, time-out": with_parameters(infer("chain"), timeout=MICROSECONDS),
        "an ensemble, sequence": with_parameters(infer("chain"), sequence_id=5, sequence_start=True, sequence_end=True),
    }


def _content_requests() -> dict[str, pb.ModelInferRequest | bytes]:
    more, other = row(1, 4, name="INPUT1"), row(1, 4, name="INPUT2")
    return {
        "typed: integers for long ones": _typed("int_contents", [1, 2, 3, 4]),
        "typed: truth for floats": _typed("bool_contents", [True] * 4),
        "typed: texts for floats": _typed("bytes_contents", [b"abcd"] * 4),
        "typed: double for single": _typed("fp64_contents", [1, 2, 3, 4]),
        "typed: nothing": _typed("fp32_contents", [], "plain", shape=(0, 2)),
        "typed: nothing, without contents": infer("plain", row(0, 2, raw=None)),
        "typed: something for nothing": _typed("fp32_contents", [1], "plain", shape=(0, 2)),
        "typed: two rows": _typed("fp32_contents", range(8), shape=(2, 4)),
        "typed: rows below zero": _typed("fp32_contents", [1, 2, 3, 4], shape=(-1, 4)),
        "typed: rows that overflow": _typed("fp32_contents", [1, 2, 3, 4], shape=(2**62, 4)),
        "typed: another datatype": _typed("fp32_contents", [1, 2, 3, 4], datatype="INT32"),
        "typed: of an ensemble": _typed("fp32_contents", [1, 2, 3, 4], "chain"),
        "typed: doubles for half floats": _typed("fp64_contents", [1, 2, 3, 4], "halves", datatype="FP16"),
        "typed: unknown output": changed(_typed("fp32_contents", [1, 2, 3, 4]), lambda r: r.outputs.add(name="NO")),
        "words: three rows": _words(
            texts(b"a", b"", b"ccc", b"d" * 1000, b"e", b"f"),
            3,
            row(3, 1, name="INPUT1", datatype="BOOL", raw=b"\1\0\1"),
        ),
        "words: one, with an id": _words(texts(b"a"), id="mine"),
        "words: a length of three bytes": _words(texts(b"a") + b"\0\0\0"),
        "words: the only one is cut": _words(b"\5\0\0\0a", id="mine"),
        "words: no truth": _words(texts(b"a", b"b"), truth=row(1, 1, name="INPUT1", datatype="BOOL", raw=b"")),
        "words: truth as a number": _words(
            texts(b"a", b"b"), truth=row(1, 1, name="INPUT1", datatype="UINT8", raw=b"\1")
        ),
        "optional: no rows": infer("optional", row(1, 4), row(0, 4, name="INPUT1", raw=b"")),
        "optional: wrong width": infer("optional", row(1, 4), row(1, 5, name="INPUT1", raw=floats(*range(5)))),
        "optional: another that is not known": infer("optional", row(1, 4), other),
        "optional: one too many": infer("optional", row(1, 4), more, other),
        "optional: none at all": changed(infer("optional"), without_inputs),
        "optional: its output alone": infer("optional", row(1, 4), more, outputs=["OUTPUT1"]),
        "ensemble: an output twice": infer("chain", outputs=["OUTPUT0", "OUTPUT0"]),
        "ensemble: no rows": infer("chain", row(0, 4, raw=b"")),
        "ensemble: nothing, where that is allowed": infer("chain-that-narrows", row(0, 2, raw=b"")),
        "ensemble: duplicate input": infer("chain", row(1, 4), row(1, 4)),
        "ensemble: too few bytes": infer("chain", row(1, 4, raw=floats(1, 2, 3))),
    }


def _steps(name: str, model: str, *steps: Mapping[str, Any]) -> Case:
    """Requests of a stream: what each says of its sequence; `rows` and `width` are those of its input."""
    requests = []
    for at, step in enumerate(steps):
        said = dict(step)
        shape = said.pop("rows", 1), said.pop("width", 1)
        tensor = row(*shape, datatype="INT32", raw=integers(*[at] * math.prod(shape)))
        requests.append(with_parameters(infer(model, tensor, id=str(at)), **said))
    return Case(f"{model}: {name}", "ModelStreamInfer", tuple(requests))


def _sequence_edges() -> list[Case]:
    cases = []
    for model, base in (("direct", 100), ("oldest", 200)):

        def said(offset: int, which: str = "", base: int = base, **more: Any) -> dict[str, Any]:
            flags = {f"sequence_{each}": True for each in which.split()}
            return {"sequence_id": base + offset, **flags, **more}

        cases += [
            _steps("started twice", model, said(0, "start"), said(0, "start"), said(0, "end")),
            _steps("started late", model, said(1), said(1, "start"), said(1, "end")),
            _steps("gone on after its end", model, said(2, "start end"), said(2)),
            _steps("a wrong shape inside", model, said(3, "start"), said(3, width=2), said(3, "end")),
            _steps("two rows inside", model, said(4, "start"), said(4, rows=2), said(4, "end")),
            _steps("id of all bits", model, {"sequence_id": Unsigned(ALL_BITS), "sequence_start": True}),
            _steps("time-out and priority", model, said(6, "start end", timeout=MICROSECONDS, priority=Unsigned(1))),
            _steps("flags that are false", model, said(8, sequence_start=False, sequence_end=False)),
        ]
    return cases


def _stream_edges() -> list[Case]:
    grpc_error = (("triton_grpc_error", "true"),)

    def case(name: str, *requests: pb.ModelInferRequest | bytes, metadata: Any = ()) -> Case:
        return Case(f"stream: {name}", "ModelStreamInfer", requests, metadata)

    return [
        case("the same id twice", infer(id="1"), infer(id="1")),
        case("without ids", infer(), infer()),
        case("classes", _classes("labels", row(1, 4)), infer(id="2")),
        case("typed", _typed("fp32_contents", [1, 2, 3, 4])),
        case("unknown output", infer(outputs=["NO"], id="5")),
        case("no inputs", changed(infer(id="5"), without_inputs)),
        case("a parameter of another type", with_parameters(infer(id="5"), priority="x"), infer(id="6")),
        case("a parameter of triton's own", with_parameters(infer(id="5"), triton_x=1), infer(id="6")),
        case("no such model, with a version", infer("nope", model_version="1", id="1")),
        case("not a message", b"\xff\xff"),
        case("not a message, after an answer", infer(id="1"), b"\xff\xff"),
        case("an error that ends it, after an answer", infer(id="1"), infer("failing", id="2"), infer(id="3"),
             metadata=grpc_error),
        case("triton_grpc_error in capitals", infer("failing", id="2"), metadata=(("triton_grpc_error", "TRUE"),)),
        case("unknown output of an ensemble", infer("chain", outputs=["NO"], id="5")),
        case("what did not load", infer("broken", id="5")),
        case("empty final response not wanted",
             with_parameters(infer(id="1"), triton_enable_empty_final_response=False)),
    ]  # fmt: skip


def _about_edges() -> list[Case]:
    names = (("", "1"), ("nope", "1"), ("nope", "-1"), ("chain", "1"), ("chain", "-1"), ("echo", "1.0"),
             ("echo", "001"), ("echo", "99999999999999999999"), ("a\nb", ""), ("x" * 300, ""))  # fmt: skip
    cases = []
    for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
        for name, version in names:
            message = getattr(pb, f"{method}Request")(name=name, version=version)
            cases.append(Case(f"{method} {name[:5]!r} {version}", method, (message,)))
    others = ("failing", "halves", "slow", "overflowing", "labelless", "chain-that-narrows")
    for method in ("ModelMetadata", "ModelConfig"):
        kind = getattr(pb, f"{method}Request")
        cases += [Case(f"{method} {name}", method, (kind(name=name),)) for name in others]
    return cases


def _edge_cases() -> list[Case]:
    requests = _class_requests() | _name_requests() | _parameter_requests() | _content_requests()
    cases = [Case(name, "ModelInfer", (request,)) for name, request in requests.items()]
    load, unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
    commands = [
        Case("load from another repository", "RepositoryModelLoad", (load(repository_name="o", model_name="echo"),)),
        Case("unload from another one", "RepositoryModelUnload", (unload(repository_name="o", model_name="echo"),)),
    ]
    return [*cases, *_sequence_edges(), *_stream_edges(), *_about_edges(), *commands]


def _count_cases() -> list[Case]:
    """What ModelStatistics say after each kind of end."""

    def one(name: str, request: pb.ModelInferRequest) -> Case:
        return Case(name, "ModelInfer", (request,))

    def counts(name: str, model: str, version: str = "") -> Case:
        return Case(name, "ModelStatistics", (pb.ModelStatisticsRequest(name=model, version=version),))

    def in_turn(**said: Any) -> pb.ModelInferRequest:
        return with_parameters(infer("direct", row(1, 1, datatype="INT32", raw=integers(1))), sequence_id=5, **said)

    waiting = infer("slow", id="0"), with_parameters(infer("slow", id="1"), timeout=1000)
    return [
        one("one row", infer("unbatched")),
        one("two rows", infer("unbatched", row(2, 4, raw=floats(*range(8))))),
        counts("after one row and two", "unbatched", "1"),
        Case("a time-out while waiting", "ModelStreamInfer", waiting),
        counts("after a time-out", "slow", "1"),
        one("of another shape", infer("plain", row(1, 5, raw=floats(*range(5))))),
        one("nothing", infer("plain", row(0, 2, raw=b""))),
        counts("after another shape, and nothing", "plain", "1"),
        one("broken words", _words(b"\1")),
        counts("after broken words", "strings"),
        one("classes", _classes("labels", row(1, 4))),
        counts("after classes", "labels"),
        one("classes below zero", _classes("labelless", row(4), -2)),
        counts("after classes below zero", "labelless"),
        one("reshaped", infer("reshaped", row(2, 4, raw=floats(*range(8))))),
        counts("after a reshaped one", "reshaped"),
        one("a sequence starts", in_turn(sequence_start=True)),
        one("a sequence ends", in_turn(sequence_end=True)),
        one("a sequence that did not start", in_turn()),
        counts("after a sequence", "direct"),
        one("of an urgent level", with_parameters(infer("priorities"), priority=Unsigned(1))),
        counts("after an urgent level", "priorities"),
        counts("of no such model, with a version", "nope", "1"),
        counts("of no such model, with a version that is no number", "nope", "x"),
        counts("of version -1", "chain", "-1"),
        counts("of version 0", "echo", "0"),
        counts("of no such version of an ensemble", "chain", "2"),
        counts("of a version that did not load", "broken", "1"),
    ]


GROUPS: Final[Mapping[str, Callable[[], list[Case]]]] = {"edges": _edge_cases, "counts": _count_cases}
