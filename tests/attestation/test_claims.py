import json
from pathlib import Path

import pytest

from hermetic.attestation.claims import Claims, HermeticClaims, SampleClaims
from hermetic.errors import InvalidRequestError

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "claims").glob("*.json"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_vector_is_accepted_or_refused_as_its_name_says(path: Path) -> None:
    members = json.loads(path.read_text())["hermetic"]
    if path.stem.startswith("accepted-"):
        written = HermeticClaims.parse(members).model_dump(mode="json")
        assert {name: written[name] for name in members} == members
        return
    with pytest.raises(InvalidRequestError, match="expected HermeticClaims"):
        HermeticClaims.parse(members)


def test_there_are_vectors_of_both_kinds() -> None:
    assert {"accepted-full", "refused-unknown-member"} <= {path.stem for path in VECTORS}


def test_claims_survive_a_token() -> None:
    claims = Claims(kinds=(SampleClaims(checks=("sample.svn",), svn="1"),)).with_client("CN=x")
    assert Claims.parse(json.loads(json.dumps(claims.to_json()))) == claims


def test_claims_cannot_be_changed() -> None:
    claims = Claims(kinds=(SampleClaims(checks=(), svn="1"),))
    with pytest.raises(ValueError, match="frozen"):
        claims.client = "someone"  # type: ignore[misc]
