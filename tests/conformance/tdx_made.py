"""Cases of docs/spec/tdx-evidence.md that Intel would have to sign: platforms and collateral of an Intel of our own."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap import Quote
from tests.conformance import corpus
from tests.conformance.build import Book, remember, source
from tests.conformance.intel import Holder, Intel, holder, text_of
from tests.conformance.tdx import JUNE, PHALA, PHALA_SET, SGX, SGX_SET, add


def cases(book: Book) -> None:
    """All of them."""
    Made(book).cases()


@dataclass
class Made:
    """An Intel of our own, its platform, and collateral in pieces."""

    book: Book
    intel: Intel = field(init=False)

    def __post_init__(self) -> None:
        self.intel = Intel(corpus.data(PHALA), JUNE)
        recorded = corpus.data(PHALA_SET)
        self.tcb, self.qe = text_of(recorded, "tcb_info"), text_of(recorded, "qe_identity")
        self.root = remember(self.book, "intel-root.der", self.intel.root.der)
        self.base: dict[str, Any] = {}
        self.book.trust("made-intel", dcap={"roots": [self.root]})

    def piece(self, name: str, data: bytes) -> Any:
        """A piece of collateral: the first of its name as a file, the others as edits of that."""
        if name not in self.base:
            self.base[name] = remember(self.book, name, data)
        return source(self.base[name], data)

    def trust(self, name: str, *, tcb: str | None = None, qe: str | None = None, root_crl: bytes | None = None, pck_crl: bytes | None = None,
              tcb_answer: bytes | None = None, qe_answer: bytes | None = None, chain: bytes | None = None, more: Any = ()) -> str:  # fmt: skip
        """Trust in our root, with this collateral."""
        intel = self.intel
        pieces = [
            self.piece("tcb-info.json", tcb_answer or intel.answer("tcbInfo", tcb or self.tcb)),
            self.piece("qe-identity.json", qe_answer or intel.answer("enclaveIdentity", qe or self.qe)),
            self.piece("signers.pem", chain or intel.chain()),
            self.piece("root.crl", root_crl or intel.crl(intel.root)),
            self.piece("pck.crl", pck_crl or intel.crl(intel.ca)),
            *more,
        ]
        return self.book.trust(f"made-intel-{name}", dcap={"roots": [self.root], "collateral": pieces})

    def add(
        self,
        name: str,
        statements: str,
        refusals: Any = None,
        *,
        quote: bytes | None = None,
        trust: str | None = None,
        time: datetime = JUNE,
        **how: Any,
    ) -> None:
        """A case about a quote of our platform."""
        made = quote or self.quote
        add(
            self.book,
            name,
            statements,
            self.piece("tdx.quote", made),
            trust or self.good,
            time,
            refusals,
            data=Quote.parse(made).body.report_data,
            **how,
        )

    def cases(self) -> None:
        """All of them."""
        self.quote = self.intel.quoted()
        self.good = self.trust("good")
        self.add(
            "made", "TDX-64 TDX-41 TDX-44 TDX-46 TDX-49 TDX-54 TDX-57", says={"/tdx/platform/tcb/status": "UpToDate"}
        )
        self._platform()
        self._collateral()
        self._levels()
        self._sgx()

    def _platform(self) -> None:
        intel = self.intel
        renamed = intel.leaf("Intel SGX PCK Certificat")
        self.add("pck-of-another-name", "TDX-26", ["tdx.pck.names"], quote=intel.quoted(pck=renamed))
        strange = holder("Intel SGX Some CA", intel.root, intel.now, ca=True)
        pck = intel.leaf(issuer=strange)
        self.add(
            "ca-of-another-name",
            "TDX-26",
            ["tdx.pck.names"],
            quote=intel.quoted(pck=pck, chain=[pck, strange, intel.root]),
            trust="made-intel",
        )
        broken = intel.leaf(says=intel.says.value[:-1])
        self.add("extension-malformed", "TDX-27", ["tdx.pck.extension"], quote=intel.quoted(pck=broken))
        late = intel.leaf(life=(JUNE - timedelta(days=9), JUNE - timedelta(days=1)))
        self.add("pck-ended", "TDX-25", ["tdx.pck.time"], quote=intel.quoted(pck=late))
        self.add(
            "qe-in-debug-mode", "TDX-31", ["tdx.qe.debug"], quote=intel.quoted(qe={48: b"\x13"}), trust="made-intel"
        )
        self.add("qe-names-another-key", "TDX-30", ["tdx.qe.attestation_key"], quote=intel.quoted(qe={320: bytes(32)}))
        self.add("qe-names-more", "TDX-30", ["tdx.qe.attestation_key"], quote=intel.quoted(qe={383: b"\1"}))
        self.add(
            "signed-by-another-vendor",
            "TDX-22",
            ["tdx.quote.vendor"],
            quote=intel.quoted(header={12: bytes(16)}),
            trust="made-intel",
        )
        unlike = intel.leaf(algorithm=hashes.SHA384())
        self.add("witness-refuses", "TDX-64", ["tdx.witness"], quote=intel.quoted(pck=unlike))
        self.add("debug-domain", "TDX-16 TDX-65", quote=intel.quoted(body={120: b"\1"}), says={"/tdx/debug": True})
        self.add(
            "profiled-domain",
            "TDX-15 TDX-16",
            quote=intel.quoted(body={120: b"\x20"}),
            trust="made-intel",
            says={"/tdx/debug": True, "/tdx/attributes/0": "PERF_PROF"},
        )
        self.add(
            "unknown-debug-bit",
            "TDX-15 TDX-16",
            quote=intel.quoted(body={120: b"\x80"}),
            trust="made-intel",
            says={"/tdx/debug": True, "/tdx/attributes/0": "BIT_7"},
        )
        self.add(
            "without-sept-ve-disable", "TDX-65", quote=intel.quoted(body={123: b"\0"}), says={"/tdx/attributes": []}
        )

    def _collateral(self) -> None:
        intel = self.intel
        days = timedelta(days=1)

        def refused(
            name: str, statements: str, refusals: list[str], *, changed: Mapping[str, Any] | None = None, **changes: Any
        ) -> None:
            self.add(
                name,
                statements,
                [f"tdx.collateral.{one}" for one in refusals],
                trust=self.trust(name, **changes, **(changed or {})),
            )

        both = ("tcb_info", "qe_identity")
        stranger = Intel(corpus.data(PHALA), JUNE)
        refused(
            "signers-of-a-stranger",
            "TDX-37",
            [f"{one}.signer.chain" for one in both],
            chain=stranger.chain(),
            root_crl=intel.crl(intel.root),
        )
        old = holder("Intel SGX TCB Signing", intel.root, JUNE, ca=False, life=(JUNE - 9 * days, JUNE - days))
        refused("signer-ended", "TDX-38", [f"{one}.signer.time" for one in both], chain=intel.chain(old),
                tcb_answer=intel.answer("tcbInfo", self.tcb, old), qe_answer=intel.answer("enclaveIdentity", self.qe, old))  # fmt: skip
        platform = intel.pck
        refused("signed-by-a-platform", "TDX-39", [f"{one}.signer.name" for one in both], chain=pem_of(platform, intel.ca, intel.root),
                tcb_answer=intel.answer("tcbInfo", self.tcb, platform), qe_answer=intel.answer("enclaveIdentity", self.qe, platform))  # fmt: skip
        for kind, name, text, argument in (
            ("tcbInfo", "tcb_info", self.tcb, "tcb_answer"),
            ("enclaveIdentity", "qe_identity", self.qe, "qe_answer"),
        ):
            slug = name.replace("_", "-")
            good = intel.answer(kind, text)
            refused(
                f"{slug}-changed",
                "TDX-41",
                [f"{name}.signature"],
                changed={argument: good.replace(b"2024-03-13", b"2024-03-14", 1)},
            )
            refused(
                f"{slug}-numbers",
                "TDX-40",
                [f"{name}.signature.numbers"],
                changed={argument: good[:-130] + b"0" * 128 + good[-2:]},
            )
            refused(
                f"{slug}-ended",
                "TDX-42",
                [f"{name}.time"],
                changed={
                    argument: intel.answer(kind, text.replace('"nextUpdate":"2025-07-19', '"nextUpdate":"2025-06-19'))
                },
            )
        sgx_qe = self.qe.replace('"TD_QE"', '"QE"')
        bundle = self.bundle(qe_identity=sgx_qe)
        self.add(
            "identity-of-the-other-enclave",
            "TDX-43",
            ["tdx.collateral.qe_identity.id"],
            trust=self.bundled("other-enclave", bundle),
        )
        refused("root-list-by-another", "TDX-44", ["root_crl.signature"], root_crl=intel.crl(intel.root, by=intel.ca))
        refused("pck-list-by-another", "TDX-46", ["pck_crl.signature"], pck_crl=intel.crl(intel.ca, by=intel.root))
        ended = (JUNE - 9 * days, JUNE - days)
        refused("root-list-ended", "TDX-45", ["root_crl.time"], root_crl=intel.crl(intel.root, life=ended))
        refused("pck-list-ended", "TDX-47", ["pck_crl.time"], pck_crl=intel.crl(intel.ca, life=ended))
        refused("pck-revoked", "TDX-48", ["revoked"], pck_crl=intel.crl(intel.ca, intel.pck))
        refused("ca-revoked", "TDX-48", ["revoked"], root_crl=intel.crl(intel.root, intel.ca))
        refused("signer-revoked", "TDX-48", ["revoked"], root_crl=intel.crl(intel.root, intel.signer))
        self.add(
            "somebody-else-revoked",
            "TDX-48",
            trust=self.trust("somebody-else-revoked", pck_crl=intel.crl(intel.ca, stranger.pck)),
        )
        newer = self.tcb.replace('"issueDate":"2025-06-19', '"issueDate":"2025-06-20').replace(
            '"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":18'
        )
        answer = self.piece("tcb-info.json", intel.answer("tcbInfo", newer.replace("T10:16:03Z", "T00:00:00Z")))
        self.add("youngest-collateral-counts", "TDX-36", trust=self.trust("two", more=[answer]),
                 says={"/tdx/platform/tcb/date": "2024-03-13T00:00:00Z"})  # fmt: skip
        for name, tcb, qe in (
            ("tcb-info-version-2", self.tcb.replace('"version":3', '"version":2'), None),
            ("qe-identity-version-1", None, self.qe.replace('"version":2', '"version":1')),
        ):
            self.add(name, "TDX-18", ["malformed"], trust=self.trust(name, tcb=tcb, qe=qe))
        self.add("in-a-bundle", "TDX-17", trust=self.bundled("bundle", self.bundle()))

    def bundle(self, **changes: str) -> dict[str, str]:
        """Collateral as one file."""
        intel = self.intel
        members = {"tcb_info": self.tcb, "qe_identity": self.qe, **changes}
        return {
            **members,
            **{f"{name}_signature": intel.signer.sign(text.encode()).hex() for name, text in members.items()},
            **{f"{name}_issuer_chain": intel.chain().decode() for name in members},
            "root_ca_crl": intel.crl(intel.root).hex(), "pck_crl": intel.crl(intel.ca).hex(),
        }  # fmt: skip

    def bundled(self, name: str, members: dict[str, str]) -> str:
        """Trust in our root with one bundle."""
        file = self.piece("bundle.json", json.dumps(members).encode())
        return self.book.trust(f"made-intel-{name}", dcap={"roots": [self.root], "collateral": [file]})

    def _levels(self) -> None:
        intel = self.intel

        def case(
            name: str,
            statements: str,
            refusals: Any = None,
            *,
            tcb: str | None = None,
            identity: str | None = None,
            says: Any = None,
            **how: Any,
        ) -> None:
            trust = self.trust(name, tcb=tcb, qe=identity) if tcb or identity else None
            self.add(name, statements, refusals, trust=trust, quote=intel.quoted(**how) if how else None, says=says)

        case("qe-of-another-signer", "TDX-49", ["tdx.qe.mr_signer"], qe={128: b"\xff"})
        case("qe-of-another-product", "TDX-50", ["tdx.qe.prod_id"], qe={256: b"\3\0"})
        case("qe-misc-select", "TDX-51", ["tdx.qe.misc_select"], qe={16: b"\1"})
        case("qe-attributes", "TDX-52", ["tdx.qe.attributes"], qe={48: b"\x91"})
        case("qe-attributes-that-are-masked-out", "TDX-52", None, qe={56: b"\xff"})
        case("qe-below-every-level", "TDX-53", ["tdx.qe.level"], qe={258: b"\3\0"})
        case("module-version-2", "TDX-54", ["tdx.module.identity"], body={1: b"\2"})
        case("module-of-another-signer", "TDX-55", ["tdx.module.mr_signer"], body={64: b"\xff"})
        case("module-attributes", "TDX-56", ["tdx.module.attributes"], body={112: b"\1"})
        case("module-below-every-level", "TDX-57 TDX-61", ["tdx.module.level"], body={0: b"\1"})
        case("module-of-version-0", "TDX-58", None, body={1: b"\0"}, says={"/tdx/platform/tcb/module_status": None})
        case("module-of-version-0-counts-with-the-platform", "TDX-58 TDX-61", ["tdx.tcb.level"], body={0: b"\1\0"})
        case("microcode-below-every-level", "TDX-59", ["tdx.tcb.level"], body={2: b"\0"})
        case(
            "module-out-of-date",
            "TDX-63",
            None,
            body={0: b"\3"},
            says={"/tdx/platform/tcb/status": "OutOfDate", "/tdx/platform/tcb/platform_status": "UpToDate"},
        )
        old = self.qe.replace('"UpToDate"', '"OutOfDate"')
        case("qe-out-of-date", "TDX-63", None, identity=old, says={"/tdx/platform/tcb/status": "OutOfDate"})
        revoked = self.qe.replace('"UpToDate"', '"Revoked"')
        case("qe-revoked", "TDX-63 TDX-64", ["tdx.witness"], identity=revoked)
        case("pce-svn", "TDX-59", ["tdx.tcb.level"], tcb=re.sub(r'"pcesvn":\d+', '"pcesvn":99', self.tcb))

    def _sgx(self) -> None:
        intel = Intel(corpus.data(SGX), JUNE)
        root = remember(self.book, "intel-root-sgx.der", intel.root.der)
        recorded = corpus.data(SGX_SET)
        texts = text_of(recorded, "tcb_info"), text_of(recorded, "qe_identity")
        names = (
            "sgx.quote",
            "sgx-tcb-info.json",
            "sgx-qe-identity.json",
            "sgx-signers.pem",
            "sgx-root.crl",
            "sgx-pck.crl",
        )

        def trusted(name: str, tcb: str, qe: str) -> str:
            pieces = [
                intel.answer("tcbInfo", tcb),
                intel.answer("enclaveIdentity", qe),
                intel.chain(),
                intel.crl(intel.root),
                intel.crl(intel.ca),
            ]
            files = [self.piece(one, data) for one, data in zip(names[1:], pieces, strict=True)]
            return self.book.trust(f"made-intel-{name}", dcap={"roots": [root], "collateral": files})

        good = trusted("sgx", *texts)

        def case(
            name: str, statements: str, refusals: Any = None, says: Any = None, trust: str = good, **how: Any
        ) -> None:
            made = intel.quoted(**how)
            add(
                self.book,
                name,
                statements,
                self.piece(names[0], made),
                trust,
                JUNE,
                refusals,
                kind="sgx",
                data=Quote.parse(made).body.report_data,
                says=says,
            )

        case("sgx-made", "TDX-43 TDX-64", says={"/sgx/debug": False})
        case("sgx-debug", "TDX-65", body={48: b"\x07"}, says={"/sgx/debug": True})
        case("sgx-qe-level", "TDX-53", ["sgx.qe.level"], qe={258: b"\0\0"})
        case(
            "sgx-level",
            "TDX-59",
            ["sgx.tcb.level"],
            trust=trusted("sgx-high", texts[0].replace('"pcesvn":', '"pcesvn":9'), texts[1]),
        )


def pem_of(*chain: Holder) -> bytes:
    """Certificates, PEM."""
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain)
