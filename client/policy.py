"""What a caller demands of a server: one TOML file, read once at the edge; unknown keys refused.

    format = "hermetic-caller-policy/1"
    appraisal = "appraisal.toml"          # a form of docs/spec/appraisal-policy.md, beside this file

    [roots]
    ak_authorities = ["ak-ca.pem"]        # brokers' CAs for attestation keys of TPMs
    amd = "shipped"                       # and so for intel and nvidia: the vendor's roots of this release
    collateral_signers = "signers"        # who may have packed what servers staple; without it, anybody

There is no default: a caller that demands nothing has nothing to rely on. `[roots]` believes nobody that is not named.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.claims import Profile
from hermetic.attestation.collateral import read_signers
from hermetic.attestation.log import NoteVerifier
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.roots import TpmTrust, TrustRoots, load
from hermetic.attestation.roots.shipped_or_own import Source, amd_roots, intel_roots, nvidia_roots
from hermetic.errors import ConfigurationError

__all__ = ["FORMAT", "CallerPolicy"]

FORMAT: Final = "hermetic-caller-policy/1"
FILE_LIMIT: Final = 256 * 1024  # bytes


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Roots(_Section):
    """Whose hardware is believed."""

    amd: Source = "none"
    intel: Source = "none"
    nvidia: Source = "none"
    collateral_signers: Path | None = None
    ak_authorities: tuple[Path, ...] = ()
    provisioned_aks: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = ()


class _File(_Section):
    """The whole file. Paths are taken from its folder."""

    format: Literal["hermetic-caller-policy/1"]
    appraisal: Path
    roots: _Roots


@dataclass(frozen=True, slots=True)
class CallerPolicy:
    """What evidence must show, and who vouches for the hardware that it comes from."""

    appraisal: AppraisalPolicy
    trust: TrustRoots
    signers: tuple[NoteVerifier, ...] = ()
    """Who may have packed stapled collateral; nobody: anybody may (stapled.py)."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; raises `ConfigurationError` naming every key at fault."""
        try:
            file = _File.model_validate(tomllib.loads(read_bounded(path, FILE_LIMIT).decode()))
        except ValidationError as error:
            raise ConfigurationError(f"{path}: {_faults(error)}") from None
        except ValueError as error:  # not UTF-8, or not TOML
            raise ConfigurationError(f"{path}: expected TOML, got {error}") from None
        folder = path.resolve().parent
        appraisal = AppraisalPolicy.load(read_bounded(folder / file.appraisal, FILE_LIMIT))
        signers = file.roots.collateral_signers
        listed = (
            () if signers is None else read_signers(read_bounded(folder / signers, FILE_LIMIT).decode(errors="replace"))
        )
        return cls(appraisal, _trust(file.roots, folder, appraisal.profile), listed)


def _trust(roots: _Roots, folder: Path, profile: Profile) -> TrustRoots:
    def source(of: Source) -> Source:
        return folder / of if isinstance(of, Path) else of

    authorities = load.certificates([folder / one for one in roots.ak_authorities], profile)
    return TrustRoots(
        profile,
        tpm=TpmTrust(authorities, frozenset(map(bytes.fromhex, roots.provisioned_aks))),
        dcap=intel_roots(source(roots.intel), profile),
        nvgpu=nvidia_roots(source(roots.nvidia), profile),
        snp=amd_roots(source(roots.amd), profile),
    )


def _faults(error: ValidationError) -> str:
    faults: Sequence[str] = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
    return "; ".join(faults)
