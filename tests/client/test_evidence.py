"""Who asks an unproved server holds no more of its answer than evidence may be long."""

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hermetic.client.evidence import METHOD, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, Tls
from hermetic.client.judgement import REPLY_LIMIT

WAIT_S = 60.0
OTHER = "/inference.GRPCInferenceService/ModelInfer"


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    """Answers every method with `size` bytes."""

    size = 0

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _message, _context: bytes(self.size))


@pytest.fixture
def own(tmp_path: Path) -> Tls:
    """A key, and a certificate of its own for 127.0.0.1: here the server's and the caller's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    tls = Tls(tmp_path / "cert.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls


@pytest.fixture
def channel(own: Tls) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()], options=[("grpc.max_send_message_length", -1)])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([own.own()]))
    server.start()
    leaf = Leaf.of(x509.load_pem_x509_certificate(own.certificate.read_bytes()), "127.0.0.1")
    try:
        with pinned_channel(Endpoint("127.0.0.1", port), leaf, own) as made:
            yield made
    finally:
        server.stop(0).wait()


def test_evidence_that_is_too_long_is_refused_before_it_is_read(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(Handler, "size", REPLY_LIMIT + 1)
    ask = channel.unary_unary(METHOD, response_deserializer=lambda message: read.append(len(message)))
    with pytest.raises(grpc.RpcError) as caught:
        ask(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert read == []


@pytest.mark.parametrize(("method", "size"), [(METHOD, REPLY_LIMIT), (OTHER, REPLY_LIMIT + 1)])
def test_all_that_may_come_comes(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, method: str, size: int
) -> None:
    monkeypatch.setattr(Handler, "size", size)
    assert len(channel.unary_unary(method)(b"", timeout=WAIT_S)) == size
