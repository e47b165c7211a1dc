"""Whom stored evidence is judged by: the vendors whose roots a release ships, or roots that somebody names instead.

Named roots replace the shipped ones, all of them: evidence is then as good as whoever holds those roots' keys.
"""

from collections.abc import Sequence

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.roots import (
    AmdAuthorities,
    DcapTrust,
    NvGpuTrust,
    SnpTrust,
    TpmTrust,
    TrustRoots,
    amd,
    intel,
    nvidia,
)
from hermetic.attestation.stored.beside import Beside
from hermetic.errors import ConfigurationError


def shipped() -> TrustRoots:
    """Trust in AMD, Intel and NVIDIA. Nobody's attestation keys of TPMs: no vendor vouches for those."""
    return TrustRoots(dcap=intel.load(), nvgpu=nvidia.load(), snp=SnpTrust(authorities=amd.load()))


def given(files: Sequence[bytes]) -> TrustRoots:
    """Trust in the certificates in `files` (DER, PEM), and in nobody else; raises `ConfigurationError`.

    AMD's ARK comes with the ASK or ASVK that it vouches for. Any other certificate counts as a root of whatever kind:
    quotes and their collateral, NVIDIA's devices and manifests, enrolled attestation keys of TPMs.
    """
    found = Beside.of(root=files)
    if found.unreadable or not (found.certificates or found.amd):
        got = "; ".join(f"{name}: {text}" for name, text in found.unreadable) or "none"
        raise ConfigurationError(f"--root: expected certificates in DER or PEM, got {got}")
    roots = tuple(found.certificates)
    return TrustRoots(
        tpm=TpmTrust(ak_cas=roots),
        dcap=DcapTrust(roots=roots),
        nvgpu=NvGpuTrust(device_roots=roots, rim_roots=roots),
        snp=SnpTrust(authorities=_authorities(found.amd)),
    )


def _authorities(certificates: Sequence[AmdCertificate]) -> tuple[AmdAuthorities, ...]:
    named = {one.common_name: one for one in certificates}
    found = []
    for generation in Generation:
        ark = named.get(f"ARK-{generation}")
        ask, asvk = named.get(f"SEV-{generation}"), named.get(f"SEV-VLEK-{generation}")
        one = ask or asvk
        if ark is not None and one is not None:
            # AMD's files hold one of the two; the other place then has an issuer that no certificate of its kind names.
            found.append(AmdAuthorities(generation, ark, ask or one, asvk or one))
    if certificates and not found:
        names = ", ".join(sorted(named))
        raise ConfigurationError(f"--root: expected an ARK with its ASK or ASVK, got {names}")
    return tuple(found)
