"""Cases of docs/spec/tdx-evidence.md: recorded quotes, and quotes and collateral of an Intel of our own."""

import base64
import json
import struct
from datetime import UTC, datetime
from typing import Any

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tcg_event_log import EventType
from hermetic.attestation.abi.tpm import Alg, Attest
from tests.conformance import corpus
from tests.conformance.build import Book, b64, source
from tests.conformance.intel import patched

PAGE = "tdx-evidence"
ROOT = "../../../attestation/roots/intel/sgx_root_ca.pem"
PHALA, PHALA_SET = "../tdx/phala_b0c06f_v4.quote", "../tdx/phala_b0c06f_v4.collateral.json"
SGX, SGX_SET = "../sgx/phala_00a067_v3.quote", "../sgx/phala_00a067_v3.collateral.json"
COS, LOG = "../tdx/cos113_00806f_v4.quote", "../tdx/cos113_ccel_data.dat"
GOOGLE, DEBUG = "../tdx/google_90c06f_v5.quote", "../tdx/trustee_50806f_v4_debug.quote"
AZURE = "../tdx/az_tdx_v1.json"
SET_2025 = ["../tdx/automata_00806f.tcbinfo.json", "../tdx/automata_td_qeidentity.json",
            "../tdx/automata_pck_platform_crl.der", "../tdx/intel_root_ca_crl.der", "../tdx/ars_tcb_signing_chain.pem"]  # fmt: skip
SET_2026 = ["../tdx/ars_90c06f.tcbinfo.json", "../tdx/ars_50806f.tcbinfo.json", "../tdx/ars_td_qeidentity.json",
            "../tdx/ars_pck_platform_crl.der", "../tdx/ars_root_ca_crl.der", "../tdx/ars_tcb_signing_chain.pem"]  # fmt: skip
JUNE, JULY, MARCH = (
    datetime(2025, 6, 20, tzinfo=UTC),
    datetime(2025, 7, 20, tzinfo=UTC),
    datetime(2026, 3, 20, tzinfo=UTC),
)
HEADER = 48
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def cases(book: Book) -> None:
    """All of them."""
    book.trust("intel", dcap={"roots": [ROOT]})
    book.trust("intel-2025-06", dcap={"roots": [ROOT], "collateral": [PHALA_SET]})
    book.trust("intel-2025-07", dcap={"roots": [ROOT], "collateral": SET_2025})
    book.trust("intel-2026-03", dcap={"roots": [ROOT], "collateral": SET_2026})
    book.trust("intel-sgx", dcap={"roots": [ROOT], "collateral": [SGX_SET]})
    book.trust("none")
    _recorded(book)
    _changed(book)
    _logs(book)
    _azure(book)


def data_of(quote: Any) -> bytes:
    """The report data of a quote."""
    return Quote.parse(corpus.data(quote)).body.report_data


def add(
    book: Book, name: str, statements: str, quote: Any, trust: str = "intel", time: datetime = JUNE, refusals: Any = None, *,
    kind: str = "tdx", data: bytes | None = None, like: Any = None, log: Any = None, says: Any = None, **more: Any,
) -> None:  # fmt: skip
    """One case; `like` is the quote whose report data is wanted, where `quote` cannot be read."""
    evidence = {"quote": b64(quote), **({} if log is None else {"cc_eventlog": log}), **more}
    wanted = data if data is not None else data_of(like or quote)
    book.case(PAGE, name, statements, kind, refusals, evidence=evidence, report_data=wanted, trust=trust, time=time,
              **({"says": says} if says else {}))  # fmt: skip


