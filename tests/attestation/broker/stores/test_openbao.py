"""A KEK in a real OpenBao: least privilege, sealed, revoked, rotated; and hostile far sides of its client."""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.broker.stores.kek import probe
from hermetic.attestation.broker.stores.openbao.kek import OpenBaoKek, open_openbao_kek
from hermetic.attestation.broker.stores.openbao.renewal import TokenRenewal
from hermetic.attestation.broker.stores.openbao.service import CONNECTIONS, BaoService
from hermetic.attestation.broker.stores.openbao.uri import BaoUri
from hermetic.errors import ConfigurationError, KeyStoreError, KeyStoreUnavailableError
from hermetic.provision.authority import Authority, Names
from tests.attestation.broker.stores.bao import KEY, Bao, write_certificate
from tests.attestation.broker.stores.far_bao import FarBao, answer, chunked

FACTS = b"facts\n"
SECRET = bytes(range(32))
B64 = base64.b64encode(SECRET)
WAIT_S = 60
STORED = b"vault:v1:" + base64.b64encode(bytes(60))


@pytest.fixture
def kek(bao: Bao) -> Iterator[OpenBaoKek]:
    opened = open_openbao_kek(bao.uri(), None)
    yield opened
    opened.close()


def wrapped(kek: OpenBaoKek) -> bytes:
    return kek.wrap(memoryview(SECRET), FACTS)


def unwrapped(kek: OpenBaoKek, data: bytes) -> bytes:
    with kek.unwrap(data, FACTS) as memory, memory.view as view:
        return bytes(view)


def test_the_brokers_token_can_do_nothing_else(bao: Bao, kek: OpenBaoKek) -> None:
    probe(kek)
    bao.make_key("another")
    token = bao.token_file.read_text().strip()
    attempts = [
        ("POST", "transit/decrypt/another", {"ciphertext": "vault:v1:AAAA"}),
        ("POST", "transit/encrypt/another", {"plaintext": "AAAA"}),
        ("POST", f"transit/rewrap/{KEY}", {"ciphertext": "vault:v1:AAAA"}),
        ("POST", f"transit/datakey/plaintext/{KEY}", {}),
        ("GET", f"transit/export/encryption-key/{KEY}", None),
        ("GET", f"transit/backup/{KEY}", None),
        ("POST", f"transit/keys/{KEY}/config", {"exportable": True}),
        ("POST", f"transit/keys/{KEY}/rotate", {}),
        ("DELETE", f"transit/keys/{KEY}", None),
        ("GET", "sys/policies/acl", None),
    ]
    for method, path, body in attempts:
        refused = bao.admin.request(method, f"/{path}", json=body, headers={"x-vault-token": token})
        assert refused.status_code == httpx.codes.FORBIDDEN, path
    # Not even the administrator gets the key out: it was never marked exportable, and is not by the way.
    exported = bao.admin.get(f"/transit/export/encryption-key/{KEY}")
    assert exported.status_code == httpx.codes.BAD_REQUEST
    assert "not exportable" in exported.text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"exportable": True}, "exportable: expected False, got True"),
        ({"allow_plaintext_backup": True}, "allow_plaintext_backup: expected False, got True"),
        ({"derived": True}, "derived: expected False, got True"),
        ({"type": "chacha20-poly1305"}, "type: expected 'aes256-gcm96', got 'chacha20-poly1305'"),
    ],
)
def test_a_key_that_may_leave_is_refused(bao: Bao, settings: Mapping[str, object], why: str) -> None:
    name = next(iter(settings)).replace("_", "-")
    bao.make_key(name, **settings)
    token = bao.write_token(f"token-{name}", bao.make_token(name))
    with pytest.raises(KeyStoreError, match=why):
        open_openbao_kek(bao.uri(name, token=token), None)


def test_a_token_without_permission_and_a_key_that_is_none(bao: Bao) -> None:
    with pytest.raises(KeyStoreUnavailableError, match="403 permission denied"):
        open_openbao_kek(bao.uri("nobody"), None)
    root = bao.write_token("root", bao.root)
    with pytest.raises(KeyStoreUnavailableError, match="404 no such mount or key"):
        open_openbao_kek(bao.uri("nobody", token=root), None)


