"""`hermetic attest`: make evidence on this host, and say what a verifier reads in it."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from hermetic.cli import output

if TYPE_CHECKING:
    from hermetic.attestation.attesters import Attester
    from hermetic.attestation.claims import Claims
    from hermetic.attestation.roots import TrustRoots

NONCE_SIZE = 32  # bytes
CONTEXT = "hermetic-attest/1"
"""Hashed with the nonce, so that this command never signs what answers a broker's or a client's challenge."""


class Places(NamedTuple):
    """Where this host's sources of evidence are."""

    tsm_folder: Path
    tcti: str
    log_pcr: int
    log: Path
    boot_log: Path


Kind = Literal["tpm", "snp", "tdx", "nvidia", "sample"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="attest")(attest)


def attest(
    *,
    nonce: Annotated[str | None, typer.Option(help="32 bytes in hex; random when not given.")] = None,
    kind: Annotated[Kind, typer.Option(help="Kind of evidence.")] = "tpm",
    tsm_folder: Annotated[Path, typer.Option(help="configfs-tsm, for snp and tdx.")] = Path(
        "/sys/kernel/config/tsm/report"
    ),
    tcti: Annotated[str, typer.Option(help="Where the TPM is: device:/dev/tpmrm0, swtpm:path=...")] = (
        "device:/dev/tpmrm0"
    ),
    log_pcr: Annotated[int, typer.Option(help="PCR of the event log (8 to 15).")] = 14,
    log: Annotated[Path, typer.Option(help="The event log of this boot.")] = Path("/run/hermetic/event-log.json"),
    boot_log: Annotated[Path, typer.Option(help="The firmware's event log.")] = Path(
        "/sys/kernel/security/tpm0/binary_bios_measurements"
    ),
    ak_certificate: Annotated[Path | None, typer.Option(help="PEM chain of the attestation key.")] = None,
    ak_ca: Annotated[Path | None, typer.Option(help="PEM of the AK CA that is trusted.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Appraisal policy to hold the claims against.")] = None,
    profile: Annotated[Literal["production", "demo"], typer.Option(help="Trust profile.")] = "production",
    as_json: output.JsonOption = False,
) -> None:
    """Collect evidence for a nonce, verify it, and show the claims; exit 4: not genuine, 5: a policy says no.

    Processors and GPUs are verified up to the vendors' roots that this release ships. Without --ak-ca a TPM's
    attestation key is taken at its word (as one that was provisioned by hand): the verdict then tells whether evidence
    would verify, not that this is a TPM.
    """
    import os
    import secrets
    from datetime import UTC, datetime

    from hermetic.attestation import verifiers
    from hermetic.attestation.evidence import jcs_digest
    from hermetic.attestation.policy import AppraisalPolicy, appraise

    os.environ.setdefault("TSS2_LOG", "all+NONE")  # the TPM library writes expected errors to stderr
    form = None if policy is None else AppraisalPolicy.load(_read(policy))
    challenge = secrets.token_bytes(NONCE_SIZE) if nonce is None else _nonce(nonce)
    report_data = jcs_digest({"context": CONTEXT, "nonce": challenge.hex()})
    with contextlib.ExitStack() as stack:
        attester = _attester(kind, Places(tsm_folder, tcti, log_pcr, log, boot_log), ak_certificate, stack)
        evidence = attester.collect(report_data)
        trust = _trust(kind, attester, ak_ca, profile)
    now = datetime.now(UTC)
    claims = verifiers.verify(kind, evidence, report_data, trust, now)
    document = {
        "kind": kind,
        "nonce": challenge.hex(),
        "report_data": report_data.hex(),
        "vouched_by": _vouched_by(kind, ak_ca),
        "claims": claims.to_json(),
        "evidence": evidence,
    }
    if form is not None:
        appraisal = appraise(claims, form, now)
        document["appraisal"] = {"policy": appraisal.policy, "warnings": list(appraisal.warnings)}
    if kind == "tpm" and ak_ca is None:
        output.warn("the attestation key is taken at its word: give --ak-ca and --ak-certificate to check who vouches")
    output.show(document, as_json=as_json, human=lambda: output.facts("Evidence of this host", _facts(claims)))


