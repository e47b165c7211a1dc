"""A session with the token that a URI names, logged in, and the key in it: found, and judged by its attributes.

The PIN is read when it is needed, and wiped. A token counts wrong ones and locks itself: a PIN that was refused once is
never tried again by this process, and a token that has one try left is not asked.
"""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.stores.pkcs11 import cryptoki
from hermetic.attestation.broker.stores.pkcs11.cryptoki import ULONG, Attribute, Cryptoki, CryptokiError, TokenInfo
from hermetic.attestation.broker.stores.pkcs11.uri import TokenUri
from hermetic.attestation.broker.stores.secret_source import read_secret
from hermetic.errors import ConfigurationError, KeyStoreUnavailableError

MAX_SLOTS: Final = 256
KEK_BYTES: Final = 32
MAX_ID_BYTES: Final = 128
MAX_POINT_BYTES: Final = 256

_TRUE: Final = b"\1"
_FALSE: Final = b"\0"
_CLASS: Final = 0x0
_LABEL: Final = 0x3
_ID: Final = 0x102
_EC_POINT: Final = 0x181
_PIN_FINAL_TRY: Final = 0x20000
_PIN_LOCKED: Final = 0x40000


def _number(value: int) -> bytes:
    return bytes(ULONG(value))


@dataclass(frozen=True, slots=True)
class KeyKind:
    """A kind of key: in words, its CKA_CLASS, and what its attributes must be (name, number, value)."""

    words: str
    object_class: int
    demanded: tuple[tuple[str, int, bytes], ...]


_STAYS: Final = (
    ("CKA_TOKEN", 0x1, _TRUE),
    ("CKA_PRIVATE", 0x2, _TRUE),
    ("CKA_SENSITIVE", 0x103, _TRUE),
    ("CKA_ALWAYS_SENSITIVE", 0x165, _TRUE),
    ("CKA_EXTRACTABLE", 0x162, _FALSE),
    ("CKA_NEVER_EXTRACTABLE", 0x164, _TRUE),
)
"""A key that cannot leave the token, and never could."""

KEK: Final = KeyKind("secret key", 4, (
    ("CKA_KEY_TYPE", 0x100, _number(0x1F)),  # CKK_AES
    ("CKA_VALUE_LEN", 0x161, _number(KEK_BYTES)),
    *_STAYS,
    ("CKA_ENCRYPT", 0x104, _TRUE),
    ("CKA_DECRYPT", 0x105, _TRUE),
))  # fmt: skip

SIGNING_KEY: Final = KeyKind("private key", 3, (
    ("CKA_KEY_TYPE", 0x100, _number(0x40)),  # CKK_EC_EDWARDS
    *_STAYS,
    ("CKA_SIGN", 0x108, _TRUE),
))  # fmt: skip

PUBLIC_KEY: Final = KeyKind("public key", 2, (("CKA_KEY_TYPE", 0x100, _number(0x40)),))


@dataclass(frozen=True, slots=True)
class Session:
    """An open session and the key's handle in it."""

    handle: ULONG
    key: ULONG
    id: bytes