def test_a_token_that_ends_and_the_next_one_in_its_file(bao: Bao) -> None:
    token = bao.make_token(KEY)
    file = bao.write_token("short", token)
    kek = open_openbao_kek(bao.uri(token=file), None)
    data = wrapped(kek)
    bao.ask("POST", "auth/token/revoke", {"token": token})
    with pytest.raises(KeyStoreUnavailableError, match="permission denied, or the token has ended"):
        unwrapped(kek, data)
    file.chmod(0o644)
    with pytest.raises(KeyStoreUnavailableError, match="mode 0644"):
        unwrapped(kek, data)
    file.write_bytes(b"two\r\nX-Vault-Namespace: other")
    file.chmod(0o600)
    with pytest.raises(KeyStoreUnavailableError, match="visible ASCII"):
        unwrapped(kek, data)
    bao.write_token("short", bao.make_token(KEY))
    assert unwrapped(kek, data) == SECRET
    kek.close()


def test_the_token_is_renewed(bao: Bao, kek: OpenBaoKek) -> None:
    renewal = kek._renewal
    assert renewal._renew() == pytest.approx(1800, abs=30)
    looked = bao.ask("POST", "auth/token/lookup", {"token": bao.token_file.read_text().strip()})
    assert looked["data"]["last_renewal"]
    fixed = bao.write_token("fixed", bao.make_token(KEY, renewable=False, period="", ttl="1h"))
    service = BaoService(BaoUri.parse(bao.uri(token=fixed)), None)
    assert TokenRenewal(service)._renew() is None
    service.close()


def test_sealed_and_unsealed_again(bao: Bao, kek: OpenBaoKek) -> None:
    data = wrapped(kek)
    bao.seal()
    try:
        for _ in range(2):
            with pytest.raises(KeyStoreUnavailableError, match="503 sealed"):
                unwrapped(kek, data)
        with pytest.raises(KeyStoreUnavailableError, match="503 sealed"):
            open_openbao_kek(bao.uri(), None)
    finally:
        bao.unseal()
    assert unwrapped(kek, data) == SECRET


def test_versions_of_the_key(bao: Bao) -> None:
    """A rotated key opens what it wrapped before, until its owner says no: then the old wrapping is dead."""
    bao.make_key("turns")
    token = bao.write_token("token-turns", bao.make_token("turns"))
    kek = open_openbao_kek(bao.uri("turns", token=token), None)
    old = wrapped(kek)
    bao.ask("POST", "transit/keys/turns/rotate")
    new = wrapped(kek)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert unwrapped(kek, old) == unwrapped(kek, new) == SECRET
    bao.ask("POST", "transit/keys/turns/config", {"min_decryption_version": 2})
    with pytest.raises(KeyStoreError, match=r"400.*disallowed by policy") as refused:
        unwrapped(kek, old)
    assert not isinstance(refused.value, KeyStoreUnavailableError)
    assert unwrapped(kek, new) == SECRET
    with pytest.raises(KeyStoreError, match=r"authentication failed|invalid"):
        unwrapped(kek, b"vault:v2:" + old[9:])
    kek.close()


def test_a_man_in_the_middle(bao: Bao, tmp_path: Path) -> None:
    other = Authority.create(Names("Example"), "other CA")
    (tmp_path / "ca.pem").write_bytes(other.certificate.public_bytes(Encoding.PEM))
    write_certificate(tmp_path, "server", other, ExtendedKeyUsageOID.SERVER_AUTH)
    with FarBao(tmp_path, lambda _: (b"", False)) as middle:
        with pytest.raises(KeyStoreUnavailableError, match="certificate verify failed"):
            open_openbao_kek(bao.uri(port=middle.port), None)
        assert middle.asked == []  # no token has left
    with pytest.raises(KeyStoreUnavailableError, match="certificate verify failed"):
        open_openbao_kek(bao.uri(ca=tmp_path / "ca.pem"), None)
    with pytest.raises(KeyStoreUnavailableError, match=r"[Hh]ostname mismatch"):
        open_openbao_kek(bao.uri().replace("127.0.0.1", "localhost"), None)
    without = bao.uri().split("&certificate-file")[0]
    with pytest.raises(KeyStoreUnavailableError, match="certificate required"):
        open_openbao_kek(without, None)


def test_unreachable(bao: Bao) -> None:
    with FarBao(bao.folder, lambda _: (b"", False)) as gone:
        port = gone.port
    with pytest.raises(KeyStoreUnavailableError, match="cannot connect"):
        open_openbao_kek(bao.uri(port=port), None)


def test_connections_are_used_again(bao: Bao) -> None:
    decrypted = answer({"data": {"plaintext": B64.decode()}})
    with FarBao(bao.folder, lambda path: (decrypted if "decrypt" in path else answer({}), True)) as far:
        kek = open_openbao_kek(bao.uri(port=far.port), None)
        for _ in range(10):
            assert unwrapped(kek, STORED) == SECRET
        assert far.connections <= 2  # the renewal may have made one of its own
        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(lambda _: unwrapped(kek, STORED), range(48))) == {SECRET}
        assert far.connections <= CONNECTIONS + 1
        kek.close()


