"""Cases of docs/spec/ak-enrolment.md: a recorded exchange, and vendors of our own."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation import enrolment
from hermetic.attestation.abi.tpm import Alg, Attributes, Public, Scheme
from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from tests.attestation.conftest import certificate_authority, key_usage
from tests.conformance import corpus
from tests.conformance.build import Book, b64, remember, source

PAGE = "ak-enrolment"
FILE = "../ak-enrolment/accepted.json"
TIME = datetime(2026, 11, 22, 21, 46, 37, tzinfo=UTC)
SECRET = bytes(range(32))
ENCIPHER = (key_usage(key_encipherment=True), True)


def cases(book: Book) -> None:
    """All of them."""
    _recorded(book)
    Vendors(book).cases()


def _part(pointer: str) -> dict[str, Any]:
    return {"$json": {"file": FILE, "decode": [pointer]}}


def _root(book: Book) -> str:
    return remember(book, "swtpm-root.pem", json.loads(corpus.data(FILE))["software_roots"][0].encode())


def _recorded(book: Book) -> None:
    ca = ec.derive_private_key(7, ec.SECP256R1())
    path = remember(book, "enrolling-ca.der", certificate_authority(ca, TIME).public_bytes(Encoding.DER))
    short = certificate_authority(ca, TIME, life=timedelta(hours=1)).public_bytes(Encoding.DER)
    ending = remember(book, "enrolling-ca-ending.der", short)
    whole = json.loads(corpus.data(FILE))
    chain = [{"file": FILE, "decode": [f"/software_roots/{index}"]} for index in range(len(whole["software_roots"]))]

    def case(name: str, statements: str, refusals: Any = None, *, edits: Any = (), request: Any = (), profile: str = "demo", secret: bytes = SECRET,
             ak_ca: str = path, **more: Any) -> None:  # fmt: skip
        book.case(
            PAGE, name, statements, "enrolment", refusals, profile=profile, software=chain, secret=secret, time=TIME, ak_ca=ak_ca,
            request={**_part("/request"), **({"edits": list(request)} if request else {})},
            answer={**_part("/answer"), **({"edits": list(edits)} if edits else {})}, **more,
        )  # fmt: skip

    ends = (TIME + timedelta(hours=24)).isoformat()
    case(
        "recorded",
        "AK-1 AK-2 AK-4 AK-5 AK-6 AK-7 AK-9 AK-10 AK-11 AK-12 AK-13 AK-14 AK-15",
        says={"/software": True, "/ends": ends},
    )
    case("ends-with-its-ca", "AK-15", ak_ca=ending, says={"/ends": (TIME + timedelta(hours=1)).isoformat()})
    case("software-in-production", "AK-2 AK-8", ["ek.chain"], profile="production")
    book.case(PAGE, "software-ca-among-the-vendors", "AK-8", "enrolment", ["ek.software"], profile="production", vendors=chain, secret=SECRET,
              time=TIME, request=_part("/request"))  # fmt: skip
    case("too-late", "AK-11", ["challenge.expires"], answered=TIME + timedelta(minutes=5, seconds=1))
    case("in-time", "AK-11", answered=TIME + timedelta(minutes=5))
    case(
        "another-secret",
        "AK-12",
        ["challenge.secret"],
        edits=[{"pointer": "/secret", "set": base64.b64encode(bytes(32)).decode()}],
    )
    case("another-challenge", "AK-14", ["challenge.secret", "tpm.quote.nonce"], secret=bytes(32))
    signature = base64.b64decode(whole["answer"]["signature"])
    case(
        "another-signature",
        "AK-13",
        ["tpm.quote.signature"],
        edits=[{"pointer": "/signature", "set": base64.b64encode(signature[:-1] + b"\0").decode()}],
    )
    message = base64.b64decode(whole["answer"]["quote"])
    case(
        "quote-with-another-magic",
        "AK-13",
        ["tpm.quote.magic", "tpm.quote.signature"],
        edits=[{"pointer": "/quote", "set": base64.b64encode(b"\0" + message[1:]).decode()}],
    )
    case(
        "quote-of-another-type",
        "AK-13",
        ["tpm.quote.signature", "tpm.quote.type"],
        edits=[{"pointer": "/quote", "set": base64.b64encode(message[:5] + b"\x17" + message[6:]).decode()}],
    )
    case(
        "no-quote",
        "AK-13",
        ["tpm.quote.signature", "tpm.quote.structure"],
        edits=[{"pointer": "/quote", "set": base64.b64encode(message[:9]).decode()}],
    )
    case(
        "signature-of-another-scheme",
        "AK-13",
        ["tpm.quote.scheme"],
        edits=[{"pointer": "/signature", "set": base64.b64encode(signature[:2] + b"\0\x0c" + signature[4:]).decode()}],
    )
    for name, edit in (
        ("version-2", {"pointer": "/version", "set": 2}), ("no-certificates", {"pointer": "/ek-certificates", "set": []}),
        ("six-certificates", {"pointer": "/ek-certificates", "set": [whole["request"]["ek-certificates"][0]] * 6}),
        ("area-with-more", {"pointer": "/ak-public", "set": base64.b64encode(base64.b64decode(whole["request"]["ak-public"]) + b"\0").decode()}),
        ("not-base64", {"pointer": "/ek-public", "set": "!"}),
    ):  # fmt: skip
        case(name, "AK-1", ["malformed"], request=[edit])
    case(
        "secret-too-long",
        "AK-1",
        ["malformed"],
        edits=[{"pointer": "/secret", "set": base64.b64encode(bytes(33)).decode()}],
    )


class Vendors:
    """EK certificates of vendors of our own, for the recorded TPM's EK."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.request = json.loads(corpus.data(FILE))["request"]
        self.ek = Public.parse(base64.b64decode(self.request["ek-public"]))
        self.ak = Public.parse(base64.b64decode(self.request["ak-public"]))
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.vendor = certificate_authority(self.key, TIME, name="A TPM vendor")
        self.root = remember(book, "tpm-vendor.der", self.vendor.public_bytes(Encoding.DER))

    def certificate(
        self,
        *extensions: tuple[x509.ExtensionType, bool],
        key: Any = None,
        by: Any = None,
        issuer: x509.Certificate | None = None,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name((issuer or self.vendor).subject)
            .public_key(key or self.ek.public_key())
            .serial_number(7)
            .not_valid_before(TIME - timedelta(days=1))
            .not_valid_after(TIME + timedelta(days=1))
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical=critical)
        return builder.sign(by or self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def case(self, name: str, statements: str, refusals: Any = None, *, certificate: bytes | None = None, members: Any = None, profile: str = "production",
             time: datetime = TIME, vendors: Any = None, says: Any = None) -> None:  # fmt: skip
        der = certificate or self.certificate(ENCIPHER)
        base = getattr(self, "base", None)
        if base is None:
            base = self.base = remember(self.book, "ek.der", der)
        edits = [{"pointer": "/ek-certificates", "set": [b64(source(base, der))]}]
        edits += [
            {"pointer": f"/{key}", "set": base64.b64encode(value).decode()} for key, value in (members or {}).items()
        ]
        self.book.case(PAGE, name, statements, "enrolment", refusals, profile=profile, vendors=vendors or [self.root], secret=SECRET, time=time,
                       request={**_part("/request"), "edits": edits}, **({"says": says} if says else {}))  # fmt: skip

    def cases(self) -> None:
        """All of them."""
        purpose = (x509.ExtendedKeyUsage([enrolment.EK_PURPOSE_OID]), False)
        self.case("vendor", "AK-2 AK-7", says={"/software": False})
        self.case("vendor-with-purpose", "AK-7", certificate=self.certificate(ENCIPHER, purpose))
        self.case(
            "for-web-servers",
            "AK-7",
            ["ek.purpose"],
            certificate=self.certificate(ENCIPHER, (x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False)),
        )
        self.case(
            "for-signing", "AK-6", ["ek.usage"], certificate=self.certificate((key_usage(digital_signature=True), True))
        )
        self.case("for-nothing-said", "AK-6", ["ek.usage"], certificate=self.certificate())
        self.case(
            "before-its-time",
            "AK-2",
            ["ek.chain"],
            time=TIME - timedelta(days=2),
        )
        self.case("after-its-time", "AK-2", ["ek.chain"], time=TIME + timedelta(days=2))
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
        self.case(
            "unknown-critical-extension", "AK-3", ["ek.chain"], certificate=self.certificate(ENCIPHER, (unknown, True))
        )
        self.case("unknown-extension", "AK-3", certificate=self.certificate(ENCIPHER, (unknown, False)))
        other = rsa.generate_private_key(65537, 2048)
        self.case("another-key", "AK-4", ["ek.key"], certificate=self.certificate(ENCIPHER, key=other.public_key()))
        small = rsa.generate_private_key(65537, 1024)
        self.case(
            "small-key",
            "AK-3 AK-4",
            ["ek.chain", "ek.key"],
            certificate=self.certificate(ENCIPHER, key=small.public_key()),
        )
        stranger = ec.generate_private_key(ec.SECP256R1())
        self.case("of-a-stranger", "AK-2", ["ek.chain"], certificate=self.certificate(ENCIPHER, by=stranger))
        for name, changed in (
            ("that-may-leave", self.ek.attributes & ~Attributes.FIXED_TPM),
            ("that-signs", self.ek.attributes | Attributes.SIGN),
            ("that-is-free", self.ek.attributes & ~Attributes.RESTRICTED),
        ):
            self.case(f"ek-{name}", "AK-5", ["ek.attributes"], members={"ek-public": _with(self.ek, changed)})
        for name, changed in (
            ("unrestricted", self.ak.attributes & ~Attributes.RESTRICTED),
            ("that-decrypts", self.ak.attributes | Attributes.DECRYPT),
            ("made-elsewhere", self.ak.attributes & ~Attributes.SENSITIVE_DATA_ORIGIN),
        ):
            self.case(f"ak-{name}", "AK-9", ["ak.attributes"], members={"ak-public": _with(self.ak, changed)})
        scheme = replace(self.ak, scheme=Scheme(self.ak.scheme.alg, (Alg.SHA384,)))
        self.case("ak-of-another-scheme", "AK-10", ["ak.algorithm"], members={"ak-public": scheme.pack()})
        model = x509.DirectoryName(x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "swtpm")]))
        names = (x509.SubjectAlternativeName([model]), True)
        self.case("software-model", "AK-8", ["ek.software"], certificate=self.certificate(ENCIPHER, names))
        key = ec.generate_private_key(ec.SECP256R1())
        demo = certificate_authority(key, TIME, organisation=DEMO_ORGANISATION)
        root = remember(self.book, "demo-tpm-vendor.der", demo.public_bytes(Encoding.DER))
        self.case(
            "mark-of-a-demo",
            "AK-8",
            ["ek.software"],
            certificate=self.certificate(ENCIPHER, by=key, issuer=demo),
            vendors=[root],
        )


def _with(public: Public, attributes: Attributes) -> bytes:
    return replace(public, attributes=attributes).pack()
