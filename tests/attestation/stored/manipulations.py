"""What an attacker, or an accident, does to good evidence; for each kind that it can be done to, the manipulated case.

docs/refusals.md shows which check refuses which manipulation. Each case is one change to recorded evidence of real
hardware, which passes without it; where no recorded file can show it, a chip of the test's own signs it anew.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from cryptography import x509

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.roots import TrustRoots
from tests.attestation.stored import own_chips, quotes, vtpms
from tests.attestation.stored.cases import (
    CC_OFF,
    CHALLENGE,
    COLLATERAL_FORGED,
    COLLATERAL_KIND,
    COLLATERAL_OTHER,
    COLLATERAL_PART,
    COLLATERAL_TIME,
    CUT,
    DEBUG,
    DEVTOOLS,
    FLIPPED,
    FORGED,
    LATE,
    LEVEL,
    LOG,
    LONG,
    MANIFEST_EDITED,
    MANIFEST_OTHER,
    MANIFEST_ROOT,
    MISSING,
    MIXED,
    MORE,
    NAMES,
    NOBODY,
    NOTHING,
    OTHER,
    P256,
    P384,
    PCRS,
    R_BIG,
    R_ZERO,
    REVOKED,
    S_BIG,
    S_ZERO,
    SHORT,
    SIGNATURE,
    TCB,
    TWICE,
    VERSION,
    Case,
    Cases,
    edited,
    exchange_pcrs,
    flipped,
    of_all,
    of_file,
    placed,
)
from tests.attestation.stored.quotes import INTEL
from tests.attestation.stored.rows import INTEL_2025_07, read, trust

# SEV-SNP: r and s of 72 bytes, little-endian, at 0x2a0 and 0x2e8
SNP = Case(read("snp/milan_v2b.report.bin"), (read("snp/milan_v2b.vcek.der"),))


def _report(good: Case, other_roots: str) -> dict[str, Case]:
    """What can be done to a report of every generation."""
    order = P384.to_bytes(72, "little")

    def report(change: Callable[[bytes], bytes]) -> Case:
        return good.but(evidence=change(good.evidence))

    return {
        FLIPPED: report(lambda d: flipped(d, 0x90)),
        SIGNATURE: report(lambda d: flipped(d, 0x2A0)),
        R_ZERO: report(lambda d: placed(d, 0x2A0, bytes(72))),
        S_ZERO: report(lambda d: placed(d, 0x2E8, bytes(72))),
        R_BIG: report(lambda d: placed(d, 0x2A0, order)),
        S_BIG: report(lambda d: placed(d, 0x2E8, order)),
        NOBODY: good.but(beside=()),
        VERSION: report(lambda d: placed(d, 0, b"\x09")),
        COLLATERAL_KIND: good.but(beside=(*good.beside, read(INTEL_2025_07[0]))),
        **of_all(good, good.evidence[0x50:0x90], other_roots),
        **of_file(good),
    }


def _snp() -> Cases:
    return {
        **_report(SNP, "snp/ask_ark_genoa.pem"),
        OTHER: SNP.but(beside=(read("snp/milan_v2.vcek.der"),)),
        FORGED: SNP.but(beside=(read("snp/milan_v2b.vcek-invalid-new.der"),)),
        DEBUG: Case(**own_chips.debug_snp()),
        REVOKED: Case(**own_chips.snp(("ask",))),
    }


# Turin: none was recorded but a VCEK
TURIN = Case(**own_chips.snp(generation=Generation.TURIN))


def _turin() -> Cases:
    return {
        **_report(TURIN, "snp/ask_ark_genoa.pem"),
        OTHER: Case(**own_chips.snp(generation=Generation.TURIN, key="two")),
        FORGED: TURIN.but(beside=(flipped(TURIN.beside[0], len(TURIN.beside[0]) - 1),)),
        DEBUG: Case(**own_chips.debug_snp(Generation.TURIN)),
        REVOKED: Case(**own_chips.snp(("ask",), Generation.TURIN)),
    }


# TDX and SGX: r || s of 64 bytes, big-endian, 4 bytes behind header and body
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
        OTHER: quote(lambda d: quotes.with_chain(d, quotes.another_chain())),
        FORGED: quote(quotes.with_edited_leaf),
        VERSION: quote(lambda d: placed(d, 0, b"\x09")),
        COLLATERAL_KIND: good.but(beside=(*good.beside, read("nvgpu/driver_rim_550.144.03.xml"))),
        **of_all(good, challenge, "nvgpu/rim_root_wrong.crt"),
    }


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
        REVOKED: Case(**own_chips.quote("tdx", is_revoked=True)),
    }


def flipped_json(answer: bytes) -> bytes:
    """An answer of Intel's service with one digit of what is signed changed: it reads as before."""
    at = answer.index(b'"pcesvn":') + 9
    return placed(answer, at, b"1" if answer[at : at + 1] != b"1" else b"2")


