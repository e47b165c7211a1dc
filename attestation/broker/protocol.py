"""What guests send: RCAR 0.4.0, and the older forms 0.3.0 and 0.2.0 (docs/spec/key-broker.md, sections 2.1 and 2.3).

Pure: bytes in, typed requests out, `InvalidRequestError` for everything else. Sessions are sessions.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hermetic.attestation import hybrid_key
from hermetic.attestation.broker.jwe import TeeKey, tee_key
from hermetic.attestation.broker.strict_json import exactly, json_object, parse_object, text
from hermetic.attestation.evidence import JsonValue, device_report_data, report_data
from hermetic.attestation.hybrid_key import HybridPublicKey
from hermetic.errors import InvalidRequestError

Version = Literal["0.4.0", "0.3.0", "0.2.0"]
VERSIONS: Final[tuple[Version, ...]] = ("0.4.0", "0.3.0", "0.2.0")

KINDS: Final = frozenset(
    {
        "az-snp-vtpm",
        "az-tdx-vtpm",
        "cca",
        "csv",
        "hygondcu",
        "nvidia",
        "sample",
        "sampledevice",
        "se",
        "sgx",
        "snp",
        "tdx",
        "tpm",
    }
)
"""Trustee's names of kinds of evidence."""

OUR_ADDITIONS: Final[Mapping[str, JsonValue]] = {"version": 1}
KEY_WRAPS: Final = "hermetic-key-wraps"
MAX_DEVICES: Final = 16
"""Most kinds of device evidence beside the primary."""

_HERMETIC: Final = "hermetic"
_HYBRID_KEY: Final = "hybrid-key"


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A request for a challenge: the protocol's version, the kind of evidence to come, whether ours is offered.

    `hybrid`: hybrid key wraps too (docs/spec/post-quantum.md), which this broker then offers in its answer.
    """

    version: Version
    tee: str
    hermetic: bool
    hybrid: bool = False

    def extra_params(self) -> JsonValue:
        """What the challenge says beside the nonce."""
        if not self.hermetic:
            return ""
        wraps: dict[str, JsonValue] = {KEY_WRAPS: [hybrid_key.ALGORITHM]} if self.hybrid else {}
        return {_HERMETIC: dict(OUR_ADDITIONS), **wraps}


@dataclass(frozen=True, slots=True)
class Attestation:
    """Evidence over a challenge, in whatever form it came."""

    version: Version
    nonce: str
    tee_key: TeeKey
    primary: JsonValue
    additional: str
    hermetic: Mapping[str, JsonValue] | None

    def primary_digest(self) -> bytes:
        """The 48 bytes that the primary evidence must be bound to."""
        if self.version == "0.2.0":
            return device_report_data(self.nonce, self.tee_key.jwk)
        return report_data(self.nonce, self.tee_key.jwk, additional_evidence=self.additional, hermetic=self.hermetic)

    def device_digest(self) -> bytes:
        """The 48 bytes that devices' evidence must be bound to."""
        return device_report_data(self.nonce, self.tee_key.jwk)

    def devices(self) -> dict[str, JsonValue]:
        """Kind and evidence of each device; raises `InvalidRequestError`."""
        if not self.additional:
            return {}
        devices = parse_object(self.additional, "additional_evidence")
        if len(devices) > MAX_DEVICES:
            raise InvalidRequestError(f"additional_evidence: expected at most {MAX_DEVICES} kinds, got {len(devices)}")
        return devices


def parse_auth(body: bytes) -> AuthRequest:
    """Read the body of /auth; raises `InvalidRequestError`."""
    members = parse_object(body, "request")
    exactly(members, "request", ("version", "tee", "extra-params"))
    asked = text(members, "version", "request")
    version = next((known for known in VERSIONS if known == asked), None)
    if version is None:
        raise InvalidRequestError(
            f"KBS Client Protocol Version Mismatch: expect ={VERSIONS[0]} while the request is {asked[:40]}"
            f" (also served: {', '.join(VERSIONS[1:])})"
        )
    tee = text(members, "tee", "request")
    if tee not in KINDS:
        raise InvalidRequestError(f"tee: expected one of {', '.join(sorted(KINDS))}, got {tee[:40]!r}")
    params = members["extra-params"]
    offered = isinstance(params, dict) and params.get(_HERMETIC) == OUR_ADDITIONS and version == "0.4.0"
    return AuthRequest(version, tee, offered, offered and _is_hybrid_asked(params))


def _is_hybrid_asked(params: JsonValue) -> bool:
    wraps = params.get(KEY_WRAPS) if isinstance(params, dict) else None
    return isinstance(wraps, list) and hybrid_key.ALGORITHM in wraps and hybrid_key.why_missing() is None


def parse_attestation(body: bytes, asked: AuthRequest, nonce: str) -> Attestation:
    """Read the body of /attest as the form that the session's /auth chose; raises `InvalidRequestError`.

    `nonce` is the session's; the nonce in a 0.4.0 body must equal it, older forms carry none.
    """
    members = parse_object(body, "attestation")
    if asked.version == "0.4.0":
        return _current(members, asked, nonce)
    exactly(members, "attestation", ("tee-pubkey", "tee-evidence"))
    key = tee_key(json_object(members, "tee-pubkey", "attestation"))
    if asked.version == "0.3.0":
        primary, additional = _composite(members)
        return Attestation(asked.version, nonce, key, primary, additional, None)
    return Attestation(asked.version, nonce, key, members["tee-evidence"], "", None)


def _current(members: Mapping[str, JsonValue], asked: AuthRequest, nonce: str) -> Attestation:
    exactly(members, "attestation", ("runtime-data", "tee-evidence"), ("init-data",))
    if members.get("init-data") is not None:
        raise InvalidRequestError("init-data: expected null, because no verifier here checks it")
    runtime = json_object(members, "runtime-data", "attestation")
    exactly(runtime, "runtime-data", ("nonce", "tee-pubkey"), (_HERMETIC,) if asked.hermetic else ())
    if text(runtime, "nonce", "runtime-data") != nonce:
        raise InvalidRequestError("nonce: expected this session's challenge, got another")
    hermetic = json_object(runtime, _HERMETIC, "runtime-data") if _HERMETIC in runtime else None
    _check_hybrid(hermetic or {}, asked)
    primary, additional = _composite(members)
    key = tee_key(json_object(runtime, "tee-pubkey", "runtime-data"))
    return Attestation(asked.version, nonce, key, primary, additional, hermetic)


def _check_hybrid(hermetic: Mapping[str, JsonValue], asked: AuthRequest) -> None:
    """Refuse a hybrid key where this session's challenge offered none, and what is no such key."""
    if _HYBRID_KEY not in hermetic:
        return
    if not asked.hybrid:
        raise InvalidRequestError(
            f"{_HYBRID_KEY}: expected none, because this session's challenge offered none, got one"
        )
    HybridPublicKey.parse(text(hermetic, _HYBRID_KEY, "runtime-data.hermetic"))


def _composite(members: Mapping[str, JsonValue]) -> tuple[JsonValue, str]:
    evidence = json_object(members, "tee-evidence", "attestation")
    exactly(evidence, "tee-evidence", ("primary_evidence", "additional_evidence"))
    return evidence["primary_evidence"], text(evidence, "additional_evidence", "tee-evidence")
