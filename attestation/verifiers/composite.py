"""Is a whole machine genuine: its primary evidence, and the devices beside it (docs/spec/composite-evidence.md).

For brokers and callers alike. Each piece is verified against what it must be bound to, and all failures of all pieces
are reported together. What the digests are over is the protocol's, and not known here.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from hermetic.attestation import verifiers
from hermetic.attestation.checks import FAIL, Check, Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import VerificationError

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
    checks = Checks()
    claims: list[Claims] = []
    evidence, digest = primary
    beside, device_digest = devices
    checks.demand("composite.kinds", tee not in DEVICES, "a machine's kind as the primary", tee)
    if not checks.failed:
        with _collected(checks):
            claims.append(verifiers.verify(tee, evidence, digest, trust, time))
    if beside:
        is_bound = not any(check.name in _BINDING for check in checks.failed)
        checks.require("composite.bound", is_bound, _VOUCHING, "primary evidence over something else")
    believed = [name for name in DEVICES if name != "nvidia" or trust.nvgpu.device_roots]
    wanted = f"devices out of: {', '.join(believed) or 'none, for there are no roots of any'}"
    for kind, one in sorted(beside.items()):
        checks.demand("composite.kinds", kind in believed, wanted, kind)
        if kind in believed:
            with _collected(checks):
                claims.append(verifiers.verify(kind, one, device_digest, trust, time))
    checks.raise_failures(VerificationError)
    return tuple(claims)


_VOUCHING: Final = "primary evidence over this very text of additional_evidence, this challenge and this key"


@contextlib.contextmanager
def _collected(checks: Checks) -> Iterator[None]:
    """Inside, failures of a piece are recorded, and the next piece is looked at."""
    try:
        yield
    except VerificationError as error:
        for one in error.failures:
            checks.record(Check(one.name, FAIL, one.wanted, one.got))
