"""A lease: for how long one worker may hold a model (docs/spec/leases.md).

A JWT signed with ES256 by the broker's token key. `LeaseSigner` is the broker's side. `LeaseKey` is the worker's: a
lease is of that key, of one model and of one worker's key, and young enough, or it is refused by a name of `Refusal`.

Pure: no clock is read here. Written on `cryptography` alone, and strictly (one header, one form of each member), so
that a locked worker needs no JOSE library and knows no other algorithm. Not here: counting down, which is the worker's
(enclave/lease_timer.py), and what is leased to whom (broker/leases.py).
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermetic.errors import ConfigurationError, LeaseRefusedError

__all__ = ["LeaseKey", "LeaseSigner", "LeaseTerms", "LeasedModel", "Refusal", "ec_jwk", "key_thumbprint", "refused"]

ALGORITHM: Final = "ES256"
TYPE: Final = "hermetic-lease+jwt"

MAX_LEASE_LENGTH: Final = 16 * 1024
"""Longest lease that is looked at, in characters."""

MAX_LENGTH_MS: Final = 366 * 24 * 3600 * 1000
"""Longest length, and longest grace, in milliseconds."""

LEEWAY_S: Final = 300
"""How far the broker's clock and the worker's may be apart, in seconds. It lengthens nothing: see `check_times`."""

MAX_CHIPS: Final = 64
"""Most chips that a lease names."""

_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_COORDINATE_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 2 * _COORDINATE_BYTES

Text = Annotated[str, Field(min_length=1, max_length=512)]
Thumbprint = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{43}$")]
Milliseconds = Annotated[int, Field(ge=1, le=MAX_LENGTH_MS)]


class Refusal(StrEnum):
    """Why a lease is refused; the name stands first in the error's text."""

    MISSING = "lease-missing"
    MALFORMED = "lease-malformed"
    ALGORITHM = "lease-algorithm"
    SIGNATURE = "lease-signature"
    MODEL = "lease-model"
    KEY = "lease-key"
    FUTURE = "lease-from-the-future"
    OLD = "lease-too-old"
    OVER = "lease-over"


def refused(refusal: Refusal, text: str) -> LeaseRefusedError:
    """Return the error of a refusal."""
    return LeaseRefusedError(f"{refusal}: {text}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LeasedModel(_Strict):
    """Which model a lease is of."""

    name: Text
    version: Annotated[int, Field(ge=1)]
    manifest_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Confirmation(_Strict):
    """RFC 7800, RFC 9449: the key that the holder has shown to have."""

    jkt: Thumbprint


class LeaseTerms(_Strict):
    """Everything that a lease says; members as in the JWT."""

    iss: Text
    jti: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    iat: Annotated[int, Field(ge=0)]  # POSIX seconds, by the broker's clock
    length_ms: Milliseconds
    grace_ms: Annotated[int, Field(ge=0, le=MAX_LENGTH_MS)]
    model: LeasedModel
    cnf: _Confirmation
    client: Annotated[str, Field(max_length=512)] | None
    chips: Annotated[tuple[Text, ...], Field(max_length=MAX_CHIPS)]

    @classmethod
    def of(cls, model: LeasedModel, thumbprint: str, **members: object) -> Self:
        """Return the terms for a worker's key; `members` are the other ones."""
        return cls.model_validate({"model": model, "cnf": _Confirmation(jkt=thumbprint), **members})

    @property
    def whole_ms(self) -> int:
        """Length and grace together: when it is over, in milliseconds from its begin."""
        return self.length_ms + self.grace_ms

    @classmethod
    def read(cls, text: str) -> Self:
        """Return what a lease says, its signature not looked at: for whoever got it straight from the broker."""
        _, payload, _ = _parts(text)
        return cls.parse(payload)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Return the terms in a JWT's payload; `LeaseRefusedError` where they do not fit."""
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'lease'}: {e['msg']}" for e in error.errors()[:3])
            raise refused(Refusal.MALFORMED, f"wanted the members of a lease, got: {problems}") from None

    def check(self, model: LeasedModel, thumbprint: str) -> Self:
        """Return these terms where they are of this model and of this worker's key; else `LeaseRefusedError`."""
        if self.model != model:
            raise refused(Refusal.MODEL, f"wanted one of {_shown(model)}, got one of {_shown(self.model)}")
        if self.cnf.jkt != thumbprint:
            raise refused(Refusal.KEY, f"wanted one for the key {thumbprint}, got one for {self.cnf.jkt}")
        return self

    def check_times(self, made_s: float, now_s: float) -> Self:
        """Return these terms where they were issued between the worker's key (`made_s`) and now, by its wall clock.

        This bounds nothing by itself: the key does, since no lease can name it before it was made, and the lease is
        counted from then on a clock that nobody sets. It refuses a broker or a host whose clock is wrong.
        """
        if self.iat > now_s + LEEWAY_S:
            raise refused(Refusal.FUTURE, f"wanted one issued by {now_s:.0f} + {LEEWAY_S} s, got {self.iat}")
        if self.iat < made_s - LEEWAY_S:
            raise refused(Refusal.OLD, f"wanted one issued since {made_s:.0f} - {LEEWAY_S} s, got {self.iat}")
        return self


