"""What the broker answers when it says no: a variant, a status and a detail (docs/spec/key-broker.md, section 5)."""

import math
from enum import Enum
from typing import Final

from hermetic.errors import CallerError

ERROR_TYPE_PREFIX: Final = "https://github.com/confidential-containers/kbs/errors/"

RETRY_AFTER_S: Final = 5
"""When to ask again where what opens the keys, or the shared state, does not answer now, in seconds."""

MAX_DETAIL: Final = 2000
"""Longest detail that is sent, in characters."""


class Variant(Enum):
    """The error types of the protocol and the HTTP status of each."""

    ATTESTATION = ("AttestationError", 401)
    TOKEN_NOT_FOUND = ("TokenNotFound", 401)
    TOKEN_VERIFIER = ("TokenVerifierError", 401)
    POLICY_DENY = ("PolicyDeny", 401)
    PLUGIN_INTERNAL = ("PluginInternalError", 401)
    ADMIN_ACCESS = ("AdminAuthAccess", 401)
    INVALID_PATH = ("InvalidRequestPath", 404)
    PLUGIN_NOT_FOUND = ("PluginNotFound", 404)
    INVALID_REQUEST = ("InvalidRequest", 400)
    RESOURCE_EXISTS = ("ResourceExists", 409)
    PAYLOAD_TOO_LARGE = ("PayloadTooLarge", 413)
    TOO_MANY_REQUESTS = ("TooManyRequests", 429)
    INTERNAL = ("InternalError", 500)
    KEY_STORE_UNAVAILABLE = ("KeyStoreUnavailable", 503)
    STATE_UNAVAILABLE = ("StateUnavailable", 503)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[1]

    @property
    def type(self) -> str:
        """The URI of the error's `type` member."""
        return ERROR_TYPE_PREFIX + self.value[0]


class Refusal(CallerError):  # noqa: N818 - it is what the broker says, not what went wrong in it
    """The broker says no to one request; `str` is the detail that is sent."""

    def __init__(self, variant: Variant, detail: str, retry_after_s: float | None = None) -> None:
        """Keep what to answer; `retry_after_s` says when to try again, where that may help."""
        self.variant = variant
        self.retry_after_s = retry_after_s
        super().__init__(detail)

    def headers(self) -> dict[str, str]:
        """The headers of the answer: whole seconds, at least one."""
        return {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}

    def body(self) -> dict[str, str]:
        """The JSON body of the answer."""
        return {"type": self.variant.type, "detail": str(self)[:MAX_DETAIL]}