def _vouched_by(kind: Kind, ak_ca: Path | None) -> str:
    if kind in ("snp", "tdx", "nvidia"):
        return "shipped roots"
    return "nobody" if ak_ca is None else str(ak_ca)


def _attester(kind: Kind, place: Places, ak_certificate: Path | None, stack: contextlib.ExitStack) -> "Attester":
    if kind == "sample":
        from hermetic.attestation.testing.sample import SampleAttester

        return SampleAttester()
    if kind == "tpm":
        return _tpm(place, ak_certificate, stack)
    from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
    from hermetic.attestation.attesters.nvgpu import NvGpuAttester
    from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
    from hermetic.attestation.attesters.tdx import TdxAttester, TdxSettings

    match kind:
        case "snp":
            return SnpAttester(SnpSettings(ConfigfsTsm(place.tsm_folder)))
        case "tdx":
            return TdxAttester(TdxSettings(ConfigfsTsm(place.tsm_folder)))
        case "nvidia":
            return NvGpuAttester()


def _tpm(place: Places, ak_certificate: Path | None, stack: contextlib.ExitStack) -> "Attester":
    from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings

    settings = TpmSettings(tcti=place.tcti, log_pcr=place.log_pcr, log=place.log, boot_log=place.boot_log)
    attester = stack.enter_context(TpmAttester(settings))
    if ak_certificate is not None:
        attester.accept_certificate(_read(ak_certificate))
    return attester


def _trust(
    kind: Kind, attester: "Attester", ak_ca: Path | None, profile: Literal["production", "demo"]
) -> "TrustRoots":
    if kind in ("snp", "tdx", "nvidia"):
        from hermetic.attestation.roots import TrustRoots, amd, intel, nvidia
        from hermetic.attestation.roots.snp_trust import SnpTrust

        return TrustRoots(profile, snp=SnpTrust(amd.load()), dcap=intel.load(), nvgpu=nvidia.load())
    return _tpm_trust(attester, ak_ca, profile)


def _tpm_trust(attester: "Attester", ak_ca: Path | None, profile: Literal["production", "demo"]) -> "TrustRoots":
    import hashlib

    from hermetic.attestation.attesters.tpm import TpmAttester
    from hermetic.attestation.roots import TpmTrust, TrustRoots
    from hermetic.attestation.roots.load import certificates

    if ak_ca is not None:
        return TrustRoots(profile, TpmTrust(ak_cas=certificates([ak_ca], profile)))
    if isinstance(attester, TpmAttester):
        itself = hashlib.sha256(attester.ak_spki()).digest()
        return TrustRoots(profile, TpmTrust(provisioned_aks=frozenset({itself})))
    return TrustRoots(profile)


def _facts(claims: "Claims") -> dict[str, object]:
    facts: dict[str, object] = {"verdict": "genuine"}
    for kind in claims.kinds:
        members = kind.model_dump(mode="json", exclude={"checks", "pcrs"})
        facts |= {name: _text(value) for name, value in members.items()}
        facts["checks passed"] = len(kind.checks)
    if claims.tpm is not None:
        facts |= {f"PCR {i}": value for i, value in claims.tpm.pcrs.items() if value.strip("0") and value.strip("f")}
    return facts


def _text(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else value


def _nonce(text: str) -> bytes:
    from hermetic.errors import InvalidRequestError

    try:
        nonce = bytes.fromhex(text)
    except ValueError as error:
        raise InvalidRequestError(f"--nonce: expected hex, got {error}") from error
    if len(nonce) != NONCE_SIZE:
        raise InvalidRequestError(f"--nonce: expected {NONCE_SIZE} bytes, got {len(nonce)}")
    return nonce


def _read(path: Path) -> bytes:
    from hermetic.errors import ConfigurationError

    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a readable file, got {error}") from error
