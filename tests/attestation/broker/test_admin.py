"""The admin listener: tokens, create-only uploads, floors; and what the log holds of it."""

import os
import uuid
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey

from hermetic.attestation.admin_client import ModelKeyFacts
from hermetic.errors import BrokerRefusedError, ConfigurationError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import InThread, World

KEYS_PATH = "/hermetic/v1/keys"


def token(world: World, *, key: str = "token", algorithm: str = "EdDSA", **change: Any) -> str:
    """An admin token as Trustee's tools sign them, with members changed or (None) left out."""
    now = int(world.clock.now.timestamp())
    fixed = {"iss": "operator", "role": "operator", "iat": now, "exp": now + 120, "jti": uuid.uuid4().hex}
    claims = {name: value for name, value in (fixed | change).items() if value is not None}
    pem = (world.folder / f"{key}.key").read_bytes()
    signing = OKPKey.import_key(pem) if algorithm == "EdDSA" else ECKey.import_key(pem)
    return jwt.encode({"alg": algorithm}, claims, signing, algorithms=[algorithm])


def ask(broker: InThread, bearer: str | None, path: str = KEYS_PATH) -> httpx.Response:
    with broker.admin_http() as http:
        return http.get(path, headers={} if bearer is None else {"authorization": f"Bearer {bearer}"})


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_a_token_of_trustees_tools_is_taken(broker: InThread) -> None:
    assert ask(broker, token(broker.world)).status_code == 200


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"role": None}, "expected a role"),
        ({"role": 1}, "expected a role"),
        ({"role": "nobody"}, "a role that its issuer may name"),
        ({"jti": None}, "expected a jti"),
        ({"jti": "../short"}, "expected a jti"),
        ({"iat": None}, "expected a time in iat"),
        ({"exp": None}, "expected a time in exp"),
        ({"exp": "soon"}, "expected a time in exp"),
        ({"iss": "somebody"}, "configured issuer"),
        ({"iss": None}, "configured issuer"),
        ({"key": "unknown", "algorithm": "ES256"}, "configured issuer"),
        ({"key": "second", "algorithm": "ES256", "iss": "second"}, "configured issuer"),  # no audience
        ({"key": "second", "algorithm": "ES256"}, "configured issuer"),  # the other issuer's name
    ],
)
def test_a_token_that_is_not_right_is_refused(broker: InThread, change: dict[str, Any], said: str) -> None:
    assert said in refused(ask(broker, token(broker.world, **change)), "AdminAuthAccess")


def test_an_audience_is_checked_where_one_is_configured(broker: InThread) -> None:
    good = token(broker.world, key="second", algorithm="ES256", iss="second", aud=["else", "broker"])
    assert ask(broker, good).status_code == 200


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_times_are_checked(broker: InThread) -> None:
    now = int(broker.world.clock.now.timestamp())
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exp": now + 301}, "life of at most 300 s"),
        ({"iat": now + 31, "exp": now + 60}, "from the future"),
        ({"iat": now - 200, "exp": now - 30}, "expired"),
    )
    for change, said in cases:
        assert said in refused(ask(broker, token(broker.world, **change)), "AdminAuthAccess")
    assert ask(broker, token(broker.world, iat=now - 200, exp=now - 29)).status_code == 200


@pytest.mark.parametrize("bearer", [None, "x", "a.b.c", "x" * 9000])
def test_no_token_no_entry(broker: InThread, bearer: str | None) -> None:
    refused(ask(broker, bearer), "AdminAuthAccess")


def test_a_token_works_once(broker: InThread) -> None:
    bearer = broker.world.signer().mint()
    assert ask(broker, bearer).status_code == 200
    assert "got a used one" in refused(ask(broker, bearer), "AdminAuthAccess")


def test_a_refused_request_spends_its_token_too(broker: InThread) -> None:
    bearer = broker.world.signer(role="narrow").mint()
    assert "expected a rule" in refused(ask(broker, bearer), "AdminAuthAccess")
    assert "got a used one" in refused(ask(broker, bearer), "AdminAuthAccess")


def test_a_token_is_spent_after_a_restart_too(world: World) -> None:
    bearer = world.signer().mint()
    with world.start() as broker:
        assert ask(broker, bearer).status_code == 200
    with world.start() as broker:
        assert "got a used one" in refused(ask(broker, bearer), "AdminAuthAccess")


