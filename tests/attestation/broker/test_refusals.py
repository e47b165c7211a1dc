"""Every refusal that guests can meet: the protocol's error body, and a broker that lives on."""

import base64
import json
import os
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.attestation.broker.independent_guest import IndependentGuest, digest, hermetic_claims, sample
from tests.attestation.broker.world import InThread, World

PREFIX = "https://github.com/confidential-containers/kbs/errors/"


def refused(response: httpx.Response, variant: str, status: int = 401) -> str:
    """The detail of a refusal, once its form is the protocol's."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "detail"}
    assert body["type"] == PREFIX + variant
    return str(body["detail"])


@pytest.fixture(autouse=True)
def _lives_on(broker: InThread) -> Iterator[None]:
    yield
    with broker.http() as http:
        IndependentGuest(http).handshake()


AUTH = {"version": "0.4.0", "tee": "sample", "extra-params": ""}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (AUTH | {"version": "0.5.0"}, "expect =0.4.0 while the request is 0.5.0"),
        (AUTH | {"version": "0.1.1"}, "expect =0.4.0 while the request is 0.1.1"),
        (AUTH | {"version": 4}, "expected text in 'version'"),
        (AUTH | {"tee": "abacus"}, "got 'abacus'"),
        (AUTH | {"tee": "cca"}, "got cca"),
        (AUTH | {"tee": None}, "expected text in 'tee'"),
        ({"version": "0.4.0", "tee": "sample"}, "extra-params"),
        (AUTH | {"more": 1}, "more"),
        ([], "expected a JSON object"),
    ],
)
def test_auth_refuses(guest: IndependentGuest, body: Any, said: str) -> None:
    assert said in refused(guest.http.post("/kbs/v0/auth", json=body), "AttestationError")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b'{"a":NaN}', b'{"a":1,"a":1}', b"[" * 50_000, b'{"a":' * 5000 + b"1" + b"}" * 5000],
)
def test_garbage_is_refused(guest: IndependentGuest, raw: bytes) -> None:
    refused(guest.http.post("/kbs/v0/auth", content=raw), "AttestationError")
    guest.auth()
    refused(guest.attest(raw=raw), "AttestationError")


@pytest.mark.parametrize("path", ["/kbs/v0/auth", "/kbs/v0/attest"])
def test_an_oversize_body_is_refused(guest: IndependentGuest, path: str) -> None:
    refused(guest.http.post(path, content=b"x" * 100_001), "PayloadTooLarge", 413)
    unannounced = guest.http.post(path, content=iter([b"x" * 60_000, b"x" * 60_000]))
    refused(unannounced, "PayloadTooLarge", 413)


def test_attest_without_a_session_is_refused(guest: IndependentGuest) -> None:
    assert "cookie not found" in refused(guest.attest(raw=b"{}", cookie=""), "AttestationError")
    unknown = guest.attest(raw=b"{}", cookie="kbs-session-id=" + "0" * 32)
    assert "unknown" in refused(unknown, "AttestationError")


def test_a_nonce_of_another_session_is_refused(broker: InThread, guest: IndependentGuest) -> None:
    guest.auth()
    foreign = guest.nonce
    guest.auth()
    body = guest.body(nonce=foreign)
    assert "expected this session's challenge" in refused(guest.attest(body), "AttestationError")


@pytest.mark.parametrize("version", ["0.3.0", "0.2.0"])
def test_evidence_over_another_nonce_is_refused_in_older_forms(guest: IndependentGuest, version: str) -> None:
    guest.version = version
    guest.auth()
    foreign = guest.nonce
    guest.auth()
    assert "sample.report_data" in refused(guest.attest(guest.body(nonce=foreign)), "AttestationError")


def test_a_failed_attempt_burns_the_nonce(guest: IndependentGuest) -> None:
    guest.auth()
    good = guest.body()
    bad = json.loads(json.dumps(good))
    bad["tee-evidence"]["primary_evidence"] = sample(b"another digest")
    assert "sample.report_data" in refused(guest.attest(bad), "AttestationError")
    assert "unknown" in refused(guest.attest(good), "AttestationError")


def test_a_recorded_attestation_cannot_be_replayed(broker: InThread, guest: IndependentGuest) -> None:
    guest.auth()
    body = guest.body()
    assert guest.attest(body).status_code == 200
    first = guest.cookie
    guest.auth()
    assert "expected this session's challenge" in refused(guest.attest(body), "AttestationError")
    assert guest.attest(body, cookie=first).status_code == 200  # the session that it belongs to: the same token


def test_a_session_expires_and_its_deadline_does_not_move(broker: InThread, guest: IndependentGuest) -> None:
    guest.auth()
    broker.world.clock.advance(seconds=301)
    assert "expired" in refused(guest.attest(), "AttestationError")
    assert "unknown" in refused(guest.attest(), "AttestationError")

    guest.auth()
    broker.world.clock.advance(seconds=200)
    assert guest.attest().status_code == 200
    broker.world.clock.advance(seconds=101)
    assert "expired" in refused(guest.resource("plain/secret/any"), "TokenNotFound")


def test_a_token_expires(broker: InThread, guest: IndependentGuest) -> None:
    token = guest.handshake()
    broker.world.clock.advance(seconds=301)
    refused(guest.resource("plain/secret/any", bearer=token), "TokenVerifierError")


def test_a_session_belongs_to_the_client_that_began_it(broker: InThread, guest: IndependentGuest) -> None:
    token = guest.handshake()
    with broker.http("other-host") as http:
        thief = IndependentGuest(http)
        thief.cookie = guest.cookie
        assert "unknown" in refused(thief.attest(raw=b"{}"), "AttestationError")
        refused(thief.resource("plain/secret/any"), "TokenNotFound")
        refused(thief.resource("plain/secret/any", bearer=token), "TokenVerifierError")


def _break_key(**change: Any) -> Any:
    return lambda public: public | change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("P-256", {"alg": "RSA1_5"}),
        ("P-256", {"alg": "ECDH-ES"}),
        ("P-256", {"crv": "P-384"}),
        ("P-256", {"crv": ["P-256"]}),
        ("P-256", {"x": "AAAA"}),
        ("P-256", {"x": base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")}),
        ("P-256", {"kty": "oct", "k": "AAAA"}),
        ("RSA", {"alg": "RSA1_5"}),
        ("RSA", {"e": "Aw"}),
        ("RSA", {"n": base64.urlsafe_b64encode(b"\xff" * 128).decode().rstrip("=")}),
        ("RSA", {"n": 5}),
    ],
)
def test_a_key_that_is_not_taken_is_refused(broker: InThread, kind: str, change: dict[str, Any]) -> None:
    with broker.http() as http:
        guest = IndependentGuest(http, key_kind=kind)
        guest.auth()
        assert "tee-pubkey" in refused(guest.attest(guest.body(public=guest.public | change)), "AttestationError")


def test_hermetic_runtime_data_is_refused_where_it_was_not_offered(guest: IndependentGuest) -> None:
    guest.auth()
    assert "hermetic" in refused(guest.attest(guest.body(hermetic_claims(b"\1" * 32))), "AttestationError")


@pytest.mark.parametrize(
    "change",
    [{"manifest-digest": "short"}, {"profile": "test"}, {"unknown": 1}, {"waivers": "none"}],
)
def test_hermetic_runtime_data_that_does_not_fit_is_refused(guest: IndependentGuest, change: dict[str, Any]) -> None:
    guest.extra = {"hermetic": {"version": 1}}
    guest.auth()
    refused(guest.attest(guest.body(hermetic_claims(b"\1" * 32, **change))), "AttestationError")


def test_hermetic_runtime_data_is_bound(guest: IndependentGuest) -> None:
    guest.extra = {"hermetic": {"version": 1}}
    guest.auth()
    body = guest.body(hermetic_claims(b"\1" * 32))
    body["runtime-data"]["hermetic"]["manifest-digest"] = "2" * 64
    assert "sample.report_data" in refused(guest.attest(body), "AttestationError")


def test_init_data_is_refused_rather_than_ignored(guest: IndependentGuest) -> None:
    guest.auth()
    body = guest.body() | {"init-data": {"format": "toml", "body": ""}}
    assert "init-data" in refused(guest.attest(body), "AttestationError")


@pytest.mark.parametrize(
    "additional", ["{", "[]", '{"nvidia": {}}', '{"sample": {}}', json.dumps({str(n): 1 for n in range(17)})]
)
def test_device_evidence_that_nobody_verifies_is_refused(guest: IndependentGuest, additional: str) -> None:
    guest.auth()
    bound = {"additional-evidence": additional, "nonce": guest.nonce, "tee-pubkey": guest.public}
    body = guest.body()
    body["tee-evidence"] = {"primary_evidence": sample(digest(bound)), "additional_evidence": additional}
    refused(guest.attest(body), "AttestationError")


def test_a_resource_without_a_session_is_refused(guest: IndependentGuest) -> None:
    refused(guest.resource("plain/secret/any"), "TokenNotFound")
    guest.auth()
    assert "not" in refused(guest.resource("plain/secret/any"), "TokenNotFound")


def test_a_forged_token_is_refused(broker: InThread, guest: IndependentGuest) -> None:
    """Signed by a key of the forger's, which the header offers, as Trustee's header does."""
    from joserfc import jwt
    from joserfc.jwk import ECKey

    token = guest.handshake()
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    key = ECKey.generate_key("P-256")
    header = {"alg": "ES256", "jwk": key.as_dict(private=False)}
    refused(guest.resource("plain/secret/any", bearer=jwt.encode(header, payload, key)), "TokenVerifierError")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=") + "." + token.split(".")[1] + "."
    refused(guest.resource("plain/secret/any", bearer=unsigned), "TokenVerifierError")
    refused(guest.resource("plain/secret/any", bearer="x" * 30_000), "TokenVerifierError")


def test_a_missing_resource_is_refused(guest: IndependentGuest) -> None:
    guest.handshake()
    assert "no such resource" in refused(guest.resource("plain/secret/missing"), "PluginInternalError")


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "a/b/.hidden", "a/b/%2e%2e", "..%2f..%2fb/c", "a/b/c%00"])
def test_a_path_that_is_none_is_refused(guest: IndependentGuest, path: str) -> None:
    guest.handshake()
    refused(guest.resource(path), "InvalidRequestPath", 404)


def test_unknown_paths_are_refused(guest: IndependentGuest) -> None:
    refused(guest.http.get("/kbs/v0/pkcs11/x"), "PluginNotFound", 404)
    refused(guest.http.get("/other"), "InvalidRequestPath", 404)
    refused(guest.http.get("/kbs/v0/auth"), "InvalidRequestPath", 404)
    refused(guest.http.post("/kbs/v0/resource/plain/secret/x", content=b"no upload here"), "InvalidRequestPath", 404)
    refused(guest.http.get("/hermetic/v1/keys"), "InvalidRequestPath", 404)


def released_model(broker: InThread, name: str, version: int = 1) -> tuple[str, bytes]:
    manifest = os.urandom(32)
    resource = f"models/key/{name}-{version}"
    broker.upload(resource, os.urandom(32), name, version, manifest)
    return resource, manifest


def test_another_manifest_gets_no_key(broker: InThread, guest: IndependentGuest) -> None:
    resource, _ = released_model(broker, "digest")
    guest.handshake(hermetic_claims(b"\7" * 32))
    assert "release.manifest_digest" in refused(guest.resource(resource), "PolicyDeny")
    assert broker.world.outcomes("broker.release")[-1] == "refused"


def test_a_guest_that_attested_no_manifest_gets_no_model_key(broker: InThread, guest: IndependentGuest) -> None:
    resource, _ = released_model(broker, "stock-guest")
    guest.handshake()
    assert "release.manifest_digest" in refused(guest.resource(resource), "PolicyDeny")


def test_a_serving_key_gets_no_model_key(broker: InThread, guest: IndependentGuest) -> None:
    resource, manifest = released_model(broker, "purpose")
    guest.handshake(hermetic_claims(manifest, purpose="serving-key"))
    assert "release.purpose" in refused(guest.resource(resource), "PolicyDeny")


def test_a_policy_denies(broker: InThread, guest: IndependentGuest) -> None:
    resource, manifest = released_model(broker, "others")
    guest.handshake(hermetic_claims(manifest))
    detail = refused(guest.resource(resource), "PolicyDeny")
    assert "client_certificate: wanted [spiffe://example.test/host/nobody]" in detail


def test_a_secret_without_a_policy_is_kept(broker: InThread, guest: IndependentGuest) -> None:
    with broker.operator() as operator:
        operator.upload_plain_secret("kbs:///elsewhere/secret/x", b"secret")
    guest.handshake()
    assert "release.policy" in refused(guest.resource("elsewhere/secret/x"), "PolicyDeny")


def test_a_version_below_the_floor_is_kept(broker: InThread, guest: IndependentGuest) -> None:
    first, manifest = released_model(broker, "floored", 1)
    with broker.operator() as operator:
        operator.retire("floored", 2)
    guest.handshake(hermetic_claims(manifest))
    assert "release.floor: wanted version >= 2, got 1" in refused(guest.resource(first), "PolicyDeny")


def test_latest_only_lets_the_old_version_go_after_the_roll_over(broker: InThread, guest: IndependentGuest) -> None:
    first, first_manifest = released_model(broker, "latest-a", 1)
    second, second_manifest = released_model(broker, "latest-a", 2)
    broker.world.clock.advance(seconds=3500)
    guest.handshake(hermetic_claims(first_manifest))
    assert guest.resource(first).status_code == 200
    broker.world.clock.advance(seconds=100)
    assert "release.latest_only" in refused(guest.resource(first), "PolicyDeny")
    guest.handshake(hermetic_claims(second_manifest))
    assert guest.resource(second).status_code == 200


def test_a_client_without_a_certificate_does_not_get_in(broker: InThread) -> None:
    for url in (broker.url, broker.admin_url):
        context = broker.world.context(None)
        with httpx.Client(base_url=url, verify=context, timeout=60) as http, pytest.raises(httpx.TransportError):
            http.get("/healthz")


@pytest.mark.parametrize(("listener", "who"), [("url", "operator"), ("url", "stranger"), ("admin_url", "host")])
def test_a_certificate_of_another_ca_does_not_get_in(broker: InThread, listener: str, who: str) -> None:
    url, context = getattr(broker, listener), broker.world.context(who)
    with httpx.Client(base_url=url, verify=context, timeout=60) as http, pytest.raises(httpx.TransportError):
        http.get("/healthz")


def test_tls_1_2_does_not_get_in(broker: InThread) -> None:
    context = broker.world.context("host")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(base_url=broker.url, verify=context) as http, pytest.raises(httpx.ConnectError):
        http.get("/healthz")


def test_a_certificate_with_two_spiffe_names_is_nobody(broker: InThread) -> None:
    with broker.http("twice") as http:
        assert "SPIFFE" in refused(http.post("/kbs/v0/auth", json=AUTH), "AttestationError")


def test_no_header_makes_an_identity(broker: InThread) -> None:
    headers = {"x-forwarded-for": "10.0.0.1", "x-client-certificate": "x", "forwarded": "for=10.0.0.1"}
    with broker.http() as http:
        assert http.post("/kbs/v0/auth", json=AUTH, headers=headers).status_code == 200
    guest_records = [record for record in broker.world.records() if record.kind == "broker.attest"]
    for record in guest_records:
        assert dict(record.fields["client"])["issuer"] == "CN=hosts CA,O=Example"


def test_too_many_sessions_of_one_client_are_refused(world: World) -> None:
    world.write_config(change={"sessions_per_client = 100": "sessions_per_client = 2"})
    with world.start() as own, own.http() as http, own.http("other-host") as other:
        assert [http.post("/kbs/v0/auth", json=AUTH).status_code for _ in range(2)] == [200, 200]
        refused(http.post("/kbs/v0/auth", json=AUTH), "TooManyRequests", 429)
        assert other.post("/kbs/v0/auth", json=AUTH).status_code == 200
        world.clock.advance(seconds=301)
        assert http.post("/kbs/v0/auth", json=AUTH).status_code == 200


def test_a_client_has_a_rate(world: World) -> None:
    world.write_config(requests_per_minute=3)
    with world.start() as own, own.http() as http, own.http("other-host") as other:
        answers = [http.post("/kbs/v0/auth", json=AUTH).status_code for _ in range(4)]
        assert answers == [200, 200, 200, 429]
        assert other.post("/kbs/v0/auth", json=AUTH).status_code == 200


def test_sample_evidence_is_unknown_outside_the_demo(world: World) -> None:
    for file in ("any", "latest", "second-host", "plain", "serving"):
        path = world.folder / f"{file}.toml"
        text = path.read_text().replace('profile = "demo"', 'profile = "production"')
        path.write_text(text.replace('kinds = ["sample"]', 'kinds = ["tpm"]') + TPM_FORM)
    world.write_config(profile="production")
    with world.start() as own, own.http() as http:
        assert "got sample" in refused(http.post("/kbs/v0/auth", json=AUTH), "AttestationError")


TPM_FORM = """
[tpm]
ek = "any"
provisioned_ak = false
pcrs = {}
root_hashes = "any"
secure_boot = "any"
log_base = "zeros"
"""


def test_a_guest_without_a_certificate_gets_in_only_where_configured(world: World) -> None:
    world.write_config(client_certificates="optional")
    world.write_policy("plain", required="false", clients='"any"', any_machine="true")
    with world.start() as own, own.http(None) as http, own.http("host") as named:
        with own.operator() as operator:
            operator.upload_plain_secret("kbs:///plain/secret/anyone", b"for anyone")
        own.upload("models/key/someone", os.urandom(32), "someone", 1, b"\1" * 32)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(b"\1" * 32))
        assert guest.open(guest.resource("plain/secret/anyone")) == b"for anyone"
        assert "client_certificate" in refused(guest.resource("models/key/someone"), "PolicyDeny")
        other = IndependentGuest(named)
        other.cookie = guest.cookie
        assert "unknown" in refused(other.resource("plain/secret/anyone"), "TokenNotFound")
        stranger = httpx.Client(base_url=own.admin_url, verify=world.context(None), timeout=60)
        with stranger, pytest.raises(httpx.TransportError):
            stranger.get("/healthz")
