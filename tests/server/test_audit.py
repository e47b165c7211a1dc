"""Records on their way: batches within the frame's limits, the bound, what is refused while it is reached."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.enclave.control_frames import CONTROL_FRAME_LIMIT
from hermetic.errors import NotReadyError
from hermetic.server.access import Principal
from hermetic.server.audit import ANONYMOUS, NO_MODEL, Journal, model_part, who_part
from hermetic.server.identity import Identity
from hermetic.server.messages import RECORD_LIMIT, RECORDS_LIMIT, Records
from hermetic.server.status import Code, Status
from hermetic.server.stream_messages import Counted, stream_record, streamed_part

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "request-record"
OK = Status(Code.OK, "")


class Border:
    """Takes frames until it is busy."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.busy = False

    def send(self, frame: bytes) -> bool:
        if not self.busy:
            assert len(frame) <= CONTROL_FRAME_LIMIT
            self.frames.append(frame)
        return not self.busy

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(record) for frame in self.frames for record in Records.decode(frame).records]


@given(st.text(max_size=300), st.text(max_size=200), st.text(min_size=1, max_size=200))
def test_any_name_makes_a_valid_record(name: str, tenant: str, story: str) -> None:
    border = Border()
    journal = Journal(border.send, 10)
    who = who_part(Principal(Identity("ca", name), tenant, frozenset()))
    status = Status(Code.INTERNAL, "internal error", "1f", story)
    journal.request(1.25, "/a/b", who, model_part("m" + name, 1, "ab"), 1, 2, status, 3)
    journal.flush()
    (record,) = border.records()
    assert (record["name"], record["tenant"], record["model"], record["story"]) == (name, tenant, "m" + name, story)


def test_details_of_an_invalid_argument_are_not_recorded() -> None:
    border = Border()
    journal = Journal(border.send, 10)
    journal.request(0, "/a/b", ANONYMOUS, NO_MODEL, 0, 0, Status(Code.INVALID_ARGUMENT, "input 'canary'"), 1)
    journal.flush()
    assert "canary" not in repr(border.records())


def test_frames_hold_at_most_their_limit_of_records_and_bytes() -> None:
    border = Border()
    journal = Journal(border.send, 10_000)
    border.busy = True
    for at in range(300):
        journal.append(json.dumps({"n": at, "quotes": '"' * (RECORD_LIMIT // 3)}))
    border.busy = False
    journal.flush()
    assert [record["n"] for record in border.records()] == list(range(300))
    assert all(len(Records.decode(frame).records) <= RECORDS_LIMIT for frame in border.frames)


def test_a_record_that_is_too_large_becomes_a_note() -> None:
    border = Border()
    journal = Journal(border.send, 10)
    journal.append(json.dumps("x" * RECORD_LIMIT))
    journal.flush()
    assert border.records()[0]["event"] == "record-too-large"


def test_the_bound_refuses_and_what_was_refused_becomes_a_record() -> None:
    border = Border()
    journal = Journal(border.send, 3)
    for _ in range(3):
        journal.check_room()
        journal.request(0, "/a/b", ANONYMOUS, NO_MODEL, 0, 0, OK, 1)
    for _ in range(5):
        with pytest.raises(NotReadyError):
            journal.check_room()
    journal.flush()
    assert journal.waiting == 3  # sent, and not durable yet
    with pytest.raises(NotReadyError):
        journal.check_room()
    journal.written(3)
    journal.check_room()
    journal.flush()
    assert border.records()[-1] == {"event": "requests-refused", "reason": "log behind", "count": 6}


def test_a_busy_border_keeps_records_in_order() -> None:
    border = Border()
    journal = Journal(border.send, 1000)
    border.busy = True
    for at in range(100):
        journal.append(json.dumps({"n": at}))
    assert journal.waiting == 100
    border.busy = False
    journal.flush()
    assert [record["n"] for record in border.records()] == list(range(100))


def test_the_vector_of_a_stream() -> None:
    given_ = json.loads((VECTORS / "stream.json").read_text())
    who, stream, status = given_["principal"], given_["stream"], given_["status"]
    record = stream_record(
        given_["moment"],
        stream["id"],
        who_part(Principal(Identity(who["authority"], who["name"]), who["tenant"], frozenset())),
        Counted(stream["requests"], stream["responses"], stream["request_bytes"], stream["reply_bytes"]),
        Status(Code[status["code"]], status["details"], status["id"], status["story"]),
        stream["duration_us"],
    )
    assert record == given_["record"]


@pytest.mark.parametrize(
    "vector", sorted(set(VECTORS.glob("*.json")) - {VECTORS / "stream.json"}), ids=lambda p: p.stem
)
def test_the_vectors_of_the_specification(vector: Path) -> None:
    given_ = json.loads(vector.read_text())
    who, model, status = given_["principal"], given_["model"], given_["status"]
    part = model_part(model["name"], model["version"], model["digest"]) if model else NO_MODEL
    if "stream" in given_:
        part = streamed_part(part, given_["stream"]["id"], given_["stream"]["responses"])
    border = Border()
    journal = Journal(border.send, 10)
    journal.request(
        given_["moment"],
        given_["method"],
        who_part(Principal(Identity(who["authority"], who["name"]), who["tenant"], frozenset())) if who else ANONYMOUS,
        part,
        given_["request_bytes"],
        given_["reply_bytes"],
        Status(Code[status["code"]], status["details"], status["id"], status["story"]),
        given_["latency_us"],
    )
    journal.flush()
    assert Records.decode(border.frames[0]).records == (given_["record"],)
