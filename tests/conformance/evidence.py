"""Cases of docs/spec/evidence.md: the binding, kind `sample`, and quotes of TPMs by keys of our own."""

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.ak_certificate import AIK_PURPOSE_OID, EnrolledBoot
from hermetic.attestation.abi.event_log import Event, EventLog
from hermetic.attestation.abi.tpm import Alg, Attest, Attributes, PcrSelection, QuoteInfo, Scheme, extended
from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.attestation.enrolment import AkCa
from hermetic.attestation.evidence import device_report_data, fit, report_data
from hermetic.attestation.verifiers.ak import DEMANDED
from hermetic.attestation.verifiers.certificates import spki
from tests.attestation.conftest import certificate_authority, key_usage
from tests.attestation.verifiers.quotes import Forge, ak_area, b64
from tests.attestation.verifiers.test_boot_chain import FIRMWARE
from tests.conformance import corpus
from tests.conformance.build import Book, json_edits, remember

PAGE = "evidence"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = bytes(range(32))
ZEROS = bytes(32)
TRUSTEE = "../tpm/tpm_evidence.json"
SIZES = ("tpm", "sample", "az-snp-vtpm", "az-tdx-vtpm", "snp", "tdx", "sgx", "nvidia")


def cases(book: Book) -> None:
    """All of them."""
    _binding(book)
    _sample(book)
    Quotes(book).cases()


def _binding(book: Book) -> None:
    given = json.loads(corpus.data("../evidence/primary-hermetic.json"))["value"]
    plain = {name: given[name] for name in ("nonce", "tee-pubkey")}

    def case(name: str, statements: str, of: str, members: dict[str, Any], **more: Any) -> None:
        if of == "device":
            digest = device_report_data(members["nonce"], members["tee-pubkey"])
        else:
            digest = report_data(
                members["nonce"],
                members["tee-pubkey"],
                additional_evidence=members.get("additional-evidence", ""),
                hermetic=members.get("hermetic"),
            )
        fitted = {
            kind: fit(digest, {"tpm": 32, "nvidia": 32, "snp": 64, "tdx": 64, "sgx": 64}.get(kind, 48)).hex()
            for kind in more.get("kinds", ())
        }
        says = {"/digest": digest.hex(), **{f"/fitted/{kind}": value for kind, value in fitted.items()}}
        book.case(PAGE, name, statements, "binding", of=of, given=members, says=says, **more)

    case("binding", "EV-1 EV-2 EV-3 EV-6", "primary", plain, kinds=SIZES)
    case("binding-with-additional-evidence", "EV-3", "primary", {**plain, "additional-evidence": '{"nvidia":{}}'})
    case("binding-with-ours", "EV-4", "primary", {**plain, "hermetic": given["hermetic"]})
    case("binding-of-a-device", "EV-5 EV-6", "device", plain, kinds=SIZES)
    case("binding-of-another-nonce", "EV-2", "primary", {**plain, "nonce": given["nonce"].rstrip("=")})


def _sample(book: Book) -> None:
    data = bytes(range(48))
    book.trust("demo", profile="demo")
    good = {"svn": "1", "report_data": base64.b64encode(data).decode()}
    for name, statement, evidence, trust, refusals in (
        ("sample", "EV-7", good, "demo", None),
        ("sample-in-production", "EV-7", good, "none", ["sample.profile"]),
        ("sample-svn-number", "EV-8", {**good, "svn": 1}, "demo", ["sample.svn"]),
        ("sample-other-report-data", "EV-9", {**good, "report_data": base64.b64encode(bytes(48)).decode()}, "demo", ["sample.report_data"]),
        ("sample-not-base64", "EV-9", {**good, "report_data": "!"}, "demo", ["sample.report_data"]),
    ):  # fmt: skip
        book.case(PAGE, name, statement, "sample", refusals, evidence=evidence, report_data=data, trust=trust, time=NOW)
    book.trust("none")


