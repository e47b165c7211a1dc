"""A guest written from the protocol alone: nothing of ours is imported, jwcrypto opens what the broker sends."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from jwcrypto import jwe, jwk

KEY_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "P-256": ({"kty": "EC", "crv": "P-256"}, "ECDH-ES+A256KW"),
    "P-521": ({"kty": "EC", "crv": "P-521"}, "ECDH-ES+A256KW"),
    "RSA": ({"kty": "RSA", "size": 2048}, "RSA-OAEP-256"),
}


def make_key(kind: str) -> tuple[jwk.JWK, dict[str, str]]:
    parameters, algorithm = KEY_KINDS[kind]
    key = jwk.JWK.generate(**parameters)
    public = json.loads(key.export_public())
    public.pop("kid", None)
    public["alg"] = algorithm
    return key, public


def canonical(value: Any) -> bytes:
    """RFC 8785 for what is sent here: ASCII names, no floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> bytes:
    return hashlib.sha384(canonical(value)).digest()


def sample(report_data: bytes) -> dict[str, str]:
    return {"svn": "1", "report_data": base64.b64encode(report_data).decode()}


@dataclass
class IndependentGuest:
    """One handshake after the other over a client of the test's."""

    http: httpx.Client
    version: str = "0.4.0"
    key_kind: str = "P-256"
    tee: str = "sample"
    extra: Any = field(default_factory=lambda: {"supported-hash-algorithms": ["sha384"]})
    nonce: str = ""
    cookie: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        self.key, self.public = make_key(self.key_kind)

    def auth(self) -> httpx.Response:
        self.http.cookies.clear()
        body = {"version": self.version, "tee": self.tee, "extra-params": self.extra}
        response = self.http.post("/kbs/v0/auth", json=body)
        if response.status_code == 200:
            self.nonce = response.json()["nonce"]
            self.cookie = response.headers["set-cookie"].split(";")[0]
        return response

    def body(self, hermetic: Any = None, **change: Any) -> dict[str, Any]:
        """The attestation in the form of `version`, bound as the notes say."""
        nonce, public = change.get("nonce", self.nonce), change.get("public", self.public)
        if self.version == "0.2.0":
            return {"tee-pubkey": public, "tee-evidence": sample(digest({"nonce": nonce, "tee-pubkey": public}))}
        bound = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": public}
        if hermetic is not None:
            bound["hermetic"] = hermetic
        evidence = {"primary_evidence": sample(digest(bound)), "additional_evidence": ""}
        if self.version == "0.3.0":
            return {"tee-pubkey": public, "tee-evidence": evidence}
        runtime = {"nonce": nonce, "tee-pubkey": public} | ({} if hermetic is None else {"hermetic": hermetic})
        return {"init-data": None, "runtime-data": runtime, "tee-evidence": evidence}

    def attest(self, body: Any = None, *, raw: bytes | None = None, cookie: str | None = None) -> httpx.Response:
        self.http.cookies.clear()
        content = raw if raw is not None else json.dumps(self.body() if body is None else body).encode()
        headers = {"cookie": self.cookie if cookie is None else cookie, "content-type": "application/json"}
        response = self.http.post("/kbs/v0/attest", content=content, headers=headers)
        if response.status_code == 200:
            self.token = response.json()["token"]
        return response

    def handshake(self, hermetic: Any = None) -> str:
        if hermetic is not None:
            self.extra = {"hermetic": {"version": 1}}
            hermetic = {"lease-key": self.lease_key()} | hermetic
        assert self.auth().status_code == 200
        response = self.attest(self.body(hermetic))
        assert response.status_code == 200, response.text
        return self.token

    def lease_key(self) -> str:
        """The thumbprint (RFC 7638), in hex, of the key that signs the broker's leases."""
        return hashlib.sha256(canonical(self.http.get("/hermetic/v1/leases/key").json())).hexdigest()

    def resource(self, path: str, *, bearer: str | None = None) -> httpx.Response:
        self.http.cookies.clear()
        headers = {"cookie": self.cookie} if bearer is None else {"authorization": f"Bearer {bearer}"}
        return self.http.get(f"/kbs/v0/resource/{path}", headers=headers)

    def named(self, address: str) -> httpx.Response:
        """Ask for a resource by its address, `kbs:///<repository>/<type>/<tag>`."""
        parts = urlsplit(address)
        assert (parts.scheme, parts.netloc, parts.path.count("/")) == ("kbs", "", 3)
        return self.resource(parts.path.removeprefix("/"))

    def open(self, response: httpx.Response) -> bytes:
        assert response.status_code == 200, response.text
        message = jwe.JWE()
        message.deserialize(response.text, self.key)
        return bytes(message.payload)


def hermetic_claims(manifest_digest: bytes, **change: Any) -> dict[str, Any]:
    return {
        "profile": "demo",
        "manifest-digest": manifest_digest.hex(),
        "waivers": [],
        "trusted-publishers": "0" * 64,
        "policies": [],
        "zeroing": "enforced",
    } | change
