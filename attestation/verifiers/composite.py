"""Is a whole machine genuine: its primary evidence, and the devices beside it (docs/spec/composite-evidence.md).

For brokers and callers alike. Each piece is verified against what it must be bound to, and all failures of all pieces
are reported together. What the digests are over is the protocol's, and not known here.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from hermetic.attestation import verifiers
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import FailedCheck, VerificationError

DEVICES: Final = ("nvidia",)
"""The kinds of devices. No device speaks for a machine, and no machine for a device: a TPM's quote that travels as a
"device" is bound to the challenge by whoever may ask that TPM, wherever it is."""

_BINDING: Final = frozenset(
    {"snp.report_data", "tdx.report_data", "sgx.report_data", "sample.report_data", "tpm.quote.nonce"}
)
"""The checks by which each primary kind says that it is over other report data."""


def verify(
    tee: str,
    primary: tuple[JsonValue, bytes],
    devices: tuple[Mapping[str, JsonValue], bytes],
    trust: TrustRoots,
    time: datetime,
) -> tuple[Claims, ...]:
    """The claims of the primary evidence of kind `tee`, then of each kind of `devices`, in the order of their names.

    Both come with the digest (48 bytes) that they must be over. Raises `VerificationError` with every failed check.
    """
    evidence, digest = primary
    beside, device_digest = devices
    claims: list[Claims] = []
    failures: list[FailedCheck] = []
    with _collected(failures):
        if tee in DEVICES:
            raise VerificationError([FailedCheck("composite.kinds", "a machine's kind as the primary", repr(tee))])
        claims.append(verifiers.verify(tee, evidence, digest, trust, time))
    if beside:
        failures += _not_bound(failures)
    for kind, one in sorted(beside.items()):
        with _collected(failures):
            _demand_device(kind, trust)
            claims.append(verifiers.verify(kind, one, device_digest, trust, time))
    if failures:
        raise VerificationError(failures)
    return tuple(claims)


@contextlib.contextmanager
def _collected(failures: list[FailedCheck]) -> Iterator[None]:
    try:
        yield
    except VerificationError as error:
        failures += error.failures


def _demand_device(kind: str, trust: TrustRoots) -> None:
    believed = [name for name in DEVICES if name != "nvidia" or trust.nvgpu.device_roots]
    if kind not in believed:
        wanted = f"devices out of: {', '.join(believed) or 'none, for there are no roots of any'}"
        raise VerificationError([FailedCheck("composite.kinds", wanted, repr(kind))])


def _not_bound(failures: list[FailedCheck]) -> list[FailedCheck]:
    """Say by name that a primary does not vouch for the devices beside it."""
    if not any(check.name in _BINDING for check in failures):
        return []
    wanted = "primary evidence over this very text of additional_evidence, this challenge and this key"
    return [FailedCheck("composite.bound", wanted, "primary evidence over something else")]
