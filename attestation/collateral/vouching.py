"""Whether a vendor's root vouches for an item: signatures and chains, as of the first moment at which it is valid.

Whether its time has passed is another question (status.py), asked again by verifiers for each piece of evidence. An
item is judged among those that came with it: Intel's answers and NVIDIA's OCSP answers need the chains beside them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from hermetic.attestation.abi.amd_certificate import AmdCertificate, AmdRevocationList
from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.abi.snp import SigningKey
from hermetic.attestation.checks import Checks
from hermetic.attestation.collateral.items import Answer, Chain, Item
from hermetic.attestation.collateral.kinds import Kind
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.verifiers import certificates, p384, snp_chain
from hermetic.attestation.verifiers import ocsp as revocation
from hermetic.attestation.verifiers.dcap import PCK_ISSUERS
from hermetic.attestation.verifiers.dcap_chain import check_chain, check_signature, common_name
from hermetic.attestation.verifiers.dcap_collateral import TCB_SIGNER
from hermetic.errors import InvalidRequestError

VOUCHED: Final = "item.vouched"


@dataclass(frozen=True)
class Vouching:
    """Judges items of one bundle."""

    items: Sequence[Item]
    roots: TrustRoots

    def check_all(self, checks: Checks) -> None:
        """Record `item.vouched` for each item that fails it, or once where all pass."""
        refused = False
        for item in self.items:
            own = Checks()
            self.check(own, item)
            if own.failed:
                refused = True
                checks.fail(VOUCHED, f"{item}: a vendor's root that vouches for it", "; ".join(map(str, own.failed)))
        if not refused:
            checks.hold(VOUCHED)

    def check(self, checks: Checks, item: Item) -> None:
        """Record the checks of one item, named as verifiers name them."""
        try:
            _JUDGES[item.kind](self, checks, item)
        except InvalidRequestError as error:
            checks.fail(item.kind, "an item that can be judged", error)

    def signer_of(self, answer: Answer) -> Chain | None:
        """The chain of this bundle whose leaf signs collateral and has signed `answer`."""
        for chain in self._intel_chains:
            own = Checks()
            check_signature(own, "signature", chain[0].public_key(), answer.signature, answer.text.encode())
            if common_name(chain[0].subject) == TCB_SIGNER and not own.failed:
                return chain
        return None

    @cached_property
    def _intel_chains(self) -> tuple[Chain, ...]:
        return tuple(chain for chain in self._chains() if chain[-1] in self.roots.dcap.roots and self._is_good(chain))

    @cached_property
    def _nvidia_paths(self) -> tuple[Chain, ...]:
        """Good chains below NVIDIA's roots, from each certificate in them that may issue."""
        given = [*self._chains(), *self._signers_of_manifests()]
        roots = (*self.roots.nvgpu.device_roots, *self.roots.nvgpu.rim_roots)
        good = [chain for chain in given if chain[-1] in roots and self._is_good(chain)]
        return tuple(dict.fromkeys(chain[start:] for chain in good for start in range(1, len(chain))))

    def _is_good(self, chain: Chain) -> bool:
        own = Checks()
        check_chain(own, "chain", chain, [chain[-1]], _start(chain))
        return not own.failed

    def _chains(self) -> Iterator[Chain]:
        return (item.content for item in self.items if isinstance(item.content, tuple))

    def _signers_of_manifests(self) -> Iterator[Chain]:
        for item in self.items:
            if isinstance(item.content, Rim):
                leaf, *rest = map(certificates.parse, item.content.certificates)
                try:
                    yield certificates.verify_path(leaf, rest, self.roots.nvgpu.rim_roots, item.start)
                except InvalidRequestError:
                    continue  # refused as an item of its own

    def _amd_certificate(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, AmdCertificate):
            authorities = self.roots.snp.authorities
            start = max([item.start, *(one.start for a in authorities for one in (a.ark, a.ask, a.asvk))])
            key = SigningKey[item.kind.upper()]
            found = snp_chain.check_chain(checks, item.content, key, SnpTrust(authorities), (), start)
            if found is not None:
                checks.equal("snp.product", str(found.generation), item.subject.split(" ")[0])

    def _amd_crl(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, AmdRevocationList):
            arks = [one.ark for one in self.roots.snp.authorities if one.ark.subject == item.content.issuer]
            checks.demand("snp.crl.issuer", len(arks) == 1, "an ARK that is trusted", item.subject)
            for ark in arks:
                try:
                    snp_chain.verify_signature(ark, item.content.signed, item.content.signature)
                except InvalidSignature:
                    checks.fail("snp.crl.signature", f"a list signed by {ark.common_name}", "another signature")

    def _answer(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, Answer):
            found = self.signer_of(item.content) is not None
            names = sorted(common_name(chain[0].subject) for chain in self._intel_chains)
            checks.demand("collateral.signature", found, f"a signature by {TCB_SIGNER}, its chain in the bundle", names)

    def _pck_crl(self, checks: Checks, item: Item) -> None:
        issuers = [chain[0] for chain in self._intel_chains if common_name(chain[0].subject) in PCK_ISSUERS]
        wanted = f"a list signed by {' or '.join(PCK_ISSUERS)}, its chain in the bundle"
        checks.demand("collateral.pck_crl.signature", _has_signed(issuers, item), wanted, item.subject)

    def _root_crl(self, checks: Checks, item: Item) -> None:
        wanted = "a list signed by a root that is trusted"
        checks.demand("collateral.root_crl.signature", _has_signed(self.roots.dcap.roots, item), wanted, item.subject)

    def _chain(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, tuple):
            chain = item.content
            intel, nvgpu = self.roots.dcap.roots, self.roots.nvgpu
            check_chain(checks, "chain", chain, (*intel, *nvgpu.device_roots, *nvgpu.rim_roots), item.start)
            if chain[-1] in intel:
                wanted = (TCB_SIGNER, *PCK_ISSUERS)
                name = common_name(chain[0].subject)
                checks.demand("chain.name", name in wanted, f"one of {', '.join(wanted)}", name)

    def _rim(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, Rim):
            rim = item.content
            checks.equal("rim.digest", rim.content_digest, rim.digest)
            leaf, *rest = map(certificates.parse, rim.certificates)
            p384.check_signature(checks, "rim", leaf.public_key(), rim.signature, rim.signed_info)
            certificates.verify_path(leaf, rest, self.roots.nvgpu.rim_roots, item.start)

    def _ocsp(self, checks: Checks, item: Item) -> None:
        if isinstance(item.content, ocsp.OCSPResponse):
            (single,) = item.content.responses
            paths = [
                path for path in self._nvidia_paths if _is_ec(path[0]) and revocation.names_issuer(single, path[0])
            ]
            wanted = "a certificate's issuer, in a chain or manifest of the bundle, below a root of NVIDIA's"
            checks.demand("ocsp.issuer", bool(paths), wanted, item.subject)
            for path in paths[:1]:
                revocation.demand_authority(item.content, path, item.start)


