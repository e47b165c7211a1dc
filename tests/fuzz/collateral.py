"""Bundles of collateral, their items, and the evidence that says what a machine needs of them."""

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from hermetic.attestation import stored
from hermetic.attestation.collateral import Bundle, of_evidence, pack, read_signers
from hermetic.attestation.collateral.items import read
from hermetic.attestation.collateral.kinds import KINDS
from hermetic.attestation.log import NoteSigner
from hermetic.errors import InvalidRequestError, VerificationError
from tests.attestation.collateral import by_hand
from tests.attestation.collateral.by_hand import VECTORS

SIGNERS: Final = read_signers(by_hand.verifier_line())
SIGNER: Final = NoteSigner.generate("fuzz.example")
TIME: Final = datetime(2026, 3, 17, tzinfo=UTC)


def bundles(data: bytes) -> None:
    """A bundle, whoever signed it: refused by a named check, or the same items when packed again."""
    for signed in (True, False):
        try:
            found = Bundle.load(data, SIGNERS) if signed else Bundle.load_without_asking_who_signed(data)
        except VerificationError as error:
            if not error.failures:
                raise AssertionError("bundle: refused without a name") from error
            continue
        again = Bundle.load(pack(found.items, found.number, found.created, [SIGNER]), [SIGNER.verifier()])
        if (again.items, again.digest) != (found.items, found.digest):
            raise AssertionError(f"bundle: {found}")


def items(data: bytes) -> None:
    """The first byte is a kind, the rest an item of it: refused, or with a subject that can stand in a manifest."""
    try:
        item = read(KINDS[data[0] % len(KINDS)], data[1:]) if data else None
    except InvalidRequestError:
        return
    if item is not None and (not item.subject.isascii() or not item.subject.isprintable()):
        raise AssertionError(f"item: {item.subject!r}")


def machines(data: bytes) -> None:
    """Evidence of a machine: refused, or needs with subjects."""
    try:
        evidence = stored.recognise(data)
        found = of_evidence("m", evidence.kind, evidence.evidence)
    except InvalidRequestError:
        return
    if not found.needs and not found.gpus:
        raise AssertionError(f"machine: {found}")


def bundle_seeds() -> Iterator[bytes]:
    """Of one item and of two; with a signature of someone else; whose contents are not what they were."""
    small = [by_hand.VCEK]
    yield by_hand.whole(small)
    yield by_hand.whole([by_hand.IDENTITY, by_hand.VCEK])
    yield by_hand.whole(small, name=by_hand.STRANGER, seed=by_hand.STRANGER_SEED)
    yield by_hand.bundle(by_hand.manifest(by_hand.entries(small)), [b"\0" * len(by_hand.VCEK[4])])


def item_seeds() -> Iterator[bytes]:
    """One of each kind that is small enough."""
    files = {
        "amd-crl": "", "pck-crl": "tdx/ars_pck_platform_crl.der", "qe-identity": "tdx/ars_td_qeidentity.json",
        "root-crl": "tdx/ars_root_ca_crl.der", "vcek": "snp/turin.vcek.der", "vlek": "snp/milan_v3_vlek.vlek.der",
        "tcb-info": "tdx/google_50806f.tcbinfo.json",
    }  # fmt: skip
    for kind, file in files.items():
        yield bytes([KINDS.index(kind)]) + (by_hand.file(file) if file else b"\x30\x00")
    yield bytes([KINDS.index("signing-chain")]) + by_hand.TCB_SIGNER[4]


def machine_seeds() -> Iterator[bytes]:
    """A report, and a short quote in JSON."""
    yield (VECTORS / "snp/genoa_v5.report.bin").read_bytes()
    quote = (VECTORS / "sgx/phala_00a067_v3.quote").read_bytes()
    yield b'{"quote":"' + base64.b64encode(quote[:2400]) + b'"}'
    yield b'{"device_evidence_list":[{"arch":"HOPPER","evidence":"AA==","certificate":"AA=="}]}'


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "collateral-bundles": bundles,
    "collateral-items": items,
    "collateral-machines": machines,
}
SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "collateral-bundles": bundle_seeds,
    "collateral-items": item_seeds,
    "collateral-machines": machine_seeds,
}
