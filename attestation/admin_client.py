"""The operator's side of the key broker: upload a model key, raise or lower a version floor, list keys, revoke leases.

`hermetic seal --broker` and `hermetic broker ...` use it against the admin listener (docs/spec/key-broker.md, "Admin").
Every call carries its own admin token (Trustee's: a JWT with a `role`), minted here from the operator's key: it lives
for minutes and works once. Not here: the guest's side (exchange.py).
"""

import json
import ssl
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.exchange import KEY_ID_SCHEME, Answer, send
from hermetic.errors import ConfigurationError

__all__ = ["AdminClient", "AdminSigner", "ModelKeyFacts"]

DEFAULT_TOKEN_LIFE_S: Final = 120
MODEL_KEY_BYTES: Final = 32

HEADER_NAME: Final = "hermetic-model-name"
HEADER_VERSION: Final = "hermetic-model-version"
HEADER_MANIFEST_DIGEST: Final = "hermetic-manifest-digest"
HEADER_PUBLISHER: Final = "hermetic-publisher"


@dataclass(frozen=True, slots=True)
class ModelKeyFacts:
    """What the broker stores with a model key, and later demands of whoever asks for it.

    `version` is at least 1, `manifest_digest` is the SHA-256 of the canonical manifest (32 bytes).
    """

    name: str
    version: int
    manifest_digest: bytes
    publisher: str

    def headers(self) -> dict[str, str]:
        """The upload's request headers; texts are percent-encoded UTF-8."""
        return {
            HEADER_NAME: quote(self.name, safe=""),
            HEADER_VERSION: str(self.version),
            HEADER_MANIFEST_DIGEST: self.manifest_digest.hex(),
            HEADER_PUBLISHER: quote(self.publisher, safe=""),
        }


class AdminSigner:
    """Mints admin tokens from an operator's private key (Ed25519, by its name of RFC 9864; P-256: ES256)."""

    def __init__(
        self,
        private_key_pem: bytes,
        *,
        issuer: str,
        role: str,
        audience: str | None = None,
        life_s: int = DEFAULT_TOKEN_LIFE_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`issuer` and `role` are those of the broker's `[admin]` tables; `life_s` is each token's life in seconds."""
        self._key, self._algorithm = _signing_key(private_key_pem)
        self._fixed = {"iss": issuer, "role": role} | ({} if audience is None else {"aud": audience})
        self._life = timedelta(seconds=life_s)
        self._clock = clock

    def mint(self) -> str:
        """A new token, for one request."""
        now = self._clock()
        times = {"iat": int(now.timestamp()), "exp": int((now + self._life).timestamp())}
        claims = self._fixed | times | {"jti": uuid.uuid4().hex}
        return jwt.encode({"alg": self._algorithm, "typ": "JWT"}, claims, self._key, algorithms=[self._algorithm])


class AdminClient:
    """A broker's admin listener, spoken to over mutual TLS; raises as `exchange.BrokerClient` does."""

    def __init__(self, url: str, ssl_context: ssl.SSLContext, signer: AdminSigner, timeout_s: float = 20.0) -> None:
        """`ssl_context` holds the admin listener's CA and the operator's client certificate."""
        self._http = httpx.Client(
            base_url=url, verify=ssl_context, timeout=timeout_s, trust_env=False, follow_redirects=False
        )
        self._signer = signer

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def upload(self, key_id: str, key: bytes | bytearray | memoryview, facts: ModelKeyFacts) -> str:
        """Store a model key (32 bytes) under `kbs:///repo/type/tag`; create-only: an existing one is never replaced.

        Returns "pending" where operators must sign before it is released, else "ungoverned".
        """
        if len(key) != MODEL_KEY_BYTES:
            raise ConfigurationError(f"model key: expected {MODEL_KEY_BYTES} bytes, got {len(key)}")
        answer = self._call("POST", _resource_path(key_id), content=bytes(key), headers=facts.headers())
        return str(json.loads(answer.content)["state"])

    def upload_plain_secret(self, key_id: str, secret: bytes) -> str:
        """Store a secret that belongs to no model; returns as `upload` does."""
        return str(json.loads(self._call("POST", _resource_path(key_id), content=secret).content)["state"])

    def stored_keys(self) -> list[dict[str, JsonValue]]:
        """Every stored key's facts, without the key."""
        return list(json.loads(self._call("GET", "/hermetic/v1/keys").content)["keys"])

    def floors(self) -> dict[str, int]:
        """The version floor of every name that has one."""
        return dict(json.loads(self._call("GET", "/hermetic/v1/floors").content)["floors"])

    def retire(self, name: str, below: int) -> None:
        """Raise the floor of `name`: no version below `below` is released any more."""
        self._call("POST", f"/hermetic/v1/floors/{quote(name, safe='')}/raise", json_body={"below": below})

    def lower_floor(self, name: str, below: int, reason: str) -> None:
        """Lower the floor of `name`: an act of its own, with its own permission; `reason` goes into the log."""
        body: JsonValue = {"below": below, "reason": reason}
        self._call("POST", f"/hermetic/v1/floors/{quote(name, safe='')}/lower", json_body=body)

    def leases(self) -> dict[str, JsonValue]:
        """What is leased to whom (`leases`), and what is revoked (`revoked`)."""
        return dict(json.loads(self._call("GET", "/hermetic/v1/leases").content))

    def revoke_leases(self, target: Mapping[str, JsonValue], reason: str) -> int:
        """End every lease under `{"model", "version"?}`, `{"server"}` or `{"chip"}`; returns how many there were."""
        body: JsonValue = {**target, "reason": reason}
        return int(json.loads(self._call("POST", "/hermetic/v1/leases/revoke", json_body=body).content)["ended"])

    def restore_leases(self, target: Mapping[str, JsonValue], reason: str) -> None:
        """Take a revocation back: an act of its own, with its own permission; what it ended stays ended."""
        self._call("POST", "/hermetic/v1/leases/restore", json_body={**target, "reason": reason})

    def governance(self) -> dict[str, JsonValue]:
        """Who the operators are, what is in force, what waits for signatures (docs/spec/governance.md, section 9)."""
        return dict(json.loads(self._call("GET", "/hermetic/v1/governance").content))

    def hand_in(self, change: bytes) -> dict[str, JsonValue]:
        """Hand a signed change in: returns its `index` in the log, its `digest`, and a `checkpoint` that covers it."""
        return dict(json.loads(self._call("POST", "/hermetic/v1/governance/changes", content=change).content))

    def _call(
        self,
        method: str,
        path: str,
        *,
        json_body: JsonValue = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        authorization = {"authorization": f"Bearer {self._signer.mint()}"}
        merged = authorization | dict(headers or {})
        return send(self._http, method, path, headers=merged, json_body=json_body, content=content)


def _resource_path(key_id: str) -> str:
    return f"/kbs/v0/resource/{key_id.removeprefix(KEY_ID_SCHEME)}"


def _signing_key(private_key_pem: bytes) -> tuple[OKPKey | ECKey, str]:
    for kind, curve, algorithm in ((OKPKey, "Ed25519", "Ed25519"), (ECKey, "P-256", "ES256")):
        try:
            key = kind.import_key(private_key_pem)
        except (JoseError, ValueError, TypeError):
            continue
        if key.curve_name == curve and key.is_private:
            return key, algorithm
    raise ConfigurationError("operator key: expected a private key in PEM, Ed25519 or P-256, got something else")