_JUDGES: Final[Mapping[Kind, Callable[[Vouching, Checks, Item], None]]] = {
    "amd-crl": Vouching._amd_crl,  # noqa: SLF001 - the table of its own methods
    "driver-rim": Vouching._rim,  # noqa: SLF001
    "ocsp": Vouching._ocsp,  # noqa: SLF001
    "pck-crl": Vouching._pck_crl,  # noqa: SLF001
    "qe-identity": Vouching._answer,  # noqa: SLF001
    "root-crl": Vouching._root_crl,  # noqa: SLF001
    "signing-chain": Vouching._chain,  # noqa: SLF001
    "tcb-info": Vouching._answer,  # noqa: SLF001
    "vbios-rim": Vouching._rim,  # noqa: SLF001
    "vcek": Vouching._amd_certificate,  # noqa: SLF001
    "vlek": Vouching._amd_certificate,  # noqa: SLF001
}


def _has_signed(issuers: Sequence[x509.Certificate], item: Item) -> bool:
    found = item.content
    if not isinstance(found, x509.CertificateRevocationList):
        return False
    keys = [one.public_key() for one in issuers if one.subject == found.issuer]
    return any(isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key) for key in keys)


def _is_ec(certificate: x509.Certificate) -> bool:
    return isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def _start(chain: Chain) -> datetime:
    return max(one.not_valid_before_utc for one in chain)