class Token:
    """Opens sessions with one token. Thread-safe."""

    def __init__(
        self, uri: TokenUri, credentials: Path | None, kind: KeyKind = KEK, pin: Callable[[], bytearray] | None = None
    ) -> None:
        """Load the module; raises `ConfigurationError`. `pin` asks for it where the URI names no source."""
        self.module: Final = Cryptoki(uri.module)
        self._kind = kind
        self._ask = pin
        self._uri = uri
        self._credentials = credentials
        self._login = threading.Lock()
        self._pin_refused = ""

    def open(self) -> Session:
        """Find the token, log in, find the key and judge it; raises `KeyStoreUnavailableError`."""
        slot, flags = self._slot()
        handle = ULONG()
        self.module.call("C_OpenSession", ULONG(slot), ULONG(cryptoki.SERIAL_SESSION), None, None, ctypes.byref(handle))
        try:
            self._log_in(handle, flags)
            key = self._key(handle, self._kind)
            return Session(handle, key, self._judged(handle, key))
        except BaseException:
            self.close(handle)
            raise

    def close(self, handle: ULONG) -> None:
        """End a session, also one that the token has forgotten."""
        try:
            self.module.call("C_CloseSession", handle)
        except CryptokiError:
            return

    def public_point(self, session: Session) -> bytes | None:
        """CKA_EC_POINT of the public half beside a private key; None where the token does not show one."""
        try:
            key = self._key(session.handle, PUBLIC_KEY)
        except KeyStoreUnavailableError:
            return None
        return self._attribute(session.handle, key, _EC_POINT, MAX_POINT_BYTES)

    def _slot(self) -> tuple[int, int]:
        """The slot that holds the token now, and the token's flags."""
        slots, count = (ULONG * MAX_SLOTS)(), ULONG(MAX_SLOTS)
        self.module.call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
        found = []
        for slot in slots[: count.value]:
            info = TokenInfo()
            try:
                self.module.call("C_GetTokenInfo", ULONG(slot), ctypes.byref(info))
            except CryptokiError:
                continue  # another token that is broken, or has just been pulled, is not ours to judge
            if self._is_ours(info):
                found.append((slot, int(info.flags)))
        if len(found) != 1:
            raise KeyStoreUnavailableError(
                f"token {self._uri.token}: expected one in {count.value} slots, got {len(found)}"
            )
        return found[0]

    def _is_ours(self, info: TokenInfo) -> bool:
        serial = self._uri.serial
        return _padded(info.label) == self._uri.token and serial in (None, _padded(info.serial))

    def _log_in(self, handle: ULONG, flags: int) -> None:
        with self._login:
            if self._pin_refused:
                raise KeyStoreUnavailableError(f"token {self._uri.token}: {self._pin_refused}; it is not tried again")
            if flags & (_PIN_FINAL_TRY | _PIN_LOCKED):
                state = "locked" if flags & _PIN_LOCKED else "with its last try left"
                raise KeyStoreUnavailableError(f"token {self._uri.token}: expected a usable PIN, got one {state}")
            try:
                pin = self._pin()
            except ConfigurationError as error:
                raise KeyStoreUnavailableError(f"token {self._uri.token}: {error}") from error
            try:
                arguments = (handle, ULONG(cryptoki.USER), cryptoki.address(pin), ULONG(len(pin)))
                self.module.call("C_Login", *arguments, allowed=(cryptoki.USER_ALREADY_LOGGED_IN,))
            except CryptokiError as error:
                if error.code in (cryptoki.PIN_INCORRECT, cryptoki.PIN_LOCKED):
                    self._pin_refused = f"PIN refused ({cryptoki.NAMES[error.code]})"
                raise
            finally:
                pin[:] = bytes(len(pin))

    def _pin(self) -> bytearray:
        if self._uri.pin_source or self._ask is None:
            return read_secret(self._uri.pin_source, self._credentials, "pin-source")
        return self._ask()

    def _key(self, handle: ULONG, kind: KeyKind) -> ULONG:
        wanted = {_CLASS: _number(kind.object_class), _LABEL: self._uri.object.encode()}
        if self._uri.id is not None:
            wanted[_ID] = self._uri.id
        template, _kept = _template(wanted)
        self.module.call("C_FindObjectsInit", handle, template, ULONG(len(wanted)))
        found, count = (ULONG * 2)(), ULONG()
        try:
            self.module.call("C_FindObjects", handle, found, ULONG(len(found)), ctypes.byref(count))
        finally:
            self.module.call("C_FindObjectsFinal", handle)
        if count.value != 1:
            many = "none" if count.value == 0 else "several"
            raise KeyStoreUnavailableError(
                f"token {self._uri.token}: expected one {kind.words} with the label {self._uri.object!r}, got {many}"
            )
        return ULONG(found[0])

    def _judged(self, handle: ULONG, key: ULONG) -> bytes:
        """The key's CKA_ID, once its attributes are what a KEK's must be; all that are not are named."""
        failed = []
        for name, number, wanted in self._kind.demanded:
            value = self._attribute(handle, key, number, len(wanted))
            if value != wanted:
                failed.append(f"{name}: expected {_shown(wanted)}, got {_shown(value)}")
        if failed:
            raise KeyStoreUnavailableError(f"key {self._uri.object!r} in token {self._uri.token}: {'; '.join(failed)}")
        return self._attribute(handle, key, _ID, MAX_ID_BYTES) or b""

    def _attribute(self, handle: ULONG, key: ULONG, number: int, size: int) -> bytes | None:
        """An attribute's value, None where the key has none."""
        buffer = ctypes.create_string_buffer(size)
        attribute = Attribute(number, ctypes.addressof(buffer), size)
        try:
            self.module.call("C_GetAttributeValue", handle, key, ctypes.byref(attribute), ULONG(1))
        except CryptokiError:
            return None
        return None if attribute.length == cryptoki.UNAVAILABLE_INFORMATION else buffer.raw[: attribute.length]


def _padded(text: bytes) -> str:
    return text.decode("utf-8", "replace").rstrip(" ")


def _shown(value: bytes | None) -> str:
    if value is None:
        return "none"
    return {_TRUE: "true", _FALSE: "false"}.get(value, str(int.from_bytes(value, "little")))


def _template(values: dict[int, bytes]) -> tuple[ctypes.Array[Attribute], list[object]]:
    """An array of attributes, and what must be kept while it is used."""
    kept = [ctypes.create_string_buffer(value, len(value)) for value in values.values()]
    pairs = zip(values, kept, strict=True)
    return (Attribute * len(values))(*(Attribute(n, ctypes.addressof(b), len(b)) for n, b in pairs)), [*kept]
