"""Sealed models of sequences, whole: states and text from real ONNX models behind a real server, by stock clients."""

import queue
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.flows.scene import Running, scene
from tests.flows.sequence_networks import ALPHABET, FIRST, adder, codes, writer, written

PROMPTS = ("a s", " is", "the", "key", "log")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with scene("sample") as place:
        files = [place.seal_model(model) for model in (adder(place.workshop), writer(place.workshop))]
        with place.serve(files) as server:
            yield server


def value(numbers: Sequence[float]) -> list[tritonclient.grpc.InferInput]:
    tensor = tritonclient.grpc.InferInput("VALUE", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([numbers], np.float32))
    return [tensor]


def prompt(text: str) -> list[tritonclient.grpc.InferInput]:
    tensor = tritonclient.grpc.InferInput("PROMPT", [1, 3], "INT64")
    tensor.set_data_from_numpy(np.array([codes(text)], np.int64))
    return [tensor]


def add(client: Any, numbers: Sequence[float], **options: Any) -> NDArray[np.float32]:
    total = client.infer("adder", value(numbers), **options).as_numpy("TOTAL")
    return np.asarray(total[0], np.float32)


def test_the_adder_keeps_a_sum_for_each_sequence(running: Running) -> None:
    with running.client() as client:
        one, other = add(client, (1, 2), sequence_id=1, sequence_start=True), np.zeros(2, np.float32)
        np.testing.assert_array_equal(one, FIRST + np.array([1, 2]))  # the payload says what it begins with
        for step in range(1, 5):
            other = add(client, (step, 0), sequence_id=2, sequence_start=step == 1)
            one = add(client, (1, 2), sequence_id=1, sequence_end=step == 4)
        np.testing.assert_array_equal(one, FIRST + np.array([5, 10]))
        np.testing.assert_array_equal(other, FIRST + np.array([10, 0]))
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            add(client, (1, 2), sequence_id=1)


def test_the_writer_writes_what_it_has_learnt_for_all_at_once(running: Running) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    texts = dict.fromkeys(PROMPTS, "")
    with running.client() as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for text in PROMPTS:
            client.async_stream_infer("writer", prompt(text), request_id=text)
        over = 0
        while over < len(PROMPTS):
            result, error = answers.get(timeout=60)
            assert error is None, error
            texts[result.get_response().id] += ALPHABET[result.as_numpy("CHARACTER").item()]
            over += result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
    assert texts == {text: written(text) for text in PROMPTS}
    assert len(texts["a s"]) > 10


def test_the_writer_is_not_for_modelinfer(running: Running) -> None:
    with running.client() as client, pytest.raises(InferenceServerException, match="decoupled transaction policy"):
        client.infer("writer", prompt("a s"))
