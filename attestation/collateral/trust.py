"""Items of a bundle -> what verifiers are given beside the roots. Half of what belongs together is refused."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from cryptography import x509

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.dcap_collateral import Collateral, QeIdentity, SignedText, TcbInfo
from hermetic.attestation.checks import Checks
from hermetic.attestation.collateral.items import Answer, Item
from hermetic.attestation.collateral.kinds import Kind
from hermetic.attestation.collateral.vouching import Vouching
from hermetic.attestation.roots import SnpTrust, TrustRoots, amd, intel, nvidia
from hermetic.attestation.roots.grace import NO_GRACE, Grace
from hermetic.errors import VerificationError

COMPLETE: Final = "item.complete"

_Value = TypeVar("_Value")


def vendor_roots() -> TrustRoots:
    """Trust in the shipped roots of AMD, Intel and NVIDIA, and in no TPM."""
    return TrustRoots(dcap=intel.load(), nvgpu=nvidia.load(), snp=SnpTrust(amd.load()))


def check_items(items: Sequence[Item], roots: TrustRoots) -> None:
    """Raise `VerificationError` unless a vendor's root vouches for each of `items`, and none lacks its other half."""
    checks = Checks()
    vouching = Vouching(items, roots)
    vouching.check_all(checks)
    if not checks.failed:
        _collateral(checks, items, vouching)
    checks.raise_failures(VerificationError)


def trust(items: Sequence[Item], roots: TrustRoots, grace: Grace = NO_GRACE) -> TrustRoots:
    """The trust `roots`, with `items` added; raises `VerificationError` as `check_items` does.

    A bundle is for a whole site. So items of a vendor of whom `roots` believes nobody are vouched for by the shipped
    roots, and not added.
    """
    known = _with_every_vendor(roots)
    check_items(items, known)
    whole = _with_items(known, items, grace)
    return replace(
        whole,
        snp=whole.snp if roots.snp.authorities else roots.snp,
        dcap=whole.dcap if roots.dcap.roots else roots.dcap,
        nvgpu=whole.nvgpu if roots.nvgpu.device_roots else roots.nvgpu,
    )


def _with_every_vendor(roots: TrustRoots) -> TrustRoots:
    shipped = vendor_roots()
    return replace(
        roots,
        snp=roots.snp if roots.snp.authorities else shipped.snp,
        dcap=roots.dcap if roots.dcap.roots else shipped.dcap,
        nvgpu=roots.nvgpu if roots.nvgpu.device_roots else shipped.nvgpu,
    )


def _with_items(roots: TrustRoots, items: Sequence[Item], grace: Grace) -> TrustRoots:
    checks = Checks()
    collateral = _collateral(checks, items, Vouching(items, roots))
    endorsements = tuple(one.content for one in items if isinstance(one.content, AmdCertificate))
    snp, dcap, nvgpu = roots.snp, roots.dcap, roots.nvgpu
    return replace(
        roots,
        snp=replace(
            snp,
            endorsements=(*snp.endorsements, *endorsements),
            crls=(*snp.crls, *_data(items, "amd-crl")),
            grace=grace,
        ),
        dcap=replace(dcap, collateral=(*dcap.collateral, *collateral), grace=grace),
        nvgpu=replace(
            nvgpu,
            rims=(*nvgpu.rims, *_data(items, "driver-rim", "vbios-rim")),
            ocsp=(*nvgpu.ocsp, *_data(items, "ocsp")),
            grace=grace,
        ),
    )


def _data(items: Iterable[Item], *kinds: Kind) -> tuple[bytes, ...]:
    return tuple(item.data for item in items if item.kind in kinds)


def _collateral(checks: Checks, items: Sequence[Item], vouching: Vouching) -> tuple[Collateral, ...]:
    """Intel's collateral, one for each TCB info."""
    answers = [item.content for item in items if isinstance(item.content, Answer)]
    return tuple(
        found
        for one in answers
        if isinstance(one.value, TcbInfo)
        and (found := _whole(checks, one.value, one, answers, items, vouching)) is not None
    )


def _whole(
    checks: Checks,
    info: TcbInfo,
    answer: Answer,
    answers: Sequence[Answer],
    items: Sequence[Item],
    vouching: Vouching,
) -> Collateral | None:
    wanted = "TD_QE" if info.id == "TDX" else "QE"
    signed = _signed(answer, vouching)
    identities = [(one.value, one) for one in answers if isinstance(one.value, QeIdentity) and one.value.id == wanted]
    lists = _lists(items, "pck-crl")
    roots = [one for one in _lists(items, "root-crl") if signed and one.issuer == signed.chain[-1].subject]
    missing = [f"the QE identity {wanted}"] * (not identities) + ["a list of a PCK CA"] * (not lists)
    missing += ["the root's list"] * (not roots)
    identity = _first(identities)
    identity_signed = None if identity is None else _signed(identity[1], vouching)
    if missing or signed is None or identity is None or identity_signed is None:
        checks.fail(COMPLETE, f"tcb-info {info.id} {info.fmspc}: all that goes with it", f"none of {missing}")
        return None
    return Collateral(info, signed, identity[0], identity_signed, roots[0], tuple(lists))


def _signed(answer: Answer, vouching: Vouching) -> SignedText | None:
    chain = vouching.signer_of(answer)
    return None if chain is None else SignedText(answer.text, answer.signature, chain)


def _lists(items: Iterable[Item], kind: Kind) -> list[x509.CertificateRevocationList]:
    found = [item.content for item in items if item.kind == kind]
    return [one for one in found if isinstance(one, x509.CertificateRevocationList)]


def _first(values: Sequence[_Value]) -> _Value | None:
    return values[0] if values else None
