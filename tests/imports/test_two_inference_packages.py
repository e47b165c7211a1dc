"""Our v2 messages and tritonclient's live in one process, though both describe the protobuf package `inference`."""

import subprocess
import sys

import pytest

OURS = "from hermetic.protos.inference import grpc_service_pb2 as ours"
THEIRS = "from tritonclient.grpc import service_pb2 as theirs"
USE = """
sent = ours.ModelInferRequest(model_name="m", id="1")
sent.inputs.add(name="x", datatype="FP32", shape=[1, 2])
received = theirs.ModelInferRequest.FromString(sent.SerializeToString())
assert (received.model_name, received.inputs[0].shape[:]) == ("m", [1, 2])
assert ours.ModelInferRequest.FromString(received.SerializeToString()) == sent
"""


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_both_packages_in_one_process(order: tuple[str, str]) -> None:
    pytest.importorskip("tritonclient.grpc")
    program = "\n".join((*order, USE))
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
