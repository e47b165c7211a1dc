"""Cases of docs/spec/collateral-bundle.md: bundles and imports. Windows and machines are windows.py's."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.collateral.items import chain_data, read
from hermetic.attestation.collateral.kinds import Kind
from tests.attestation import amd
from tests.attestation.collateral import by_hand
from tests.attestation.collateral.by_hand import ROWS, Row
from tests.attestation.verifiers import nvgpu_made
from tests.conformance import corpus, nvgpu, snp, tdx
from tests.conformance.build import Book, remember, source
from tests.conformance.intel import Intel, endless, holder

PAGE = "collateral-bundle"
ACCEPTED = "../collateral/accepted.bundle"
SIGNERS = {"signers": [by_hand.verifier_line()]}
DAY = timedelta(days=1)
RECORDED = {
    "bundle.structure--truncated-head": "COL-1 COL-30", "bundle.structure--other-format": "COL-1 COL-30",
    "bundle.structure--manifest-larger-than-the-file": "COL-2 COL-30", "bundle.structure--manifest-over-the-limit": "COL-2 COL-30",
    "bundle.signature--other-signer": "COL-25 COL-31", "bundle.signature--other-key-under-the-name": "COL-26 COL-31",
    "bundle.signature--of-another-manifest": "COL-24 COL-31", "bundle.manifest--reordered": "COL-8 COL-32", "bundle.manifest--twice": "COL-8 COL-32",
    "bundle.manifest--kind-is-a-path": "COL-32", "bundle.manifest--not-canonical": "COL-32", "bundle.manifest--number-zero": "COL-6 COL-32",
    "bundle.manifest--unknown-member": "COL-5 COL-32", "bundle.contents--truncated": "COL-4 COL-33", "bundle.contents--more-behind": "COL-4 COL-33",
    "bundle.contents--item-larger-than-its-size": "COL-33", "item.digest--swapped": "COL-34", "item.digest--flipped": "COL-34",
    "item.structure--another-kind": "COL-13 COL-35", "item.subject--higher-tcb": "COL-11 COL-36", "item.period--later-end": "COL-11 COL-36",
    "item.vouched--forged-vcek": "COL-12 COL-37", "item.vouched--chain-left-out": "COL-17 COL-37", "item.complete--tcb-info-alone": "COL-38",
}  # fmt: skip
"""Bundles of the vectors, each called after the check that fails."""


def cases(book: Book) -> None:
    """All of them."""
    vendors = {"device_roots": [nvgpu.DEVICE_ROOT], "rim_roots": [nvgpu.RIM_ROOT]}
    book.trust("vendors", snp={"authorities": snp.SHIPPED}, dcap={"roots": [tdx.ROOT]}, nvgpu=vendors)
    _recorded(book)
    _made(book)
    _kinds(book)
    _vouched(book)
    _own_vendors(book)
    _imports(book)


def row(kind: Kind, data: bytes) -> Row:
    """A row of a bundle for an item."""
    item = read(kind, data)
    start, end = (f"{one:%Y-%m-%dT%H:%M:%SZ}" for one in (item.start, item.end))
    return kind, item.subject, start, end, data


def case(book: Book, name: str, statements: str, bundle: Any, refusals: Any = None, **more: Any) -> None:
    """A case about a bundle, signed by the key of the vectors where nothing else is said."""
    book.case(
        PAGE, name, statements, "bundle", refusals, **{"bundle": bundle, "given": SIGNERS, "trust": "vendors", **more}
    )


def near(data: bytes) -> Any:
    """A source: the accepted bundle, edited."""
    return source(ACCEPTED, data)


def _recorded(book: Book) -> None:
    items = [f"{one[0]} {one[1]}" for one in ROWS]
    says = {"/number": 7, "/created": "2026-03-17T08:00:00+00:00", "/items": items, "/signers": [by_hand.SIGNER]}
    all_of_it = " ".join(f"COL-{number}" for number in (*range(1, 13), *range(15, 20), *range(24, 27), *range(30, 39)))
    case(book, "accepted", all_of_it, ACCEPTED, says=says)
    for name, statements in RECORDED.items():
        check, _, done = name.partition("--")
        case(book, done, statements, f"../collateral/{name}.bundle", [check])


def _made(book: Book) -> None:
    good, listed, written = by_hand.whole(), by_hand.entries(), by_hand.manifest(by_hand.entries())
    first = {**listed[0]}

    def manifest(
        name: str, statements: str, text: bytes, refusals: Any = ("bundle.manifest",), says: Any = None
    ) -> None:
        made = near(by_hand.bundle(text, by_hand.contents()))
        case(book, name, statements, made, None if says else list(refusals), **({"says": says} if says else {}))

    def entry(**changes: Any) -> bytes:
        return by_hand.manifest([{**first, **changes}, *listed[1:]])

    at = 29 + 4 + len(written)
    case(
        book,
        "note-over-the-limit",
        "COL-3 COL-30",
        near(good[:at] + (65537).to_bytes(4, "big") + good[at + 4 :]),
        ["bundle.structure"],
    )
    case(book, "note-of-nothing", "COL-3 COL-30", near(good[:at] + bytes(4) + good[at + 4 :]), ["bundle.structure"])
    manifest("largest-number", "COL-6", by_hand.manifest(listed, 2**53 - 1), says={"/number": 2**53 - 1})
    manifest("number-too-large", "COL-6", by_hand.manifest(listed, 2**53))
    manifest("created-with-an-offset", "COL-7", by_hand.manifest(listed, created="2026-03-17T08:00:00+00:00"))
    manifest("created-without-seconds", "COL-7", by_hand.manifest(listed, created="2026-03-17T08:00Z"))
    manifest(
        "without-a-member",
        "COL-5 COL-32",
        by_hand.manifest([{k: v for k, v in first.items() if k != "source"}, *listed[1:]]),
    )
    case(book, "without-entries", "COL-8", near(by_hand.bundle(by_hand.manifest([]), [])), ["bundle.manifest"])
    manifest("item-of-nothing", "COL-9", entry(size=0))
    manifest("item-over-a-mebibyte", "COL-9", entry(size=(1 << 20) + 1))
    manifest("source-of-256-characters", "COL-10", entry(source="a" * 256), says={"/number": 7})
    manifest("source-of-257-characters", "COL-10", entry(source="a" * 257), ["item.structure"])
    manifest(
        "source-with-an-escape", "COL-10", entry(source="\x1b[2J").replace(b"\\u001b", b"\\u001b"), ["item.structure"]
    )
    note = by_hand.note(written)
    wrong = by_hand.note(written[:-1], by_hand.STRANGER, by_hand.STRANGER_SEED).partition(b"\n\n")[2]
    head = f"{by_hand.FORMAT}\n".encode() + by_hand.sized(written)
    both = head + by_hand.sized(note + wrong) + b"".join(by_hand.contents())
    case(book, "a-stranger-s-signature-beside", "COL-27", near(both), says={"/signers": [by_hand.SIGNER]})
    two = {"signers": [*SIGNERS["signers"], by_hand.verifier_line(by_hand.STRANGER, by_hand.STRANGER_SEED)]}
    case(book, "a-listed-signature-that-does-not-verify", "COL-26", near(both), ["bundle.signature"], given=two)
    unsigned = by_hand.bundle(b"{", by_hand.contents(), name=by_hand.STRANGER, seed=by_hand.STRANGER_SEED)
    case(book, "a-stranger-s-manifest-is-not-read", "COL-28 COL-31", near(unsigned), ["bundle.signature"])
    case(book, "nobody-is-asked-who-signed", "COL-25", "../collateral/bundle.signature--other-signer.bundle",
         given={}, says={"/signers": []})  # fmt: skip
    several = [{**listed[0], "digest": "00" * 32}, *listed[1:5], {**listed[5], "valid-until": "2027-04-15T22:06:09Z"}]
    several.append({**listed[6], "subject": listed[6]["subject"].replace("10.0", "11.0")})
    manifest("several-items-wrong", "COL-29", by_hand.manifest(several), ["item.digest", "item.period", "item.subject"])


def _kinds(book: Book) -> None:
    """Items of the other kinds, and those of vendors of our own."""
    manifests = [row("driver-rim", corpus.data("../nvgpu/driver_rim_550.144.03.xml")),
                 row("vbios-rim", corpus.data("../nvgpu/hopper_535.vbios_rim_match.xml")),
                 row("vlek", corpus.data("../snp/milan_v3_vlek.vlek.der"))]  # fmt: skip
    whole = by_hand.whole(manifests)
    base = remember(book, "manifests.bundle", whole)
    case(
        book,
        "manifests-and-a-vlek",
        "COL-13 COL-20 COL-21",
        base,
        says={"/items": [f"{one[0]} {one[1]}" for one in manifests]},
    )
    swapped = [("vbios-rim", *manifests[0][1:])]
    case(
        book,
        "driver-s-manifest-as-a-vbios-s",
        "COL-20 COL-21 COL-35",
        source(base, by_hand.whole(swapped)),
        ["item.structure"],
    )
    vendor, chips = amd.Vendor(Generation.MILAN), nvgpu_made.Vendor()
    authorities = vendor.authorities()
    given = {
        role: remember(book, f"bundle-{role}.der", getattr(authorities, role).der) for role in ("ark", "ask", "asvk")
    }
    root = remember(book, "bundle-nvidia-root.der", _der(chips.root))
    book.trust("bundle-vendors", snp={"authorities": [{"generation": "Milan", **given}]}, dcap={"roots": [tdx.ROOT]},
               nvgpu={"device_roots": [root], "rim_roots": [root]})  # fmt: skip
    chip = chips.chip()
    chain = (chip.own.certificate, chips.provisioner.certificate, chips.family.certificate, chips.root.certificate)
    crl = row("amd-crl", vendor.crl("ask", start=amd.START, end=amd.END))
    answered = chips.answer(chip.own, chips.provisioner)
    rows = [crl, row("ocsp", answered), row("signing-chain", chain_data(chain))]
    own = remember(book, "own.bundle", by_hand.whole(rows))
    own_case = {"trust": "bundle-vendors"}
    case(
        book,
        "list-of-amd-and-answers",
        "COL-14 COL-19 COL-22",
        own,
        says={"/items": [f"{one[0]} {one[1]}" for one in rows]},
        **own_case,
    )
    others = amd.crl("ARK-Milan", amd.key("authority ask Milan"))
    for name, statements, changed in (
        ("list-of-another-key", "COL-14 COL-37", [row("amd-crl", others), *rows[1:]]),
        (
            "answer-of-another-key",
            "COL-22 COL-37",
            [crl, row("ocsp", chips.answer(chip.own, chips.provisioner, signer=chip.leaf)), rows[2]],
        ),
        ("answer-without-its-chain", "COL-22 COL-37", rows[:2]),
    ):
        case(book, name, statements, source(own, by_hand.whole(changed)), ["item.vouched"], **own_case)
    case(book, "list-of-an-unknown-ark", "COL-14 COL-37", own, ["item.vouched"])
    forever = chips.answer(chip.own, chips.provisioner, life=(nvgpu_made.NOW, None))
    timeless = ("ocsp", rows[1][1], *rows[1][2:4], forever)
    case(
        book, "answer-without-an-end", "COL-23", source(own, by_hand.whole([timeless])), ["item.structure"], **own_case
    )
    intel = Intel(corpus.data(tdx.PHALA), datetime(2026, 3, 17, tzinfo=UTC))
    unending = (
        "root-crl",
        "Intel SGX Root CA",
        "2026-03-16T00:00:00Z",
        "2027-03-16T00:00:00Z",
        endless(intel.crl(intel.root), intel.root),
    )
    case(book, "list-without-an-end", "COL-23", source(own, by_hand.whole([unending])), ["item.structure"], **own_case)


def _vouched(book: Book) -> None:
    """What nobody's root vouches for, one item at a time."""
    intel = Intel(corpus.data(tdx.PHALA), datetime(2026, 3, 17, tzinfo=UTC))
    info, identity = by_hand.TCB_INFO, by_hand.IDENTITY
    signed = info[4].index(b'"signature":"') + len(b'"signature":"')

    def put(kind: str, data: bytes, subject: str | None = None) -> list[Row]:
        return [(one[0], subject or one[1], *one[2:4], data) if one[0] == kind else one for one in ROWS]

    flipped = info[4][:signed] + (b"0" if info[4][signed : signed + 1] != b"0" else b"1") + info[4][signed + 1 :]
    zero = info[4][:signed] + b"0" * 64 + info[4][signed + 64 :]
    edited = identity[4].replace(b'"isvprodid":2', b'"isvprodid":1')
    for name, statements, rows in (
        ("tcb-info-with-another-signature", "COL-15", put("tcb-info", flipped)),
        ("tcb-info-with-a-number-of-zero", "COL-15", put("tcb-info", zero)),
        ("identity-that-was-edited", "COL-16", put("qe-identity", edited)),
        ("list-of-a-root-of-that-name", "COL-18", [*ROWS[:2], row("root-crl", intel.crl(intel.root)), *ROWS[3:]]),
        ("list-of-a-ca-of-that-name", "COL-17", [row("pck-crl", intel.crl(intel.ca)), *ROWS[1:]]),
        ("chain-to-another-root", "COL-19", [*ROWS[:4], _chain(intel), *ROWS[4:]]),
    ):
        case(
            book,
            name,
            f"{statements} COL-37",
            near(by_hand.whole(sorted(rows, key=lambda one: one[:2]))),
            ["item.vouched"],
        )
    for name, missing in (
        ("identity", by_hand.IDENTITY),
        ("root-s-list", by_hand.ROOT_CRL),
        ("list-of-the-ca", by_hand.PCK_CRL),
    ):
        left = [one for one in ROWS if one is not missing]
        case(book, f"tcb-info-without-the-{name}", "COL-38", near(by_hand.whole(left)), ["item.complete"])


