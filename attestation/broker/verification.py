"""Is what /attest brought genuine? Every piece of evidence is verified against what it must be bound to.

Whether it is acceptable is release.py's question, asked for each resource.
"""

from datetime import datetime
from typing import Final

from hermetic.attestation import verifiers
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import InvalidRequestError

CPU: Final = "cpu0"

_DEVICE_SUBMODS: Final = {"nvidia": "gpu", "sampledevice": "gpu", "hygondcu": "dcu"}
"""How a token names devices of a kind; every other kind is a `device`."""


def verify_attestation(
    attestation: Attestation, tee: str, trust: TrustRoots, client: str | None, time: datetime
) -> Claims:
    """The claims of everything in `attestation`, bound to its nonce, key and runtime data, genuine at `time`.

    Raises `VerificationError` with every failed check, `InvalidRequestError` for runtime data that does not fit.
    """
    claims = verifiers.verify(tee, attestation.primary, attestation.primary_digest(), trust, time)
    for kind, evidence in sorted(attestation.devices().items()):
        if kind == tee:
            raise InvalidRequestError(f"additional_evidence: expected kinds beside the primary {tee}, got it again")
        claims = claims.joined(verifiers.verify(kind, evidence, attestation.device_digest(), trust, time))
    return claims.with_hermetic(attestation.hermetic).with_client(client)


def submod_names(attestation: Attestation) -> tuple[str, ...]:
    """The name of each kind's appraisal in a token, in the order of the claims."""
    devices = [_DEVICE_SUBMODS.get(kind, "device") for kind in sorted(attestation.devices())]
    return (CPU, *(f"{name}{devices[:index].count(name)}" for index, name in enumerate(devices)))
