"""The KEK in a token: AES-256-GCM (CKM_AES_GCM) by the token, facts as associated data, sessions used again.

A call that fails because the session, the login or the device is gone is made once more in a new session. GCM has no
error of its own for a forged ciphertext in every module (SoftHSM says CKR_GENERAL_ERROR): whether the token is at fault
or the ciphertext, a ciphertext that was just made tells.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from hermetic.attestation.broker.key_store import MAX_SECRET_BYTES
from hermetic.attestation.broker.stores.local_kek import NONCE_BYTES, TAG_BYTES, not_authentic, split
from hermetic.attestation.broker.stores.pkcs11 import cryptoki
from hermetic.attestation.broker.stores.pkcs11.calls import BoundedCalls
from hermetic.attestation.broker.stores.pkcs11.cryptoki import ULONG, CryptokiError, GcmParams, Mechanism
from hermetic.attestation.broker.stores.pkcs11.session import Session, Token
from hermetic.attestation.broker.stores.pkcs11.uri import TokenUri
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import KeyStoreError

_T = TypeVar("_T")

SESSIONS: Final = 4
"""Most calls to a token at once."""

_FORGED: Final = (cryptoki.ENCRYPTED_DATA_INVALID, cryptoki.ENCRYPTED_DATA_LEN_RANGE)
_FORGED_OR_BROKEN: Final = (cryptoki.GENERAL_ERROR, cryptoki.FUNCTION_FAILED)


def open_pkcs11_kek(line: str, credentials: Path | None) -> "Pkcs11Kek":
    """The KEK of a `pkcs11:` URI; raises `ConfigurationError` or `KeyStoreError`."""
    return Pkcs11Kek(TokenUri.parse(line), credentials, BoundedCalls(SESSIONS))


class Pkcs11Kek:
    """A `Kek` in a PKCS #11 token."""

    def __init__(self, uri: TokenUri, credentials: Path | None, calls: BoundedCalls) -> None:
        """Open a first session, which finds and judges the key."""
        self._token = calls.run(lambda: Token(uri, credentials), lambda _: None)
        self._calls = calls
        self._mutex = threading.Lock()
        self._closed = False
        first = calls.run(self._token.open, self._drop)
        self._idle = [first]
        self._identifier: Final = f"pkcs11:{uri.object}:{first.id.hex()}"

    @property
    def identifier(self) -> str:
        """`pkcs11:`, the key's label and its CKA_ID in hex."""
        return self._identifier

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        """Nonce, ciphertext, tag."""
        # A copy that the call owns: should the token hang, the caller's memory is wiped and gone before it wakes up.
        copied = KeyMemory(len(secret))
        with copied.view as view:
            view[:] = secret
        nonce = os.urandom(NONCE_BYTES)

        def work() -> bytes:
            with copied:
                return self._in_session(lambda session: self._encrypt(session, nonce, copied, facts))

        return nonce + self._calls.run(work, lambda _: None)

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        """The secret, for the caller to wipe; raises `KeyStoreError` when it does not verify."""
        nonce, ciphertext = split(wrapped)
        if len(ciphertext) > MAX_SECRET_BYTES + TAG_BYTES:
            raise not_authentic()
        work = lambda: self._in_session(lambda session: self._decrypt(session, nonce, ciphertext, facts))  # noqa: E731
        return self._calls.run(work, KeyMemory.wipe)

    def close(self) -> None:
        """Close the sessions; the token logs out with the last."""
        with self._mutex:
            self._closed, idle, self._idle = True, self._idle, []
        for session in idle:
            self._drop(session)

    def _in_session(self, use: Callable[[Session], _T]) -> _T:
        """`use` with an idle session, else a new one; where the idle one no longer works, once more with a new one."""
        session = self._take()
        if session is not None:
            try:
                return self._used(session, use)
            except CryptokiError:
                self._drop_idle()
        return self._used(self._token.open(), use)

    def _used(self, session: Session, use: Callable[[Session], _T]) -> _T:
        try:
            result = use(session)
        except BaseException:
            self._drop(session)
            raise
        with self._mutex:
            if not self._closed:
                self._idle.append(session)
                return result
        self._drop(session)
        return result

    def _take(self) -> Session | None:
        with self._mutex:
            if self._closed:
                raise KeyStoreError(f"{self._identifier}: expected an open key store, got a closed one")
            return self._idle.pop() if self._idle else None

    def _drop_idle(self) -> None:
        """A session that failed is seldom alone: all that were idle with it are opened anew."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for session in idle:
            self._drop(session)

    def _drop(self, session: Session) -> None:
        self._token.close(session.handle)

    def _encrypt(self, session: Session, nonce: bytes, secret: KeyMemory, facts: bytes) -> bytes:
        with secret.view as view:
            out = bytearray(len(view) + TAG_BYTES)
            length = self._one_shot("Encrypt", session, _Gcm(nonce, facts), view, out)
        if length != len(out):
            raise KeyStoreError(f"{self._identifier}: expected {len(out)} bytes of ciphertext, got {length}")
        return bytes(out)

    def _decrypt(self, session: Session, nonce: bytes, ciphertext: bytes, facts: bytes) -> KeyMemory:
        size = len(ciphertext) - TAG_BYTES
        # Modules want room for the whole ciphertext, and use less.
        with KeyMemory(len(ciphertext)) as room, room.view as plain:
            try:
                length = self._one_shot("Decrypt", session, _Gcm(nonce, facts), bytearray(ciphertext), plain)
            except CryptokiError as error:
                if error.code in _FORGED or (error.code in _FORGED_OR_BROKEN and self._works(session)):
                    raise not_authentic() from error
                raise
            if length != size:
                raise KeyStoreError(f"{self._identifier}: expected a secret of {size} bytes, got {length}")
            memory = KeyMemory(size)
            with memory.view as view:
                view[:] = plain[:size]
            return memory

    def _works(self, session: Session) -> bool:
        """Whether the token opens what it has just made."""
        nonce, plain = _Gcm(os.urandom(NONCE_BYTES), b""), bytearray(1)
        out, back = bytearray(1 + TAG_BYTES), bytearray(1 + TAG_BYTES)
        try:
            self._one_shot("Encrypt", session, nonce, plain, out)
            return self._one_shot("Decrypt", session, nonce, out, back) == 1
        except CryptokiError:
            return False

    def _one_shot(
        self, name: str, session: Session, gcm: "_Gcm", data: memoryview | bytearray, out: memoryview | bytearray
    ) -> int:
        """C_<name>Init and C_<name>; returns the length of what is written to `out`."""
        module, length = self._token.module, ULONG(len(out))
        module.call(f"C_{name}Init", session.handle, ctypes.byref(gcm.mechanism), session.key)
        source, target = cryptoki.address(data), cryptoki.address(out)
        module.call(f"C_{name}", session.handle, source, ULONG(len(data)), target, ctypes.byref(length))
        return int(length.value)


class _Gcm:
    """CKM_AES_GCM with its parameters, and what they point to."""

    def __init__(self, nonce: bytes, facts: bytes) -> None:
        self._nonce = ctypes.create_string_buffer(nonce, len(nonce))
        self._facts = ctypes.create_string_buffer(facts, max(len(facts), 1))
        self._params = GcmParams(
            ctypes.addressof(self._nonce),
            len(nonce),
            8 * len(nonce),
            ctypes.addressof(self._facts) if facts else None,
            len(facts),
            8 * TAG_BYTES,
        )
        self.mechanism = Mechanism(cryptoki.AES_GCM, ctypes.addressof(self._params), ctypes.sizeof(self._params))