def _recorded(book: Book) -> None:
    add(book, "quote-v4", "TDX-2 TDX-4 TDX-15 TDX-19 TDX-20 TDX-21 TDX-22 TDX-23 TDX-24 TDX-25 TDX-26 TDX-27 TDX-28 TDX-29 TDX-30 TDX-31 TDX-32 TDX-33",
        PHALA, says={"/tdx/quote_version": 4, "/tdx/debug": False, "/tdx/attributes": ["SEPT_VE_DISABLE"], "/tdx/platform/tcb": None})  # fmt: skip
    add(book, "with-collateral", "TDX-17 TDX-35 TDX-41 TDX-42 TDX-48 TDX-59 TDX-63 TDX-64", PHALA, "intel-2025-06",
        says={"/tdx/platform/tcb/status": "UpToDate", "/tdx/platform/tcb/advisories": [], "/tdx/platform/tcb/evaluation_number": 17})  # fmt: skip
    add(
        book,
        "without-collateral",
        "TDX-34",
        PHALA,
        says={"/tdx/not_evaluated": ["tdx.collateral", "tdx.tcb.level", "tdx.witness", "tdx.event_log"]},
    )
    add(book, "quote-v5", "TDX-4 TDX-8 TDX-62", GOOGLE, "intel-2026-03", MARCH,
        says={"/tdx/quote_version": 5, "/tdx/platform/tcb/status": "UpToDate"})  # fmt: skip
    add(book, "sgx-v3", "TDX-3 TDX-4 TDX-17", SGX, "intel-sgx", kind="sgx",
        says={"/sgx/quote_version": 3, "/sgx/platform/tcb/status": "ConfigurationAndSWHardeningNeeded"})  # fmt: skip
    add(book, "out-of-date", "TDX-60 TDX-63", "../tdx/automata_00806f_v4.quote", "intel-2025-07", JULY,
        says={"/tdx/platform/tcb/status": "OutOfDate"})  # fmt: skip
    add(
        book,
        "debug-is-genuine",
        "TDX-16 TDX-65",
        DEBUG,
        "intel-2026-03",
        MARCH,
        says={"/tdx/debug": True, "/tdx/attributes/0": "DEBUG"},
    )
    add(
        book,
        "below-every-level",
        "TDX-59",
        "../tdx/phala_90c06f_v5.quote",
        "intel-2026-02",
        datetime(2026, 2, 19, tzinfo=UTC),
        ["tdx.tcb.level"],
    )
    book.trust("intel-2026-02", dcap={"roots": [ROOT], "collateral": ["../tdx/phala_90c06f_v5.collateral.json"]})
    add(book, "collateral-of-another-platform", "TDX-35", PHALA, "intel-2026-03", MARCH, ["tdx.collateral.platform"])
    add(
        book,
        "sgx-collateral-of-another-platform",
        "TDX-35",
        SGX,
        "intel-2026-03",
        MARCH,
        ["sgx.collateral.platform"],
        kind="sgx",
    )
    add(book, "collateral-of-the-other-tee", "TDX-35", PHALA, "intel-sgx", JUNE, ["tdx.collateral.platform"])
    add(book, "collateral-expired", "TDX-42 TDX-45 TDX-47", PHALA, "intel-2025-06", datetime(2027, 1, 1, tzinfo=UTC),
        [f"tdx.collateral.{one}.time" for one in ("tcb_info", "qe_identity", "root_crl", "pck_crl")])  # fmt: skip
    add(book, "collateral-of-tomorrow", "TDX-42 TDX-45 TDX-47", PHALA, "intel-2025-06", datetime(2025, 1, 1, tzinfo=UTC),
        [f"tdx.collateral.{one}.time" for one in ("tcb_info", "qe_identity", "pck_crl", "root_crl", "tcb_info.signer", "qe_identity.signer")] + ["tdx.pck.time"])  # fmt: skip
    add(book, "before-the-platform", "TDX-25", PHALA, time=datetime(2018, 1, 1, tzinfo=UTC), refusals=["tdx.pck.time"])
    add(book, "after-the-platform", "TDX-25", PHALA, time=datetime(2040, 1, 1, tzinfo=UTC), refusals=["tdx.pck.time"])
    add(book, "nobody-trusted", "TDX-24", PHALA, "none", refusals=["tdx.pck.chain"])
    add(book, "first-48-bytes", "TDX-20", PHALA, data=data_of(PHALA)[:48] + bytes(16), refusals=["tdx.report_data"])
    add(book, "other-report-data", "TDX-20", PHALA, data=bytes(64), refusals=["tdx.report_data"])
    add(book, "sgx-other-report-data", "TDX-20", SGX, kind="sgx", data=bytes(64), refusals=["sgx.report_data"])
    add(book, "sgx-as-tdx", "TDX-19", SGX, refusals=["tdx.structure"])
    add(book, "tdx-as-sgx", "TDX-19", PHALA, kind="sgx", refusals=["sgx.structure"])
    add(book, "other-member", "TDX-1", PHALA, refusals=["tdx.structure"], more=1)
    add(book, "null-log", "TDX-2", PHALA, cc_eventlog=None)
    add(book, "sgx-with-a-log", "TDX-3", SGX, kind="sgx", log=b64(LOG), refusals=["sgx.structure"])


