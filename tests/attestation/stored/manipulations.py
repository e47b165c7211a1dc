"""What an attacker, or an accident, does to good evidence; for each kind that it can be done to, the manipulated case.

docs/refusals.md shows which check refuses which manipulation. Each case is one change to recorded evidence of real
hardware, which passes without it; where no recorded file can show it, a chip of the test's own signs it anew.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from hermetic.attestation import stored
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.snp import Policy
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.stored import Verdict
from tests.attestation import amd
from tests.attestation.stored.rows import INTEL_2025_07, read, trust

P256: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
BEFORE, AFTER = "2016-01-01", "9999-12-31"

FLIPPED = "a bit of what is signed, flipped"
SIGNATURE = "a bit of the signature, flipped"
R_ZERO, S_ZERO = "signature number r is 0", "signature number s is 0"
R_BIG, S_BIG = "r is the order of the curve (RSA: above the modulus)", "s is the order of the curve"
OTHER = "another chip's key vouches for it (swapped leaf)"
FORGED = "a forged endorsement"
ROOT = "roots of somebody else"
NOBODY = "nobody vouches for it"
EARLY, LATE = "before the certificates were issued", "after they have ended"
CHALLENGE = "another challenge"
SHORT, LONG = "the challenge, one byte less", "the challenge, one byte more"
CUT, MORE = "the last byte is missing", "one byte more at the end"
VERSION = "a version that there is not"
DEBUG = "debug is on"
TCB = "the platform's TCB is out of date"
LEVEL = "the platform reaches no listed level"
COLLATERAL_TIME = "collateral whose time has passed"
COLLATERAL_FORGED = "a bit of the collateral, flipped"
COLLATERAL_OTHER = "collateral of another platform"
COLLATERAL_PART = "collateral without its most important part"
COLLATERAL_KIND = "collateral of another vendor"
REVOKED = "its issuer was revoked"
PCRS = "two PCRs have changed places"
BINDING = "another key than the one that the hardware binds"
LOG = "an event log of another boot"
MANIFEST_OTHER = "a manifest with another measurement"
MANIFEST_EDITED = "a manifest that was edited"
MANIFEST_ROOT = "a manifest of another root"
MIXED = "the reports of two devices, exchanged"
TWICE = "one device twice, for one challenge"
CC_OFF, DEVTOOLS = "confidential computing is off", "DEVTOOLS is on"
MISSING = "one GPU fewer than the guest's driver sees"
NOTHING = "bytes that are no evidence"

NAMES: Final = (
    FLIPPED, SIGNATURE, R_ZERO, S_ZERO, R_BIG, S_BIG, OTHER, FORGED, ROOT, NOBODY, EARLY, LATE, CHALLENGE, SHORT, LONG,
    CUT, MORE, VERSION, DEBUG, TCB, LEVEL, COLLATERAL_TIME, COLLATERAL_FORGED, COLLATERAL_OTHER, COLLATERAL_PART,
    COLLATERAL_KIND, REVOKED, PCRS, BINDING, LOG, MANIFEST_OTHER, MANIFEST_EDITED, MANIFEST_ROOT, MIXED, TWICE, CC_OFF,
    DEVTOOLS, MISSING, NOTHING,
)  # fmt: skip
"""In the order of the page."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Evidence, what lies beside it, when it is judged, what it must be bound to, and by whose roots."""

    evidence: bytes
    beside: tuple[bytes, ...] = ()
    at: str = "2025-07-20"
    report_data: bytes | None = None
    trust: TrustRoots | None = None

    def verdict(self) -> Verdict:
        """What is said of it."""
        found = stored.recognise(self.evidence, self.beside)
        time = datetime.fromisoformat(self.at).replace(tzinfo=UTC)
        return stored.verdict(found, self.trust or trust(), time, report_data=self.report_data)

    def but(self, **changes: Any) -> "Case":
        """The case with one thing changed."""
        return dataclasses.replace(self, **changes)


Cases = Mapping[str, Case]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def placed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _of_all(good: Case, challenge: bytes, other_roots: str) -> dict[str, Case]:
    """What can be done to evidence of every kind."""
    return {
        ROOT: good.but(trust=trust((other_roots,))),
        EARLY: good.but(at=BEFORE),
        LATE: good.but(at=AFTER),
        CHALLENGE: good.but(report_data=flipped(challenge, 0)),
        SHORT: good.but(report_data=challenge.rstrip(b"\0")[:-1]),  # a CPU's field is filled with 00
        LONG: good.but(report_data=challenge + b"\0"),
    }


