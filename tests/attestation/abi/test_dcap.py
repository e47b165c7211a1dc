"""Quotes, PCK certificates and collateral as bytes: every cut, surplus and noise ends in one error."""

import json
import struct
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.attestation.abi import ccel, dcap, dcap_collateral, pck, pem
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.abi.tdx import TdReport
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors"
QUOTES = sorted([*(VECTORS / "tdx").glob("*.quote"), *(VECTORS / "sgx").glob("*.quote")])
V5 = (VECTORS / "tdx/google_90c06f_v5.quote").read_bytes()


@pytest.mark.parametrize("path", QUOTES, ids=lambda path: path.stem)
def test_recorded_quotes_are_read_whole(path: Path) -> None:
    raw = path.read_bytes()
    quote = Quote.parse(raw)
    assert quote.header.version == int(path.stem.split("_v")[1][0])
    assert raw.startswith(quote.signed)
    assert raw.endswith(quote.signature.certificates + quote.padding)
    chain = pck.parse_chain(quote.signature.certificates)
    extension = pck.PckExtension.of(chain[0])
    assert extension.fmspc.hex().startswith(path.stem.split("_")[1])
    assert len(extension.components) == 16
    if isinstance(quote.body, TdReport):
        assert (quote.body.mr_service_td is None) == (quote.header.version == 4)
        assert extension.configuration.keys() <= {"dynamic-platform", "cached-keys", "smt"}


def test_every_cut_of_a_quote_is_refused() -> None:
    end = len(V5) - len(Quote.parse(V5).padding)
    for length in range(end):
        with pytest.raises(InvalidRequestError, match="expected"):
            Quote.parse(V5[:length])


@pytest.mark.parametrize(
    ("offset", "form", "value", "expected"),
    [
        (0, "<H", 2, "expected version 3 of SGX"),
        (0, "<H", 6, "expected version 3 of SGX"),
        (2, "<H", 3, "expected attestation key type 2"),
        (4, "<I", 0, "expected a body of type 1"),
        (4, "<I", 0x82, "expected a body of type 1"),
        (48, "<H", 2, "expected a body of type 1"),
        (48, "<H", 9, "expected a body of type 1"),
        (50, "<I", 584, "expected a body of type 1"),
        (50, "<I", 0xFFFFFFFF, "expected a body of type 1"),
        (702, "<I", 0xFFFFFFFF, "expected at most"),
        (702, "<I", 4299, "expected 4165 bytes of certification data"),
        (834, "<H", 5, "expected 4166 bytes of certification data of type 6"),
        (836, "<I", 4165, "expected 4166 bytes of certification data"),
        (1288, "<H", 0xFFFF, "expected at most 1024 bytes"),
        (1288, "<H", 31, "expected 3679 bytes of certification data"),
        (1322, "<H", 1, "of type 5"),
        (1324, "<I", 3677, "expected 3678 bytes"),
    ],
)
def test_fields_that_do_not_fit_the_rest_are_refused(offset: int, form: str, value: int, expected: str) -> None:
    changed = bytearray(V5)
    struct.pack_into(form, changed, offset, value)
    with pytest.raises(InvalidRequestError, match=expected):
        Quote.parse(bytes(changed))


def test_oversize_is_refused_unread() -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {dcap.MAX_QUOTE_SIZE} bytes"):
        Quote.parse(V5 + bytes(dcap.MAX_QUOTE_SIZE))
    big = bytes(dcap_collateral.MAX_FILE_SIZE + 1)
    for parse in (dcap_collateral.Collateral.parse, dcap_collateral.revocation_list):
        with pytest.raises(InvalidRequestError, match="expected at most"):
            parse(big)
    with pytest.raises(InvalidRequestError, match="expected at most"):
        dcap_collateral.parse_files([big])
    with pytest.raises(InvalidRequestError, match="at most 256 files"):
        dcap_collateral.parse_files([b""] * 257)


def test_attributes_have_names_and_reserved_bits_have_numbers() -> None:
    body = Quote.parse(V5).body
    assert isinstance(body, TdReport)
    assert body.attributes == ("SEPT_VE_DISABLE",)
    raw = bytearray(V5[54:702])
    raw[120:128] = (1 << 0 | 1 << 2 | 1 << 29 | 1 << 63).to_bytes(8, "little")
    assert TdReport.parse(bytes(raw)).attributes == ("DEBUG", "BIT_2", "MIGRATABLE", "PERFMON")
    for bit in range(8):
        raw[120:128] = (1 << bit).to_bytes(8, "little")
        assert TdReport.parse(bytes(raw)).debug
    raw[120:128] = (1 << 8).to_bytes(8, "little")
    assert not TdReport.parse(bytes(raw)).debug


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_noise_is_refused_by_every_parser(noise: bytes) -> None:
    parsers = (
        Quote.parse, TdReport.parse, EnclaveReport.parse, pck.parse_chain, pem.certificates, ccel.parse_ccel,
        dcap_collateral.Collateral.parse, dcap_collateral.revocation_list,
    )  # fmt: skip
    for parse in parsers:
        with pytest.raises(InvalidRequestError):
            parse(noise)
    with pytest.raises(InvalidRequestError):
        dcap_collateral.parse_files([noise])


