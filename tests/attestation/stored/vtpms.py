"""What is done to evidence of Azure's vTPMs: the vTPM's quote, and the hardware's report of its boot."""

import base64
import json
from collections.abc import Callable
from typing import Any

from hermetic.attestation.abi.dcap import Quote
from tests.attestation.stored import quotes
from tests.attestation.stored.cases import (
    BINDING,
    COLLATERAL_TIME,
    FLIPPED,
    FORGED,
    OTHER,
    PCRS,
    R_BIG,
    R_ZERO,
    SIGNATURE,
    TCB,
    Case,
    Cases,
    edited,
    exchange_pcrs,
    flipped,
    of_all,
    placed,
)
from tests.attestation.stored.quotes import INTEL
from tests.attestation.stored.rows import read

AZ_SNP = Case(read("snp/az_snp_milan_v1.json"))
AZ_TDX = Case(read("tdx/az_tdx_v1.json"))


def _url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _azure(good: Case, other_roots: str, challenge: bytes) -> dict[str, Case]:
    def quoted(name: str, change: Callable[[bytes], bytes]) -> Case:
        def edit(members: dict[str, Any]) -> None:
            members["tpm_quote"][name] = change(bytes.fromhex(members["tpm_quote"][name])).hex()

        return edited(good, edit)

    def rebound(members: dict[str, Any]) -> None:
        report = _url(members["hcl_report"])
        at = report.index(b'"n":"') + 10
        members["hcl_report"] = _text(placed(report, at, b"B" if report[at : at + 1] != b"B" else b"C"))

    return {
        FLIPPED: quoted("message", lambda d: flipped(d, len(d) - 1)),
        SIGNATURE: quoted("signature", lambda d: flipped(d, 9)),
        R_ZERO: quoted("signature", lambda d: bytes(len(d))),
        R_BIG: quoted("signature", lambda d: b"\xff" * len(d)),
        PCRS: edited(good, exchange_pcrs),
        BINDING: edited(good, rebound),
        **of_all(good, challenge, other_roots),
    }


def az_snp() -> Cases:
    def vcek(name: str) -> Case:
        return edited(AZ_SNP, lambda members: members.update(vcek=_text(read(name))))

    return {
        **_azure(AZ_SNP, "snp/ask_ark_genoa.pem", b"challenge"),
        OTHER: vcek("snp/milan_v2.vcek.der"),
        FORGED: vcek("snp/milan_v2b.vcek-invalid-new.der"),
    }


def az_tdx() -> Cases:
    members = json.loads(AZ_TDX.evidence)
    message = bytes.fromhex(members["tpm_quote"]["message"])
    size = int.from_bytes(message[6:8], "big")  # of the signer's name
    nonce_at = 10 + size
    challenge = message[nonce_at : nonce_at + int.from_bytes(message[nonce_at - 2 : nonce_at], "big")]
    leaf = Quote.parse(read("tdx/phala_b0c06f_v4.quote")).signature.certificates

    def quote(change: Callable[[bytes], bytes]) -> Case:
        return edited(AZ_TDX, lambda members: members.update(td_quote=_text(change(_url(members["td_quote"])))))

    return {
        **_azure(AZ_TDX, "nvgpu/rim_root_wrong.crt", challenge),
        OTHER: quote(lambda d: quotes.with_chain(d, leaf)),
        FORGED: quote(quotes.with_edited_leaf),
        TCB: AZ_TDX.but(beside=INTEL),
        COLLATERAL_TIME: AZ_TDX.but(beside=INTEL, at="2025-10-01"),
    }
