"""Attestation tokens: EAR claims in a JWT signed with ES256 (docs/spec/key-broker.md, section 2.4).

A token says that evidence was genuine, nothing about policies. It is verified only against this broker's own key.
"""

import base64
import importlib.metadata
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from hermetic.attestation.broker.jwe import b64url, ec_jwk
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.claims import Claims, KindClaims, SampleClaims, SgxClaims, TdxClaims, TpmClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import ConfigurationError

ALGORITHM: Final = "ES256"
EAT_PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
DEVELOPER: Final = "hermetic"
POLICY_ID: Final = "default"
MAX_TOKEN_LENGTH: Final = 256 * 1024
"""Longest token that is looked at, in characters."""

VECTOR: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
"""The AR4SI trustworthiness vector."""

AFFIRMED: Final = 2
NO_CLAIM: Final = 0
UNSAFE_HARDWARE: Final = 32
UNRECOGNISED_HARDWARE: Final = 97
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_NUMBER_BYTES: Final = 32  # of an ES256 signature's two (RFC 7518, 3.4)
_WARNING: Final = 32
_CONTRAINDICATED: Final = 96


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token says, its id, and when it ends. Kept instead of the token, which only its holder has."""

    claims: Mapping[str, JsonValue]
    id: str
    expires: datetime


class TokenSigner:
    """Issues and verifies this broker's tokens."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificates: Sequence[x509.Certificate],
        issuer: str,
        life: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        """`key` is P-256; `certificates`, leaf first, may be empty: relying parties then know the key otherwise."""
        if not isinstance(key.curve, ec.SECP256R1):
            raise ConfigurationError(f"token signer: expected a P-256 key, got {key.curve.name}")
        if certificates and certificates[0].public_key() != key.public_key():
            raise ConfigurationError("token signer: expected the first certificate to be the key's, got another's")
        self._key = key
        self._public = ECKey.import_key(key.public_key())
        self._header = _encoded({"typ": "JWT", "alg": ALGORITHM, "jwk": _header_jwk(key, certificates)})
        self._issuer = issuer
        self._build = f"hermetic {importlib.metadata.version('hermetic')}"  # reads a file
        self._life = life
        self._clock = clock

    def claims(self, submods: Mapping[str, JsonValue]) -> TokenClaims:
        """Return what a new token says: the appraisals of each kind of evidence, from now on for its life."""
        now = self._clock()
        token_id, expires = uuid.uuid4().hex, now + self._life
        claims: dict[str, JsonValue] = {
            "eat_profile": EAT_PROFILE,
            "iat": int(now.timestamp()),
            "exp": int(expires.timestamp()),
            "iss": self._issuer,
            "jti": token_id,
            "ear.verifier-id": {"developer": DEVELOPER, "build": self._build},
            "submods": dict(submods),
        }
        return TokenClaims(claims, token_id, datetime.fromtimestamp(int(expires.timestamp()), UTC))

    def sign(self, token: TokenClaims) -> str:
        """Return the token; each signature is another."""
        signed = f"{self._header}.{_encoded(token.claims)}"
        numbers = decode_dss_signature(self._key.sign(signed.encode("ascii"), ec.ECDSA(SHA256())))
        return f"{signed}.{b64url(b''.join(number.to_bytes(_NUMBER_BYTES, 'big') for number in numbers))}"

    def verify(self, text: str) -> str:
        """The id of a token of ours that has not ended; the key in its header is not looked at. Raises `Refusal`."""
        if len(text) > MAX_TOKEN_LENGTH:
            raise Refusal(Variant.TOKEN_VERIFIER, f"token: expected at most {MAX_TOKEN_LENGTH} characters")
        try:
            claims = jwt.decode(text, self._public, algorithms=[ALGORITHM]).claims
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Refusal(Variant.TOKEN_VERIFIER, f"token: expected one signed by this broker, got {error}") from error
        expires, token_id = claims.get("exp"), claims.get("jti")
        if not isinstance(expires, int) or self._clock().timestamp() >= expires or claims.get("iss") != self._issuer:
            raise Refusal(Variant.TOKEN_VERIFIER, "token: expected one of this issuer that has not ended")
        if not isinstance(token_id, str):
            raise Refusal(Variant.TOKEN_VERIFIER, "token: expected a jti, got none")
        return token_id


def submods(
    attestation: Attestation, claims: Claims, members: Mapping[str, Any], names: Sequence[tuple[str, bytes]]
) -> dict[str, JsonValue]:
    """The appraisals of a token: one per kind in `claims`, with the name and report data of each in that order.

    `members` are the claims as JSON.
    """
    runtime: dict[str, JsonValue] = {"nonce": attestation.nonce, "tee-pubkey": dict(attestation.tee_key.jwk)}
    if attestation.hermetic is not None:
        runtime["hermetic"] = dict(attestation.hermetic)
    kinds = zip(claims.kinds, members["kinds"], strict=True)
    return {
        name: _appraisal(kind, shown, digest, runtime)
        for (name, digest), (kind, shown) in zip(names, kinds, strict=True)
    }


def _appraisal(kind: KindClaims, members: JsonValue, digest: bytes, runtime: Mapping[str, JsonValue]) -> JsonValue:
    shown = _identity_and_hardware(kind)
    vector = dict.fromkeys(VECTOR, NO_CLAIM) | dict(zip(("instance-identity", "hardware"), shown, strict=True))
    return {
        "ear.status": status(vector.values()),
        "ear.trustworthiness-vector": dict(vector),
        "ear.appraisal-policy-id": POLICY_ID,
        "ear.veraison.annotated-evidence": {
            "report_data": digest.hex(),
            "init_data": None,
            "init_data_claims": None,
            "runtime_data_claims": dict(runtime),
            kind.kind: members,
        },
    }


def _identity_and_hardware(kind: KindClaims) -> tuple[int, int]:
    """The members "instance-identity" and "hardware" of a trustworthiness vector (AR4SI, 2.3.4.2 and 2.3.4.3)."""
    if isinstance(kind, SampleClaims) or (isinstance(kind, TpmClaims) and kind.software):
        return NO_CLAIM, UNRECOGNISED_HARDWARE
    if kind.debug:
        return NO_CLAIM, UNRECOGNISED_HARDWARE
    if not isinstance(kind, TdxClaims | SgxClaims):
        return AFFIRMED, AFFIRMED
    tcb = kind.platform.tcb
    is_safe = tcb is not None and tcb.status == "UpToDate"
    return AFFIRMED, AFFIRMED if is_safe else UNSAFE_HARDWARE


def status(vector: Iterable[int]) -> str:
    """The tier of the worst member of a trustworthiness vector."""
    worst = max(vector)
    if worst >= _CONTRAINDICATED:
        return "contraindicated"
    if worst >= _WARNING:
        return "warning"
    return "affirming" if worst >= AFFIRMED else "none"


def _encoded(members: Mapping[str, JsonValue]) -> str:
    """A part of a JWT."""
    return b64url(_encode(members).encode("ascii"))


def _header_jwk(key: ec.EllipticCurvePrivateKey, certificates: Sequence[x509.Certificate]) -> dict[str, JsonValue]:
    jwk = ec_jwk(key.public_key()) | {"alg": ALGORITHM}
    if certificates:
        jwk["x5c"] = [base64.b64encode(one.public_bytes(Encoding.DER)).decode("ascii") for one in certificates]
    return jwk
