import hashlib
import json
from pathlib import Path

import pytest

from hermetic.attestation import evidence
from hermetic.errors import InvalidRequestError

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "evidence").glob("*.json"))
EC_KEY = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_vector_gives_its_digest(path: Path) -> None:
    vector = json.loads(path.read_text())
    value = vector["value"]
    assert evidence.canonical(value).decode() == vector["canonical"]
    assert evidence.jcs_digest(value).hex() == vector["sha384"]
    if vector["function"] == "report_data":
        extra = {"hermetic": value["hermetic"]} if "hermetic" in value else {}
        made = evidence.report_data(
            value["nonce"], value["tee-pubkey"], additional_evidence=value["additional-evidence"], **extra
        )
        assert made.hex() == vector["sha384"]
    elif vector["function"] == "device_report_data":
        assert evidence.device_report_data(value["nonce"], value["tee-pubkey"]).hex() == vector["sha384"]


def test_there_are_vectors() -> None:
    assert {"trustee", "primary", "primary-hermetic", "device"} <= {path.stem for path in VECTORS}


def test_the_empty_additional_evidence_is_hashed() -> None:
    key = '{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}'
    text = f'{{"additional-evidence":"","nonce":"bg","tee-pubkey":{key}}}'
    assert evidence.report_data("bg", EC_KEY) == hashlib.sha384(text.encode()).digest()


@pytest.mark.parametrize(
    "other",
    [
        evidence.report_data("bG", EC_KEY),
        evidence.report_data("bg", EC_KEY | {"x": "eQ"}),
        evidence.report_data("bg", EC_KEY, additional_evidence="{}"),
        evidence.report_data("bg", EC_KEY, hermetic={}),
        evidence.device_report_data("bg", EC_KEY),
    ],
)
def test_every_member_changes_the_digest(other: bytes) -> None:
    assert evidence.report_data("bg", EC_KEY) != other


def test_fit_pads_on_the_right_and_cuts_there() -> None:
    digest = bytes(range(48))
    assert evidence.fit(digest, 64) == digest + bytes(16)
    assert evidence.fit(digest, 32) == digest[:32]
    assert evidence.fit_to("tpm", digest) == digest[:32]
    assert evidence.fit_to("sample", digest) == digest


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"expected a kind of evidence out of .*tpm.*got 'toaster'"):
        evidence.fit_to("toaster", bytes(48))


@pytest.mark.parametrize("value", [float("nan"), {"a": 2**60}, "\ud800"])
def test_what_has_no_canonical_form_is_refused(value: evidence.JsonValue) -> None:
    with pytest.raises(InvalidRequestError, match="RFC 8785"):
        evidence.jcs_digest(value)