class LeaseKey:
    """The broker's public key, as a worker is told it before its lock-down."""

    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        """Take a key on P-256; `ConfigurationError` for another."""
        if not isinstance(public_key.curve, ec.SECP256R1):
            raise ConfigurationError(f"lease key: wanted one on P-256, got {public_key.curve.name}")
        self._key = public_key
        self.jwk: Final[Mapping[str, str]] = ec_jwk(public_key)
        """The public key: these members and no other."""
        self.text: Final = _canonical(self.jwk)
        """The JWK in canonical JSON; `loads` reads it again."""
        digest = hashlib.sha256(self.text.encode())
        self.thumbprint: Final = _encode(digest.digest())
        """The RFC 7638 thumbprint, base64url: a lease's `kid`."""
        self.digest: Final = digest.hexdigest()
        """The same thumbprint in hexadecimal: what evidence says (`lease-key`)."""

    @classmethod
    def loads(cls, text: str) -> Self:
        """Return the key in a JWK; `ConfigurationError` where it is another kind of key or not one."""
        try:
            members = json.loads(text)
            if not isinstance(members, dict) or members.keys() != {"crv", "kty", "x", "y"}:
                raise ValueError("expected the members crv, kty, x and y")
            if (members["kty"], members["crv"]) != ("EC", "P-256"):
                raise ValueError(f"expected an EC key on P-256, got {members['kty']!r} on {members['crv']!r}")
            x, y = (int.from_bytes(_decode(members[name], _COORDINATE_BYTES), "big") for name in ("x", "y"))
            return cls(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"lease key: wanted a JWK on P-256, got {error}") from None

    def verify(self, text: str) -> LeaseTerms:
        """Return what a lease of this key says, or raise `LeaseRefusedError`; whose and how old it is, is not asked."""
        if not text:
            raise refused(Refusal.MISSING, "wanted a lease, got none")
        header, payload, signature = _parts(text)
        self._check_header(header)
        if len(signature) != _SIGNATURE_BYTES:
            raise refused(Refusal.SIGNATURE, f"wanted {_SIGNATURE_BYTES} bytes, got {len(signature)}")
        r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE_BYTES], signature[_COORDINATE_BYTES:]))
        try:
            signed = text.rpartition(".")[0].encode("ascii")
            self._key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise refused(Refusal.SIGNATURE, f"wanted the signature of {self.thumbprint}, got another") from None
        return LeaseTerms.parse(payload)

    def _check_header(self, header: bytes) -> None:
        try:
            members = json.loads(header, object_pairs_hook=_no_duplicates)
        except ValueError as error:
            raise refused(Refusal.MALFORMED, f"header: wanted a JSON object, got {error}") from None
        if not isinstance(members, dict):
            raise refused(Refusal.MALFORMED, f"header: wanted a JSON object, got {type(members).__name__}")
        if (members.get("alg"), members.get("typ")) != (ALGORITHM, TYPE):
            got = f"{members.get('alg')!r:.40} and {members.get('typ')!r:.40}"
            raise refused(Refusal.ALGORITHM, f"wanted {ALGORITHM} and {TYPE}, got {got}")
        if members.keys() != {"alg", "kid", "typ"}:
            raise refused(Refusal.MALFORMED, f"header: wanted alg, kid and typ, got {sorted(members)[:8]}")
        if members["kid"] != self.thumbprint:
            raise refused(Refusal.SIGNATURE, f"wanted the key {self.thumbprint}, got {members['kid']!r:.60}")


class LeaseSigner:
    """The broker's side: issues leases."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """`key` is the broker's token key, on P-256."""
        self._key = key
        self.public: Final = LeaseKey(key.public_key())
        self._header = _encode(_canonical({"alg": ALGORITHM, "kid": self.public.thumbprint, "typ": TYPE}).encode())

    def sign(self, terms: LeaseTerms) -> str:
        """Return the lease."""
        body = _canonical(terms.model_dump(mode="json"))
        signed = f"{self._header}.{_encode(body.encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode("ascii"), ec.ECDSA(SHA256())))
        raw = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return f"{signed}.{_encode(raw)}"


def ec_jwk(public_key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Return the public JWK of a key on P-256: crv, kty, x, y."""
    numbers = public_key.public_numbers()
    x, y = (_encode(number.to_bytes(_COORDINATE_BYTES, "big")) for number in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def key_thumbprint(jwk: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of an EC key's public JWK, base64url."""
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    return _encode(hashlib.sha256(_canonical(required).encode()).digest())


def _parts(text: str) -> tuple[bytes, bytes, bytes]:
    if len(text) > MAX_LEASE_LENGTH:
        raise refused(Refusal.MALFORMED, f"wanted at most {MAX_LEASE_LENGTH} characters, got {len(text)}")
    parts = text.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, payload, signature
        raise refused(Refusal.MALFORMED, f"wanted three parts, got {len(parts)}")
    try:
        # An empty signature is not malformed but unsigned: `alg` is what is refused then.
        header, payload = (_decode(part) for part in parts[:2])
        return header, payload, _decode(parts[2]) if parts[2] else b""
    except ValueError as error:
        raise refused(Refusal.MALFORMED, str(error)) from None


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name twice in one object")
    return members


def _canonical(members: Mapping[str, object]) -> str:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str, length: int | None = None) -> bytes:
    if not _PART.fullmatch(text):
        raise ValueError("wanted base64url without padding, got something else")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"wanted base64url, got {error}") from None
    if _encode(data) != text or (length is not None and len(data) != length):
        raise ValueError(f"wanted canonical base64url{'' if length is None else f' of {length} bytes'}, got another")
    return data


def _shown(model: LeasedModel) -> str:
    return f"{model.name} version {model.version} ({model.manifest_digest[:16]}...)"