def _sgx() -> Cases:
    own = (read("sgx/phala_00a067_v3.collateral.json"),)
    ours = Case(**own_chips.quote("sgx"))
    return {
        **_quote(SGX, 432),
        CUT: SGX.but(evidence=SGX.evidence[:-1]),
        TCB: SGX.but(beside=own),
        COLLATERAL_TIME: SGX.but(beside=own, at="2025-10-01"),
        COLLATERAL_OTHER: SGX.but(beside=INTEL),
        COLLATERAL_FORGED: ours.but(beside=(flipped_json(ours.beside[0]), *ours.beside[1:])),
        COLLATERAL_PART: ours.but(beside=ours.beside[1:]),
        DEBUG: Case(**own_chips.quote("sgx", body=own_chips.SGX_DEBUG)),
        REVOKED: Case(**own_chips.quote("sgx", is_revoked=True)),
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

    every_kind = of_all(GPUS, challenge, "nvgpu/rim_root_wrong.crt")
    del every_kind[LATE]  # certificates of devices end with the year 9999
    return {
        **every_kind,
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
        REVOKED: Case(**own_chips.gpu(reason=x509.ReasonFlags.key_compromise)),
    }


# TPM: an RSA number behind 6 bytes of algorithm, hash and size
TPM = Case(read("tpm/tpm_evidence.json"), (read("tpm/tpm_evidence.akpub.pem"),))


def _tpm() -> Cases:
    def quoted(name: str, change: Callable[[bytes], bytes]) -> Case:
        def edit(members: dict[str, Any]) -> None:
            data = change(base64.b64decode(members["tpm_quote"][name]))
            members["tpm_quote"][name] = base64.b64encode(data).decode()

        return edited(TPM, edit)

    message = base64.b64decode(json.loads(TPM.evidence)["tpm_quote"]["message"])
    nonce_at = 10 + int.from_bytes(message[6:8], "big")
    challenge = message[nonce_at : nonce_at + 64]
    every_kind = of_all(TPM, challenge, "nvgpu/rim_root_wrong.crt")
    return {
        FLIPPED: quoted("message", lambda d: flipped(d, len(d) - 1)),
        SIGNATURE: quoted("signature", lambda d: flipped(d, 40)),
        R_ZERO: quoted("signature", lambda d: d[:6] + bytes(len(d) - 6)),
        R_BIG: quoted("signature", lambda d: d[:6] + b"\xff" * (len(d) - 6)),
        OTHER: TPM.but(beside=(read("tpm/keylime_akpub.pem"),)),
        CUT: quoted("message", lambda d: d[:-1]),
        MORE: quoted("message", lambda d: d + b"\x5a"),
        VERSION: quoted("message", lambda d: placed(d, 4, b"\x80\x17")),
        PCRS: edited(TPM, exchange_pcrs),
        LOG: TPM.but(beside=(*TPM.beside, read("tpm/eventlog_ubuntu-2404-amd-sevsnp.bin"))),
        COLLATERAL_KIND: TPM.but(beside=(*TPM.beside, read(INTEL_2025_07[0]))),
        **{name: every_kind[name] for name in (CHALLENGE, SHORT, LONG)},
    }


class Kind(NamedTuple):
    """A column: cases that pass, and what is done to them."""

    good: tuple[Case, ...]
    cases: Callable[[], Cases]


KINDS: Final[Mapping[str, Kind]] = {
    "snp": Kind((SNP, Case(**own_chips.snp())), _snp),
    "snp (Turin)": Kind((TURIN,), _turin),
    "tdx": Kind((TDX, Case(**own_chips.quote("tdx"))), _tdx),
    "sgx": Kind((SGX, Case(**own_chips.quote("sgx"))), _sgx),
    "nvgpu": Kind((GPUS, GPU, Case(**own_chips.gpu())), _nvgpu),
    "tpm": Kind((TPM,), _tpm),
    "az-snp-vtpm": Kind((vtpms.AZ_SNP,), vtpms.az_snp),
    "az-tdx-vtpm": Kind((vtpms.AZ_TDX,), vtpms.az_tdx),
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