def test_a_role_may_use_its_paths_only(broker: InThread) -> None:
    facts = ModelKeyFacts("narrow", 1, b"\1" * 32, "P")
    with broker.operator(role="narrow") as operator:
        operator.upload("kbs:///narrow/key/x", os.urandom(32), facts)
        with pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
            operator.upload("kbs:///wide/key/x", os.urandom(32), facts)
        with pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
            operator.upload("kbs:///wide/narrow/key/x", os.urandom(32), facts)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(
    "path",
    [
        "narrow/../models/key/x",
        "narrow/%2e%2e/models/key/x",
        "narrow%2F..%2Fmodels/key/x",
        "narrow/%252e%252e/models/key/x",
        "narrow/..%c0%afmodels/key",
        "narrow/%EF%BC%8E%EF%BC%8E/models/key",
        "%6earrow/key/x/../../../models/key/x",
        "narrow/key/x%0A",
        "narrow/key/x%00",
        "narrow//key/x",
        "narrow/key/x;/models/key/x",
        "narrow\\key\\x/key/x",
        "models/key/x?/kbs/v0/resource/narrow/key/x",
    ],
)
def test_no_spelling_of_a_path_leads_out_of_a_role(broker: InThread, path: str) -> None:
    """What the rule is matched with is what is stored, character by character: nothing is made shorter on the way."""
    before = ask(broker, token(broker.world)).json()["keys"]
    raw = f"/kbs/v0/resource/{path}".encode()
    with broker.admin_http() as http:
        url = httpx.URL(str(http.base_url)).copy_with(raw_path=raw)
        bearer = token(broker.world, role="narrow")
        answer = http.post(url, content=os.urandom(32), headers={"authorization": f"Bearer {bearer}"})
    assert answer.status_code in (400, 401, 404), answer.text
    assert ask(broker, token(broker.world)).json()["keys"] == before


@pytest.mark.parametrize("name", ["april%2Fx", "march-1%2F..%2Fapril", "%6Darch-1%00", "march-1%2Fraise"])
def test_no_spelling_of_a_name_leads_out_of_a_prefix(broker: InThread, name: str) -> None:
    with broker.admin_http() as http:
        bearer = broker.world.signer(role="march").mint()
        answer = http.post(
            httpx.URL(str(http.base_url)).copy_with(raw_path=f"/hermetic/v1/floors/{name}/raise".encode()),
            json={"below": 9},
            headers={"authorization": f"Bearer {bearer}"},
        )
    assert answer.status_code in (400, 401, 404), answer.text
    with broker.operator() as admin:
        assert 9 not in admin.floors().values()


def test_a_key_is_never_overwritten(broker: InThread) -> None:
    first, digest = os.urandom(32), os.urandom(32)
    broker.upload("models/key/once", first, "once", 1, digest)
    for name, version in (("once", 1), ("once", 2), ("another", 1)):
        with pytest.raises(BrokerRefusedError, match="409 ResourceExists"):
            broker.upload("models/key/once", os.urandom(32), name, version, digest)
    with broker.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        assert guest.open(guest.resource("models/key/once")) == first


def test_a_model_version_has_one_key(broker: InThread) -> None:
    broker.upload("models/key/v-1", os.urandom(32), "versioned", 1)
    with pytest.raises(BrokerRefusedError, match="409 ResourceExists"):
        broker.upload("models/key/v-1-again", os.urandom(32), "versioned", 1)


@pytest.mark.parametrize(
    ("headers", "size", "said"),
    [
        ({"hermetic-model-name": "n"}, 32, "expected all of"),
        ({"hermetic-model-version": "0"}, 32, "at least 1"),
        ({"hermetic-model-version": "-1"}, 32, "decimal"),
        ({"hermetic-model-version": "9" * 400}, 32, "decimal"),
        ({"hermetic-manifest-digest": "AA" * 32}, 32, "lower-case hex"),
        ({"hermetic-model-name": "%FF"}, 32, "utf-8"),
        ({"hermetic-model-name": "a%0Ab"}, 32, "printable"),
        ({"hermetic-publisher": ""}, 32, "printable"),
        ({}, 31, "expected 32 bytes"),
        (None, 0, "expected 1 to"),
    ],
)
def test_an_upload_that_is_not_right_is_refused(
    broker: InThread, headers: dict[str, str] | None, size: int, said: str
) -> None:
    good = ModelKeyFacts("wrong", 1, b"\1" * 32, "P").headers()
    sent = {} if headers is None else headers if len(headers) == 1 and "expected all of" in said else good | headers
    with broker.admin_http() as http:
        authorization = {"authorization": f"Bearer {broker.world.signer().mint()}"}
        path = "/kbs/v0/resource/models/key/wrong"
        response = http.post(path, content=bytes(size), headers=sent | authorization)
        assert said in refused(response, "InvalidRequest", 400)


