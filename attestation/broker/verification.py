"""Is what /attest brought genuine? Every piece of evidence is verified against what it must be bound to.

The primary evidence speaks for the machine; devices (GPUs) come beside it, in `additional_evidence`
(docs/spec/composite-evidence.md). All failures of all pieces are reported together. Whether genuine evidence is
acceptable is release.py's question, asked for each resource.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Final

from hermetic.attestation import verifiers
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import FailedCheck, VerificationError

DEVICE_SUBMODS: Final[Mapping[str, str]] = {"nvidia": "gpu"}
"""The kinds of devices, and how a token names each. No device speaks for a machine, and no machine for a device: a
TPM's quote that travels as a "device" is bound to nonce and key by whoever may ask that TPM, wherever it is."""

_FURTHER_SUBMODS: Final[Mapping[str, str]] = {"tpm": "vtpm"}
"""How a token names what else a primary holds: Azure's vTPM beside the processor."""

_BINDING: Final = frozenset(
    {"snp.report_data", "tdx.report_data", "sgx.report_data", "sample.report_data", "tpm.quote.nonce"}
)
"""The checks by which each primary kind says that it is over other report data."""


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
    primary, device = attestation.primary_digest(), attestation.device_digest()
    claims: list[Claims] = []
    failures: list[FailedCheck] = []
    with _collected(failures):
        claims.append(verifiers.verify(tee, attestation.primary, primary, trust, time))
    if devices:
        failures += _not_bound(failures)
    for kind, evidence in sorted(devices.items()):
        with _collected(failures):
            _demand_device(kind, trust)
            claims.append(verifiers.verify(kind, evidence, device, trust, time))
    if failures:
        raise VerificationError(failures)
    further = claims[0].kinds[1:]
    submods = [("cpu0", primary), *((f"{_FURTHER_SUBMODS.get(one.kind, 'further')}0", primary) for one in further)]
    submods += [(f"{DEVICE_SUBMODS[kind]}0", device) for kind in sorted(devices)]
    whole = reduce(Claims.joined, claims)
    return Verified(whole.with_hermetic(attestation.hermetic).with_client(client), tuple(submods))


@contextlib.contextmanager
def _collected(failures: list[FailedCheck]) -> Iterator[None]:
    try:
        yield
    except VerificationError as error:
        failures += error.failures


def _demand_device(kind: str, trust: TrustRoots) -> None:
    believed = [name for name in DEVICE_SUBMODS if name != "nvidia" or trust.nvgpu.device_roots]
    if kind not in believed:
        wanted = f"devices out of: {', '.join(believed) or 'none, for this broker has no roots of any'}"
        raise VerificationError([FailedCheck("composite.kinds", wanted, repr(kind))])


def _not_bound(failures: list[FailedCheck]) -> list[FailedCheck]:
    """Say by name that a primary does not vouch for the devices beside it."""
    if not any(check.name in _BINDING for check in failures):
        return []
    wanted = "primary evidence over this very text of additional_evidence, this nonce and this key"
    return [FailedCheck("composite.bound", wanted, "primary evidence over something else")]
