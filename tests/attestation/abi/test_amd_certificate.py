"""AMD's certificates and lists: read like another library reads them, and refused where one byte is not DER."""

import contextlib
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi import amd_certificate
from hermetic.attestation.abi.amd_certificate import AmdCertificate, AmdRevocationList
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.roots import amd as roots
from hermetic.errors import ConfigurationError, InvalidRequestError
from tests.attestation import amd

VECTORS = Path(__file__).parents[2] / "vectors" / "snp"
ENDORSEMENTS = sorted(VECTORS.glob("*.der"))
PLAIN = ENDORSEMENTS[0].read_bytes()
LIST = amd.Vendor().crl("ask", "asvk")


def authorities() -> list[AmdCertificate]:
    return [one for of in roots.load() for one in (of.ark, of.ask, of.asvk)]


@pytest.mark.parametrize("data", [path.read_bytes() for path in ENDORSEMENTS] + [one.der for one in authorities()])
def test_every_certificate_reads_as_with_another_library(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # serial number 0, which that library will stop reading
        witness = x509.load_der_x509_certificate(data)
        serial = witness.serial_number
        # Those that the library knows it writes anew, as DER; AMD's key usages have one bit too many.
        extensions = {
            one.oid.dotted_string: one.value.public_bytes()
            if isinstance(one.value, x509.UnrecognizedExtension)
            else b""
            for one in witness.extensions
        }
    ours = AmdCertificate.parse(data)
    assert (ours.serial, ours.signed, ours.signature) == (serial, witness.tbs_certificate_bytes, witness.signature)
    assert (ours.start, ours.end) == (witness.not_valid_before_utc, witness.not_valid_after_utc)
    assert (ours.issuer, ours.subject) == (witness.issuer.public_bytes(), witness.subject.public_bytes())
    assert f"CN={ours.common_name}" in witness.subject.rfc4514_string().split(",")
    assert {oid: ours.extensions[oid] if value else b"" for oid, value in extensions.items()} == extensions
    assert ours.extensions.keys() == extensions.keys()


def test_endorsement_keys_have_serial_number_0() -> None:
    assert {AmdCertificate.parse(path.read_bytes()).serial for path in ENDORSEMENTS} == {0}


def test_a_list_reads_as_with_another_library() -> None:
    witness = x509.load_der_x509_crl(LIST)
    ours = AmdRevocationList.parse(LIST)
    assert ours.revoked == {one.serial_number for one in witness} == {2, 3}
    assert (ours.signed, ours.signature) == (witness.tbs_certlist_bytes, witness.signature)
    assert (ours.start, ours.end) == (witness.last_update_utc, witness.next_update_utc)
    assert AmdRevocationList.parse(amd.Vendor().crl()).revoked == frozenset()


def test_shipped_authorities_are_those_of_another_verifier() -> None:
    shipped = {one.der for one in authorities()}
    witness = [one for path in VECTORS.glob("*.pem") for one in x509.load_pem_x509_certificates(path.read_bytes())]
    from cryptography.hazmat.primitives.serialization import Encoding

    assert shipped == {one.public_bytes(Encoding.DER) for one in witness}
    assert [one.common_name for one in authorities()] == [
        f"{role}{generation}" for generation in Generation for role in ("ARK-", "SEV-", "SEV-VLEK-")
    ]


def test_an_authority_with_another_fingerprint_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roots.FINGERPRINTS, Generation.GENOA, {"ark": "00" * 32})
    with pytest.raises(ConfigurationError, match=r"genoa-ark.der: expected SHA-256 0000"):
        roots.load()


@pytest.mark.parametrize("data", [PLAIN, LIST], ids=["certificate", "list"])
def test_every_shorter_or_longer_one_is_refused(data: bytes) -> None:
    read = AmdCertificate.parse if data is PLAIN else AmdRevocationList.parse
    read(data)
    for size in range(len(data)):
        with pytest.raises(InvalidRequestError):
            read(data[:size])
    with pytest.raises(InvalidRequestError, match="expected the end"):
        read(data + b"\0")


@given(st.sampled_from([PLAIN, LIST]), st.integers(0, len(PLAIN) - 1), st.integers(0, 255))
def test_a_changed_one_is_read_or_refused_by_name(data: bytes, offset: int, value: int) -> None:
    changed = bytearray(data)
    changed[offset % len(data)] = value
    for read in (AmdCertificate.parse, AmdRevocationList.parse):
        with contextlib.suppress(InvalidRequestError):
            read(bytes(changed))


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for read in (AmdCertificate.parse, AmdRevocationList.parse):
        with pytest.raises(InvalidRequestError):
            read(data)


def vcek(**changes: object) -> bytes:
    return amd.Vendor().vcek(amd.chip_id("one"), amd.tcb_of(Generation.MILAN), **changes)


def test_other_things_than_amd_issues_are_refused() -> None:
    twice = amd.extension("1.3.6.1.4.1.3704.1.4", bytes(64))
    with pytest.raises(InvalidRequestError, match="each once"):
        AmdCertificate.parse(vcek(more=(twice,)))
    with pytest.raises(InvalidRequestError, match="unknown critical"):
        AmdCertificate.parse(vcek(more=(amd.extension("2.5.29.30", b"", critical=True),)))
    false = amd.tlv(0x30, amd.oid("1.2.3"), amd.tlv(1, b"\0"), amd.tlv(4, b""))
    with pytest.raises(InvalidRequestError, match="critical mark"):
        AmdCertificate.parse(vcek(more=(false,)))
    with pytest.raises(InvalidRequestError, match="at most 20 bytes"):
        AmdCertificate.parse(vcek(serial=1 << 160))
    short_salt = vcek().replace(amd.PSS, amd.PSS[:-1] + b"\x20")
    with pytest.raises(InvalidRequestError, match="RSASSA-PSS"):
        AmdCertificate.parse(short_salt)
    with pytest.raises(InvalidRequestError, match="at most 8192 bytes"):
        AmdCertificate.parse(bytes(8193))


def test_extensions_hold_what_they_should() -> None:
    one = AmdCertificate.parse(
        vcek(more=(amd.extension("1.2.3", amd.number(256)), amd.extension("1.2.4", b"\2\1\x80")))
    )
    assert one.number(amd_certificate.SVNS["microcode"]) == 217
    with pytest.raises(InvalidRequestError, match="expected 0 to 255, got 256"):
        one.number("1.2.3")
    with pytest.raises(InvalidRequestError, match="not negative"):
        one.number("1.2.4")
    with pytest.raises(InvalidRequestError, match="got none"):
        one.number("1.2.5")
    with pytest.raises(InvalidRequestError, match=r"expected 65 bytes|tag 0x04"):
        one.identifier(amd_certificate.HWID, 65)
    with pytest.raises(InvalidRequestError, match="tag 0x16"):
        one.text("1.2.3")


def test_a_list_without_an_end_is_refused() -> None:
    end = amd.moment(amd.END)
    tbs = LIST.replace(end, b"", 1)
    with pytest.raises(InvalidRequestError):
        AmdRevocationList.parse(tbs)
    assert AmdRevocationList.parse(amd.Vendor().crl(end=amd.START + timedelta(1))).end == amd.START + timedelta(1)