def _own_vendors(book: Book) -> None:
    """One thing wrong with each of a vendor's items; all else of it is vouched for."""
    now = datetime(2026, 3, 17, tzinfo=UTC)
    vendor, intel = amd.Vendor(Generation.MILAN), Intel(corpus.data(tdx.PHALA), now)
    authorities = vendor.authorities()
    given = {
        role: remember(book, f"alone-{role}.der", getattr(authorities, role).der) for role in ("ark", "ask", "asvk")
    }
    root = remember(book, "alone-intel-root.der", intel.root.der)
    vendors = {"device_roots": [nvgpu.DEVICE_ROOT], "rim_roots": [nvgpu.RIM_ROOT]}
    trust = book.trust(
        "alone-vendors", snp={"authorities": [{"generation": "Milan", **given}]}, dcap={"roots": [root]}, nvgpu=vendors
    )
    chip, tcb = amd.chip_id("one"), amd.tcb_of(Generation.MILAN)
    named = holder("Intel SGX Some Signing", intel.root, now, ca=False)
    early = holder("Intel SGX PCK Platform CA", intel.root, now, ca=True, life=(now - 30 * DAY, now - 20 * DAY))
    late = holder("Intel SGX TCB Signing", early, now, ca=False, life=(now - 10 * DAY, now + 10 * DAY))
    manifest = corpus.data("../nvgpu/hopper_535.vbios_rim_match.xml")
    begin = manifest.index(b"<ds:SignatureValue>") + len(b"<ds:SignatureValue>")
    end = manifest.index(b"</ds:SignatureValue>")
    unsigned = manifest[:begin] + b64encode(bytes(96)) + manifest[end:]
    good = row("vcek", vendor.vcek(chip, tcb))
    base = remember(book, "alone.bundle", by_hand.whole([row("vbios-rim", manifest)]))
    case(
        book,
        "own-vcek",
        "COL-12",
        source(base, by_hand.whole([good])),
        trust=trust,
        says={"/items": [f"{good[0]} {good[1]}"]},
    )
    for name, statements, one in (
        ("list-of-another-generation", "COL-14", row("amd-crl", amd.Vendor(Generation.GENOA).crl())),
        ("vcek-of-another-product", "COL-12", row("vcek", vendor.vcek(chip, tcb, product="Genoa"))),
        ("chain-of-another-name", "COL-19", row("signing-chain", chain_data((named.certificate, intel.root.certificate)))),
        ("chain-never-in-its-time", "COL-19",
         row("signing-chain", chain_data((late.certificate, early.certificate, intel.root.certificate)))),
        ("manifest-that-was-edited", "COL-21", row("vbios-rim", manifest.replace(b"c3f65ef7", b"c3f65ef8"))),
        ("manifest-with-numbers-of-zero", "COL-21", row("vbios-rim", unsigned)),
    ):  # fmt: skip
        case(book, name, f"{statements} COL-37", source(base, by_hand.whole([one])), ["item.vouched"], trust=trust)


