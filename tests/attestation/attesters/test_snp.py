"""Evidence of SEV-SNP, made through the kernel's interface from recorded reports and from those of a small AMD."""

import struct
import uuid
from datetime import timedelta
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.abi import snp_certificates
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.errors import InvalidRequestError, TsmError
from tests.attestation import amd
from tests.attestation.attesters.conftest import Mount
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem
from tests.attestation.verifiers.test_recorded_snp import GENOA_5, MILAN_3, Recorded, each, read

VENDOR = amd.Vendor(Generation.MILAN)
NOW = amd.START + timedelta(days=400)
DIGEST = bytes(range(48))


def table(*entries: tuple[uuid.UUID, bytes], little: bool = False) -> bytes:
    offset, heads, bodies = 24 * (len(entries) + 1), b"", b""
    for guid, data in entries:
        heads += (guid.bytes_le if little else guid.bytes) + struct.pack("<II", offset + len(bodies), len(data))
        bodies += data
    return heads + bytes(24) + bodies


def recorded_table(good: Recorded, *, little: bool = False) -> bytes:
    guid = snp_certificates.VLEK if good is MILAN_3 else snp_certificates.VCEK
    ark = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
    return table((ark, b"an authority"), (guid, read(good.certificate)), little=little)


def processor(report_data: bytes) -> tuple[bytes, bytes]:
    """A chip of the small AMD: it signs what it is asked."""
    chip = amd.chip_id("one")
    signed = amd.sign(amd.report(report_data=report_data), amd.signing_key(chip))
    return signed, table((snp_certificates.VCEK, VENDOR.vcek(chip, amd.tcb_of(Generation.MILAN))))


@each
@pytest.mark.parametrize("little", [False, True], ids=["big", "little"])
def test_recorded_evidence_is_made_again(mount: Mount, good: Recorded, little: bool) -> None:
    kernel = TsmFilesystem(lambda _: (good.report, recorded_table(good, little=little)))
    attester = SnpAttester(SnpSettings(mount(kernel)))
    assert isinstance(attester, Attester)
    evidence = attester.collect(good.report[0x50:0x90])
    assert evidence == good.evidence()
    good.verify(evidence)


def test_evidence_is_about_what_was_asked(mount: Mount) -> None:
    attester = SnpAttester(SnpSettings(mount(TsmFilesystem(processor))))
    trust = TrustRoots(snp=SnpTrust((VENDOR.authorities(),)))
    evidence = attester.collect(DIGEST)
    assert verifiers.verify("snp", evidence, DIGEST, trust, NOW).snp is not None
    attester.extend(bytes(32))  # no register for it: nothing changes, nothing fails
    assert verifiers.verify("snp", attester.collect(DIGEST), DIGEST, trust, NOW).snp is not None


def test_a_report_about_something_else_is_not_passed_on(mount: Mount) -> None:
    kernel = TsmFilesystem(lambda _: (GENOA_5.report, b""))
    with pytest.raises(TsmError, match="expected one about our report data"):
        SnpAttester(SnpSettings(mount(kernel))).collect(DIGEST)


def test_the_operator_s_certificate_goes_before_the_hypervisor_s(mount: Mount) -> None:
    tsm = mount(TsmFilesystem(lambda _: (GENOA_5.report, recorded_table(GENOA_5))))
    attester = SnpAttester(SnpSettings(tsm, endorsement=b"from a file", crl=b"a list"))
    evidence: Any = attester.collect(GENOA_5.report[0x50:0x90])
    sent = [(one["cert_type"], bytes(one["data"])) for one in evidence["cert_chain"]]
    assert sent == [("VCEK", b"from a file"), ("CRL", b"a list")]


def test_a_hypervisor_without_certificates_gives_evidence_without(mount: Mount) -> None:
    attester = SnpAttester(SnpSettings(mount(TsmFilesystem(lambda _: (GENOA_5.report, b"")))))
    evidence: Any = attester.collect(GENOA_5.report[0x50:0x90])
    assert evidence["cert_chain"] is None


@pytest.mark.parametrize(
    ("blobs", "provider", "words"),
    [
        ((GENOA_5.report, b""), "tdx_guest", "expected provider sev_guest, got 'tdx_guest'"),
        ((b"short", b""), "sev_guest", "expected 1184 bytes, got 5"),
        ((GENOA_5.report, b"\1" * 23), "sev_guest", "SNP certificate table"),
        ((b"\4" + GENOA_5.report[1:], b""), "sev_guest", "expected version 2, 3, 5, got 4"),
    ],
)
def test_what_is_no_report_is_an_error(mount: Mount, blobs: tuple[bytes, bytes], provider: str, words: str) -> None:
    kernel = TsmFilesystem(lambda _: blobs, provider=provider)
    with pytest.raises(TsmError, match=words):
        SnpAttester(SnpSettings(mount(kernel))).collect(GENOA_5.report[0x50:0x90])


def test_an_unknown_processor_is_an_error(mount: Mount) -> None:
    unsigned = amd.report(cpuid_mod_id=0x7F, report_data=DIGEST.ljust(64, b"\0")).pack()
    with pytest.raises(TsmError, match="expected a processor known here, got family 0x19 model 0x7f"):
        SnpAttester(SnpSettings(mount(TsmFilesystem(lambda _: (unsigned, b""))))).collect(DIGEST)


def test_tables_of_certificates_are_read_strictly() -> None:
    vcek = (snp_certificates.VCEK, b"x" * 10)
    assert snp_certificates.parse(b"").vceks == ()
    assert snp_certificates.parse(table(vcek, vcek)).vceks == (b"x" * 10,) * 2
    for wrong in (table(vcek)[:20], table(vcek)[:-1], table(*[vcek] * 16), table((snp_certificates.VCEK, bytes(8193)))):
        with pytest.raises(InvalidRequestError, match="SNP certificate table"):
            snp_certificates.parse(wrong)