@settings(max_examples=300)
@given(st.integers(0, len(V5) - 1), st.binary(min_size=1, max_size=8))
def test_a_quote_with_some_bytes_replaced_is_read_or_refused(offset: int, noise: bytes) -> None:
    changed = V5[:offset] + noise + V5[offset + len(noise) :]
    try:
        quote = Quote.parse(changed)
        pck.PckExtension.of(pck.parse_chain(quote.signature.certificates)[0])
    except InvalidRequestError:
        return
    assert quote.signed + changed[len(quote.signed) :] == changed


@settings(max_examples=200)
@given(st.integers(0, 2**16), st.binary(max_size=4))
def test_an_answer_with_some_bytes_replaced_is_read_or_refused(offset: int, noise: bytes) -> None:
    answer = (VECTORS / "tdx/ars_90c06f.tcbinfo.json").read_bytes()
    offset %= len(answer)
    pieces = [(VECTORS / f"tdx/{name}").read_bytes() for name in PIECES]
    try:
        (found,) = dcap_collateral.parse_files([answer[:offset] + noise + answer[offset + len(noise) :], *pieces])
    except InvalidRequestError:
        return
    assert found.tcb_info.id == "TDX"


PIECES = ("ars_td_qeidentity.json", "ars_pck_platform_crl.der", "ars_root_ca_crl.der", "ars_tcb_signing_chain.pem")


def test_signed_text_is_exactly_the_text_that_came() -> None:
    answer = (VECTORS / "tdx/ars_90c06f.tcbinfo.json").read_bytes()
    pieces = [(VECTORS / f"tdx/{name}").read_bytes() for name in PIECES]
    (found,) = dcap_collateral.parse_files([answer, *pieces])
    assert found.tcb_info_signed.text.encode() in answer
    assert json.loads(found.tcb_info_signed.text) == json.loads(answer)["tcbInfo"]
    assert found.expires == min(found.tcb_info.nextUpdate, found.qe_identity.nextUpdate)
    for wrong in (
        answer.replace(b'{"tcbInfo":', b'{"tcbInfo": '),
        answer[:-1] + b',"tcbInfo":{}}',
        answer.replace(b',"signature"', b',"more":1,"signature"'),
        answer.replace(b',"signature"', b',"sign"'),
        answer + b"{}",
        answer.replace(b'"version":3', b'"version":2'),
        answer.replace(b'"UpToDate"', b'"Fine"'),
        b'{"tcbInfo":' + b"[" * 100_000,
    ):
        with pytest.raises(InvalidRequestError):
            dcap_collateral.parse_files([wrong, *pieces])


@pytest.mark.parametrize(("missing", "named"), [(0, "TD_QE"), (2, "root's revocation list"), (3, "signers' chain")])
def test_tcb_info_without_its_other_pieces_is_refused_by_what_is_missing(missing: int, named: str) -> None:
    answer = (VECTORS / "tdx/ars_90c06f.tcbinfo.json").read_bytes()
    pieces = [(VECTORS / f"tdx/{name}").read_bytes() for place, name in enumerate(PIECES) if place != missing]
    with pytest.raises(InvalidRequestError, match=named):
        dcap_collateral.parse_files([answer, *pieces])


def test_a_certificate_without_the_extension_names_no_platform() -> None:
    root = x509.load_der_x509_certificate((VECTORS / "tdx/intel_root.der").read_bytes())
    with pytest.raises(InvalidRequestError, match="expected Intel's SGX extension"):
        pck.PckExtension.of(root)


def test_a_signature_that_is_not_of_whole_bytes_is_refused() -> None:
    """Found by flipping every bit of a quote: the library takes unused bits for nothing."""
    raw = bytearray((VECTORS / "sgx/phala_00a067_v3.quote").read_bytes())
    raw[2567] ^= 0x10
    with pytest.raises(InvalidRequestError, match="bit string of whole bytes"):
        pck.parse_chain(Quote.parse(bytes(raw)).signature.certificates)