def _chain(intel: Intel) -> Row:
    return row("signing-chain", chain_data((intel.signer.certificate, intel.root.certificate)))


def _imports(book: Book) -> None:
    early, late = datetime(2026, 3, 20, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
    created = "2026-03-17T07:59:59Z"
    ended = [f"{one[0]} {one[1]}" for one in (by_hand.PCK_CRL, by_hand.IDENTITY, by_hand.TCB_INFO)]
    for name, statements, number, day, back, refusals, says in (
        ("newer", "COL-39", 8, "2026-03-17T08:00:00Z", False, None, {"/replaced": 7, "/out_of_time": []}),
        ("lower-number", "COL-39", 6, "2026-03-18T08:00:00Z", False, ["bundle.number"], None),
        ("the-same-number", "COL-39", 7, "2026-03-18T08:00:00Z", False, ["bundle.number"], None),
        ("made-earlier", "COL-39", 8, created, False, ["bundle.created"], None),
        ("lower-and-earlier", "COL-39", 6, created, False, ["bundle.created", "bundle.number"], None),
        ("back-on-purpose", "COL-40", 6, created, True, None, {"/replaced": 7}),
        ("the-very-same", "COL-41", 7, "2026-03-17T08:00:00Z", False, None, {"/replaced": 7}),
    ):
        book.case(PAGE, f"import-{name}", statements, "import", refusals, before=ACCEPTED, bundle=near(by_hand.whole(number=number, created=day)),
                  given={**SIGNERS, "back": back}, trust="vendors", time=early, **({} if says is None else {"says": says}))  # fmt: skip
    for name, time, found in (("late", late, ended), ("in-time", early, [])):
        book.case(PAGE, f"import-{name}", "COL-42", "import", None, bundle=ACCEPTED, given={**SIGNERS, "back": False}, trust="vendors", time=time,
                  says={"/replaced": None, "/out_of_time": found})  # fmt: skip
    book.case(PAGE, "import-forged", "COL-37", "import", ["item.vouched"], before=ACCEPTED, bundle="../collateral/item.vouched--forged-vcek.bundle",
              given={**SIGNERS, "back": True}, trust="vendors", time=early)  # fmt: skip


def _der(one: nvgpu_made.Holder) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return one.certificate.public_bytes(Encoding.DER)