def _of_file(good: Case) -> dict[str, Case]:
    return {CUT: good.but(evidence=good.evidence[:-1]), MORE: good.but(evidence=good.evidence + b"\x5a")}


# SEV-SNP: r and s of 72 bytes, little-endian, at 0x2a0 and 0x2e8
SNP = Case(read("snp/milan_v2b.report.bin"), (read("snp/milan_v2b.vcek.der"),))


def _snp() -> Cases:
    order = P384.to_bytes(72, "little")

    def report(change: Callable[[bytes], bytes]) -> Case:
        return SNP.but(evidence=change(SNP.evidence))

    return {
        FLIPPED: report(lambda d: flipped(d, 0x90)),
        SIGNATURE: report(lambda d: flipped(d, 0x2A0)),
        R_ZERO: report(lambda d: placed(d, 0x2A0, bytes(72))),
        S_ZERO: report(lambda d: placed(d, 0x2E8, bytes(72))),
        R_BIG: report(lambda d: placed(d, 0x2A0, order)),
        S_BIG: report(lambda d: placed(d, 0x2E8, order)),
        OTHER: SNP.but(beside=(read("snp/milan_v2.vcek.der"),)),
        FORGED: SNP.but(beside=(read("snp/milan_v2b.vcek-invalid-new.der"),)),
        NOBODY: SNP.but(beside=()),
        VERSION: report(lambda d: placed(d, 0, b"\x09")),
        DEBUG: _own_snp(policy=0x30000 | Policy.DEBUG),
        COLLATERAL_KIND: SNP.but(beside=(*SNP.beside, read(INTEL_2025_07[0]))),
        REVOKED: _own_snp(revoked=("ask",)),
        **_of_all(SNP, SNP.evidence[0x50:0x90], "snp/ask_ark_genoa.pem"),
        **_of_file(SNP),
    }


def _own_snp(revoked: tuple[str, ...] = (), **changes: Any) -> Case:
    """A report of a chip of the test's own, under its own authorities."""
    vendor, chip = amd.Vendor(), amd.chip_id("one")
    report = amd.sign(amd.report(**changes), amd.signing_key(chip))
    beside = (vendor.vcek(chip, amd.tcb_of(vendor.generation)), *((vendor.crl(*revoked),) if revoked else ()))
    return Case(report, beside, trust=TrustRoots(snp=SnpTrust(authorities=(vendor.authorities(),))))


# TDX and SGX: r || s of 64 bytes, big-endian, 4 bytes behind header and body
INTEL = tuple(map(read, INTEL_2025_07))
TDX = Case(
    read("tdx/cos113_00806f_v4.quote"),
    (*INTEL, read("tdx/cos113_ccel_data.dat")),
    report_data=read("tdx/cos113_nonce.dat"),
)
SGX = Case(read("sgx/phala_00a067_v3.quote"), at="2025-06-25")


def _quote(good: Case, signed: int) -> dict[str, Case]:
    at, order = signed + 4, P256.to_bytes(32, "big")

    def quote(change: Callable[[bytes], bytes]) -> Case:
        return good.but(evidence=change(good.evidence))

    challenge = Quote.parse(good.evidence).body.report_data
    return {
        FLIPPED: quote(lambda d: flipped(d, signed - 80)),
        SIGNATURE: quote(lambda d: flipped(d, at)),
        R_ZERO: quote(lambda d: placed(d, at, bytes(32))),
        S_ZERO: quote(lambda d: placed(d, at + 32, bytes(32))),
        R_BIG: quote(lambda d: placed(d, at, order)),
        S_BIG: quote(lambda d: placed(d, at + 32, order)),
        OTHER: quote(lambda d: with_chain(d, Quote.parse(read("tdx/phala_b0c06f_v4.quote")).signature.certificates)),
        FORGED: quote(_with_edited_leaf),
        VERSION: quote(lambda d: placed(d, 0, b"\x09")),
        COLLATERAL_KIND: good.but(beside=(*good.beside, read("nvgpu/driver_rim_550.144.03.xml"))),
        **_of_all(good, challenge, "nvgpu/rim_root_wrong.crt"),
    }