def test_a_connection_that_the_server_has_closed_is_made_anew(bao: Bao) -> None:
    with FarBao(bao.folder, lambda _: (answer({"data": {"plaintext": B64.decode()}}), False)) as far:
        kek = open_openbao_kek(bao.uri(port=far.port), None)
        for _ in range(4):
            assert unwrapped(kek, STORED) == SECRET
        kek.close()


def data(**members: object) -> bytes:
    return json.dumps({"data": members}).encode()


GOOD = data(plaintext=B64.decode())
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GONE = r"the end of the connection|in time|cannot connect|closed|EOF"

HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", GONE),
    "no http": (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP/1.1 answer"),
    "http 1.0": (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + GOOD, "no HTTP/1.1 answer"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(GOOD), "no HTTP/1.1 answer"),
    "no length": (OK + b"\r\n" + GOOD, "without a length"),
    "negative length": (OK + b"Content-Length: -1\r\n\r\n" + GOOD, "without a length"),
    "two lengths": (OK + LENGTH + LENGTH + b"\r\n" + GOOD, "a second length"),
    "huge length": (OK + b"Content-Length: 999999999\r\n\r\n" + GOOD, "an answer of 999999999 bytes"),
    "more than its length": (answer(GOOD) + b"{}", "more than the answer"),
    "short": (OK + b"Content-Length: 500\r\n\r\n" + GOOD, GONE),
    "endless headers": (OK + b"x: y\r\n" * 20_000, r"an answer of more than \d+ bytes"),
    "many headers": (OK + b"x: y\r\n" * 100 + LENGTH + b"\r\n" + GOOD, "no HTTP/1.1 answer"),
    "a header that is none": (OK + b"hello\r\n" + LENGTH + b"\r\n" + GOOD, "a header that is none"),
    "huge body": (answer(b" " * 1_000_000), "an answer of 1000000 bytes"),
    "huge chunk": (CHUNKED + b"ffffffff\r\n" + b"x" * 20_000, r"an answer of more than \d+ bytes"),
    "no chunk": (CHUNKED + b"zz\r\n", "a chunk without a length"),
    "many chunks": (chunked(*[b"x"] * 20_000), r"an answer of more than \d+ bytes"),
    "more than its chunks": (chunked(GOOD) + b"{}", "more than the answer"),
    "redirect": (b"HTTP/1.1 307 x\r\nLocation: https://elsewhere\r\nContent-Length: 0\r\n\r\n", "got 307"),
    "no json": (answer(b'<html>"plaintext":"' + B64 + b'"'), "expected JSON"),
    "another json": (answer(b'[{"plaintext":"' + B64 + b'"}]'), "expected a JSON object"),
    "deep json": (answer(b"[" * 10_000 + b'"plaintext":"' + B64 + b'"'), "expected JSON"),
    "no data": (answer({"plaintext": B64.decode()}), "expected an answer with data"),
    "plaintext elsewhere": (answer({"data": {"x": {"plaintext": B64.decode()}}}), "got it elsewhere"),
    "two plaintexts": (answer({"data": {"plaintext": B64.decode(), "x": {"plaintext": B64.decode()}}}), "got 2"),
    "escaped plaintext": (answer(b'{"data":{"plaintext":"\\u0041' + B64 + b'"}}'), "got 0"),
    "no base64": (answer(data(plaintext="A")), "expected base64"),
    "empty plaintext": (answer(data(plaintext="")), "or empty"),
    "a number": (answer(data(plaintext=5)), "got 0"),
    "not found": (answer({"errors": []}, 404), "404 no such mount or key"),
    "too many": (answer({"errors": ["slow down"]}, 429), "429 too many requests, or a standby: slow down"),
    "broken": (answer(b"\xff\xfe", 500), "got 500"),
    "standby": (answer({}, 473), "473 a performance standby"),
}


@pytest.fixture(scope="module")
def acting(bao: Bao) -> Iterator[tuple[FarBao, list[tuple[bytes, bool]]]]:
    """A far side whose next answer to decrypt is the list's last."""
    acts: list[tuple[bytes, bool]] = [(b"", True)]
    with FarBao(bao.folder, lambda path: acts[-1] if "decrypt" in path else (answer({}, 400), True)) as far:
        yield far, acts