class Quotes:
    """Quotes by keys of ours, certified by an AK CA of ours."""

    def __init__(self, book: Book, stem: str = "tpm", page: str = PAGE) -> None:
        self.book, self.page = book, page
        self.trusted = f"{stem}-ak-ca"
        key = ec.generate_private_key(ec.SECP256R1())
        self.ca = AkCa(certificate_authority(key, NOW), key)
        self.forge = Forge(self.ca, NOW, NONCE, ec.generate_private_key(ec.SECP256R1()))
        path = remember(book, f"{stem}-ak-ca.der", self.ca.certificate.public_bytes(Encoding.DER))
        book.trust(self.trusted, tpm={"ak_cas": [path]})
        self.whole = self.forge.evidence()
        self.base = remember(book, f"{stem}.json", json.dumps(self.whole).encode())

    def case(
        self,
        name: str,
        statements: str,
        refusals: Any = None,
        *,
        evidence: Any = None,
        trust: str | None = None,
        time: datetime = NOW,
        says: Any = None,
        nonce: bytes = NONCE,
        **changes: Any,
    ) -> None:
        made = evidence if evidence is not None else self.forge.with_(**changes).evidence()
        edits = json_edits(self.whole, made)
        self.book.case(self.page, name, statements, "tpm", refusals, evidence={"$json": self.base, **({"edits": edits} if edits else {})},
                       report_data=nonce, trust=trust or self.trusted, time=time, **({"says": says} if says else {}))  # fmt: skip

    def edited(self, *edits: Any) -> Any:
        """The base with members changed."""
        return corpus.edited(json.loads(json.dumps(self.whole)), edits)

    def cases(self) -> None:
        """All of them."""
        self.case("tpm", "EV-12 EV-13 EV-14 EV-15 EV-16 EV-17 EV-18 EV-19 EV-20 EV-21 EV-22 EV-24 EV-25 EV-26 EV-27 EV-28 EV-29 EV-30 EV-31 EV-32 EV-33 EV-34 EV-35",
                  says={"/tpm/enrolled": "certificate", "/tpm/software": False, "/tpm/reset_count": 7})  # fmt: skip
        self._recorded()
        self._structure()
        self._key()
        self._quote()
        self._logs()

    def _recorded(self) -> None:
        whole = json.loads(corpus.data(TRUSTEE))
        key = hashlib.sha256(base64.b64decode(whole["ak_public"])).hexdigest()
        self.book.trust("provisioned", tpm={"provisioned_aks": [key]})
        for name, statements, trust, refusals in (
            ("provisioned-key", "EV-10 EV-23", "provisioned", None),
            ("unknown-key", "EV-23", "none", ["tpm.ak.certificate"]),
        ):
            message = base64.b64decode(whole["tpm_quote"]["message"])
            self.book.case(
                PAGE,
                f"recorded-{name}",
                statements,
                "tpm",
                refusals,
                evidence={"$json": TRUSTEE},
                report_data=Attest.parse(message).extra_data,
                trust=trust,
                time=NOW,
            )
        own = hashlib.sha256(spki(self.forge.key.public_key())).hexdigest()
        self.book.trust("provisioned-ours", tpm={"provisioned_aks": [own]})
        bare = {name: self.whole[name] for name in ("ak_public", "tpm_quote")}
        self.case(
            "provisioned",
            "EV-10 EV-23",
            evidence=bare,
            trust="provisioned-ours",
            says={"/tpm/enrolled": "provisioned", "/tpm/ek": None},
        )
        self.case("neither-certificate-nor-provisioned", "EV-23", ["tpm.ak.certificate"], evidence=bare)

    def _structure(self) -> None:
        for name, statement, edit in (
            ("unknown-member", "EV-11", {"pointer": "/hermetic/more", "set": 1}), ("no-quote", "EV-12", {"pointer": "/tpm_quote", "remove": True}),
            ("23-pcrs", "EV-12", {"pointer": "/tpm_quote/pcrs/0", "remove": True}), ("pcr-too-short", "EV-12", {"pointer": "/tpm_quote/pcrs/0", "set": "00"}),
            ("not-base64", "EV-12", {"pointer": "/tpm_quote/message", "set": "!"}), ("no-key", "EV-12", {"pointer": "/ak_public", "set": ""}),
            ("area-with-more", "EV-12", {"pointer": "/hermetic/ak_public_area", "set": b64(base64.b64decode(self.whole["hermetic"]["ak_public_area"]) + b"\0")}),
        ):  # fmt: skip
            self.case(name, statement, ["tpm.structure"], evidence=self.edited(edit))

    def _key(self) -> None:
        forge = self.forge
        other = ec.generate_private_key(ec.SECP256R1())
        swapped = self.edited({"pointer": "/ak_public", "set": b64(spki(other.public_key()))})
        self.case("another-key", "EV-13 EV-25", ["tpm.ak.public", "tpm.quote.signature"], evidence=swapped)
        nowhere = replace(ak_area(forge.key), unique=(b"\1" * 32, b"\1" * 32))
        area = self.edited({"pointer": "/hermetic/ak_public_area", "set": b64(nowhere.pack())})
        self.case("area-with-a-point-off-the-curve", "EV-13", ["tpm.ak.public"], evidence=area)
        loose = ak_area(forge.key, DEMANDED & ~Attributes.RESTRICTED)
        self.case("unrestricted", "EV-14", ["tpm.ak.attributes"], area=loose)
        self.case(
            "key-that-decrypts", "EV-14", ["tpm.ak.attributes"], area=ak_area(forge.key, DEMANDED | Attributes.DECRYPT)
        )
        self.case(
            "key-that-may-leave",
            "EV-14",
            ["tpm.ak.attributes"],
            area=ak_area(forge.key, DEMANDED & ~Attributes.FIXED_TPM),
        )
        self.case(
            "key-of-another-scheme",
            "EV-15",
            ["tpm.ak.algorithm"],
            area=replace(ak_area(forge.key), scheme=Scheme(Alg.ECDSA, (Alg.SHA384,))),
        )
        self.case("nobody-trusted", "EV-16", ["tpm.ak.chain"], trust="none")
        self.case("certificate-ended", "EV-16", ["tpm.ak.chain"], time=NOW + timedelta(hours=25))
        self.case("certificate-to-come", "EV-16", ["tpm.ak.chain"], time=NOW - timedelta(hours=1))
        key = ec.generate_private_key(ec.SECP256R1())
        demo = AkCa(certificate_authority(key, NOW, organisation=DEMO_ORGANISATION), key)
        path = remember(self.book, "demo-ak-ca.der", demo.certificate.public_bytes(Encoding.DER))
        self.book.trust("demo-ca-in-production", tpm={"ak_cas": [path]})
        self.book.trust("demo-ca", profile="demo", tpm={"ak_cas": [path]})
        self.case("demo-outside-the-demo", "EV-17", ["tpm.ak.demo"], ca=demo, trust="demo-ca-in-production")
        self.case("demo", "EV-17", ca=demo, trust="demo-ca")
        self.case(
            "another-area-certified", "EV-21", ["tpm.ak.name"], boot=lambda boot: replace(boot, ak_name=bytes(34))
        )
        software: dict[str, Any] = {"boot": lambda boot: replace(boot, software=True)}
        self.case("software-tpm", "EV-22", ["tpm.ak.software"], **software)
        self.book.trust("ak-ca-demo", profile="demo", tpm=self.book.trusts[self.trusted]["tpm"])
        self.case("software-tpm-in-the-demo", "EV-22", trust="ak-ca-demo", says={"/tpm/software": True}, **software)
        boot = EnrolledBoot(
            version=1, ak_name=forge.public().name(), ek=ZEROS, reset_count=7, restart_count=0, software=False
        )
        for name, statement, refusals, how in (
            ("no-purpose", "EV-18", ["tpm.ak.purpose"], {"purposes": None}),
            ("second-purpose", "EV-18", ["tpm.ak.purpose"], {"purposes": [AIK_PURPOSE_OID, x509.ObjectIdentifier("1.2.3")]}),
            ("certificate-of-a-ca", "EV-18", ["tpm.ak.purpose"], {"ca": True}),
            ("no-enrolled-boot", "EV-19", ["tpm.ak.certificate"], {"boot": None}),
            ("enrolled-boot-version-2", "EV-19", ["tpm.ak.certificate"], {"boot": replace(boot, version=2)}),
            ("certificate-of-another-key", "EV-20", ["tpm.ak.key"], {"key": other}),
        ):  # fmt: skip
            leaf = self._leaf(**{"boot": boot, "key": forge.key, "purposes": [AIK_PURPOSE_OID], "ca": False, **how})  # type: ignore[arg-type]
            chain = [b64(one.public_bytes(Encoding.DER)) for one in (leaf, self.ca.certificate)]
            self.case(
                name, statement, refusals, evidence=self.edited({"pointer": "/hermetic/ak_certificate", "set": chain})
            )

    def _leaf(
        self, *, boot: EnrolledBoot | None, key: ec.EllipticCurvePrivateKey, purposes: Any, ca: bool
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "TPM attestation key")]))
            .issuer_name(self.ca.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(minutes=5))
            .not_valid_after(NOW + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
        )
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if boot is not None:
            builder = builder.add_extension(boot.extension(), critical=False)
        return builder.sign(self.ca.key, hashes.SHA256())

    def _quote(self) -> None:
        quote = self.whole["tpm_quote"]
        signature = base64.b64decode(quote["signature"])
        for name, statement, refusals, edit in (
            ("scheme", "EV-24", ["tpm.quote.scheme"], {"pointer": "/tpm_quote/signature", "set": b64(signature[:2] + b"\0\x0c" + signature[4:])}),
            ("signature-cut", "EV-24", ["tpm.quote.scheme"], {"pointer": "/tpm_quote/signature", "set": b64(signature[:-1])}),
            ("signature-zero", "EV-25", ["tpm.quote.signature"], {"pointer": "/tpm_quote/signature", "set": b64(signature[:6] + bytes(32) + signature[38:])}),
            ("message-cut", "EV-26 EV-31", ["tpm.quote.selection", "tpm.quote.signature"], {"pointer": "/tpm_quote/message", "set": b64(base64.b64decode(quote["message"])[:-1])}),
            ("message-cut-short", "EV-26", ["tpm.quote.signature", "tpm.quote.structure"], {"pointer": "/tpm_quote/message", "set": b64(base64.b64decode(quote["message"])[:40])}),
        ):  # fmt: skip
            self.case(f"quote-{name}", statement, refusals, evidence=self.edited(edit))
        self.case(
            "quote-of-another-machine-s-words", "EV-27", ["tpm.quote.magic"], attest=lambda one: replace(one, magic=0)
        )
        self.case(
            "no-quote-but-a-certification", "EV-28", ["tpm.quote.type"], attest=lambda one: replace(one, type=0x8017)
        )
        self.case(
            "longer-nonce",
            "EV-29 EV-30",
            ["tpm.quote.nonce", "tpm.quote.nonce_length"],
            attest=lambda one: replace(one, extra_data=NONCE + b"\0"),
        )
        self.case(
            "shorter-nonce",
            "EV-29 EV-30",
            ["tpm.quote.nonce", "tpm.quote.nonce_length"],
            attest=lambda one: replace(one, extra_data=NONCE[:31]),
        )
        self.case("another-nonce", "EV-30", ["tpm.quote.nonce"], nonce=bytes(32))
        for name, selections in (
            ("fewer-pcrs", (PcrSelection(Alg.SHA256, tuple(range(23))),)), ("another-bank", (PcrSelection(Alg.SHA1, tuple(range(24))),)),
            ("another-bank-too", (PcrSelection(Alg.SHA256, tuple(range(24))), PcrSelection(Alg.SHA1, (0,)))), ("no-pcrs", ()),
        ):  # fmt: skip
            self.case(
                name,
                "EV-31",
                ["tpm.quote.selection"],
                info=lambda info, selections=selections: QuoteInfo(selections, info.pcr_digest),
            )
        self.case("other-pcrs", "EV-32", ["tpm.quote.pcr_digest"], info=lambda info: QuoteInfo(info.selections, ZEROS))
        pcrs = [f"{number:064x}" for number in range(24)]
        made = self.forge.with_(pcrs=tuple(map(bytes.fromhex, pcrs))).evidence()
        reordered = {**made, "tpm_quote": {**made["tpm_quote"], "pcrs": [pcrs[1], pcrs[0], *pcrs[2:]]}}
        self.case("reordered-pcrs", "EV-32", ["tpm.quote.pcr_digest"], evidence=reordered)
        self.case(
            "another-signer", "EV-33", ["tpm.quote.signer"], attest=lambda one: replace(one, qualified_signer=bytes(34))
        )
        self.case("another-boot", "EV-34", ["tpm.quote.reset_count"], attest=lambda one: replace(one, reset_count=8))
        self.case(
            "after-hibernation", "EV-35", ["tpm.quote.restart_count"], attest=lambda one: replace(one, restart_count=1)
        )

    def _logs(self) -> None:
        def pcrs_of(events: Any, **more: bytes) -> tuple[bytes, ...]:
            values = [ZEROS] * 24
            for one in events:
                values[one.pcr] = extended(Alg.SHA256, values[one.pcr], one.digests[Alg.SHA256])
            for name, value in more.items():
                values[int(name[3:])] = value
            return tuple(values)

        log = tcg_event_log.pack(FIRMWARE)
        pcrs = pcrs_of(FIRMWARE)
        self.case(
            "firmware-log", "EV-37", boot_log=log, pcrs=pcrs, says={"/tpm/boot_log": True, "/tpm/secure_boot": True}
        )
        sha1 = tcg_event_log.pack([], banks=(Alg.SHA384,))
        self.case("firmware-log-of-another-bank", "EV-36", ["tpm.boot_log.bank"], boot_log=sha1)
        for pcr in (0, 7):
            value = tuple(ZEROS if index == pcr else one for index, one in enumerate(pcrs))
            self.case(f"firmware-log-without-pcr{pcr}", "EV-37", [f"tpm.boot_log.pcr{pcr}"], boot_log=log, pcrs=value)
        own = EventLog(14, (Event(b"m" * 32),))
        replayed = own.replay()
        self.case(
            "own-log",
            "EV-39",
            event_log=own,
            pcrs=pcrs_of((), pcr14=replayed),
            says={"/tpm/manifests": [(b"m" * 32).hex()], "/tpm/log_pcr": 14},
        )
        self.case("own-log-that-is-not-quoted", "EV-39", ["tpm.event_log.replay"], event_log=own)
        for pcr in (7, 16, 23):
            self.case(
                f"own-log-in-pcr{pcr}",
                "EV-38",
                ["tpm.event_log.pcr"],
                event_log=EventLog(pcr, own.events),
                pcrs=pcrs_of((), **{f"pcr{pcr}": replayed}),
            )
