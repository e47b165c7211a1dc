"""A front end's epoch: staged and checked, applied or dropped; who is revoked is refused at the next call."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.errors import BorderError, ConfigurationError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server import documents
from hermetic.server.config import AccessRule, Limits, Revoked
from hermetic.server.epochs import checked
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import (
    ApplyEpoch,
    DropEpoch,
    EpochApplied,
    EpochStaged,
    StageEpoch,
)
from tests.server.calls import TIMEOUT_S, await_ready, infer, infer_request, method
from tests.server.certificates import Pair, subject
from tests.server.conversation import Conversation
from tests.server.far_side import FarSide, Pki, description, epoch


def stage(side: FarSide, wanted: Epoch, *, sha256: str | None = None, number: int | None = None) -> EpochStaged:
    """Send an epoch, and return what the front end says of it."""
    text = documents.encoded(wanted)
    document = documents.in_memory(text)
    frame = StageEpoch(number=number or wanted.number, sha256=sha256 or documents.digest(text))
    side.channel.send(frame.encode(), (document,))
    os.close(document)
    answer = side.next_frame(EpochStaged)
    assert isinstance(answer, EpochStaged)
    return answer


def apply(side: FarSide, wanted: Epoch) -> None:
    """Stage and apply an epoch."""
    assert stage(side, wanted).error == ""
    side.channel.send(ApplyEpoch(number=wanted.number).encode())
    assert side.next_frame(EpochApplied) == EpochApplied(number=wanted.number)


def live(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def mark(pki: Pki, kind: str) -> Revoked:
    """A row that revokes alice by this kind of mark."""
    certificate = x509.load_pem_x509_certificate(pki.infer.certificate)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return {
        "name": Revoked(authority="clients", name=subject("alice")),
        "serial": Revoked(authority="clients", serial=f"{certificate.serial_number:X}"),
        "serial with colons": Revoked(authority="clients", serial=_colons(certificate.serial_number)),
        "key": Revoked(spki_sha256=digest.finalize().hex()),
    }[kind]


def _colons(number: int) -> str:
    text = f"{number:042x}"
    return ":".join(text[at : at + 2] for at in range(0, len(text), 2))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("name", grpc.StatusCode.PERMISSION_DENIED),
        ("serial", grpc.StatusCode.UNAUTHENTICATED),
        ("serial with colons", grpc.StatusCode.UNAUTHENTICATED),
        ("key", grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_who_is_revoked_is_refused_at_the_next_call_of_an_open_connection(
    start: object, kind: str, status: grpc.StatusCode
) -> None:
    side: FarSide = start()  # type: ignore[operator]
    with side.channel_as(side.pki.infer) as open_already, side.channel_as(side.pki.other) as another:
        assert live(open_already) == live(another) == grpc.StatusCode.OK
        apply(side, epoch(side.pki, number=2, revoked=[mark(side.pki, kind)]))
        assert live(open_already) == status
        with side.channel_as(side.pki.infer) as again:
            assert live(again) == status
        assert live(another) == grpc.StatusCode.OK
        apply(side, epoch(side.pki, number=3))
        assert live(open_already) == grpc.StatusCode.OK


@pytest.mark.parametrize(
    "change",
    [
        lambda row: None,
        lambda row: row.model_copy(update={"roles": ("observe",)}),
    ],
    ids=["not listed any more", "another role"],
)
def test_who_lost_its_row_or_role_is_refused_at_the_next_call(
    start: object, change: Callable[[AccessRule], AccessRule | None]
) -> None:
    side: FarSide = start()  # type: ignore[operator]
    side.serve(description("echo"))
    request = infer_request("echo", (1, 2, 3, 4))
    rows = [change(row) if row.name == subject("alice") else row for row in side.pki.rules()]
    with side.channel_as(side.pki.infer) as open_already:
        await_ready(open_already, "echo")
        infer(open_already, request)
        apply(side, epoch(side.pki, number=2, access=[row for row in rows if row is not None]))
        with pytest.raises(grpc.RpcError) as caught:
            infer(open_already, request)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        apply(side, epoch(side.pki, number=3))
        infer(open_already, request)


def test_streams_of_who_is_revoked_end_when_what_they_asked_is_answered(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    worker = side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.other) as another:
        await_ready(channel, "echo")
        worker.order("hold")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=TIMEOUT_S)
        watched = another.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=TIMEOUT_S)
        next(watch)
        next(watched)
        stream = Conversation(channel)
        stream.ask(infer_request("echo", (1, 2, 3, 4)))
        worker.batch()
        apply(side, epoch(side.pki, number=2, revoked=[mark(side.pki, "serial")]))
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        worker.order("go")
        assert stream.answer().infer_response.raw_output_contents
        with pytest.raises(grpc.RpcError) as caught:
            stream.answer()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert watched.is_active()
        watched.cancel()


def test_a_stream_does_not_go_on_as_another_tenants(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    worker = side.serve(description("echo"))
    moved = [
        rule.model_copy(update={"tenant": "green"}) if rule.name == subject("alice") else rule
        for rule in side.pki.rules()
    ]
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        worker.order("hold")
        stream = Conversation(channel)
        stream.ask(infer_request("echo", (1, 2, 3, 4)))
        worker.batch()
        apply(side, epoch(side.pki, number=2, access=tuple(moved)))
        worker.order("go")
        assert stream.answer().infer_response.raw_output_contents
        with pytest.raises(grpc.RpcError) as caught:
            stream.answer()
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert live(channel) == grpc.StatusCode.OK


def test_an_authority_that_is_gone_is_refused_per_call_and_at_the_handshake(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    partner = side.pki.partners.issue("carol")
    partners = {"partners": side.pki.partners.pem.decode()}
    rule: dict[str, Any] = {"authority": "partners", "name": subject("carol"), "tenant": "blue", "roles": ("infer",)}
    with side.channel_as(side.pki.infer) as open_already:
        assert live(open_already) == grpc.StatusCode.OK
        apply(side, epoch(side.pki, number=2, authorities=partners, access=[rule]))
        assert live(open_already) == grpc.StatusCode.UNAUTHENTICATED
        with side.channel_as(partner) as new:
            assert live(new) == grpc.StatusCode.OK
        assert _handshake_fails(side, side.pki.infer)


def _handshake_fails(side: FarSide, client: Pair) -> bool:
    """Until gRPC has asked for the new authorities, which it does at a handshake, one more may pass: then per call."""
    for _ in range(3):
        with side.channel_as(client) as channel:
            status = live(channel)
            assert status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
            if status == grpc.StatusCode.UNAVAILABLE:
                return True
    return False


def test_limits_of_the_next_epoch_hold(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    side.serve(description("echo"))
    request = infer_request("echo", (1, 2, 3, 4))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        infer(channel, request)
        apply(side, epoch(side.pki, number=2, limits=Limits(inference_streams_per_client=1, requests_per_stream=1)))
        with Conversation(channel) as first, Conversation(channel) as second:
            first.ask(request)
            first.raw()
            assert "wanted at most 1, got 2" in second.failure().details()


def test_a_staged_epoch_does_nothing_and_can_be_dropped(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    wanted = epoch(side.pki, number=2, revoked=[mark(side.pki, "name")])
    with side.channel_as(side.pki.infer) as channel:
        assert stage(side, wanted).error == ""
        assert live(channel) == grpc.StatusCode.OK
        side.channel.send(DropEpoch(number=2).encode())
        side.channel.send(ApplyEpoch(number=2).encode())  # what is not staged cannot be applied
        assert live(channel) == grpc.StatusCode.OK
        assert side.frames.empty()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"authorities": {"clients": "no PEM"}}, "wanted PEM certificates"),
        ({"authorities": {}}, "wanted one of the authorities"),
        ({"places": (1, 1, 2, 3, 4)}, "wanted a place of its own"),
        ({"places": (1,)}, "wanted a place of its own"),
        ({"revoked": [{"authority": "nobody", "name": "x"}]}, "revoked: wanted one of the authorities"),
    ],
)
def test_an_epoch_that_does_not_fit_together_is_answered_with_the_reason(
    side: FarSide, changes: dict[str, Any], reason: str
) -> None:
    wanted = epoch(side.pki, number=2, **changes)
    with pytest.raises(ConfigurationError, match=reason):
        checked(wanted)
    assert reason in stage(side, wanted).error


def test_a_document_that_is_not_the_announced_one_is_refused(side: FarSide) -> None:
    wanted = epoch(side.pki, number=2)
    assert "wanted the document" in stage(side, wanted, sha256="00" * 32).error
    assert "wanted number 3" in stage(side, wanted, number=3).error


def test_a_large_access_table_is_taken(start: object) -> None:
    """Ten times what a control frame holds, at the start and as a later epoch."""
    pki = Pki()
    rows = [
        {"authority": "clients", "name": f"spiffe://tests/{at}/" + "x" * 100, "tenant": "red", "roles": ("infer",)}
        for at in range(4000)
    ]
    rules = [*(rule.model_dump() for rule in pki.rules()), *rows]
    side: FarSide = start(access=rules)  # type: ignore[operator]
    apply(side, epoch(side.pki, number=2, access=[*(rule.model_dump() for rule in side.pki.rules()), *rows[1:]]))
    with side.channel_as(side.pki.infer) as channel:
        assert live(channel) == grpc.StatusCode.OK


VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "epoch"


@pytest.mark.parametrize("vector", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_the_vectors_of_the_specification(vector: Path, pki: Pki) -> None:
    """`@clients.pem` stands for a certificate: one that is valid today cannot be kept in a file."""
    told = json.loads(vector.read_text().replace("@clients.pem", pki.authority.pem.decode().replace("\n", "\\n")))
    text = json.dumps(told["epoch"]).encode()
    if not told["refused"]:
        checked(documents.decoded(text, Epoch))
        return
    with pytest.raises((ConfigurationError, BorderError), match=told["refused"]):
        checked(documents.decoded(text, Epoch))
