"""The request forms of docs/spec/key-broker.md as vectors: what is read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hermetic.attestation.broker.protocol import AuthRequest, parse_attestation, parse_auth
from hermetic.attestation.broker.strict_json import parse_object
from hermetic.errors import InvalidRequestError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "key-broker" / "requests.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["auth"], ids=lambda vector: vector["name"])
def test_auth(vector: dict[str, Any]) -> None:
    body = json.dumps(vector["body"]).encode()
    if "refused" in vector:
        with pytest.raises(InvalidRequestError, match=vector["refused"]):
            parse_auth(body)
    else:
        asked = parse_auth(body)
        assert {"version": asked.version, "tee": asked.tee, "hermetic": asked.hermetic} == vector["read"]


@pytest.mark.parametrize("vector", VECTORS["attest"], ids=lambda vector: vector["name"])
def test_attest(vector: dict[str, Any]) -> None:
    asked = AuthRequest(vector["version"], "sample", vector.get("hermetic", False))
    body = json.dumps(vector["body"]).encode()
    if "refused" in vector:
        with pytest.raises(InvalidRequestError, match=vector["refused"]):
            parse_attestation(body, asked, vector["nonce"])
    else:
        read = parse_attestation(body, asked, vector["nonce"])
        assert read.primary_digest().hex() == vector["report_data"]
        assert read.device_digest().hex() == vector["device_report_data"]
        assert read.tee_key.thumbprint == vector["thumbprint"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    body = json.dumps(value).encode()
    for version in ("0.4.0", "0.3.0", "0.2.0"):
        with pytest.raises(InvalidRequestError):
            parse_attestation(body, AuthRequest(version, "sample", hermetic=True), "nonce")
    with pytest.raises(InvalidRequestError):
        parse_auth(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert isinstance(parse_object(data, "body"), dict)
    except InvalidRequestError:
        return


GOOD = next(vector for vector in VECTORS["attest"] if vector["name"] == "0.4.0 with our additions")


@given(st.sampled_from(["kty", "crv", "alg", "x", "y"]), json_values)
@example(member="x", value="\x80")
def test_any_key_is_read_or_refused(member: str, value: Any) -> None:
    body = json.loads(json.dumps(GOOD["body"]))
    if body["runtime-data"]["tee-pubkey"][member] == value:
        return
    body["runtime-data"]["tee-pubkey"][member] = value
    with pytest.raises(InvalidRequestError, match="tee-pubkey"):
        parse_attestation(json.dumps(body).encode(), AuthRequest("0.4.0", "sample", hermetic=True), GOOD["nonce"])
