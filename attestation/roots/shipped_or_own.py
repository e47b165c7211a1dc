"""Roots of each vendor: those that a release ships, or a demo's own from a folder. Files are read here, once.

A vendor's root decides what is hardware. So outside the profile "demo" only shipped roots are believed, whose
fingerprints stand in the source: with a root of his own an operator, or who can write his folder, would be able to
make "processors" out of nothing. TPMs are another matter: their vendors are many, and configured (`load.py`).
"""

from pathlib import Path
from typing import Final, Literal, TypeAlias

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.claims import Profile
from hermetic.attestation.roots import amd, intel, load, nvidia
from hermetic.attestation.roots.dcap_trust import DcapTrust
from hermetic.attestation.roots.nvgpu_trust import NvGpuTrust
from hermetic.attestation.roots.snp_trust import AmdAuthorities, SnpTrust
from hermetic.errors import ConfigurationError, InvalidRequestError

Source: TypeAlias = Literal["shipped", "none"] | Path
"""Where a vendor's roots come from. With "none" its hardware is not believed."""

AMD_ROLES: Final = ("ark", "ask", "asvk")


def amd_roots(source: Source, profile: Profile, reading: load.Reading = load.DISK) -> SnpTrust:
    """AMD's. A folder holds, of at least one generation, `milan-ark.der`, `milan-ask.der` and `milan-asvk.der`.

    Raises `ConfigurationError`, as the others do.
    """
    if isinstance(source, Path):
        return SnpTrust(_amd_folder(_own(source, "amd", profile), reading))
    return SnpTrust(amd.load()) if source == "shipped" else SnpTrust()


def intel_roots(source: Source, profile: Profile, reading: load.Reading = load.DISK) -> DcapTrust:
    """Intel's. A folder holds certificates of roots."""
    if isinstance(source, Path):
        return DcapTrust(load.certificates([_own(source, "intel", profile)], profile, reading))
    return intel.load() if source == "shipped" else DcapTrust()


def nvidia_roots(source: Source, profile: Profile, reading: load.Reading = load.DISK) -> NvGpuTrust:
    """NVIDIA's. A folder holds roots of devices in `devices/`, and may hold those of manifests in `manifests/`."""
    if isinstance(source, Path):
        folder = _own(source, "nvidia", profile)
        files = reading.under(folder)
        devices, manifests = (load.certificates_in(folder / name, files) for name in ("devices", "manifests"))
        if not devices:
            raise ConfigurationError(f"roots.nvidia: expected certificates of roots in {folder / 'devices'}, got none")
        return NvGpuTrust(load.certificates(devices, profile, reading), load.certificates(manifests, profile, reading))
    return nvidia.load() if source == "shipped" else NvGpuTrust()


def _own(folder: Path, vendor: str, profile: Profile) -> Path:
    if profile != "demo":
        raise ConfigurationError(
            f'roots.{vendor}: expected "shipped" or "none" outside profile = "demo", got the folder {folder}: whoever '
            "holds the keys of its roots could make hardware"
        )
    if not folder.is_dir():
        raise ConfigurationError(f"roots.{vendor}: expected a folder, got {folder}")
    return folder


def _amd_folder(folder: Path, reading: load.Reading) -> tuple[AmdAuthorities, ...]:
    files = reading.under(folder)
    here = [one for one in Generation if folder / f"{one.lower()}-ark.der" in files]
    if not here:
        names = ", ".join(f"{one.lower()}-ark.der" for one in Generation)
        raise ConfigurationError(f"roots.amd: expected one of {names} in {folder}, got none")
    return tuple(
        AmdAuthorities(one, *(_amd_certificate(folder, one, role, reading) for role in AMD_ROLES)) for one in here
    )


def _amd_certificate(folder: Path, generation: Generation, role: str, reading: load.Reading) -> AmdCertificate:
    path = folder / f"{generation.lower()}-{role}.der"
    try:
        return AmdCertificate.parse(reading.data(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except InvalidRequestError as error:
        raise ConfigurationError(f"{path}: expected one of AMD's certificates in DER, got {error}") from error