def with_chain(quote: bytes, chain: bytes) -> bytes:
    """The quote with another chain of certificates in it, and sizes that fit."""
    parsed = Quote.parse(quote)
    old, grown = parsed.signature.certificates, len(chain) - len(parsed.signature.certificates)
    start = quote.index(old)
    sizes = [start - 4, len(parsed.signed)]
    if parsed.header.version > 3:
        sizes.append(len(parsed.signed) + 4 + 128 + 2)  # of the certification data that all of this is
    for at in sizes:
        quote = placed(quote, at, (int.from_bytes(quote[at : at + 4], "little") + grown).to_bytes(4, "little"))
    return quote[:start] + chain + quote[start + len(old) :]


def _with_edited_leaf(quote: bytes) -> bytes:
    """The quote with a bit of the PCK certificate's signed part flipped: six bits are one character of its PEM."""
    at = quote.index(b"-----BEGIN CERTIFICATE-----") + 27 + 700
    return placed(quote, at, b"B" if quote[at : at + 1] != b"B" else b"C")


def _tdx() -> Cases:
    phala = read("tdx/phala_b0c06f_v4.quote")
    tcb_info = INTEL[0].replace(b'"tcbEvaluationDataNumber":17', b'"tcbEvaluationDataNumber":18')
    return {
        **_quote(TDX, 632),
        CUT: TDX.but(evidence=TDX.evidence[: len(TDX.evidence) - len(Quote.parse(TDX.evidence).padding) - 1]),
        SHORT: Case(phala, report_data=Quote.parse(phala).body.report_data.rstrip(b"\0")[:-1]),  # TDX's are zeros
        DEBUG: Case(read("tdx/trustee_50806f_v4_debug.quote")),
        TCB: TDX.but(evidence=read("tdx/automata_00806f_v4.quote"), beside=INTEL, report_data=None),
        LEVEL: Case(read("tdx/phala_90c06f_v5.quote"), (read("tdx/phala_90c06f_v5.collateral.json"),), at="2026-02-19"),
        COLLATERAL_TIME: TDX.but(at="2025-10-01"),
        COLLATERAL_FORGED: TDX.but(beside=(flipped_json(tcb_info), *TDX.beside[1:])),
        COLLATERAL_OTHER: Case(phala, INTEL),
        COLLATERAL_PART: TDX.but(beside=TDX.beside[1:]),
        LOG: TDX.but(evidence=read("tdx/automata_00806f_v4.quote"), beside=TDX.beside[-1:], report_data=None),
    }


def flipped_json(answer: bytes) -> bytes:
    """An answer of Intel's service with one digit of what is signed changed: it reads as before."""
    at = answer.index(b'"pcesvn":') + 9
    return placed(answer, at, b"1" if answer[at : at + 1] != b"1" else b"2")


def _sgx() -> Cases:
    own = (read("sgx/phala_00a067_v3.collateral.json"),)
    return {
        **_quote(SGX, 432),
        CUT: SGX.but(evidence=SGX.evidence[:-1]),
        TCB: SGX.but(beside=own),
        COLLATERAL_TIME: SGX.but(beside=own, at="2025-10-01"),
        COLLATERAL_OTHER: SGX.but(beside=INTEL),
    }


# Azure: the vTPM's quote, and the hardware's report of its boot
AZ_SNP = Case(read("snp/az_snp_milan_v1.json"))
AZ_TDX = Case(read("tdx/az_tdx_v1.json"))


def _url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _edited(good: Case, change: Callable[[dict[str, Any]], None]) -> Case:
    members = json.loads(good.evidence)
    change(members)
    return good.but(evidence=json.dumps(members).encode())


def _exchange_pcrs(members: dict[str, Any]) -> None:
    pcrs = members["tpm_quote"]["pcrs"]
    other = next(index for index, value in enumerate(pcrs) if value != pcrs[0])
    pcrs[0], pcrs[other] = pcrs[other], pcrs[0]


def _azure(good: Case, other_roots: str, challenge: bytes) -> dict[str, Case]:
    def quoted(name: str, change: Callable[[bytes], bytes]) -> Case:
        def edit(members: dict[str, Any]) -> None:
            members["tpm_quote"][name] = change(bytes.fromhex(members["tpm_quote"][name])).hex()

        return _edited(good, edit)

    def rebound(members: dict[str, Any]) -> None:
        report = _url(members["hcl_report"])
        at = report.index(b'"n":"') + 10
        members["hcl_report"] = _text(placed(report, at, b"B" if report[at : at + 1] != b"B" else b"C"))

    return {
        FLIPPED: quoted("message", lambda d: flipped(d, len(d) - 1)),
        SIGNATURE: quoted("signature", lambda d: flipped(d, 9)),
        R_ZERO: quoted("signature", lambda d: bytes(len(d))),
        R_BIG: quoted("signature", lambda d: b"\xff" * len(d)),
        PCRS: _edited(good, _exchange_pcrs),
        BINDING: _edited(good, rebound),
        **_of_all(good, challenge, other_roots),
    }


