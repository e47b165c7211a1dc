"""What is fuzzed of SEV-SNP: reports, AMD's certificates and lists, tables of certificates, Azure's reports."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from hermetic.attestation.abi import snp_certificates
from hermetic.attestation.abi.amd_certificate import AmdCertificate, AmdRevocationList
from hermetic.attestation.abi.azure_hcl import HclReport
from hermetic.attestation.abi.snp import Generation, Report
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.errors import InvalidRequestError

VECTORS: Final = Path(__file__).resolve().parents[1] / "vectors" / "snp"


def reports(data: bytes) -> None:
    """Reports: refused, or the same when written again, as bytes and as JSON of some generation."""
    try:
        report = Report.parse(data)
    except InvalidRequestError:
        return
    if report.pack() != data:
        raise AssertionError(f"report: {report}")
    evidence = SnpEvidence(data, Certificates())
    for generation in Generation:
        try:
            travelling = evidence.to_json(generation)
        except InvalidRequestError:  # a TCB that this generation does not have
            continue
        if SnpEvidence.parse(travelling) != evidence:
            raise AssertionError(f"evidence: {travelling}")


def certificates(data: bytes) -> None:
    """Certificates and lists: refused, or a part of what was given."""
    for read in (AmdCertificate.parse, AmdRevocationList.parse):
        try:
            one = read(data)
        except InvalidRequestError:
            continue
        if one.signed not in data or one.signature not in data:
            raise AssertionError(f"certificate: {one}")


def tables(data: bytes) -> None:
    """Tables of certificates: refused, or parts of what was given."""
    try:
        found = snp_certificates.parse(data)
    except InvalidRequestError:
        return
    if any(one not in data for one in (*found.vceks, *found.vleks, *found.crls)):
        raise AssertionError(f"table: {found}")


def azure_reports(data: bytes) -> None:
    """Azure's reports: refused, or parts of what was given."""
    try:
        report = HclReport.parse(data)
    except InvalidRequestError:
        return
    if report.variable_data not in data or report.hardware_report not in data:
        raise AssertionError(f"report: {report}")


def report_seeds() -> Iterator[bytes]:
    """Recorded reports of each version."""
    for path in sorted(VECTORS.glob("*.report.*")):
        data = path.read_bytes()
        yield bytes.fromhex(data.decode()) if path.suffix == ".hex" else data


def certificate_seeds() -> Iterator[bytes]:
    """Recorded certificates; the corpus has a list too, made for it."""
    for path in sorted(VECTORS.glob("*.der"))[:3]:
        yield path.read_bytes()


def table_seeds() -> Iterator[bytes]:
    """A table of two, and none."""
    from tests.attestation.attesters.test_snp import table

    yield table((snp_certificates.VCEK, b"a certificate"), (snp_certificates.CRL, b"a list"))
    yield bytes(24)


def azure_seeds() -> Iterator[bytes]:
    """A recorded report."""
    yield bytes(json.loads((VECTORS / "az_snp_genoa.json").read_text())["report"])


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "snp-reports": reports,
    "amd-certificates": certificates,
    "snp-tables": tables,
    "azure-reports": azure_reports,
}
SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "snp-reports": report_seeds,
    "amd-certificates": certificate_seeds,
    "snp-tables": table_seeds,
    "azure-reports": azure_seeds,
}
