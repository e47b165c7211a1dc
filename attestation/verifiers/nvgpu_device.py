"""Whether one NVIDIA device's report is genuine: its structure, nonce, chain, signature, firmware identity, revocation.

The steps are those of docs/spec/nvgpu-evidence.md, "One device". Its measurements are nvgpu_rim.py's, the devices
beside it nvgpu_set.py's.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from cryptography import x509

from hermetic.attestation.abi import dice
from hermetic.attestation.abi.nvgpu import (
    ALL_MEASUREMENTS,
    ENABLED,
    GET_MEASUREMENTS,
    MEASUREMENTS,
    SIGNATURE_REQUESTED,
    SPDM_VERSION,
    Feature,
    Opaque,
    Report,
)
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import NvidiaDevice
from hermetic.attestation.roots import NvGpuTrust
from hermetic.attestation.verifiers import certificates, p384
from hermetic.attestation.verifiers.nvgpu_evidence import Device
from hermetic.attestation.verifiers.nvgpu_rim import Collateral, Firmware, check_revocation
from hermetic.errors import InvalidRequestError

PATH_LENGTH: Final = 5
"""Certificates from the signing key to the root: key, chip, provisioner, family, root. Exactly so many, else a chip
whose own key is out could issue for "another chip" below itself."""

Mode = Literal["single", "multiple", "protected-pcie"]
MODES: Final[Mapping[int, Mode]] = {
    Feature.SINGLE: "single",
    Feature.MULTIPLE: "multiple",
    Feature.PROTECTED_PCIE: "protected-pcie",
}

_CHIPS: Final = {
    "HOPPER": re.compile(r"GH1\d\d"),
    "BLACKWELL": re.compile(r"GB[12]\d\d"),
    "LS10": re.compile(r"LS_?10"),
}
_CHIP: Final = re.compile(r"([A-Z]{2}_?[0-9]{2,3}) [\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class VerifiedDevice:
    """A device whose checks were made; `claims` holds if none of them failed."""

    report: Report
    claims: NvidiaDevice


def check_device(
    checks: Checks,
    at: str,
    device: Device,
    nonce: bytes | None,
    trust: NvGpuTrust,
    collateral: Collateral,
    time: datetime,
) -> VerifiedDevice | None:
    """Check one device; `at` begins the names of the checks. None where too little is there for claims.

    `nonce` is None where nothing says which one is wanted.
    """
    # (2) The report has the right form, and is one for us.
    report = _check_report(checks, at, device.report, nonce)
    # (3) NVIDIA vouches for the key.
    leaf = device.chain[0]
    path = _check_chain(checks, at, device, trust, time)
    chip = _check_chip(checks, at, device)
    if report is None:
        return None
    # (4) The key signed exactly this request and response.
    p384.check_signature(checks, f"{at}.report", leaf.public_key(), report.signature, report.signed)
    # (5) The firmware that was measured is the one that holds the key.
    _check_firmware_identity(checks, at, leaf, report)
    mode = _check_mode(checks, at, report)
    if path is None:
        return None
    # (6) The chip has not been withdrawn. Its signing key is made on the chip itself, so no one answers for that.
    status = check_revocation(checks, f"{at}.revocation", path, collateral, trust, time, first=1)
    # (7) The firmware is one that NVIDIA has published.
    driver, vbios = Firmware(at, report, chip, collateral, trust, time).check(checks)
    return VerifiedDevice(
        report,
        NvidiaDevice(
            arch=device.arch,
            device=hashlib.sha256(certificates.spki(path[1])).hexdigest(),
            ueid=str(leaf.serial_number),
            driver_version=report.driver_version,
            vbios_version=report.vbios_version,
            mode=mode,
            driver_rim=driver,
            vbios_rim=vbios,
            revocation=status or "not evaluated",
        ),
    )


def _check_report(checks: Checks, at: str, data: bytes, nonce: bytes | None) -> Report | None:
    try:
        report = Report.parse(data)
        # Read late; what is malformed fails here.
        _ = report.driver_version, report.vbios_version, report.pdis(Opaque.PDI), report.pdis(Opaque.SWITCH_GPU_PDIS)
    except InvalidRequestError as error:
        checks.fail(f"{at}.report.structure", "an SPDM request for measurements and its response", error)
        return None
    checks.hold(f"{at}.report.structure")
    checks.equal(
        f"{at}.report.request",
        (SPDM_VERSION, GET_MEASUREMENTS, (SIGNATURE_REQUESTED, ALL_MEASUREMENTS), 0),
        (report.request_version, report.request_code, report.request_params, report.slot),
    )
    response = (report.response_version, report.response_code)
    checks.equal(f"{at}.report.response", (SPDM_VERSION, MEASUREMENTS), response)
    if nonce is None:
        checks.skip(f"{at}.report.nonce", "no nonce is wanted")
    else:
        checks.equal(f"{at}.report.nonce", nonce, report.request_nonce)
    return report


def _check_chain(
    checks: Checks, at: str, device: Device, trust: NvGpuTrust, time: datetime
) -> tuple[x509.Certificate, ...] | None:
    leaf, *rest = device.chain
    try:
        path = certificates.verify_path(leaf, rest, trust.device_roots, time)
        if len(path) != PATH_LENGTH:
            raise InvalidRequestError(f"expected a chain of {PATH_LENGTH} certificates, got {len(path)}")
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except (InvalidRequestError, x509.ExtensionNotFound) as error:
        checks.fail(f"{at}.chain", "a chain to a root of NVIDIA's devices", error)
        return None
    checks.hold(f"{at}.chain")
    is_signer = usage.digital_signature and not usage.key_cert_sign
    checks.require(f"{at}.purpose", is_signer, "a key that signs reports and no certificates", "another")
    return path


def _check_chip(checks: Checks, at: str, device: Device) -> str:
    """Check that the certificate is of the architecture that the evidence says; the chip's name, such as GH100."""
    chip = chip_of(device.chain[0])
    checks.demand(f"{at}.arch", _CHIPS[device.arch].fullmatch(chip) is not None, device.arch, chip or "no chip's name")
    return chip


