"""The worker's lease: which broker's it takes, for which model and which of its own keys, and until when.

No lease: the broker offers none, and the supervisor emulates it. Where the worker was told of a broker's lease key
before its lock-down, nothing is opened without a lease of that key.
"""

from time import time as wall_clock
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from hermetic.attestation.lease import LeasedModel, LeaseKey, LeaseTerms, Refusal, ec_jwk, key_thumbprint, refused
from hermetic.enclave.attested_key import ALGORITHM
from hermetic.enclave.lease_timer import LeaseTimer, boottime
from hermetic.errors import BorderError

__all__ = ["WorkerLease"]

_MS: Final = 1000.0


class WorkerLease:
    """What one worker holds its model under."""

    def __init__(self, lease_key: str, timer: LeaseTimer) -> None:
        """`lease_key` is the broker's (a JWK), or empty where it offers no leases. `ConfigurationError`."""
        self._broker = LeaseKey.loads(lease_key) if lease_key else None
        self.timer: Final = timer
        self._model: LeasedModel | None = None
        self._expected: tuple[str, float, float] | None = None

    def expect(self, public_jwk: dict[str, str], before: tuple[float, float]) -> None:
        """From now on a lease must name this key, made after the moments `before` (`moments()`)."""
        self._expected = (key_thumbprint(public_jwk), *before)

    def begin(self, model: LeasedModel, lease: str, at_most_ms: int | None) -> None:
        """Take the first lease, before a byte of the model is opened. `LeaseRefusedError`."""
        if self._broker is None:
            return
        self._model = model
        self.take(lease, at_most_ms)

    def new_key(self) -> dict[str, str]:
        """Return the public half of a new key (a JWK), which the next lease must name.

        Nobody has its private half from here on: it opens nothing, it only makes the next lease a new one.
        """
        before = moments()
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        jwk = {**ec_jwk(public), "alg": ALGORITHM}
        self.expect(jwk, before)
        return jwk

    def take(self, lease: str, at_most_ms: int | None) -> float:
        """Take a lease for the key that is expected; returns the seconds until it is over. `LeaseRefusedError`.

        It replaces the one before; `at_most_ms` may shorten it. A refused one leaves the one before in force.
        """
        if self._broker is None or self._model is None:
            raise BorderError("lease: wanted a worker that holds a model under a lease, got one that does not")
        terms = self._broker.verify(lease)
        if self._expected is None:
            raise refused(Refusal.KEY, "wanted one for a new key, got one for a key that has its lease")
        thumbprint, made_wall, made_boot = self._expected
        terms.check(self._model, thumbprint).check_times(made_wall, wall_clock())
        ends = made_boot + _length_s(terms, at_most_ms)
        if ends <= boottime():
            raise refused(Refusal.OVER, f"wanted one with time left, got one that ended {boottime() - ends:.3f} s ago")
        self._expected = None
        self.timer.arm(ends)
        return self.timer.left_s


def moments() -> tuple[float, float]:
    """Return this moment by the wall clock, which only sanity is checked by, and on CLOCK_BOOTTIME, which counts."""
    return wall_clock(), boottime()


def _length_s(terms: LeaseTerms, at_most_ms: int | None) -> float:
    return (terms.whole_ms if at_most_ms is None else min(terms.whole_ms, at_most_ms)) / _MS