def _parts(raw: bytes) -> dict[str, tuple[int, int]]:
    """Where the parts of a v4 or v5 quote's signature data lie."""
    start = len(Quote.parse(raw).signed) + 4
    auth = struct.unpack_from("<H", raw, start + 582)[0]
    chain = start + 584 + auth
    return {
        "size": (start - 4, 4), "signature": (start, 64), "key": (start + 64, 64), "outer": (start + 128, 6), "qe_report": (start + 134, 384),
        "qe_signature": (start + 518, 64), "auth_size": (start + 582, 2), "auth": (start + 584, auth), "inner": (chain, 6),
        "chain": (chain + 6, struct.unpack_from("<I", raw, chain + 2)[0]),
    }  # fmt: skip


def with_chain(raw: bytes, chain: bytes) -> bytes:
    """The quote with another chain, all sizes made to fit."""
    signed, (offset, _) = len(Quote.parse(raw).signed), _parts(raw)["chain"]
    inner = raw[signed + 4 : offset - 6] + struct.pack("<HI", 5, len(chain)) + chain
    inner = inner[:128] + struct.pack("<HI", 6, len(inner) - 134) + inner[134:]
    return raw[:signed] + struct.pack("<I", len(inner)) + inner


def _changed(book: Book) -> None:
    raw, other = corpus.data(PHALA), corpus.data(GOOGLE)
    parts = _parts(raw)

    def put(name: str, statements: str, changes: dict[int, bytes], refusals: list[str], **how: Any) -> None:
        add(book, name, statements, source(PHALA, patched(raw, changes)), refusals=refusals, like=PHALA, **how)

    put("version-6", "TDX-4", {0: b"\6\0"}, ["tdx.structure"])
    put("version-3-of-tdx", "TDX-4", {0: b"\3\0"}, ["tdx.structure"])
    put("key-type-3", "TDX-5", {2: b"\3\0"}, ["tdx.structure"])
    put("unknown-tee", "TDX-4", {4: b"\x82\0\0\0"}, ["tdx.structure"])
    put("another-vendor", "TDX-22 TDX-9", {12: b"\0"}, ["tdx.quote.signature", "tdx.quote.vendor"])
    put("user-data-changed", "TDX-9 TDX-33", {28: b"\xff"}, ["tdx.quote.signature"])
    put("body-changed", "TDX-9 TDX-33", {HEADER + 136: b"\xff\xff"}, ["tdx.quote.signature"])
    for name, part, statement in (
        ("quote-signature", "signature", "TDX-32"),
        ("qe-signature", "qe_signature", "TDX-28"),
    ):
        check = "tdx.quote.signature.numbers" if part == "signature" else "tdx.qe.signature.numbers"
        at = parts[part][0]
        for which, value in (
            ("r-zero", {at: bytes(32)}),
            ("s-zero", {at + 32: bytes(32)}),
            ("r-order", {at: P256_ORDER.to_bytes(32, "big")}),
            ("s-most", {at + 32: b"\xff" * 32}),
        ):
            put(f"{name}-{which}", statement, value, [check])
        r, s = raw[at : at + 32], raw[at + 32 : at + 64]
        put(
            f"{name}-numbers-swapped",
            "TDX-33" if part == "signature" else "TDX-29",
            {at: s + r},
            [check.removesuffix(".numbers")],
        )
    put(
        "key-off-the-curve",
        "TDX-33 TDX-30",
        {parts["key"][0]: b"\1" * 64},
        ["tdx.qe.attestation_key", "tdx.quote.signature"],
    )
    put(
        "another-key",
        "TDX-30",
        {parts["key"][0]: other[_parts(other)["key"][0] :][:64]},
        ["tdx.qe.attestation_key", "tdx.quote.signature"],
    )
    put("another-auth", "TDX-30", {parts["auth"][0]: bytes(32)}, ["tdx.qe.attestation_key"])
    put(
        "debug-qe",
        "TDX-31",
        {parts["qe_report"][0] + 48: bytes([raw[parts["qe_report"][0] + 48] | 2])},
        ["tdx.qe.debug", "tdx.qe.signature"],
    )
    put("outer-type-5", "TDX-10", {parts["outer"][0]: b"\5\0"}, ["tdx.structure"])
    put("inner-type-1", "TDX-11", {parts["inner"][0]: b"\1\0"}, ["tdx.structure"])
    for part in ("size", "auth_size"):
        put(f"{part.replace('_', '-')}-wrong", "TDX-12", {parts[part][0]: b"\xff"}, ["tdx.structure"])
    put("outer-size-wrong", "TDX-12", {parts["outer"][0] + 2: b"\xff"}, ["tdx.structure"])
    put("inner-size-wrong", "TDX-12", {parts["inner"][0] + 2: b"\xff"}, ["tdx.structure"])
    add(
        book,
        "v5-body-type-1",
        "TDX-8",
        source(GOOGLE, patched(other, {HEADER: b"\1\0"})),
        "intel",
        MARCH,
        ["tdx.structure"],
        like=GOOGLE,
    )
    add(
        book,
        "v5-body-size-wrong",
        "TDX-8",
        source(GOOGLE, patched(other, {HEADER + 2: b"\x89"})),
        "intel",
        MARCH,
        ["tdx.structure"],
        like=GOOGLE,
    )
    add(
        book,
        "padding-of-zeros",
        "TDX-21",
        {"file": PHALA, "edits": [{"at": len(raw), "insert": "00" * 32}]},
        like=PHALA,
    )
    add(
        book,
        "padding-that-speaks",
        "TDX-21",
        {"file": PHALA, "edits": [{"at": len(raw), "insert": "68656c6c6f"}]},
        refusals=["tdx.quote.padding"],
        like=PHALA,
    )
    too_long = {"quote": {"$bytes": LOG, "as": "base64"}}
    book.case(
        PAGE,
        "too-long",
        "TDX-6",
        "tdx",
        ["tdx.structure"],
        evidence=too_long,
        report_data=bytes(64),
        trust="intel",
        time=JUNE,
    )
    pem = Quote.parse(raw).signature.certificates
    blocks = [one + b"-----END CERTIFICATE-----\n" for one in pem.split(b"-----END CERTIFICATE-----\n")[:3]]
    processor = (
        Quote.parse(corpus.data(SGX)).signature.certificates.split(b"-----END CERTIFICATE-----\n")[1]
        + b"-----END CERTIFICATE-----\n"
    )
    for name, statements, chain, refusals in (
        ("chain-of-two", "TDX-13 TDX-23", b"".join(blocks[:2]), ["tdx.pck.structure"]),
        ("chain-of-four", "TDX-13 TDX-23", pem.rstrip(b"\0") + blocks[2], ["tdx.pck.structure"]),
        ("chain-with-words", "TDX-13 TDX-23", b"hello\n" + pem, ["tdx.pck.structure"]),
        ("chain-without-00", "TDX-14", b"".join(blocks), None),
        ("chain-with-other-line-ends", "TDX-14", b"".join(blocks).replace(b"\n", b"\r\n") + b"\0", None),
        ("chain-in-another-order", "TDX-24", blocks[0] + blocks[2] + blocks[1], ["tdx.pck.chain"]),
        ("chain-with-another-ca", "TDX-24", blocks[0] + processor + blocks[2], ["tdx.pck.chain"]),
        ("ca-for-a-platform", "TDX-26 TDX-27", blocks[1] + blocks[2] + blocks[2], ["tdx.pck.extension", "tdx.pck.names"]),
    ):  # fmt: skip
        add(book, name, statements, source(PHALA, with_chain(raw, chain)), refusals=refusals, like=PHALA)
    add(book, "another-platform-s-leaf", "TDX-29", source(PHALA, with_chain(raw, Quote.parse(corpus.data(COS)).signature.certificates)),
        refusals=["tdx.qe.signature"], like=PHALA)  # fmt: skip