def _az_snp() -> Cases:
    def vcek(name: str) -> Case:
        return _edited(AZ_SNP, lambda members: members.update(vcek=_text(read(name))))

    return {
        **_azure(AZ_SNP, "snp/ask_ark_genoa.pem", b"challenge"),
        OTHER: vcek("snp/milan_v2.vcek.der"),
        FORGED: vcek("snp/milan_v2b.vcek-invalid-new.der"),
    }


def _az_tdx() -> Cases:
    members = json.loads(AZ_TDX.evidence)
    message = bytes.fromhex(members["tpm_quote"]["message"])
    size = int.from_bytes(message[6:8], "big")  # of the signer's name
    nonce_at = 10 + size
    challenge = message[nonce_at : nonce_at + int.from_bytes(message[nonce_at - 2 : nonce_at], "big")]
    leaf = Quote.parse(read("tdx/phala_b0c06f_v4.quote")).signature.certificates

    def quote(change: Callable[[bytes], bytes]) -> Case:
        return _edited(AZ_TDX, lambda members: members.update(td_quote=_text(change(_url(members["td_quote"])))))

    return {
        **_azure(AZ_TDX, "nvgpu/rim_root_wrong.crt", challenge),
        OTHER: quote(lambda d: with_chain(d, leaf)),
        FORGED: quote(_with_edited_leaf),
        TCB: AZ_TDX.but(beside=INTEL),
        COLLATERAL_TIME: AZ_TDX.but(beside=INTEL, at="2025-10-01"),
    }


# NVIDIA: r || s of 96 bytes, big-endian, at the end
GPUS = Case(read("nvgpu/multi_gpu_hopper.json"))
GPU = Case(
    read("nvgpu/hopper_535.report.hex"),
    (read("nvgpu/hopper_535.chain.pem"), read("nvgpu/hopper_535.vbios_rim_match.xml")),
    at="2024-06-01",
)


def _nvgpu() -> Cases:
    order, challenge = P384.to_bytes(48, "big"), bytes.fromhex(json.loads(GPUS.evidence)[0]["nonce"])
    chain = GPU.beside[0]

    def report(change: Callable[[bytes], bytes]) -> Case:
        return GPU.but(evidence=change(bytes.fromhex(GPU.evidence.decode())).hex().encode())

    def devices(change: Callable[[list[dict[str, Any]]], object]) -> Case:
        found = json.loads(GPUS.evidence)
        return GPUS.but(evidence=json.dumps(change(found) or found).encode())

    def exchange(found: list[dict[str, Any]]) -> None:
        found[0]["evidence"], found[1]["evidence"] = found[1]["evidence"], found[0]["evidence"]

    def said(**changes: Any) -> Case:
        statement = {"cc": "on", "devtools": "off", "environment": "production", "gpus": 4} | changes
        return devices(lambda found: {"device_evidence_list": found, "hermetic": statement})

    def beside(manifest: str) -> Case:
        return GPU.but(beside=(chain, read(f"nvgpu/{manifest}")))

    def roots(name: str) -> TrustRoots:
        return dataclasses.replace(
            trust(), nvgpu=dataclasses.replace(trust().nvgpu, rim_roots=trust((name,)).nvgpu.rim_roots)
        )

    of_all = _of_all(GPUS, challenge, "nvgpu/rim_root_wrong.crt")
    del of_all[LATE]  # certificates of devices end with the year 9999
    return {
        **of_all,
        FLIPPED: report(lambda d: flipped(d, 60)),
        SIGNATURE: report(lambda d: flipped(d, len(d) - 96)),
        R_ZERO: report(lambda d: placed(d, len(d) - 96, bytes(48))),
        S_ZERO: report(lambda d: placed(d, len(d) - 48, bytes(48))),
        R_BIG: report(lambda d: placed(d, len(d) - 96, order)),
        S_BIG: report(lambda d: placed(d, len(d) - 48, order)),
        OTHER: GPU.but(beside=(read("nvgpu/hopper_580.chain.pem"),)),
        FORGED: GPU.but(beside=(placed(chain, 400, b"B" if chain[400:401] != b"B" else b"C"),)),
        NOBODY: GPU.but(beside=()),
        VERSION: report(lambda d: placed(d, 37, b"\x12")),
        CUT: report(lambda d: d[:-1]),
        MORE: report(lambda d: d + b"\x5a"),
        COLLATERAL_KIND: GPU.but(beside=(*GPU.beside, read(INTEL_2025_07[0]))),
        COLLATERAL_TIME: GPU.but(at="2026-11-22"),
        COLLATERAL_OTHER: beside("driver_rim_550.144.03.xml"),
        MANIFEST_OTHER: beside("hopper_535.vbios_rim_idx9_mismatch.xml"),
        MANIFEST_EDITED: beside("hopper_535.driver_rim_tampered.xml"),
        MANIFEST_ROOT: GPU.but(trust=roots("nvgpu/rim_root_wrong.crt")),
        MIXED: devices(exchange),
        TWICE: devices(lambda found: [found[0], found[0]]).but(report_data=challenge),
        CC_OFF: said(cc="off"),
        DEVTOOLS: said(devtools="on"),
        MISSING: said(gpus=5),
    }


