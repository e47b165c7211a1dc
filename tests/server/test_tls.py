"""Who gets in at all: TLS 1.3, a client certificate of a configured CA, valid, of one name, listed."""

import socket
import ssl
import time
import warnings
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from hermetic.errors import ConfigurationError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.http2.tls import ServingCredentials, check_binding
from tests.server.calls import TIMEOUT_S, method
from tests.server.certificates import Authority, Pair
from tests.server.far_side import FarSide, Pki
from tests.server.raw_http2 import tls_context


def live(side: FarSide, client: Pair | None) -> tuple[grpc.StatusCode, str]:
    with side.channel_as(client) as channel:
        try:
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_a_listed_identity_gets_in(side: FarSide) -> None:
    assert live(side, side.pki.infer)[0] == grpc.StatusCode.OK
    assert live(side, side.pki.other)[0] == grpc.StatusCode.OK  # by its SPIFFE ID


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_older_tls_is_refused(side: FarSide, version: ssl.TLSVersion) -> None:
    context = tls_context(side.pki.server_authority.pem, side.pki.infer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    with (
        socket.create_connection(("localhost", side.port), TIMEOUT_S) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_the_same_client_gets_in_with_tls_13(side: FarSide) -> None:
    context = tls_context(side.pki.server_authority.pem, side.pki.infer)
    with (
        socket.create_connection(("localhost", side.port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_no_certificate_is_refused(side: FarSide) -> None:
    assert live(side, None)[0] == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_ca_is_refused(side: FarSide) -> None:
    assert live(side, Authority("clients").issue("alice"))[0] == grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_is_refused(side: FarSide) -> None:
    expired = side.pki.authority.issue("alice", begins=timedelta(hours=-2), ends=timedelta(hours=-1))
    assert live(side, expired)[0] == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_expires_while_connected_is_refused(side: FarSide) -> None:
    short = side.pki.authority.issue("alice", ends=timedelta(seconds=2))
    with side.channel_as(short) as channel:
        call = method(channel, "ServerLive")
        call(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        assert _until_refused(call).code() == grpc.StatusCode.UNAUTHENTICATED


def _until_refused(call: Any) -> grpc.RpcError:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            call(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error
    raise TimeoutError


def test_an_unlisted_identity_is_denied(side: FarSide) -> None:
    assert live(side, side.pki.unlisted)[0] == grpc.StatusCode.PERMISSION_DENIED


def test_the_same_name_from_another_configured_ca_is_another_identity(side: FarSide) -> None:
    assert live(side, side.pki.partners.issue("alice"))[0] == grpc.StatusCode.PERMISSION_DENIED


def test_two_spiffe_ids_are_refused(side: FarSide) -> None:
    two = side.pki.authority.issue("bob", uris=["spiffe://tests/bob", "spiffe://tests/alice"])
    assert live(side, two)[0] == grpc.StatusCode.UNAUTHENTICATED


def test_a_spiffe_id_beside_another_uri_is_refused(side: FarSide) -> None:
    two = side.pki.authority.issue("bob", uris=["https://tests/bob", "spiffe://tests/bob"])
    assert live(side, two)[0] == grpc.StatusCode.UNAUTHENTICATED


def test_a_subject_does_not_count_beside_a_spiffe_id(side: FarSide) -> None:
    assert (
        live(side, side.pki.authority.issue("alice", uris=["spiffe://tests/x"]))[0] == grpc.StatusCode.PERMISSION_DENIED
    )


def test_a_server_certificate_is_no_client(side: FarSide) -> None:
    server = side.pki.authority.issue("alice", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    assert live(side, server)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


def test_a_ca_is_no_client(side: FarSide) -> None:
    assert live(side, side.pki.authority.issue("alice", ca=True))[0] == grpc.StatusCode.UNAUTHENTICATED


def test_what_cannot_be_shut_out_is_noticed_at_the_start(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in which the lowest version cannot be set: the server must not start."""
    check_binding(pki.server.key, pki.server.certificate)
    monkeypatch.setattr(SSL.Context, "set_min_proto_version", lambda *_: None)
    with pytest.raises(ConfigurationError, match=r"TLS 1\.2 to be refused, got a handshake"):
        check_binding(pki.server.key, pki.server.certificate)


def test_certificates_are_replaced_while_serving(pki: Pki, start: Any) -> None:
    """Old connections live on, and new ones meet the new certificate."""
    side: FarSide = start()
    context = tls_context(side.pki.server_authority.pem, side.pki.infer)
    with side.channel_as(pki.infer) as old:
        live_call = method(old, "ServerLive")
        live_call(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        for _ in range(3):
            successor = pki.server_authority.issue_server()
            side.renew(successor)
            wanted = ssl.PEM_cert_to_DER_cert(successor.certificate.decode())
            deadline = time.monotonic() + TIMEOUT_S
            while served_certificate(context, side.port) != wanted:
                assert time.monotonic() < deadline
        live_call(pb.ServerLiveRequest(), timeout=TIMEOUT_S)


def test_a_pair_that_does_not_fit_leaves_the_old_one(pki: Pki) -> None:
    authorities = {"clients": pki.authority.pem.decode()}
    credentials = ServingCredentials(pki.server.key, pki.server.certificate, authorities)
    context = credentials.context
    with pytest.raises(ConfigurationError, match="private key and its certificate chain"):
        credentials.renew(pki.server.key, pki.server_authority.issue_server().certificate)
    with pytest.raises(ConfigurationError, match="at least one client authority"):
        credentials.trust({"clients": ""})
    assert credentials.context is context


def test_no_session_is_resumed(side: FarSide) -> None:
    """A ticket would let a revoked or expired certificate back in."""
    context = tls_context(side.pki.server_authority.pem, side.pki.infer)
    session = None
    for _ in range(2):
        with (
            socket.create_connection(("localhost", side.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
        ):
            secured.settimeout(TIMEOUT_S)
            secured.recv(9)  # the server's SETTINGS: tickets came before
            assert not secured.session_reused
            session = secured.session


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
def test_another_protocol_is_refused(side: FarSide, protocols: list[str]) -> None:
    context = tls_context(side.pki.server_authority.pem, side.pki.infer, protocols)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        first_byte(context, side.port)


def test_keys_are_agreed_on_with_a_post_quantum_share_too(side: FarSide) -> None:
    """OpenSSL's own client of the same library offers it first, and the server takes it."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([b"h2"])
    with socket.create_connection(("localhost", side.port)) as plain:
        client = SSL.Connection(context, plain)
        client.set_connect_state()
        client.do_handshake()
        assert client.get_group_name() == "X25519MLKEM768"


def first_byte(context: ssl.SSLContext, port: int) -> None:
    """`EOFError` where the server closes before it says anything."""
    with (
        socket.create_connection(("localhost", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        if not secured.recv(1):
            raise EOFError


def served_certificate(context: ssl.SSLContext, port: int) -> bytes | None:
    with (
        socket.create_connection(("localhost", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.getpeercert(binary_form=True)