@pytest.mark.parametrize(
    ("name", "stays"), [*((name, False) for name in HOSTILE), ("nothing", True), ("short", True), ("no json", True)]
)
def test_hostile_answers(bao: Bao, acting: tuple[FarBao, list[tuple[bytes, bool]]], name: str, *, stays: bool) -> None:
    """Refused by name, within the time of a call, and the next call is not harmed."""
    far, acts = acting
    uri = BaoUri.parse(bao.uri(port=far.port))
    kek = OpenBaoKek(uri, service := BaoService(uri, None))
    said, why = HOSTILE[name]
    service._call_s = 0.25 if stays and why == GONE else WAIT_S
    acts[-1] = (said, stays)
    with pytest.raises(KeyStoreUnavailableError, match=why) as refused:
        unwrapped(kek, STORED)
    assert B64.decode() not in str(refused.value)
    service._call_s = WAIT_S
    acts[-1] = (chunked(b'{"data":{"plaint', b'ext":"' + B64[:10], B64[10:] + b'"}}'), True)
    assert unwrapped(kek, STORED) == SECRET
    kek.close()


def test_an_answer_in_drops_does_not_outlast_the_deadline(bao: Bao) -> None:
    """Each byte comes in time, and the whole never: the clock is the call's, not a byte's."""
    endless = HOSTILE["endless headers"][0]
    with FarBao(bao.folder, lambda _: (endless, True), in_drops=True) as far:
        uri = BaoUri.parse(bao.uri(port=far.port))
        kek = OpenBaoKek(uri, service := BaoService(uri, None))
        service._call_s = 0.3
        with pytest.raises(KeyStoreUnavailableError, match=r"no answer in time|timed out"):
            unwrapped(kek, STORED)
        kek.close()


@pytest.mark.parametrize(
    "bad", [b"", b"vault:", b"vault:v1:", b"vault:v0:AAAA", b"vault:v1:A\n", b"vault:v1:AB==", b"\xff"]
)
def test_what_was_never_a_ciphertext_is_not_sent(kek: OpenBaoKek, bad: bytes) -> None:
    with pytest.raises(KeyStoreError, match=r"expected vault:v<N>:<base64>"):
        kek.unwrap(bad, FACTS)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("openbao://h/t/k", "expected ca-file, token-source"),
        ("openbao://h/t/k?ca-file=/c", "expected ca-file, token-source"),
        ("openbao://h/t/k?ca-file=c&token-source=file:/t", "absolute ca-file"),
        ("openbao://h/t/k?ca-file=/c&ca-file=/d&token-source=file:/t", "at most once"),
        ("openbao://h/t/k?ca-file=/c&token-source=file:/t&token=s3cr3t", "at most once"),
        ("openbao://h/t/k?ca-file=/c&token-source=file:/t&key-file=/k", "certificate-file with key-file or neither"),
        ("openbao://h/k?ca-file=/c&token-source=file:/t", "/MOUNT/KEY"),
        ("openbao://h/t/../k?ca-file=/c&token-source=file:/t", "/MOUNT/KEY"),
        ("openbao://u:s3cr3t@h/t/k?ca-file=/c&token-source=file:/t", "expected openbao://HOST"),
        ("openbao:///t/k?ca-file=/c&token-source=file:/t", "expected openbao://HOST"),
        ("openbao://h:x/t/k?ca-file=/c&token-source=file:/t", "expected openbao://HOST"),
        ("openbao://h/t/k?ca-file", "expected openbao://HOST"),
    ],
)
def test_uris_that_are_refused(uri: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        BaoUri.parse(uri)
    assert "s3cr3t" not in str(refused.value)


def test_a_uri() -> None:
    uri = BaoUri.parse("openbao://bao.example:8300/team/transit/kek?ca-file=/c&token-source=credential:t")
    assert uri == BaoUri("bao.example", 8300, "team/transit", "kek", Path("/c"), "credential:t", None, None)
    assert BaoUri.parse("openbao://h/t/k?ca-file=/c&token-source=file:/t").port == 8200
    assert uri.authority == "bao.example:8300"
    assert BaoUri.parse("openbao://[::1]/t/k?ca-file=/c&token-source=file:/t").authority == "[::1]:8200"
    with pytest.raises(ConfigurationError, match="cannot use /c"):
        uri.tls()


def test_large_secrets(kek: OpenBaoKek) -> None:
    """Answers that OpenBao sends in chunks."""
    secret = os.urandom(65536)
    with kek.unwrap(kek.wrap(memoryview(secret), FACTS), FACTS) as memory, memory.view as view:
        assert bytes(view) == secret
