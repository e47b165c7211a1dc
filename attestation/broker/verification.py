"""Is what /attest brought genuine? RCAR's digests for the verification of a whole machine (verifiers/composite.py).

The primary evidence speaks for the machine; devices (GPUs) come beside it, in `additional_evidence`
(docs/spec/composite-evidence.md). Whether genuine evidence is acceptable is release.py's question, asked for each
resource.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Final

from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import composite

_DEVICE_SUBMODS: Final[Mapping[str, str]] = {"nvidia": "gpu"}
"""How a token names devices of each kind."""

_FURTHER_SUBMODS: Final[Mapping[str, str]] = {"tpm": "vtpm"}
"""How a token names what else a primary holds: Azure's vTPM beside the processor."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Genuine evidence: what it says, and for each kind of the claims how a token names it and what it is over."""

    claims: Claims
    submods: tuple[tuple[str, bytes], ...]


def served_kinds(trust: TrustRoots) -> frozenset[str]:
    """The kinds of primary evidence that can be genuine under `trust`: those of vendors that it has roots of."""
    kinds = {"sample"} if trust.profile == "demo" else set()
    if trust.tpm.ak_cas or trust.tpm.provisioned_aks:
        kinds |= {"tpm"}
    if trust.snp.authorities:
        kinds |= {"snp", "az-snp-vtpm"}
    if trust.dcap.roots:
        kinds |= {"tdx", "sgx", "az-tdx-vtpm"}
    return frozenset(kinds)


def verify_attestation(
    attestation: Attestation, tee: str, trust: TrustRoots, client: str | None, time: datetime
) -> Verified:
    """Everything in `attestation`, bound to its nonce, key and runtime data, genuine at `time`.

    Raises `VerificationError` with every failed check, `InvalidRequestError` for what does not have the form.
    """
    devices = attestation.devices()
    primary = attestation.primary_digest()
    device = attestation.device_digest() if devices else b""
    claims = composite.verify(tee, (attestation.primary, primary), (devices, device), trust, time)
    further = claims[0].kinds[1:]
    submods = [("cpu0", primary), *((f"{_FURTHER_SUBMODS.get(one.kind, 'further')}0", primary) for one in further)]
    submods += [(f"{_DEVICE_SUBMODS[kind]}0", device) for kind in sorted(devices)]
    whole = reduce(Claims.joined, claims)
    return Verified(whole.with_hermetic(attestation.hermetic).with_client(client), tuple(submods))
