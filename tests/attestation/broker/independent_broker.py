"""A Trustee-like broker written from the protocol's notes alone, for our guest: nothing of ours is imported.

RCAR 0.4.0 with `sample` evidence. It knows no leases and none of our additions, takes nothing that the notes do not
have, and says which member was wrong. jwcrypto wraps what it gives.
"""

import base64
import hashlib
import json
import re
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from jwcrypto import jwe, jwk, jwt

ERRORS = "https://github.com/confidential-containers/kbs/errors/"
NONCE_CHARACTERS = 44  # of 32 bytes in standard base64
COORDINATE_CHARACTERS = 43  # of 32 bytes in base64url without padding


@dataclass
class Session:
    nonce: str
    tee: str
    key: jwk.JWK | None = None


@dataclass
class IndependentBroker:
    """A handler for httpx.MockTransport. `requests` are (method, path, body) as they came; `wrong` what was refused."""

    secrets: dict[str, bytes]
    says_what_path: bool = True
    """Whether an unknown path is answered in RCAR's words; Trustee's own router answers with nothing at all."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    signer: jwk.JWK = field(default_factory=lambda: jwk.JWK.generate(kty="EC", crv="P-256"))
    allowed: bool = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        body = json.loads(request.content) if request.content else None
        self.requests.append((request.method, path, body))
        routes: list[tuple[str, Callable[..., httpx.Response]]] = [
            ("POST /kbs/v0/auth", self.auth),
            ("POST /kbs/v0/attest", self.attest),
            (r"GET /kbs/v0/resource/([\w.-]+/[\w.-]+/[\w.-]+)", self.resource),
        ]
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, f"{request.method} {path}"):
                try:
                    return answer(request, body, *found.groups())
                except WrongError as error:
                    self.wrong.append(str(error))
                    return refused(401, "AttestationError", str(error))
        return refused(404, "InvalidRequestPath", path) if self.says_what_path else httpx.Response(404)

    def auth(self, request: httpx.Request, body: Any) -> httpx.Response:
        wanted(request.headers["content-type"] == "application/json", "content-type")
        wanted(body.keys() == {"version", "tee", "extra-params"}, "members of the request")
        wanted(body["version"] == "0.4.0", "version")
        wanted(body["tee"] == "sample", "tee")
        wanted("supported-hash-algorithms" in body["extra-params"], "supported-hash-algorithms")
        session, nonce = uuid.uuid4().hex, base64.b64encode(secrets.token_bytes(32)).decode()
        assert len(nonce) == NONCE_CHARACTERS
        self.sessions[session] = Session(nonce, body["tee"])
        cookie = f"kbs-session-id={session}; Expires=Thu, 31 Dec 2099 23:59:59 GMT"
        return httpx.Response(200, json={"nonce": nonce, "extra-params": ""}, headers={"set-cookie": cookie})

    def attest(self, request: httpx.Request, body: Any) -> httpx.Response:
        session = self.session(request)
        wanted(body.keys() == {"init-data", "runtime-data", "tee-evidence"}, "members of the attestation")
        wanted(body["init-data"] is None, "init-data")
        runtime, evidence = body["runtime-data"], body["tee-evidence"]
        wanted(runtime.keys() == {"nonce", "tee-pubkey"}, "members of runtime-data")
        wanted(runtime["nonce"] == session.nonce, "nonce")
        wanted(evidence.keys() == {"primary_evidence", "additional_evidence"}, "members of tee-evidence")
        wanted(evidence["additional_evidence"] == "", "additional_evidence")
        key = runtime["tee-pubkey"]
        wanted(key.keys() == {"kty", "crv", "alg", "x", "y"}, "members of tee-pubkey")
        wanted((key["kty"], key["crv"], key["alg"]) == ("EC", "P-256", "ECDH-ES+A256KW"), "kind of tee-pubkey")
        for name in ("x", "y"):
            wanted(re.fullmatch(rf"[\w-]{{{COORDINATE_CHARACTERS}}}", key[name]) is not None, name)
        primary = evidence["primary_evidence"]
        wanted(primary.keys() == {"svn", "report_data"}, "members of sample evidence")
        bound = {"additional-evidence": "", "nonce": session.nonce, "tee-pubkey": key}
        text = json.dumps(bound, sort_keys=True, separators=(",", ":"))  # RFC 8785 for ASCII names and no floats
        report_data = base64.b64decode(primary["report_data"], validate=True)
        wanted(report_data.rstrip(b"\0") == hashlib.sha384(text.encode()).digest().rstrip(b"\0"), "report_data")
        session.key = jwk.JWK(**key)
        token = jwt.JWT(header={"typ": "JWT", "alg": "ES256"}, claims={"iss": "CoCo-Attestation-Service"})
        token.make_signed_token(self.signer)
        return httpx.Response(200, json={"token": token.serialize()})

    def resource(self, request: httpx.Request, body: Any, path: str) -> httpx.Response:
        session = self.session(request)
        wanted(body is None, "no body")
        if session.key is None:
            return refused(401, "TokenNotFound", "not attested")
        if not self.allowed:
            return refused(401, "PolicyDeny", "denied")
        header = json.dumps({"alg": "ECDH-ES+A256KW", "enc": "A256GCM"})
        message = jwe.JWE(self.secrets[path], protected=header, recipient=session.key)
        return httpx.Response(200, text=message.serialize())

    def session(self, request: httpx.Request) -> Session:
        found = re.fullmatch(r"kbs-session-id=([0-9a-f]{32})", request.headers.get("cookie", ""))
        wanted(found is not None and found[1] in self.sessions, "cookie")
        assert found is not None
        return self.sessions[found[1]]


class WrongError(Exception):
    """A member of a request is not as the notes have it."""


def wanted(right: bool, what: str) -> None:
    if not right:
        raise WrongError(what)


def refused(status: int, variant: str, detail: str) -> httpx.Response:
    return httpx.Response(status, json={"type": ERRORS + variant, "detail": detail})
