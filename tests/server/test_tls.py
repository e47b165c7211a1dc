"""Who gets in at all: TLS 1.3, a client certificate of a configured CA, valid, of one name, listed."""

import socket
import ssl
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.errors import ConfigurationError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server import tls
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


def test_the_start_probe_notices_a_process_that_speaks_tls_12(pki: Pki) -> None:
    """This process was started without the cipher setting, so the probe must say so."""
    with pytest.raises(ConfigurationError, match=r"TLS 1\.2 to be refused, got TLSv1\.2"):
        tls.check_only_tls13(pki.server.key, pki.server.certificate)


def test_certificates_are_replaced_while_serving(pki: Pki) -> None:
    """Old connections live on, new ones meet the new certificate, and nothing is handed to gRPC twice."""
    authorities = {"clients": pki.authority.pem.decode()}
    credentials = tls.ServingCredentials(pki.server.key, pki.server.certificate, authorities)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials.grpc)
    server.start()
    try:
        context = tls_context(pki.server_authority.pem, pki.infer)
        for _ in range(3):
            successor = pki.server_authority.issue_server()
            credentials.replace(successor.key, successor.certificate, authorities)
            for _ in range(20):
                assert _served_certificate(context, port) == ssl.PEM_cert_to_DER_cert(successor.certificate.decode())
    finally:
        server.stop(None).wait(TIMEOUT_S)


def test_a_configuration_is_handed_to_grpc_once(pki: Pki) -> None:
    """What gRPC is given it frees."""
    credentials = tls.ServingCredentials(
        pki.server.key, pki.server.certificate, {"clients": pki.authority.pem.decode()}
    )
    assert credentials._fetch() is None  # the first one went in at the start
    credentials.replace(pki.server.key, pki.server.certificate, {"clients": pki.authority.pem.decode()})
    assert credentials._fetch() is not None
    assert credentials._fetch() is None


def _served_certificate(context: ssl.SSLContext, port: int) -> bytes | None:
    with (
        socket.create_connection(("localhost", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.getpeercert(binary_form=True)