def test_an_oversize_secret_is_refused(broker: InThread) -> None:
    with broker.operator() as operator, pytest.raises(BrokerRefusedError, match="413 PayloadTooLarge"):
        operator.upload_plain_secret("kbs:///plain/secret/big", bytes(65537))


def test_uploads_need_a_model_key_of_the_right_size(broker: InThread) -> None:
    with broker.operator() as operator, pytest.raises(ConfigurationError, match="expected 32 bytes"):
        operator.upload("kbs:///a/b/c", b"short", ModelKeyFacts("n", 1, bytes(32), "p"))


def test_keys_are_listed_without_the_keys(broker: InThread) -> None:
    key = os.urandom(32)
    broker.upload("models/key/listed", key, "l\u00efsted", 3)
    with broker.operator() as operator:
        entry = next(one for one in operator.stored_keys() if one["resource"] == "models/key/listed")
    assert entry["model"] == {
        "name": "l\u00efsted", "version": 3, "manifest_digest": "01" * 32, "publisher": "Publisher"
    }  # fmt: skip
    assert entry["profile"] == "demo"
    assert key.hex() not in str(entry)


def test_floors_rise_and_fall_by_recorded_acts_only(world: World) -> None:
    with world.start() as broker:
        with broker.operator() as operator:
            operator.retire("m", 5)
            assert operator.floors() == {"m": 5}
            with pytest.raises(BrokerRefusedError, match="expected at least 5, got 4"):
                operator.retire("m", 4)
            with pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
                operator.lower_floor("m", 2, "to roll back")
        with broker.operator(role="rollback") as authorised:
            with pytest.raises(BrokerRefusedError, match="expected below 5, got 6"):
                authorised.lower_floor("m", 6, "up")
            with pytest.raises(BrokerRefusedError, match="reason"):
                authorised.lower_floor("m", 2, "")
            authorised.lower_floor("m", 2, "to roll back")
    changes = [record.fields for record in world.records() if record.kind == "broker.floor"]
    assert [(change["from"], change["to"], change["reason"]) for change in changes] == [
        (0, 5, ""),
        (5, 2, "to roll back"),
    ]
    with world.start() as broker, broker.operator() as operator:
        assert operator.floors() == {"m": 2}


def test_a_key_of_the_demo_is_never_released_elsewhere(world: World) -> None:
    from datetime import UTC, datetime

    from hermetic.attestation.broker.key_store import ModelFacts, ResourcePath, StoredKey
    from hermetic.attestation.broker.release import Asked, ModelPolicy, refusals
    from hermetic.attestation.claims import Claims, HermeticClaims, SampleClaims
    from hermetic.attestation.policy import AppraisalPolicy

    key = StoredKey(ResourcePath("a", "b", "c"), ModelFacts("m", 1, "1" * 64, "p"), "demo", datetime.now(UTC))
    hermetic = HermeticClaims(profile="production", manifest_digest="1" * 64)
    claims = Claims(kinds=(SampleClaims(checks=(), svn="1"),), hermetic=hermetic, client="c")
    policy = ModelPolicy(AppraisalPolicy.load((world.folder / "any.toml").read_bytes()))
    failed = refusals(Asked(key, claims, "production", 0, 0, datetime.now(UTC), "2" * 64), policy)
    assert [check.name for check in failed] == ["release.profile"]


def test_every_act_is_in_the_log(world: World) -> None:
    with world.start() as broker:
        broker.upload("models/key/logged", os.urandom(32), "logged")
        with pytest.raises(BrokerRefusedError):
            broker.upload("models/key/logged", os.urandom(32), "logged")
    kinds = [record.kind for record in world.records()]
    assert kinds == ["broker.started", "broker.admin", "broker.upload", "broker.admin", "broker.upload"]
    assert world.outcomes("broker.upload") == ["accepted", "refused"]
    admin = world.records()[1].fields
    assert admin["client"]["name"] == "spiffe://example.test/operator/first"
    assert admin["role"] == "operator"
    assert admin["act"] == "upload"


def test_no_record_holds_a_secret(world: World) -> None:
    key, digest = os.urandom(32), os.urandom(32)
    with world.start() as broker:
        broker.upload("models/key/quiet", key, "quiet", 1, digest)
        with broker.http() as http:
            guest = IndependentGuest(http)
            guest.handshake(hermetic_claims(digest))
            guest.open(guest.resource("models/key/quiet"))
    text = str(world.records())
    cookie = guest.cookie.partition("=")[2]
    for secret in (key.hex(), repr(key)[2:-1], guest.token, guest.nonce, cookie):
        assert secret not in text
