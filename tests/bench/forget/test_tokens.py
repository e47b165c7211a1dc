"""What the search takes for an attestation token stands in every one of them, and in nothing that is public."""

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from hermetic.attestation.broker.token import TokenSigner
from hermetic.bench.forget.stage import EAR_START


def test_the_claims_of_every_token_begin_with_what_is_searched_for() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = TokenSigner(key, (), "https://broker.example", timedelta(minutes=5), lambda: datetime.now(UTC))
    header, _, rest = signer.sign(signer.claims({"cpu0": {}})).encode().partition(b".")
    assert (b"." + rest).startswith(EAR_START)
    assert EAR_START not in header
