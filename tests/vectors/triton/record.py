"""Plays every call of groups.py against a real Triton and writes what it answers: `make triton-vectors`.

    GROUP.json      {"triton": version, "cases": [case, ...]}
    case            {"name", "method", "metadata", "requests": [{"json"} or {"bytes"}, ...], "answer"}
    answer          {"code", "message", "responses": [...]}; code is CRASHED where the call ended Triton's process

Requests are what calls.py and edges.py say, again as JSON for people and as bytes (base64) for the test that plays
them. Answers are the protocol's JSON with two things made the same at every run: durations and times are 1 where they
are not 0, and folders of the recording machine are REPOSITORY.
"""

import base64
import json
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

ROOT: Final = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from hermetic.bench.triton import TRITON_VERSION, Triton  # noqa: E402 - after the path
from hermetic.protos.inference import grpc_service_pb2 as pb  # noqa: E402
from tests.vectors.triton.calls import Case  # noqa: E402
from tests.vectors.triton.groups import GROUPS  # noqa: E402
from tests.vectors.triton.models import models_of, write_repository  # noqa: E402

SERVICE: Final = "/inference.GRPCInferenceService/"
TIMEOUT_S: Final = 10
ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {"load": ("--model-control-mode=explicit",)}
"""What the server of a group is started with."""
CRASHED: Final = "CRASHED"
"""The code of an answer that was none: the call ended the server's process."""
CRASH_S: Final = 1
FOLDERS: Final = r"/tmp/folder\w+"  # where Triton puts files that came with a load
TIMES: Final = {"ns", "last_inference"}


def play(channel: grpc.Channel, case: Case) -> dict[str, Any]:
    """Return the answer to a case."""
    raw = [message if isinstance(message, bytes) else message.SerializeToString() for message in case.messages]
    responses: list[bytes] = []
    try:
        if case.method == "ModelStreamInfer":
            call = channel.stream_stream(SERVICE + case.method)(iter(raw), timeout=TIMEOUT_S, metadata=case.metadata)
            responses.extend(call)
        else:
            [only] = raw
            responses.append(
                channel.unary_unary(SERVICE + case.method)(only, timeout=TIMEOUT_S, metadata=case.metadata)
            )
    except grpc.RpcError as error:
        code, message = error.code().name, error.details()
    else:
        code, message = "OK", ""
    shown = [normal(MessageToDict(parsed(case.method, r), preserving_proto_field_name=True)) for r in responses]
    return {"code": code, "message": message, "responses": shown}


def parsed(method: str, response: bytes) -> Message:
    """Return the response of a method as a message."""
    kind = {"ModelInfer": pb.ModelInferResponse, "ModelStreamInfer": pb.ModelStreamInferResponse}.get(method)
    message = (kind or getattr(pb, f"{method}Response"))()
    message.ParseFromString(response)
    assert isinstance(message, Message)
    return message


def normal(shown: Any) -> Any:
    """Return JSON in which times are 1 where they are not 0."""
    if isinstance(shown, dict):
        return {key: "1" if key in TIMES and value != "0" else normal(value) for key, value in shown.items()}
    return [normal(value) for value in shown] if isinstance(shown, list) else shown


def document(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the case as it is written."""
    return {
        "name": case.name,
        "method": case.method,
        "metadata": dict(case.metadata),
        "requests": [_request(message) for message in case.messages],
        "answer": answer,
    }


def _request(message: Message | bytes) -> dict[str, Any]:
    if isinstance(message, bytes):
        return {"bytes": base64.b64encode(message).decode()}
    raw = base64.b64encode(message.SerializeToString(deterministic=True)).decode()
    return {"json": MessageToDict(message, preserving_proto_field_name=True), "bytes": raw}


def main() -> None:
    """Record the groups named, or all of them."""
    for group in sys.argv[1:] or GROUPS:
        with tempfile.TemporaryDirectory() as scratch:
            write_repository(Path(scratch), models_of(group))
            cases = list(_record(group, Path(scratch)))
            text = json.dumps({"triton": TRITON_VERSION, "cases": cases}, indent=1, ensure_ascii=False) + "\n"
            text = re.sub(FOLDERS, "REPOSITORY", text.replace(scratch, "REPOSITORY"))
            Path(__file__).with_name(f"{group}.json").write_text(text)


def _record(group: str, repository: Path) -> Iterator[dict[str, Any]]:
    """Play a group against a server of its own, and against a new one where a call made it crash."""
    waiting = deque(GROUPS[group]())
    while waiting:
        with (
            Triton(repository, ARGUMENTS.get(group, ())) as triton,
            grpc.insecure_channel(triton.grpc) as channel,
        ):
            while waiting and triton.process.poll() is None:
                case = waiting.popleft()
                answer = play(channel, case)
                if answer["code"] == "UNAVAILABLE" and _ended(triton.process):
                    answer = {"code": CRASHED, "message": "", "responses": []}
                yield document(case, answer)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(CRASH_S)
    except subprocess.TimeoutExpired:
        return False
    return True


if __name__ == "__main__":
    main()
