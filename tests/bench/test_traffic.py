"""Which replies count as right, and nothing else does."""

import pytest

from hermetic.bench.quick import mlp_questions
from hermetic.bench.traffic import Checker, right_reply
from hermetic.protos.inference import grpc_service_pb2

ANSWER = mlp_questions("mlp")[0].answer


def reply(**changes: object) -> bytes:
    message = grpc_service_pb2.ModelInferResponse.FromString(right_reply("mlp", ANSWER))
    for name, value in changes.items():
        if name == "raw":
            del message.raw_output_contents[:]
            message.raw_output_contents.extend(value)  # type: ignore[arg-type]
        elif name == "shape":
            del message.outputs[0].shape[:]
            message.outputs[0].shape.extend(value)  # type: ignore[arg-type]
        else:
            setattr(message.outputs[0], name, value)
    return message.SerializeToString()


def test_the_right_reply_and_its_variants_are_accepted() -> None:
    checker = Checker(ANSWER)
    for given in (right_reply("mlp", ANSWER), right_reply("mlp", [value * 1.0001 for value in ANSWER])):
        assert checker.accepts(given)
        assert checker.accepts(given)  # from memory
    with_id = grpc_service_pb2.ModelInferResponse.FromString(right_reply("mlp", ANSWER))
    with_id.id = "7"
    assert checker.accepts(with_id.SerializeToString())


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff",
        right_reply("mlp", [value + 0.01 for value in ANSWER]),
        right_reply("mlp", [float("nan")] * 10),
        right_reply("mlp", ANSWER[:9]),
        reply(raw=[]),
        reply(raw=[b"\0" * 40, b""]),
        reply(raw=[b"\0" * 39]),
        reply(shape=[10]),
        reply(shape=[2, 5]),
        reply(datatype="FP16"),
    ],
)
def test_anything_else_is_wrong(wrong: bytes) -> None:
    checker = Checker(ANSWER)
    assert not checker.accepts(wrong)
    assert not checker.accepts(wrong)


def test_another_questions_answer_is_wrong() -> None:
    assert not Checker(ANSWER).accepts(right_reply("mlp", mlp_questions("mlp")[1].answer))


def test_a_question_of_several_rows_has_as_many_answers_and_its_own_tolerance() -> None:
    checker = Checker(ANSWER, rows=2, tolerance=(1e-2, 1e-2))
    assert checker.accepts(reply(shape=[2, 5]))
    assert not checker.accepts(reply(shape=[1, 10]))
    near, far = (right_reply("mlp", [value + off for value in ANSWER]) for off in (0.005, 0.1))
    for given, accepted in ((near, True), (far, False)):
        message = grpc_service_pb2.ModelInferResponse.FromString(given)
        message.outputs[0].shape[:] = [2, 5]
        assert checker.accepts(message.SerializeToString()) is accepted
