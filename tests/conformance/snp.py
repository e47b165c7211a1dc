"""Cases of docs/spec/snp-evidence.md."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hermetic.attestation.abi.snp import Generation, Report
from hermetic.attestation.abi.snp_json import report_json
from hermetic.attestation.abi.tpm import Attest
from tests.attestation import amd
from tests.attestation.verifiers import test_azure_snp as azure
from tests.conformance import corpus
from tests.conformance.build import Book, json_edits, remember, source

PAGE = "snp-evidence"
NOW = datetime(2025, 6, 1, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)
MILAN = {"file": "../snp/milan_v2.report.hex", "decode": ["hex"]}
MILAN_VCEK = "../snp/milan_v2.vcek.der"
GENOA, GENOA_VCEK = "../snp/genoa_v5.report.bin", "../snp/genoa_v5.vcek.der"
VLEK_REPORT, VLEK = "../snp/milan_v3_vlek.report.bin", "../snp/milan_v3_vlek.vlek.der"
AZURE = "../snp/az_snp_milan_v1.json"
SHIPPED = [
    {"generation": one, **{role: f"../../../attestation/roots/amd/{one.lower()}-{role}.der" for role in ("ark", "ask", "asvk")}}
    for one in ("Milan", "Genoa", "Turin")
]  # fmt: skip


def cases(book: Book) -> None:
    """All of them."""
    book.trust("amd", snp={"authorities": SHIPPED})
    book.trust("none")
    _recorded(book)
    _layout(book)
    _json(book)
    _made(book)
    _azure(book)
    _azure_made(book)


def _recorded(book: Book) -> None:
    def case(
        name: str, statements: str, report: Any, vcek: list[Any], time: datetime = NOW, refusals: Any = None, **how: Any
    ) -> None:
        kind = how.pop("kind", "vcek")
        book.case(
            PAGE, name, statements, "snp", refusals, report=report, certificates={kind: vcek},
            **{"trust": "amd", "time": time, **how},
        )  # fmt: skip

    data = corpus.data(MILAN)[0x50:0x90]
    case("milan", "SNP-6 SNP-7 SNP-29 SNP-30 SNP-32 SNP-41 SNP-42 SNP-43 SNP-44 SNP-45 SNP-46 SNP-47 SNP-48 SNP-49 SNP-54 SNP-55 SNP-56 SNP-57 SNP-58 SNP-59 SNP-60",
         MILAN, [MILAN_VCEK], report_data=data, says={"/snp/version": 2, "/snp/generation": "Milan", "/snp/signed_by": "VCEK"})  # fmt: skip
    case("genoa", "SNP-7 SNP-27 SNP-28", GENOA, [GENOA_VCEK], LATER,
         says={"/snp/version": 5, "/snp/generation": "Genoa", "/snp/reported_tcb/bootloader": 10, "/snp/reported_tcb/snp": 27})  # fmt: skip
    case("vlek", "SNP-31 SNP-43 SNP-56", VLEK_REPORT, [VLEK], kind="vlek",
         says={"/snp/version": 3, "/snp/signed_by": "VLEK", "/snp/chip_id": None, "/snp/vmpl": 1})  # fmt: skip
    case("vlek-expired", "SNP-49", VLEK_REPORT, [VLEK], LATER, ["snp.chain.time"], kind="vlek")
    case("not-yet", "SNP-49", MILAN, [MILAN_VCEK], datetime(2019, 1, 1, tzinfo=UTC), ["snp.chain.time"])
    case("other-report-data", "SNP-60", MILAN, [MILAN_VCEK], refusals=["snp.report_data"], report_data=bytes(64))
    case("another-chip-s-vcek", "SNP-56 SNP-59", MILAN, ["../snp/milan_v2b.vcek.der"],
         refusals=["snp.hwid", "snp.signature"])  # fmt: skip
    case("another-generation-s-vcek", "SNP-54", MILAN, [GENOA_VCEK], LATER,
         ["snp.hwid", "snp.signature", "snp.tcb"])  # fmt: skip
    case("made-up-vcek", "SNP-47", {"file": "../snp/milan_v2b.report.bin"}, ["../snp/milan_v2b.vcek-invalid-legacy.der"],
         refusals=["snp.chain.signature", "snp.hwid", "snp.signature", "snp.tcb"])  # fmt: skip
    case(
        "vlek-for-vcek",
        "SNP-42",
        MILAN,
        [VLEK],
        refusals=["snp.report.signing_key", "snp.signature", "snp.tcb"],
        kind="vlek",
    )
    case("no-certificate", "SNP-4 SNP-44", MILAN, [], refusals=["snp.endorsement"])
    case("two-certificates", "SNP-44", MILAN, [MILAN_VCEK, MILAN_VCEK], refusals=["snp.endorsement"])
    case("certificate-cut", "SNP-45", MILAN, [{"file": MILAN_VCEK, "edits": [{"at": 1000, "remove": 360}]}],
         refusals=["snp.endorsement.structure"])  # fmt: skip
    case("certificate-bit", "SNP-47", MILAN, [{"file": MILAN_VCEK, "edits": [{"at": 1359, "remove": 1, "insert": "00"}]}],
         refusals=["snp.chain.signature"])  # fmt: skip
    case(
        "nobody-trusted", "SNP-46", MILAN, [MILAN_VCEK], refusals=["snp.chain.generation", "snp.product"], trust="none"
    )
    swapped = [{**SHIPPED[0], "ark": SHIPPED[1]["ark"]}]
    book.trust("amd-other-ark", snp={"authorities": swapped})
    case("another-root", "SNP-48", MILAN, [MILAN_VCEK], refusals=["snp.chain.authority"], trust="amd-other-ark")
    for name, number, statement in (("r", 0x2A0, "SNP-24"), ("s", 0x2E8, "SNP-25")):
        zero = {**MILAN, "edits": [{"at": number, "remove": 72, "insert": "00" * 72}]}
        case(f"{name}-zero", f"{statement} SNP-58", zero, [MILAN_VCEK], refusals=["snp.signature_numbers"])
        most = {**MILAN, "edits": [{"at": number, "remove": 72, "insert": "ff" * 72}]}
        case(f"{name}-oversized", f"{statement} SNP-58", most, [MILAN_VCEK], refusals=["snp.signature_numbers"])
    changed = {**MILAN, "edits": [{"at": 0x90, "remove": 1, "insert": "00"}]}
    case("measurement-changed", "SNP-59", changed, [MILAN_VCEK], refusals=["snp.signature"])
    book.trust("amd-store", snp={"authorities": SHIPPED, "endorsements": [MILAN_VCEK, GENOA_VCEK]})
    case("certificate-from-the-store", "SNP-4 SNP-44", MILAN, [], trust="amd-store")
    book.trust("amd-bad-list", snp={"authorities": SHIPPED, "crls": [MILAN_VCEK]})
    case("no-list", "SNP-50", MILAN, [MILAN_VCEK], refusals=["snp.crl.structure"], trust="amd-bad-list")


def _layout(book: Book) -> None:
    """One wrong byte each; the form is judged before the signature."""
    size = {"at": 1183, "remove": 1}
    wrong = [
        ("short", "SNP-6", size), ("long", "SNP-6", {"at": 1184, "insert": "00"}),
        ("version-1", "SNP-7", {"at": 0, "remove": 1, "insert": "01"}),
        ("version-4", "SNP-7", {"at": 0, "remove": 1, "insert": "04"}),
        ("policy-bit-17-off", "SNP-8", {"at": 10, "remove": 1, "insert": "01"}),
        ("policy-bit-26", "SNP-8", {"at": 11, "remove": 1, "insert": "04"}),
        ("policy-bit-63", "SNP-8", {"at": 15, "remove": 1, "insert": "80"}),
        ("vmpl-4", "SNP-9", {"at": 0x30, "remove": 1, "insert": "04"}),
        ("algorithm-2", "SNP-10", {"at": 0x34, "remove": 1, "insert": "02"}),
        ("key-info-bit-5", "SNP-12", {"at": 0x48, "remove": 1, "insert": "20"}),
        ("signing-key-2", "SNP-12", {"at": 0x48, "remove": 1, "insert": "08"}),
        ("reserved-0x04c", "SNP-13", {"at": 0x4C, "remove": 1, "insert": "01"}),
        ("author-key-digest-without-key", "SNP-14", {"at": 0x110, "remove": 1, "insert": "01"}),
        ("cpuid-in-version-2", "SNP-16", {"at": 0x188, "remove": 1, "insert": "19"}),
        ("reserved-0x18b", "SNP-17", {"at": 0x18B, "remove": 1, "insert": "01"}),
        ("reserved-0x1eb", "SNP-19", {"at": 0x1EB, "remove": 1, "insert": "01"}),
        ("reserved-0x1ef", "SNP-20", {"at": 0x1EF, "remove": 1, "insert": "01"}),
        ("launch-mitigations-in-version-2", "SNP-21", {"at": 0x1F8, "remove": 1, "insert": "01"}),
        ("current-mitigations-in-version-2", "SNP-22", {"at": 0x200, "remove": 1, "insert": "01"}),
        ("reserved-0x208", "SNP-23", {"at": 0x208, "remove": 1, "insert": "01"}),
        ("reserved-0x330", "SNP-26", {"at": 0x330, "remove": 1, "insert": "01"}),
    ]  # fmt: skip
    for name, statements, edit in wrong:
        book.case(PAGE, name, f"{statements} SNP-41", "snp", ["snp.report"], report={**MILAN, "edits": [edit]},
                  certificates={"vcek": [MILAN_VCEK]}, trust="amd", time=NOW)  # fmt: skip


def _json(book: Book) -> None:
    report = Report.parse(corpus.data(MILAN))
    whole = {"attestation_report": report_json(report, Generation.MILAN),
             "cert_chain": [{"cert_type": "VCEK", "data": {"$bytes": MILAN_VCEK, "as": "numbers"}}]}  # fmt: skip
    base = remember(book, "milan.json", json.dumps(whole["attestation_report"], separators=(",", ":")).encode())
    data, vcek = report.report_data, whole["cert_chain"]

    def case(
        name: str,
        statements: str,
        *edits: Any,
        refusals: Any = None,
        chain: Any = vcek,
        trust: str = "amd",
        wanted: bytes = data,
        **more: Any,
    ) -> None:
        evidence = {"attestation_report": {"$json": base, **({"edits": list(edits)} if edits else {})}, **more}
        if chain is not None:
            evidence["cert_chain"] = chain
        book.case(PAGE, name, statements, "snp", refusals, evidence=evidence, report_data=wanted, trust=trust, time=NOW)

    case("json", "SNP-2 SNP-3 SNP-40")
    case(
        "json-authorities-are-ignored",
        "SNP-5",
        chain=[*vcek, {"cert_type": "ARK", "data": [0]}, {"cert_type": "ASK", "data": [0]}],
    )
    case(
        "json-unknown-kind-of-certificate",
        "SNP-5",
        chain=[*vcek, {"cert_type": "VTEK", "data": [0]}],
        refusals=["snp.structure"],
    )
    case(
        "json-null-chain",
        "SNP-4",
        {"pointer": "/launch_mit_vector", "remove": True},
        chain=None,
        trust="amd-store",
        cert_chain=None,
    )
    case("json-other-member", "SNP-1", more=1, refusals=["snp.structure"])
    case("json-other-member-of-the-report", "SNP-1", {"pointer": "/more", "set": 1}, refusals=["snp.structure"])
    case("json-missing-member", "SNP-40", {"pointer": "/measurement", "remove": True}, refusals=["snp.structure"])
    case("json-short-field", "SNP-40", {"pointer": "/measurement/0", "remove": True}, refusals=["snp.structure"])
    case("json-number-for-byte", "SNP-40", {"pointer": "/measurement/0", "set": 256}, refusals=["snp.structure"])
    case("json-other-report-data", "SNP-60", refusals=["snp.report_data"], wanted=bytes(64))
    case("json-changed-field", "SNP-3", {"pointer": "/guest_svn", "set": 9}, refusals=["snp.signature"])
    long = [{"cert_type": "ARK", "data": [0]}] * 9
    case("json-too-many-certificates", "SNP-40", chain=long, refusals=["snp.structure"])


def _made(book: Book) -> None:
    """What AMD would have to sign: by authorities of our own."""
    vendors = {one: amd.Vendor(one) for one in Generation}
    paths: dict[Generation, dict[str, str]] = {}
    for generation, vendor in vendors.items():
        found = vendor.authorities()
        paths[generation] = {
            "generation": str(generation),
            **{
                role: remember(book, f"{generation.lower()}-{role}.der", getattr(found, role).der)
                for role in ("ark", "ask", "asvk")
            },
        }
    everyone = list(paths.values())
    book.trust("made-amd", snp={"authorities": everyone})
    chips = {one: amd.chip_id("one", one.hwid_size) for one in Generation}
    base: dict[str, str] = {}

    def case(
        name: str, statements: str, generation: Generation = Generation.MILAN, refusals: Any = None, *,
        report: Any = None, trust: str = "made-amd", crl: Any = (), says: Any = None, time: datetime = LATER,
        vlek: bool = False, key: Any = None, **certificate: Any,
    ) -> None:  # fmt: skip
        chip, tcb = chips[generation], certificate.pop("tcb", amd.tcb_of(generation))
        vendor = vendors[generation]
        made = (
            vendor.vlek(tcb, **certificate) if vlek else vendor.vcek(certificate.pop("chip", chip), tcb, **certificate)
        )
        signer = key or amd.signing_key(b"vlek" if vlek else chip)
        body = amd.sign(amd.report(generation, **{"key_info": 4 if vlek else 0, **(report or {})}), signer)
        stem = f"{generation.lower()}-{'vlek' if vlek else 'vcek'}"
        if stem not in base:
            base[stem] = remember(book, f"{stem}.report.bin", body)
            base[f"{stem} certificate"] = remember(book, f"{stem}.der", made)
        book.case(
            PAGE, name, statements, "snp", refusals, report=source(base[stem], body),
            certificates={"vlek" if vlek else "vcek": [source(base[f"{stem} certificate"], made)], **({"crl": list(crl)} if crl else {})},
            trust=trust, time=time, **({"says": says} if says else {}),
        )  # fmt: skip

    case("made-milan", "SNP-11 SNP-15 SNP-33", says={"/snp/migration_agent": None, "/snp/platform": ["smt"]})
    case("made-genoa", "SNP-28", Generation.GENOA)
    case(
        "made-turin",
        "SNP-18 SNP-27 SNP-28",
        Generation.TURIN,
        says={"/snp/reported_tcb/fmc": 1, "/snp/chip_id": chips[Generation.TURIN].hex()},
    )
    case("made-siena", "SNP-28", Generation.GENOA, report={"cpuid_mod_id": 0xA0})
    case("made-vlek", "SNP-31", vlek=True, says={"/snp/csp_id": "CN=cloud.example"})
    case("unknown-platform-bits", "SNP-11", report={"plat_info": 1 << 40}, says={"/snp/platform": ["bit-40"]})
    case("migration-agent", "SNP-15", report={"report_id_ma": b"\x33" * 32}, says={"/snp/migration_agent": "33" * 32})
    case("hwid-in-octet-string", "SNP-33", hwid=amd.tlv(4, chips[Generation.MILAN]))
    case("serial-number-7", "SNP-32", serial=7)
    case(
        "author-key",
        "SNP-14",
        report={"key_info": 1, "author_key_digest": b"\x44" * 48},
        says={"/snp/author_key_digest": "44" * 48},
    )
    for name, statements, refusal, report in (
        ("masked-chip-key", "SNP-43", "snp.report.mask_chip_key", {"key_info": 2}),
        ("masked-chip-id", "SNP-56", "snp.hwid", {"chip_id": bytes(64)}),
        ("another-chip", "SNP-56", "snp.hwid", {"chip_id": amd.chip_id("two")}),
        ("nobody-s-signature", "SNP-12 SNP-42", "snp.report.signing_key", {"key_info": 7 << 2}),
        ("processor-of-another-generation", "SNP-54 SNP-28", "snp.product", {"cpuid_mod_id": 0x11}),
        ("unknown-processor", "SNP-54 SNP-28", "snp.product", {"cpuid_fam_id": 0x1B}),
    ):
        case(name, statements, refusals=[refusal], report=report)
    case("another-key", "SNP-59", refusals=["snp.signature"], key=amd.signing_key(b"another"))
    tcb = amd.tcb_of(Generation.MILAN)
    case("another-tcb", "SNP-55", refusals=["snp.tcb"], report={"reported_tcb": replace(tcb, microcode=216).pack()})
    case(
        "reserved-byte-of-the-reported-tcb",
        "SNP-55 SNP-27",
        refusals=["snp.tcb"],
        report={"reported_tcb": tcb.pack()[:2] + b"\1" + tcb.pack()[3:]},
    )
    for field in ("current_tcb", "committed_tcb", "launch_tcb"):
        case(
            f"reserved-byte-of-{field.replace('_', '-')}",
            "SNP-55 SNP-27",
            refusals=["snp.tcb"],
            report={field: tcb.pack()[:2] + b"\1" + tcb.pack()[3:]},
        )
    turin = amd.tcb_of(Generation.TURIN)
    case("turin-s-fmc", "SNP-55", Generation.TURIN, ["snp.tcb"], tcb=replace(turin, fmc=0))
    case("product-of-another-generation", "SNP-54", refusals=["snp.product"], product="Genoa")
    case("vcek-by-the-asvk", "SNP-31 SNP-47", refusals=["snp.chain.signature"], issuer="asvk")
    case("vcek-without-hwid", "SNP-56", refusals=["snp.hwid"], hwid=b"")
    nobody = vendors[Generation.MILAN].vcek(chips[Generation.MILAN], tcb, key=_NoKey())
    book.case(PAGE, "key-of-an-unknown-kind", "SNP-57", "snp", ["snp.key"], report=base["milan-vcek"],
              certificates={"vcek": [source(base["milan-vcek certificate"], nobody)]}, trust="made-amd", time=LATER)  # fmt: skip
    unknown = amd.extension("1.2.3.4", b"\x05\0")
    case("unknown-extension", "SNP-35", more=(unknown,))
    case(
        "unknown-critical-extension",
        "SNP-35 SNP-45",
        refusals=["snp.endorsement.structure"],
        more=(amd.extension("1.2.3.4", b"\x05\0", critical=True),),
    )
    twice = amd.extension("1.3.6.1.4.1.3704.1.3.1", amd.number(4))
    case("extension-twice", "SNP-34 SNP-45", refusals=["snp.endorsement.structure"], more=(twice,))
    case("certificate-ended", "SNP-49", refusals=["snp.chain.time"], end=LATER - timedelta(seconds=1))
    small = ec.generate_private_key(ec.SECP256R1())
    own = vendors[Generation.MILAN].vcek(chips[Generation.MILAN], tcb, key=small)
    body = amd.sign(amd.report(), amd.signing_key(chips[Generation.MILAN]))
    book.case(PAGE, "key-on-another-curve", "SNP-57", "snp", ["snp.key"], report=source(base["milan-vcek"], body),
              certificates={"vcek": [source(base["milan-vcek certificate"], own)]}, trust="made-amd", time=LATER)  # fmt: skip
    vendor = vendors[Generation.MILAN]
    lists = {
        "list-of-nobody": ("SNP-36 SNP-51 SNP-52 SNP-53", vendor.crl(), None),
        "ask-revoked": ("SNP-36 SNP-53", vendor.crl("ask"), ["snp.chain.revoked"]),
        "asvk-revoked": ("SNP-53", vendor.crl("asvk"), None),
        "list-by-another": ("SNP-51", vendor.crl(by="ask"), ["snp.crl.signature"]),
        "list-ended": ("SNP-52", vendor.crl(end=LATER - timedelta(days=1)), ["snp.crl.time"]),
        "list-to-come": ("SNP-52", vendor.crl(start=LATER + timedelta(days=1)), ["snp.crl.time"]),
    }
    for name, (statements, listed, refusals) in lists.items():
        case(name, statements, refusals=refusals, crl=[remember(book, f"{name}.crl", listed)])
    case(
        "vlek-s-asvk-revoked", "SNP-36 SNP-53", refusals=["snp.chain.revoked"], vlek=True, crl=["made/asvk-revoked.crl"]
    )
    case("list-in-the-evidence-is-none", "SNP-50", refusals=["snp.crl.structure"], crl=[{"hex": "3000"}])


class _NoKey:
    """What stands in a certificate in the place of a key, and is none."""

    def public_key(self) -> "_NoKey":
        return self

    def public_bytes(self, *_: Any) -> bytes:
        return amd.tlv(0x30, amd.tlv(0x30, amd.oid("1.2.3.4")), amd.tlv(3, b"\0\1"))


def _azure(book: Book) -> None:
    whole = json.loads(corpus.data(AZURE))
    nonce = b"challenge"
    hcl = base64.urlsafe_b64decode(whole["hcl_report"] + "==")

    def case(
        name: str,
        statements: str,
        *edits: Any,
        refusals: Any = None,
        data: bytes = nonce,
        file: str = AZURE,
        **more: Any,
    ) -> None:
        book.case(PAGE, name, statements, "az-snp-vtpm", refusals, evidence={"$json": file, **({"edits": list(edits)} if edits else {})},
                  report_data=data, trust="amd", time=NOW, **more)  # fmt: skip

    def changed(**pieces: tuple[int, bytes]) -> dict[str, Any]:
        body = bytearray(hcl)
        for at, put in pieces.values():
            body[at : at + len(put)] = put
        base = {"file": AZURE, "decode": ["/hcl_report", "base64url"]}
        return {"pointer": "/hcl_report", "set": {"$bytes": source(base, bytes(body)), "as": "base64url"}}

    case("azure-text", "SNP-61 SNP-62 SNP-63 SNP-64 SNP-66", says={"/tpm/enrolled": "hardware-report", "/snp/vmpl": 0})
    genoa = json.loads(corpus.data("../snp/az_snp_genoa.json"))
    extra = Attest.parse(bytes(genoa["quote"]["message"])).extra_data
    case("azure-numbers", "SNP-61", file="../snp/az_snp_genoa.json", data=extra)
    case("azure-other-challenge", "SNP-66", data=b"chalLenge", refusals=["tpm.quote.nonce"])
    case(
        "azure-longer-challenge", "SNP-66", data=b"challenge\0", refusals=["tpm.quote.nonce", "tpm.quote.nonce_length"]
    )
    case("azure-other-member", "SNP-61", {"pointer": "/more", "set": 1}, refusals=["azure.structure"])
    case("azure-version-3", "SNP-61", {"pointer": "/version", "set": 3}, refusals=["azure.structure"])
    case("azure-23-pcrs", "SNP-61", {"pointer": "/tpm_quote/pcrs/0", "remove": True}, refusals=["azure.structure"])
    for name, at, put in (
        ("magic", 0, b"HCLB"), ("version", 4, b"\3"), ("size", 8, b"\0"), ("request", 12, b"\3"), ("zeros", 16, b"\1"),
        ("hash", 32 + 1184 + 12, b"\2"), ("report-type", 32 + 1184 + 8, b"\4"),
    ):  # fmt: skip
        case(f"azure-hcl-{name}", "SNP-62", changed(at=(at, put)), refusals=["azure.structure"])
    key = hcl.index(b"HCLAkPub")
    case("azure-no-key", "SNP-62", changed(at=(key, b"HCLXkPub")), refusals=["azure.structure"])
    behind = hcl.index(b'"vm-configuration"') + 3
    case("azure-variable-data-changed", "SNP-63", changed(at=(behind, b"X")), refusals=["azure.hcl.binding"])
    case("azure-report-changed", "SNP-64", changed(at=(32 + 0x30, b"\1")), refusals=["azure.hcl.vmpl", "snp.signature"])
    pcrs = whole["tpm_quote"]["pcrs"]
    case(
        "azure-pcrs-swapped",
        "SNP-66",
        {"pointer": "/tpm_quote/pcrs/0", "set": pcrs[1]},
        {"pointer": "/tpm_quote/pcrs/1", "set": pcrs[0]},
        refusals=["tpm.quote.pcr_digest"],
    )
    case(
        "azure-quote-changed",
        "SNP-66",
        {"pointer": "/tpm_quote/signature", "set": "00" * 256},
        refusals=["tpm.quote.signature"],
    )


def _azure_made(book: Book) -> None:
    """Machines of our own, with keys of our own."""
    own, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    nonce, repeated = azure.NONCE, azure.NONCE.ljust(64, b"\0")
    with mock.patch.object(azure, "AK", own):
        whole = azure.machine(key=own)
        base = remember(book, "azure.json", json.dumps(whole).encode())
        for name, statements, refusals, how in (
            ("made", "SNP-61", None, {}),
            ("made-form-2", "SNP-61 SNP-65", None, {"form": 2, "user_data": repeated}),
            ("made-form-2-about-something-else", "SNP-65", ["azure.hcl.user_data"], {"form": 2}),
            ("made-form-1-about-something-else", "SNP-65", None, {"user_data": b"\1" * 64}),
            ("made-at-vmpl-2", "SNP-64", ["azure.hcl.vmpl"], {"vmpl": 2}),
            ("made-with-another-binding", "SNP-63", ["azure.hcl.binding"], {"bound": bytes(64)}),
            ("made-by-another-key", "SNP-66", ["tpm.quote.signature"], {"key": other}),
            ("made-over-three-pcrs", "SNP-66", ["tpm.quote.pcr_digest", "tpm.quote.selection"], {"pcrs": (0, 1, 2)}),
        ):
            edits = json_edits(whole, azure.machine(**{"key": own, **how}))  # type: ignore[arg-type] # as named
            book.case(PAGE, f"azure-{name}", statements, "az-snp-vtpm", refusals, report_data=nonce, trust="made-amd", time=azure.THEN,
                      evidence={"$json": base, **({"edits": edits} if edits else {})})  # fmt: skip