def chip_of(certificate: x509.Certificate) -> str:
    """The chip that the `certificate` of a signing key names, such as GH100 or LS10; nothing where it names none."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    found = _CHIP.fullmatch(str(names[0].value)) if len(names) == 1 else None
    return "" if found is None else found[1].replace("_", "")


def _check_firmware_identity(checks: Checks, at: str, leaf: x509.Certificate, report: Report) -> None:
    try:
        identity = _identity(leaf)
    except InvalidRequestError as error:
        checks.fail(f"{at}.fwid", "a firmware identity in the certificate", error)
        return
    reported = report.opaque.get(Opaque.FWID)
    if reported is None:
        checks.skip(f"{at}.fwid", "the report has none (old driver, or a switch)")
    else:
        # Further ones are of firmware beside the one that signs; Blackwell has one, all zeros.
        certified = b"" if identity is None or not identity.digests else identity.digests[0]
        checks.demand(f"{at}.fwid", bool(certified) and certified == reported, certified, reported)
    if identity is None or identity.alarms is None:
        checks.skip(f"{at}.operational_flags", "the certificate has none")
    else:
        checks.equal(f"{at}.operational_flags", [], list(identity.alarms))


def _identity(leaf: x509.Certificate) -> dice.FirmwareIdentity | None:
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension):
            if extension.oid.dotted_string == dice.TCB_INFO:
                return dice.parse_tcb_info(extension.value.value)
            if extension.oid.dotted_string == dice.COMPOSITE_DEVICE_ID:
                return dice.parse_composite_device_id(extension.value.value)
    return None


def _check_mode(checks: Checks, at: str, report: Report) -> Mode | None:
    """Check that the device says one known mode, and says it twice alike; None where it says none."""
    feature = report.feature
    if feature is None:
        checks.skip(f"{at}.mode", "the report does not say it")
        return None
    status = report.opaque.get(Opaque.PROTECTED_PCIE_STATUS)
    agrees = status is None or (status == bytes([ENABLED])) == (feature == Feature.PROTECTED_PCIE)
    got = f"feature {feature}, protected PCIe status {'unsaid' if status is None else status.hex()}"
    wanted = "a known mode, said alike by feature flag and PCIe status"
    checks.demand(f"{at}.mode", feature in MODES and agrees, wanted, got)
    return MODES.get(feature)
