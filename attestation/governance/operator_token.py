"""An operator's key in a PKCS #11 token (Ed25519, CKM_EDDSA): it signs there and never leaves (docs/adr/0215).

`pkcs11:token=T;object=O[;id=%01][;serial=S]?module-path=/abs.so[&pin-source=file:/abs]`, as for a KEK (RFC 7512);
without `pin-source` the person is asked. The key is judged as a KEK is: one that may leave the token, or once could, is
refused.
"""

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hermetic.attestation.broker.stores.pkcs11 import cryptoki
from hermetic.attestation.broker.stores.pkcs11.cryptoki import ULONG, Mechanism
from hermetic.attestation.broker.stores.pkcs11.session import SIGNING_KEY, Token
from hermetic.attestation.broker.stores.pkcs11.uri import SCHEME, TokenUri
from hermetic.attestation.governance.change import Change, Signature
from hermetic.errors import ConfigurationError

__all__ = ["SCHEME", "OperatorToken"]

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_OCTET_STRING_OF_32: Final = b"\x04\x20"


class OperatorToken:
    """An operator's key that is in a token; use it in a `with`."""

    def __init__(self, line: str, pin: Callable[[], bytearray] | None = None) -> None:
        """Log in, and find the key; raises `ConfigurationError` or `KeyStoreUnavailableError`."""
        uri = TokenUri.parse(line, "private")
        self._token = Token(uri, None, SIGNING_KEY, pin)
        self._session = self._token.open()
        point = self._token.public_point(self._session) or b""
        # PKCS #11 2.40 wraps a point in an OCTET STRING; some modules give the bytes alone.
        if len(point) == len(_OCTET_STRING_OF_32) + KEY_BYTES:
            point = point.removeprefix(_OCTET_STRING_OF_32)
        if len(point) != KEY_BYTES:
            self.close()
            raise ConfigurationError(
                f"token {uri.token}: expected the public key of {uri.object!r} beside it, got none"
            )
        self._public = Ed25519PublicKey.from_public_bytes(point)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        self._token.close(self._session.handle)

    @property
    def public(self) -> str:
        """The public key: 64 hex digits."""
        return self._public.public_bytes_raw().hex()

    def sign(self, change: Change, name: str) -> Change:
        """The change, with the signature of the operator called `name`; raises `ConfigurationError`."""
        message = bytearray(change.statement.signed_bytes)
        out, length = bytearray(SIGNATURE_BYTES), ULONG(SIGNATURE_BYTES)
        mechanism, module = Mechanism(cryptoki.EDDSA, None, 0), self._token.module
        module.call("C_SignInit", self._session.handle, ctypes.byref(mechanism), self._session.key)
        source, target = cryptoki.address(message), cryptoki.address(out)
        module.call("C_Sign", self._session.handle, source, ULONG(len(message)), target, ctypes.byref(length))
        try:
            self._public.verify(bytes(out), bytes(message))
        except InvalidSignature:
            raise ConfigurationError(
                "token: expected a signature (Ed25519, pure) of its key, got another one"
            ) from None
        return change.with_signatures([Signature(operator=name, signature=out.hex())])