def _logs(book: Book) -> None:
    log = corpus.data(LOG)
    for name, statements, given, refusals, says in (
        (
            "log",
            "TDX-66 TDX-67 TDX-68 TDX-70 TDX-71",
            LOG,
            None,
            {"/tdx/boot_log": True, "/tdx/measured_code/by": "verity-command-line"},
        ),
        ("log-event-changed", "TDX-66", _flipped(log, 0), ["tdx.event_log.rtmr0"], None),
        ("log-of-rtmr1-changed", "TDX-66", _flipped(log, 1), ["tdx.event_log.rtmr1"], None),
        ("log-of-rtmr2-changed", "TDX-66", _flipped(log, 2), ["tdx.event_log.rtmr2"], None),
        ("log-with-rtmr3", "TDX-67", _extended(log), ["tdx.event_log.rtmr3"], None),
        ("log-of-register-5", "TDX-69", _extended(log, 5), ["tdx.structure"], None),
        (
            "log-with-more-behind-it",
            "TDX-70",
            {"file": LOG, "edits": [{"at": len(log) - 1, "remove": 1, "insert": "00"}]},
            ["tdx.structure"],
            None,
        ),
        ("log-of-a-tpm", "TDX-68", "../tpm/eventlog_ubuntu-2404-amd-sevsnp.bin", ["tdx.structure"], None),
    ):
        add(book, name, statements, COS, "intel", JULY, refusals, log=b64(given), says=says)


