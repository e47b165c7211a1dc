"""Elements of BYTES are walked one by one, on the thread that serves everyone: so many of a request and no more."""

from collections.abc import Iterator

import pytest

from hermetic.enclave.batch_frames import STRINGS_LIMIT
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.far_side import Pki, description
from tests.server.hostile_front import Front

TWO = (("INPUT0", "BYTES", (-1,)), ("INPUT1", "BYTES", (-1,)))
ROOM = 8 * STRINGS_LIMIT


@pytest.fixture
def front(pki: Pki) -> Iterator[Front]:
    front = Front(pki)
    front.serve(description("words", inputs=TWO), hostile=False, variable=ROOM)
    yield front
    front.close()


def words(first: int, second: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="words")
    for name, count in (("INPUT0", first), ("INPUT1", second)):
        request.inputs.add(name=name, datatype="BYTES", shape=[1, count])
        request.raw_input_contents.append(bytes(4 * count))
    return request


def test_as_many_as_there_may_be_are_taken(front: Front) -> None:
    caller = front.ask("red", words(STRINGS_LIMIT - 1, 1))
    front.turn()
    (worker,) = front.workers
    worker.read()
    worker.answer(worker.batches[0])
    front.turn()
    (reply,) = caller.outcomes
    assert isinstance(reply, pb.ModelInferResponse)
    assert [len(raw) for raw in reply.raw_output_contents] == [4 * (STRINGS_LIMIT - 1), 4]


def test_one_more_is_refused_before_any_is_walked(front: Front) -> None:
    for asked in (words(STRINGS_LIMIT, 1), words(0, STRINGS_LIMIT + 1)):
        (outcome,) = front.ask("red", asked).outcomes
        assert isinstance(outcome, InvalidRequestError)
        assert f"expected at most {STRINGS_LIMIT} in all inputs, got {STRINGS_LIMIT + 1}" in str(outcome)
