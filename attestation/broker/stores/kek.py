"""What a key-encryption key (KEK) can do wherever it is, the ring of those in use, and the probe that each passes."""

import hmac
import os
from collections.abc import Sequence
from typing import Final, Protocol

from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import KeyStoreError, KeyStoreUnavailableError

PROBE_BYTES: Final = 32
_PROBE_FACTS: Final = b"hermetic-kek-probe/1\n"
_OTHER_FACTS: Final = b"hermetic-kek-probe/2\n"


class Kek(Protocol):
    """Wraps secrets, each bound to facts (associated data). Thread-safe.

    Both calls raise `KeyStoreUnavailableError` when the KEK cannot be asked now, and `KeyStoreError` when it says no.
    """

    @property
    def identifier(self) -> str:
        """How key files name it (docs/spec/key-stores.md, section 3)."""

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        """`secret`, wrapped, as it is stored."""

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        """The secret, for the caller to wipe; refused when it was not wrapped with exactly these facts."""

    def close(self) -> None:
        """Nothing can be wrapped or unwrapped any more."""


class KekRing:
    """The KEK that wraps new keys, and former ones that still open what they wrapped."""

    def __init__(self, current: Kek, former: Sequence[Kek] = ()) -> None:
        """Take the KEKs over: they are closed with the ring."""
        self.current: Final = current
        self._all: Final = {kek.identifier: kek for kek in (*former, current)}

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Every KEK's, the current one's last."""
        return tuple(self._all)

    def by(self, identifier: str) -> Kek:
        """The KEK that a file names; raises `KeyStoreError`."""
        try:
            return self._all[identifier]
        except KeyError:
            known = " or ".join(self._all)
            raise KeyStoreError(f"expected a key wrapped by the KEK {known}, got one by {identifier[:300]!r}") from None

    def close(self) -> None:
        """Close every KEK."""
        for kek in self._all.values():
            kek.close()


def probe(kek: Kek) -> None:
    """Make a round trip: what was wrapped comes back under the same facts, and under no other ones."""
    secret = os.urandom(PROBE_BYTES)
    with memoryview(secret) as view:
        wrapped = kek.wrap(view, _PROBE_FACTS)
    with kek.unwrap(wrapped, _PROBE_FACTS) as memory, memory.view as back:
        if not hmac.compare_digest(back, secret):
            raise KeyStoreError(f"{kek.identifier}: expected what was wrapped to come back, got other bytes")
    try:
        kek.unwrap(wrapped, _OTHER_FACTS).wipe()
    except KeyStoreUnavailableError:
        raise
    except KeyStoreError:
        return
    raise KeyStoreError(f"{kek.identifier}: expected a key that authenticates associated data, got one that ignores it")
