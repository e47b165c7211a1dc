"""The facts key: it authenticates what stands beside wrapped keys, so that facts are read without asking the KEK.

`facts.key` in the folder holds it, wrapped by the KEK (hermetic-facts-key/1, docs/spec/key-stores.md).
"""

import os
from typing import Final

import rfc8785
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from hermetic.attestation.broker.stores.kek import Kek, KekRing
from hermetic.attestation.broker.strict_json import exactly, parse_object, text
from hermetic.attestation.key_memory import KeyMemory, wipe_bytes_that_nobody_else_holds
from hermetic.errors import InvalidRequestError, KeyStoreError

FILE_NAME: Final = "facts.key"
FORMAT: Final = "hermetic-facts-key/1"
FACTS_KEY_BYTES: Final = 32
MAX_FILE_BYTES: Final = 8192


class FactsKey:
    """The facts key, in key memory."""

    def __init__(self, memory: KeyMemory) -> None:
        """Take `memory` over: it is wiped at the end."""
        self._memory: Final = memory

    def code(self, facts: bytes) -> bytes:
        """HMAC-SHA-256 of `facts`."""
        with self._memory.view as key:
            code = HMAC(key, SHA256())
        code.update(facts)
        return code.finalize()

    def close(self) -> None:
        """Wipe it. Can be called again."""
        self._memory.wipe()

    def wrapped_by(self, kek: Kek) -> bytes:
        """The content of `facts.key`."""
        with self._memory.view as view:
            return _encode(kek, view)


def new_file(kek: Kek) -> bytes:
    """The content of a `facts.key` with a new key."""
    key = os.urandom(FACTS_KEY_BYTES)
    try:
        with memoryview(key) as view:
            return _encode(kek, view)
    finally:
        wipe_bytes_that_nobody_else_holds(key)


def decode(data: bytes, keks: KekRing) -> FactsKey:
    """Read a `facts.key`; raises `KeyStoreError` naming expected and got."""
    first, separator, wrapped = data.partition(b"\n")
    if not separator or len(data) > MAX_FILE_BYTES:
        raise KeyStoreError(f"{FILE_NAME}: expected a line and a wrapped key, got {len(data)} bytes that are not that")
    try:
        members = parse_object(first, FILE_NAME)
        exactly(members, FILE_NAME, ("format", "kek"))
        if members["format"] != FORMAT:
            raise KeyStoreError(f"{FILE_NAME}: expected the format {FORMAT}, got {members['format']!r}")
        kek = keks.by(text(members, "kek", FILE_NAME))
    except InvalidRequestError as error:
        raise KeyStoreError(f"{FILE_NAME}: {error}") from error
    memory = kek.unwrap(wrapped, first + b"\n")
    with memory.view as view:
        length = len(view)
    if length != FACTS_KEY_BYTES:
        memory.wipe()
        raise KeyStoreError(f"{FILE_NAME}: expected a key of {FACTS_KEY_BYTES} bytes, got {length}")
    return FactsKey(memory)


def _encode(kek: Kek, key: memoryview) -> bytes:
    first = rfc8785.dumps({"format": FORMAT, "kek": kek.identifier}) + b"\n"
    return first + kek.wrap(key, first)
