"""Large tensors: answered right, and held in memory within what is configured, whoever sends how many at a time."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.config import Limits
from hermetic.server.section import MIB
from tests.server.calls import TIMEOUT_S, await_ready, infer, method
from tests.server.far_side import FarSide, description
from tests.server.memory_of import Peak, own_bytes

IMAGE = (3, 224, 224)  # FP32: 602,112 bytes
TENSOR_MIB = 64
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# Beside what is in flight: one message is copied from gRPC's memory into ours, one reply from ours into gRPC's and
# before that into one piece; the allocator keeps some of what it had.
COPIES = 3
SLACK = 64 * MIB


def channel(side: FarSide, client: Any) -> grpc.Channel:
    return grpc.secure_channel(f"localhost:{side.port}", side.credentials(client), options=UNLIMITED)


def big_request(model: str, raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="UINT8", shape=[len(raw)])
    request.raw_input_contents.append(raw)
    return request


def serve_bytes(side: FarSide, name: str, size: int) -> None:
    wide = description(name, inputs=(("INPUT0", "UINT8", (size,)),), max_batch_size=0)
    side.serve(wide, report=False, buffers=2)
    with side.channel_as(side.pki.infer) as one:
        await_ready(one, name)


def test_images(start: Any) -> None:
    side: FarSide = start()
    side.serve(description("images", inputs=(("INPUT0", "FP32", IMAGE),)), report=False)
    image = os.urandom(4 * 3 * 224 * 224)
    request = pb.ModelInferRequest(model_name="images")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, *IMAGE])
    request.raw_input_contents.append(image)
    with channel(side, side.pki.infer) as one:
        await_ready(one, "images")
        send = method(one, "ModelInfer").future
        for future in [send(request, timeout=TIMEOUT_S) for _ in range(64)]:
            assert future.result().raw_output_contents[0] == image


def test_tensors_of_64_mib(start: Any) -> None:
    """The largest that the default settings take, from two at a time with room for one."""
    room = 65 * MIB
    side: FarSide = start(limits=Limits(bytes_in_flight=room, bytes_in_flight_per_client=room, message_wait_s=60))
    before = own_bytes(side.process.pid)
    with Peak(side.process.pid) as peak:
        send_all(side, TENSOR_MIB * MIB, 2)
    assert peak.bytes - before < COPIES * room + SLACK  # of one message at a time: two would be half as much again


def test_more_large_messages_than_there_is_room_for(start: Any) -> None:
    """Sixteen clients send 16 MiB each at the same time, with room for two: all are answered, memory stays bounded."""
    largest = 17 * MIB
    limits = Limits(
        message_bytes=largest, bytes_in_flight=2 * largest, bytes_in_flight_per_client=2 * largest, message_wait_s=60
    )
    side: FarSide = start(limits=limits)
    before = own_bytes(side.process.pid)
    with Peak(side.process.pid) as peak:
        send_all(side, 16 * MIB, 16)
    replies = 2 * largest  # of the two messages that were there when the room was full
    assert peak.bytes - before < 2 * largest + replies + COPIES * largest + SLACK


def send_all(side: FarSide, size: int, clients: int) -> None:
    """Have that many clients, of two identities, send a tensor each at the same time; all answers must be right."""
    serve_bytes(side, "large", size)
    tensors = [struct.pack("<I", at) * (size // 4) for at in range(clients)]

    def call(at: int) -> None:
        with channel(side, side.pki.infer if at % 2 else side.pki.other) as one:
            response = infer(one, big_request("large", tensors[at]), timeout=60)
        assert response.raw_output_contents[0] == tensors[at]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(call, range(clients)))
