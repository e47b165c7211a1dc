"""Admin tokens: Trustee's JWT with a `role`, made short-lived and single-use (docs/spec/key-broker.md, section 4).

`verify` says who and in which role; `allows` says whether that role may use a path. Spending a token durably is
admin.py's, because it is a record.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey

from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.errors import ConfigurationError

MAX_TOKEN_LENGTH: Final = 8192
"""Longest admin token that is looked at, in characters."""

MAX_ROLE_LENGTH: Final = 128

_TOKEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")
_TIMES: Final = ("iat", "exp")


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who may issue admin tokens: the `iss` (and `aud`, where not None) to name, the key to sign with, for which roles.

    `roles` is None where it may name every role.
    """

    name: str
    audience: str | None
    key: OKPKey | ECKey
    roles: tuple[str, ...] | None = None

    @property
    def algorithms(self) -> list[str]:
        """The JOSE names of what the key signs with; Trustee's tools still use the older name of Ed25519."""
        return ["EdDSA", "Ed25519"] if isinstance(self.key, OKPKey) else ["ES256"]


@dataclass(frozen=True, slots=True)
class AclRule:
    """A role, the paths that it may use, and the prefixes of the models' names that it may use them for."""

    role: str
    allowed: re.Pattern[str]
    names: tuple[str, ...] = ("",)

    @classmethod
    def parse(cls, role: str, pattern: str, names: Sequence[str] = ("",)) -> "AclRule":
        """Read a rule; raises `ConfigurationError` unless the pattern is anchored at both ends."""
        if not pattern.startswith("^/") or not pattern.endswith("$"):
            raise ConfigurationError(f"admin acl of {role}: expected a pattern ^/...$, got {pattern!r}")
        try:
            return cls(role, re.compile(pattern), tuple(names))
        except re.error as error:
            raise ConfigurationError(f"admin acl of {role}: expected a regular expression, got {error}") from error


@dataclass(frozen=True, slots=True)
class AdminToken:
    """A verified admin token; `expires` is POSIX seconds."""

    issuer: str
    role: str
    id: str
    expires: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Prefixes of the names that a role acts for."""

    prefixes: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Whether `name` is among them; "" is what is about no name, or every name."""
        return any(name.startswith(prefix) for prefix in self.prefixes)


class AdminTokens:
    """Verifies admin tokens against the configured issuers."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        rules: Sequence[AclRule],
        *,
        life_s: int,
        leeway_s: int,
        clock: Callable[[], datetime],
    ) -> None:
        """`life_s` is the longest life of a token, `leeway_s` how far clocks may differ, both in seconds."""
        self._issuers = tuple(issuers)
        self._rules = tuple(rules)
        self._life_s = life_s
        self._leeway_s = leeway_s
        self._clock = clock

    def verify(self, text: str | None) -> AdminToken:
        """The token, once its signature, issuer, audience, times, role and id are right; raises `Refusal`."""
        if text is None or len(text) > MAX_TOKEN_LENGTH:
            raise _refused(f"expected Authorization: Bearer with a token of at most {MAX_TOKEN_LENGTH} characters")
        for issuer in self._issuers:
            claims = _signed(text, issuer)
            if claims is not None and _names(claims, issuer):
                return self._checked(claims, issuer)
        raise _refused("token: expected one signed by a configured issuer that it names")

    def scope(self, token: AdminToken, path: str) -> "Scope":
        """For which names the token's role may use the whole `path`; for none: it may not."""
        rules = [rule for rule in self._rules if rule.role == token.role and rule.allowed.fullmatch(path)]
        return Scope(tuple(prefix for rule in rules for prefix in rule.names))

    def _checked(self, claims: Mapping[str, object], issuer: Issuer) -> AdminToken:
        role, token_id = claims.get("role"), claims.get("jti")
        if not isinstance(role, str) or not 0 < len(role) <= MAX_ROLE_LENGTH:
            raise _refused("token: expected a role, got none")
        if issuer.roles is not None and role not in issuer.roles:
            raise _refused(f"token: expected a role that its issuer may name ({', '.join(issuer.roles)}), got {role!r}")
        if not isinstance(token_id, str) or not _TOKEN_ID.fullmatch(token_id):
            raise _refused("token: expected a jti of 8 to 64 letters, digits, dots, lines, got none or another")
        return AdminToken(issuer.name, role, token_id, self._in_time(claims))

    def _in_time(self, claims: Mapping[str, object]) -> int:
        issued, expires = (_seconds(claims, name) for name in _TIMES)
        now = self._clock().timestamp()
        if expires - issued > self._life_s:
            raise _refused(f"token: expected a life of at most {self._life_s} s, got {expires - issued} s")
        if issued > now + self._leeway_s:
            raise _refused("token: expected one issued already, got one from the future")
        if now >= expires + self._leeway_s:
            raise _refused("token: expected one that has not expired, got an expired one")
        # A spent id must stay known for as long as its token could still pass.
        return expires + self._leeway_s


def _signed(text: str, issuer: Issuer) -> Mapping[str, object] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # the older name of Ed25519
            return jwt.decode(text, issuer.key, algorithms=issuer.algorithms).claims
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _names(claims: Mapping[str, object], issuer: Issuer) -> bool:
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    return claims.get("iss") == issuer.name and (issuer.audience is None or issuer.audience in named)


def _seconds(claims: Mapping[str, object], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise _refused(f"token: expected a time in {name}, got {type(value).__name__}")
    return int(value)


def _refused(text: str) -> Refusal:
    return Refusal(Variant.ADMIN_ACCESS, text)
