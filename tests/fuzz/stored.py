"""Stored evidence with what lies beside it: whatever the files hold, there is a verdict, and a refusal has a name."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Final

from hermetic.attestation import stored
from hermetic.attestation.roots import TrustRoots
from tests.attestation.stored.rows import KEYLIME, read

SEPARATOR: Final = b"\xf0\x9f\x8d\xb0"  # between the files of one input: the evidence, then what lies beside it
TIME: Final = datetime(2025, 7, 20, tzinfo=UTC)
FILES: Final = 6


def evidence(data: bytes) -> None:
    """The first file is the evidence: refused by a named check, or accepted with claims; always JSON."""
    first, *beside = data.split(SEPARATOR)[:FILES]
    found = stored.recognise(first, beside[:3], beside[3:])
    verdict = stored.verdict(found, _trust(), TIME)
    if verdict.accepted == bool(verdict.failed):
        raise AssertionError(f"stored: accepted {verdict.accepted}, failed {verdict.failed}")
    if (verdict.claims is None) == (verdict.genuine and verdict.kind not in {"rim", "vcek", "vlek"}):
        raise AssertionError(f"stored: {verdict.kind}, genuine {verdict.genuine}, claims {verdict.claims}")
    json.dumps(verdict.to_json(), ensure_ascii=False, allow_nan=False).encode()


@cache
def _trust() -> TrustRoots:
    return stored.shipped()


def seeds() -> Iterator[bytes]:
    """A report with its VCEK; a TPM's quote in JSON, and in parts, with its key; a VLEK; no evidence at all."""
    yield SEPARATOR.join(map(read, ("snp/milan_v2b.report.bin", "snp/milan_v2b.vcek.der")))
    yield SEPARATOR.join(map(read, ("tpm/tpm_evidence.json", "tpm/tpm_evidence.akpub.pem")))
    yield SEPARATOR.join(map(read, ("tpm/keylime_quote.out", *KEYLIME)))
    yield read("snp/milan_v3_vlek.vlek.der")
    yield read("tdx/ars_td_qeidentity.json") + SEPARATOR + read("tdx/ars_root_ca_crl.der")
    yield b'[{"arch":"HOPPER","evidence":"EeAB/w==","certificate":"LS0t","nonce":"00"}]'


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"stored-evidence": evidence}
SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {"stored-evidence": seeds}
