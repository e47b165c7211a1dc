"""The KEK in a transit engine: `encrypt` and `decrypt` with facts as associated data, and what its key must be.

The plaintext in an answer is decoded where it lies and overwritten there, before the rest is parsed as JSON: a parser
would make strings of it, which nobody can wipe.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.stores.openbao.renewal import TokenRenewal
from hermetic.attestation.broker.stores.openbao.service import BaoService, parsed
from hermetic.attestation.broker.stores.openbao.uri import BaoUri
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.key_memory import KeyMemory, wipe_bytes_that_nobody_else_holds
from hermetic.errors import KeyStoreError, KeyStoreUnavailableError

DEMANDED: Final = {"type": "aes256-gcm96", "exportable": False, "allow_plaintext_backup": False, "derived": False}
"""What the key must be."""

_CIPHERTEXT: Final = re.compile(rb"vault:v[1-9][0-9]{0,8}:([A-Za-z0-9+/]+={0,2})")
_PLAINTEXT: Final = re.compile(rb'"plaintext"\s*:\s*"([A-Za-z0-9+/]*={0,2})"')
_FILLER: Final = b"A"


def open_openbao_kek(line: str, credentials: Path | None) -> "OpenBaoKek":
    """The KEK of an `openbao:` URI; raises `ConfigurationError` or `KeyStoreError`."""
    uri = BaoUri.parse(line)
    return OpenBaoKek(uri, BaoService(uri, credentials))


class OpenBaoKek:
    """A `Kek` in OpenBao."""

    def __init__(self, uri: BaoUri, service: BaoService) -> None:
        """Read what the key is and judge it; takes `service` over."""
        self._uri = uri
        self._service = service
        try:
            self._judge()
        except BaseException:
            service.close()
            raise
        self._renewal = TokenRenewal(service)

    @property
    def identifier(self) -> str:
        """`openbao:`, mount and key."""
        return f"openbao:{self._uri.mount}/{self._uri.key}"

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        """What `encrypt` answers: `vault:v<N>:<base64>`."""
        plaintext = binascii.b2a_base64(secret, newline=False)
        try:
            parts = (b'{"associated_data":"', base64.b64encode(facts), b'","plaintext":"', plaintext, b'"}')
            with self._service.request("POST", self._path("encrypt"), parts, 2 * len(secret)) as answer:
                ciphertext = _data(parsed(answer)).get("ciphertext")
        finally:
            wipe_bytes_that_nobody_else_holds(plaintext)
        if not isinstance(ciphertext, str) or not _is_ciphertext(wrapped := ciphertext.encode()):
            raise KeyStoreUnavailableError("openbao: expected a ciphertext, got an answer without one")
        return wrapped

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        """The secret, for the caller to wipe; raises `KeyStoreError` when it does not verify."""
        if not _is_ciphertext(wrapped):
            raise KeyStoreError("wrapped key: expected vault:v<N>:<base64>, got something else")
        parts = (b'{"associated_data":"', base64.b64encode(facts), b'","ciphertext":"', wrapped, b'"}')
        # The plaintext is shorter than the ciphertext, which is base64 too.
        with self._service.request("POST", self._path("decrypt"), parts, len(wrapped)) as answer:
            return _plaintext(answer)

    def close(self) -> None:
        """Renew no more, and close the connections."""
        self._renewal.close()
        self._service.close()

    def _judge(self) -> None:
        data = _data(self._service.ask("GET", self._path("keys")))
        failed = [
            f"{name}: expected {wanted!r}, got {data.get(name)!r}"
            for name, wanted in DEMANDED.items()
            if data.get(name) != wanted
        ]
        if failed:
            raise KeyStoreError(f"{self.identifier}: {'; '.join(failed)}")

    def _path(self, act: str) -> str:
        return f"{self._uri.mount}/{act}/{self._uri.key}"


def _is_ciphertext(wrapped: bytes) -> bool:
    """Whether this is a ciphertext as it was given to us.

    The service opens others that mean the same: `v0` for `v1`, base64 whose last bits are not zero.
    """
    found = _CIPHERTEXT.fullmatch(wrapped)
    if found is None:
        return False
    try:
        return base64.b64encode(base64.b64decode(found[1])) == found[1]
    except binascii.Error:
        return False


def _data(answer: dict[str, JsonValue]) -> dict[str, JsonValue]:
    data = answer.get("data")
    if not isinstance(data, dict):
        raise KeyStoreUnavailableError(f"openbao: expected an answer with data, got {sorted(answer)[:20]}")
    return data


def _plaintext(answer: memoryview) -> KeyMemory:
    """The secret in the answer of `decrypt`, which holds it no more afterwards."""
    spans = [found.span(1) for found in _PLAINTEXT.finditer(answer)]
    if len(spans) != 1:
        raise KeyStoreUnavailableError(f"openbao: expected one plaintext in the answer, got {len(spans)}")
    start, end = spans[0]
    with answer[start:end] as encoded:
        try:
            decoded = binascii.a2b_base64(encoded, strict_mode=True)
        except binascii.Error:  # without its text
            raise KeyStoreUnavailableError("openbao: expected base64 in the plaintext, got something else") from None
        encoded[:] = _FILLER * len(encoded)
    memory = KeyMemory(len(decoded))
    with memory.view as view:
        view[: len(decoded)] = decoded
    wipe_bytes_that_nobody_else_holds(decoded)
    try:
        # Now that nothing is secret in it: was that really the member that it must be?
        if _data(parsed(answer)).get("plaintext") != _FILLER.decode() * (end - start) or not decoded:
            raise KeyStoreUnavailableError("openbao: expected the plaintext in data, got it elsewhere, or empty")
    except BaseException:
        memory.wipe()
        raise
    return memory