def _events_end(log: bytes) -> int:
    return len(log.rstrip(b"\xff"))


def _flipped(log: bytes, rtmr: int) -> Any:
    """The log with the digest of the first extending event of a register changed."""
    events = tcg_event_log.parse(log).events
    first = next(one for one in events if one.pcr == rtmr + 1 and one.type != EventType.NO_ACTION)
    at = log.index(first.digests[Alg.SHA384])
    return {"file": LOG, "edits": [{"at": at, "remove": 1, "insert": bytes([log[at] ^ 1]).hex()}]}


def _extended(log: bytes, register: int = 4) -> Any:
    event = struct.pack("<IIIH", register, EventType.EVENT_TAG, 1, Alg.SHA384) + b"\x11" * 48 + struct.pack("<I", 0)
    at = _events_end(log)
    return {"file": LOG, "edits": [{"at": at, "remove": len(event), "insert": event.hex()}]}


def _azure(book: Book) -> None:
    whole = json.loads(corpus.data(AZURE))
    hcl = base64.urlsafe_b64decode(whole["hcl_report"] + "==")
    nonce = _azure_nonce(whole)

    def case(name: str, statements: str, *edits: Any, refusals: Any = None, data: bytes = nonce, **more: Any) -> None:
        book.case(PAGE, name, statements, "az-tdx-vtpm", refusals, evidence={"$json": AZURE, **({"edits": list(edits)} if edits else {})},
                  report_data=data, trust="intel-2025-07", time=JULY, **more)  # fmt: skip

    def changed(at: int, put: bytes) -> dict[str, Any]:
        base = {"file": AZURE, "decode": ["/hcl_report", "base64url"]}
        return {"pointer": "/hcl_report", "set": {"$bytes": source(base, patched(hcl, {at: put})), "as": "base64url"}}

    case("azure", "TDX-72 TDX-73 TDX-74 TDX-75", says={"/tpm/enrolled": "hardware-report", "/tdx/attributes": []})
    case("azure-report-type-2", "TDX-72 TDX-73", changed(32 + 1184 + 8, b"\2"), refusals=["azure.structure"])
    case("azure-other-member", "TDX-72", {"pointer": "/vcek", "set": ""}, refusals=["azure.structure"])
    case("azure-report-changed", "TDX-74", changed(32 + 512, b"\xff"), refusals=["azure.hcl.report"])
    behind = hcl.index(b'"vm-configuration"') + 3
    case("azure-variable-data-changed", "TDX-75", changed(behind, b"X"), refusals=["azure.hcl.binding"])
    case(
        "azure-other-challenge",
        "TDX-75",
        data=bytes(len(nonce)),
        refusals=["tpm.quote.nonce", *(["azure.hcl.user_data"] if whole["version"] > 1 else [])],
    )
    quote = {"pointer": "/td_quote", "set": {"$bytes": SGX, "as": "base64url"}}
    case("azure-sgx-quote", "TDX-73", quote, refusals=["azure.structure"])


def _azure_nonce(whole: Any) -> bytes:
    return Attest.parse(bytes.fromhex(whole["tpm_quote"]["message"])).extra_data