# TPM: an RSA number behind 6 bytes of algorithm, hash and size
TPM = Case(read("tpm/tpm_evidence.json"), (read("tpm/tpm_evidence.akpub.pem"),))


def _tpm() -> Cases:
    def quoted(name: str, change: Callable[[bytes], bytes]) -> Case:
        def edit(members: dict[str, Any]) -> None:
            data = change(base64.b64decode(members["tpm_quote"][name]))
            members["tpm_quote"][name] = base64.b64encode(data).decode()

        return _edited(TPM, edit)

    message = base64.b64decode(json.loads(TPM.evidence)["tpm_quote"]["message"])
    nonce_at = 10 + int.from_bytes(message[6:8], "big")
    challenge = message[nonce_at : nonce_at + 64]
    of_all = _of_all(TPM, challenge, "nvgpu/rim_root_wrong.crt")
    return {
        FLIPPED: quoted("message", lambda d: flipped(d, len(d) - 1)),
        SIGNATURE: quoted("signature", lambda d: flipped(d, 40)),
        R_ZERO: quoted("signature", lambda d: d[:6] + bytes(len(d) - 6)),
        R_BIG: quoted("signature", lambda d: d[:6] + b"\xff" * (len(d) - 6)),
        OTHER: TPM.but(beside=(read("tpm/keylime_akpub.pem"),)),
        CUT: quoted("message", lambda d: d[:-1]),
        MORE: quoted("message", lambda d: d + b"\x5a"),
        VERSION: quoted("message", lambda d: placed(d, 4, b"\x80\x17")),
        PCRS: _edited(TPM, _exchange_pcrs),
        LOG: TPM.but(beside=(*TPM.beside, read("tpm/eventlog_ubuntu-2404-amd-sevsnp.bin"))),
        COLLATERAL_KIND: TPM.but(beside=(*TPM.beside, read(INTEL_2025_07[0]))),
        **{name: of_all[name] for name in (CHALLENGE, SHORT, LONG)},
    }


class Kind(NamedTuple):
    """A column: cases that pass, and what is done to them."""

    good: tuple[Case, ...]
    cases: Callable[[], Cases]


KINDS: Final[Mapping[str, Kind]] = {
    "snp": Kind((SNP, _own_snp()), _snp),
    "tdx": Kind((TDX,), _tdx),
    "sgx": Kind((SGX,), _sgx),
    "nvgpu": Kind((GPUS, GPU), _nvgpu),
    "tpm": Kind((TPM,), _tpm),
    "az-snp-vtpm": Kind((AZ_SNP,), _az_snp),
    "az-tdx-vtpm": Kind((AZ_TDX,), _az_tdx),
}


def every() -> Iterator[tuple[str, str, Case]]:
    """Manipulation, kind and case, in the page's order."""
    by_kind = {name: kind.cases() for name, kind in KINDS.items()}
    for name in NAMES:
        for kind, cases in by_kind.items():
            if name in cases:
                yield name, kind, cases[name]
            elif name == NOTHING and kind == "snp":
                yield name, kind, SNP.but(evidence=b"noise")
