"""Cases of docs/spec/tdx-evidence.md that Intel would have to sign: platforms and collateral of an Intel of our own."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap import Quote
from tests.conformance import corpus
from tests.conformance.build import Book, remember, source
from tests.conformance.intel import Holder, Intel, endless, holder, text_of
from tests.conformance.tdx import JUNE, PHALA, PHALA_SET, SGX, SGX_SET, add


def cases(book: Book) -> None:
    """All of them."""
    Made(book).cases()
    Made(book, "sgx", SGX, SGX_SET).cases()


@dataclass
class Made:
    """An Intel of our own, its platform, and collateral in pieces; of SGX, names begin with `sgx-`."""

    book: Book
    kind: str = "tdx"
    recorded: str = PHALA
    published: str = PHALA_SET
    intel: Intel = field(init=False)

    def __post_init__(self) -> None:
        self.before = "" if self.kind == "tdx" else f"{self.kind}-"
        self.intel = Intel(corpus.data(self.recorded), JUNE)
        recorded = corpus.data(self.published)
        self.fmspc = json.loads(text_of(recorded, "tcb_info"))["fmspc"].lower()
        self.tcb, self.qe = text_of(recorded, "tcb_info"), text_of(recorded, "qe_identity")
        self.root = remember(self.book, f"{self.before}intel-root.der", self.intel.root.der)
        self.base: dict[str, Any] = {}
        self.bare = self.book.trust(f"{self.before}made-intel", dcap={"roots": [self.root]})

    def piece(self, name: str, data: bytes) -> Any:
        """A piece of collateral: the first of its name as a file, the others as edits of that."""
        if name not in self.base:
            self.base[name] = remember(self.book, f"{self.before}{name}", data)
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
        return self.book.trust(f"{self.before}made-intel-{name}", dcap={"roots": [self.root], "collateral": pieces})

    def add(
        self,
        name: str,
        statements: str,
        refusals: Any = None,
        *,
        quote: bytes | None = None,
        trust: str | None = None,
        time: datetime = JUNE,
        says: Any = None,
        **how: Any,
    ) -> None:
        """A case about a quote of our platform."""
        made = quote or self.quote
        if says is not None:
            how["says"] = {pointer.replace("/tdx/", f"/{self.kind}/"): value for pointer, value in says.items()}
        add(
            self.book,
            f"{self.before}{name}",
            statements,
            self.piece("quote", made),
            trust or self.good,
            time,
            None if refusals is None else [one.replace("tdx.", f"{self.kind}.") for one in refusals],
            kind=self.kind,
            data=Quote.parse(made).body.report_data,
            **how,
        )

    def cases(self) -> None:
        """All of them."""
        self.quote = self.intel.quoted()
        self.good = self.trust("good")
        said = {"/tdx/debug": False, "/tdx/platform/fmspc": self.fmspc}
        self.add("made", "TDX-64 TDX-41 TDX-43 TDX-44 TDX-46 TDX-49", says=said)
        self._platform()
        self._collateral()
        self._levels()
        if self.kind == "tdx":
            self._domain()
            self._module()
        else:
            self.add("debug", "TDX-65", quote=self.intel.quoted(body={48: b"\x07"}), says={"/tdx/debug": True})

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
            trust=self.bare,
        )
        broken = intel.leaf(says=intel.says.value[:-1])
        self.add("extension-malformed", "TDX-27", ["tdx.pck.extension"], quote=intel.quoted(pck=broken))
        late = intel.leaf(life=(JUNE - timedelta(days=9), JUNE - timedelta(days=1)))
        self.add("pck-ended", "TDX-25", ["tdx.pck.time"], quote=intel.quoted(pck=late))
        self.add("qe-in-debug-mode", "TDX-31", ["tdx.qe.debug"], quote=intel.quoted(qe={48: b"\x13"}), trust=self.bare)
        self.add("qe-names-another-key", "TDX-30", ["tdx.qe.attestation_key"], quote=intel.quoted(qe={320: bytes(32)}))
        self.add("qe-names-more", "TDX-30", ["tdx.qe.attestation_key"], quote=intel.quoted(qe={383: b"\1"}))
        self.add(
            "signed-by-another-vendor",
            "TDX-22",
            ["tdx.quote.vendor"],
            quote=intel.quoted(header={12: bytes(16)}),
            trust=self.bare,
        )
        raw = self.quote
        spoken = {"at": len(raw), "insert": b"hello".hex()}
        base = self.piece("quote", raw)
        add(self.book, f"{self.before}words-behind-it", "TDX-21", {**({"file": base} if isinstance(base, str) else base), "edits": [spoken]}, self.bare, JUNE,
            [f"{self.kind}.quote.padding"], kind=self.kind, data=Quote.parse(raw).body.report_data)  # fmt: skip
        parsed = Quote.parse(raw)
        at = raw.index(parsed.signature.qe_report_signature, len(parsed.signed))
        for name, start, check in (
            ("quote", len(parsed.signed) + 4, "tdx.quote.signature.numbers"),
            ("qe", at, "tdx.qe.signature.numbers"),
        ):
            zero = raw[:start] + bytes(32) + raw[start + 32 :]
            self.add(f"{name}-r-zero", "TDX-28" if name == "qe" else "TDX-32", [check], quote=zero, trust=self.bare)
        other = intel.leaf(curve=ec.SECP384R1())
        self.add("pck-on-another-curve", "TDX-29", ["tdx.qe.signature"], quote=intel.quoted(pck=other), trust=self.bare)
        unlike = intel.leaf(algorithm=hashes.SHA384())
        self.add("witness-refuses", "TDX-64", ["tdx.witness"], quote=intel.quoted(pck=unlike))

    def _domain(self) -> None:
        intel = self.intel
        self.add("debug-domain", "TDX-16 TDX-65", quote=intel.quoted(body={120: b"\1"}), says={"/tdx/debug": True})
        self.add(
            "profiled-domain",
            "TDX-15 TDX-16",
            quote=intel.quoted(body={120: b"\x20"}),
            trust=self.bare,
            says={"/tdx/debug": True, "/tdx/attributes/0": "PERF_PROF"},
        )
        self.add(
            "unknown-debug-bit",
            "TDX-15 TDX-16",
            quote=intel.quoted(body={120: b"\x80"}),
            trust=self.bare,
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
                changed={argument: re.sub(rb'"tcbDate":"20\d\d', b'"tcbDate":"2031', good, count=1)},
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
                    argument: intel.answer(kind, re.sub(r'"nextUpdate":"[0-9-]+', '"nextUpdate":"2025-06-19', text))
                },
            )
        other = self.qe.replace('"TD_QE"', '"QE"') if self.kind == "tdx" else self.qe.replace('"QE"', '"TD_QE"')
        bundle = self.bundle(qe_identity=other)
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
        for name, argument, issuer in (("root_crl", "root_crl", intel.root), ("pck_crl", "pck_crl", intel.ca)):
            forever = endless(intel.crl(issuer), issuer)
            statement = "TDX-45" if name == "root_crl" else "TDX-47"
            slug = f"{name.replace('_crl', '')}-list-without-an-end"
            refused(slug, statement, [f"{name}.time"], changed={argument: forever})
        refused("pck-revoked", "TDX-48", ["revoked"], pck_crl=intel.crl(intel.ca, intel.pck))
        refused("ca-revoked", "TDX-48", ["revoked"], root_crl=intel.crl(intel.root, intel.ca))
        refused("signer-revoked", "TDX-48", ["revoked"], root_crl=intel.crl(intel.root, intel.signer))
        self.add(
            "somebody-else-revoked",
            "TDX-48",
            trust=self.trust("somebody-else-revoked", pck_crl=intel.crl(intel.ca, stranger.pck)),
        )
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
        return self.book.trust(f"{self.before}made-intel-{name}", dcap={"roots": [self.root], "collateral": [file]})

    def _levels(self) -> None:
        intel = self.intel
        for name, statement, qe in (
            ("mr_signer", "TDX-49", {128: b"\xff"}),
            ("prod_id", "TDX-50", {256: b"\x77\0"}),
            ("misc_select", "TDX-51", {16: b"\1"}),
            ("attributes", "TDX-52", {48: b"\x91"}),
            ("level", "TDX-53", {258: b"\0\0"}),
        ):
            quote = intel.quoted(qe=qe)
            self.add(f"qe-{name.replace('_', '-')}", statement, [f"tdx.qe.{name}"], quote=quote)
        self.add("qe-attributes-that-are-masked-out", "TDX-52", quote=intel.quoted(qe={56: b"\xff"}))
        high = re.sub(r'"pcesvn":\d+', '"pcesvn":99', self.tcb)
        self.add("pce-svn", "TDX-59", ["tdx.tcb.level"], trust=self.trust("pce-svn", tcb=high))

    def _module(self) -> None:
        intel = self.intel

        def case(name: str, statements: str, refusals: Any = None, *, says: Any = None, **body: bytes) -> None:
            quote = intel.quoted(body={int(at[1:]): put for at, put in body.items()})
            self.add(name, statements, refusals, quote=quote, says=says)

        case("module-version-2", "TDX-54", ["tdx.module.identity"], _1=b"\2")
        case("module-of-another-signer", "TDX-55", ["tdx.module.mr_signer"], _64=b"\xff")
        case("module-attributes", "TDX-56", ["tdx.module.attributes"], _112=b"\1")
        case("module-below-every-level", "TDX-57 TDX-61", ["tdx.module.level"], _0=b"\1")
        case("module-of-version-0", "TDX-58", says={"/tdx/platform/tcb/module_status": None}, _1=b"\0")
        case("module-of-version-0-counts-with-the-platform", "TDX-58 TDX-61", ["tdx.tcb.level"], _0=b"\1\0")
        case("microcode-below-every-level", "TDX-59", ["tdx.tcb.level"], _2=b"\0")
        status = {"/tdx/platform/tcb/status": "OutOfDate", "/tdx/platform/tcb/platform_status": "UpToDate"}
        case("module-out-of-date", "TDX-63", says=status, _0=b"\3")
        old = self.trust("qe-out-of-date", qe=self.qe.replace('"UpToDate"', '"OutOfDate"'))
        self.add("qe-out-of-date", "TDX-63", trust=old, says={"/tdx/platform/tcb/status": "OutOfDate"})
        revoked = self.trust("qe-revoked", qe=self.qe.replace('"UpToDate"', '"Revoked"'))
        self.add("qe-revoked", "TDX-63 TDX-64", ["tdx.witness"], trust=revoked)
        newer = self.tcb.replace('"issueDate":"2025-06-19', '"issueDate":"2025-06-20').replace(
            '"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":18'
        )
        answer = self.piece("tcb-info.json", intel.answer("tcbInfo", newer.replace("T10:16:03Z", "T00:00:00Z")))
        self.add("youngest-collateral-counts", "TDX-36", trust=self.trust("two", more=[answer]),
                 says={"/tdx/platform/tcb/date": "2024-03-13T00:00:00Z"})  # fmt: skip


def pem_of(*chain: Holder) -> bytes:
    """Certificates, PEM."""
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain)
