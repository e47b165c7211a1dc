"""What stock clients make of each datatype, compression, their asynchronous forms: sent by them, read by them.

`tritonclient.grpc` in its blocking, callback, asyncio and streaming forms; and a client that has nothing but the
protocol, with typed contents. Errors are in test_service.py and test_like_triton.py.
"""

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as asynchronous
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import TIMEOUT_S, await_ready, infer
from tests.server.far_side import FarSide, description
from tests.vectors.triton.calls import CONTENTS

VALUES: dict[str, NDArray[Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.5, 0, 65504]], np.float16),
    "FP32": np.array([[-0.5, np.inf, 1e-45]], np.float32),
    "FP64": np.array([[-0.5, np.nan, 5e-324]], np.float64),
    "BF16": np.array([[-0.5, np.inf, 1.0]], bfloat16),
    "BYTES": np.array([["größe".encode(), b"", b"a\0b" * 100]], np.object_),
}


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    kinds = tuple((f"IN_{kind}", kind, (3,)) for kind in VALUES)
    side.serve(description("kinds", inputs=kinds), report=False)
    with side.channel_as(side.pki.everything) as channel:
        await_ready(channel, "kinds")
    return side


@pytest.fixture
def client(served: FarSide) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(
        f"localhost:{served.port}", ssl=True, creds=served.credentials(served.pki.everything)
    ) as client:
        yield client


def given(kinds: Any = triton) -> list[Any]:
    """Every datatype, as the client takes it from numpy."""
    inputs = []
    for kind, values in VALUES.items():
        tensor = kinds.InferInput(f"IN_{kind}", list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def check(result: Any) -> None:
    """What came back is what was given, as the client reads it into numpy."""
    response = result.get_response()
    assert [output.datatype for output in response.outputs] == list(VALUES)
    for output, values in zip(response.outputs, VALUES.values(), strict=True):
        got = result.as_numpy(output.name)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_every_datatype_from_numpy_and_back(client: triton.InferenceServerClient, compression: str | None) -> None:
    check(client.infer("kinds", given(), compression_algorithm=compression, client_timeout=TIMEOUT_S))


def test_every_datatype_by_callback(client: triton.InferenceServerClient) -> None:
    done: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.async_infer("kinds", given(), lambda result, error: done.put((result, error)), client_timeout=TIMEOUT_S)
    result, error = done.get(timeout=TIMEOUT_S)
    assert error is None
    check(result)


def test_every_datatype_in_a_stream(client: triton.InferenceServerClient) -> None:
    done: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: done.put((result, error)), compression_algorithm="gzip")
    for at in range(3):
        client.async_stream_infer("kinds", given(), request_id=str(at))
    client.async_stream_infer("nope", given(), request_id="3")
    for at in range(3):
        result, error = done.get(timeout=TIMEOUT_S)
        assert error is None
        assert result.get_response().id == str(at)
        check(result)
    result, error = done.get(timeout=TIMEOUT_S)
    assert result is None
    assert "Request for unknown model: 'nope' is not found" in str(error)
    client.stop_stream()


def test_every_datatype_with_asyncio(served: FarSide) -> None:
    async def play() -> None:
        async with asynchronous.InferenceServerClient(
            f"localhost:{served.port}", ssl=True, creds=served.credentials(served.pki.everything)
        ) as client:
            results = await asyncio.gather(*(client.infer("kinds", given(asynchronous)) for _ in range(3)))
            for result in results:
                check(result)
            with pytest.raises(InferenceServerException, match="is not found") as caught:
                await client.infer("nope", given(asynchronous))
            assert caught.value.status() == "StatusCode.NOT_FOUND"

            async def requests() -> Any:
                for at in range(3):
                    yield {"model_name": "kinds", "inputs": given(asynchronous), "request_id": str(at)}

            answers = [answer async for answer in client.stream_infer(requests(), stream_timeout=TIMEOUT_S)]
            assert [result.get_response().id for result, _ in answers] == ["0", "1", "2"]
            for result, error in answers:
                assert error is None
                check(result)

    asyncio.run(play())


def test_every_datatype_that_has_typed_contents(served: FarSide) -> None:
    """As KServe's client sends them, and plain stubs; half floats have none, so a request with them is raw."""
    kinds = tuple((f"IN_{kind}", kind, (3,)) for kind in CONTENTS)
    served.serve(description("typed", inputs=kinds), report=False)
    request = pb.ModelInferRequest(model_name="typed", id="1")
    raw = []
    for kind, field in CONTENTS.items():
        tensor = request.inputs.add(name=f"IN_{kind}", datatype=kind, shape=VALUES[kind].shape)
        getattr(tensor.contents, field).extend(VALUES[kind].ravel().tolist())
        sent = triton.InferInput("any", [1, 3], kind)
        sent.set_data_from_numpy(VALUES[kind])
        raw.append(bytes(sent._get_content()))
    with served.channel_as(served.pki.everything) as channel:
        await_ready(channel, "typed")
        response = infer(channel, request)
    assert list(response.raw_output_contents) == raw
    assert not any(output.HasField("contents") for output in response.outputs)
