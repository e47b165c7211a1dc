"""Cases of docs/spec/nvgpu-evidence.md that NVIDIA would have to sign: devices and collateral of an NVIDIA of our own."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.attestation.verifiers import nvgpu_made as made
from tests.attestation.verifiers.nvgpu_recorded import device
from tests.conformance.build import Book, b64, remember, source
from tests.conformance.nvgpu import PAGE, STATEMENT

DRIVER, VBIOS = "580.159.03", "96.00.74.00.20"


def cases(book: Book) -> None:
    """All of them."""
    one = Made(book)
    one.devices()
    one.sets()
    one.manifests()
    one.answers()


class Made:
    """Devices, manifests and answers with keys of our own."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.vendor = made.Vendor()
        self.chip = self.vendor.chip()
        self.bases: dict[str, str] = {}
        self.root = remember(book, "nvidia-root.der", self.vendor.root.certificate.public_bytes(Encoding.DER))
        self.rim_root = remember(
            book, "nvidia-rim-root.der", self.vendor.rim_root.certificate.public_bytes(Encoding.DER)
        )
        book.trust("made-nvidia", nvgpu={"device_roots": [self.root], "rim_roots": [self.rim_root]})

    def piece(self, name: str, data: bytes) -> Any:
        """A source: the first of its name a file, the others edits of it."""
        if name not in self.bases:
            self.bases[name] = remember(self.book, name, data)
        return source(self.bases[name], data)

    def travels(self, device: dict[str, Any], stem: str = "gpu") -> dict[str, Any]:
        """A device as it travels, as sources."""
        report, chain = (base64.b64decode(device[name]) for name in ("evidence", "certificate"))
        arch = device["arch"].lower()
        return {"arch": device["arch"], "evidence": b64(self.piece(f"{arch}-{stem}.report", report)),
                "certificate": b64(remember(self.book, f"{hashlib.sha256(chain).hexdigest()[:12]}.chain.pem", chain))}  # fmt: skip

    def case(self, name: str, statements: str, devices: Sequence[dict[str, Any]], refusals: Any = None, *, statement: Any = None,
             trust: str = "made-nvidia", time: datetime = made.NOW, says: Any = None) -> None:  # fmt: skip
        evidence: dict[str, Any] = {"device_evidence_list": [self.travels(one) for one in devices]}
        if statement is not None:
            evidence["hermetic"] = statement
        self.book.case(PAGE, name, statements, "nvidia", refusals, evidence=evidence, report_data=made.NONCE, trust=trust, time=time,
                       **({"says": says} if says else {}))  # fmt: skip

    def devices(self) -> None:
        """One device."""
        vendor, chip = self.vendor, self.chip
        self.case(
            "made",
            "GPU-13 GPU-19 GPU-20",
            [chip.report()],
            says={
                "/nvgpu/devices/0/mode": "single",
                "/nvgpu/devices/0/driver_version": DRIVER,
                "/nvgpu/devices/0/vbios_version": VBIOS,
            },
        )
        blackwell = vendor.chip("GB202", made.blackwell_identity())
        self.case(
            "made-blackwell",
            "GPU-21 GPU-27 GPU-29",
            [blackwell.report(arch="BLACKWELL")],
            says={"/nvgpu/devices/0/arch": "BLACKWELL"},
        )
        debug = vendor.chip("GB100", made.blackwell_identity(flags=b"\x00\x10\x00\x00\x00"))
        self.case("debug-firmware", "GPU-29", [debug.report(arch="BLACKWELL")], ["nvgpu.0.operational_flags"])
        unsaid = made.holder("GH100 A01 GSP FMC LF", chip.own, ca=False)
        self.case(
            "no-identity-in-the-certificate", "GPU-25", [made.Chip(vendor, chip.own, unsaid).report()], ["nvgpu.0.fwid"]
        )
        garbled = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), b"\x30\0")
        broken = made.holder("GH100 A01 GSP FMC LF", chip.own, ca=False, extensions=[garbled])
        self.case("identity-that-is-none", "GPU-25", [made.Chip(vendor, chip.own, broken).report()], ["nvgpu.0.fwid"])
        self.case("other-firmware", "GPU-25", [chip.report({20: hashlib.sha384(b"other").digest()})], ["nvgpu.0.fwid"])
        self.case("no-identity-reported", "GPU-28", [chip.report({20: None})])
        self.case("unknown-mode", "GPU-30", [chip.report({36: b"\3\0"})], ["nvgpu.0.mode"])
        self.case("modes-that-differ", "GPU-30", [chip.report({36: b"\2\0"})], ["nvgpu.0.mode"])
        self.case(
            "protected-pcie",
            "GPU-30",
            [chip.report({36: b"\2\0", 21: b"\xaa"})],
            says={"/nvgpu/devices/0/mode": "protected-pcie"},
        )
        self.case("multiple", "GPU-30", [chip.report({36: b"\1\0"})], says={"/nvgpu/devices/0/mode": "multiple"})
        small = made.holder(
            "GH100 A01 GSP FMC LF", chip.own, ca=False, extensions=[made.hopper_identity()], curve=ec.SECP256R1()
        )
        signed = made.Chip(vendor, chip.own, small)
        body = base64.b64decode(chip.report()["evidence"])
        self.case("key-on-another-curve", "GPU-22", [device(body, signed.chain)], ["nvgpu.0.report.key"])
        certifying = made.holder("GH100 A01 GSP FMC LF", chip.own, ca=True, extensions=[made.hopper_identity()])
        self.case(
            "key-that-certifies", "GPU-20", [made.Chip(vendor, chip.own, certifying).report()], ["nvgpu.0.purpose"]
        )
        unnamed = made.holder("a chip", chip.own, ca=False, extensions=[made.hopper_identity()])
        self.case("no-chip-s-name", "GPU-21", [made.Chip(vendor, chip.own, unnamed).report()], ["nvgpu.0.arch"])
        below = made.holder("another chip", chip.own)
        longer = made.holder("GH100 A01 GSP FMC LF", below, ca=False, extensions=[made.hopper_identity()])
        trusted = self.book.trust(
            "made-nvidia-family",
            nvgpu={
                "device_roots": [
                    remember(self.book, "nvidia-family.der", vendor.family.certificate.public_bytes(Encoding.DER))
                ]
            },
        )
        chain = b"".join(one.pem for one in (longer, below, chip.own, vendor.provisioner, vendor.family))
        self.case(
            "chip-below-a-chip",
            "GPU-19",
            [device(made.transcript(longer, made.NONCE, made.BLOCKS, made.GPU_OPAQUE), chain)],
            ["nvgpu.0.chain"],
        )
        self.case("chain-of-four", "GPU-19", [chip.report()], ["nvgpu.0.chain"], trust=trusted)
        self.case("chain-ended", "GPU-18", [chip.report()], ["nvgpu.0.chain"], time=made.NOW + timedelta(days=31))

    def sets(self) -> None:
        """Several devices."""
        vendor, chip = self.vendor, self.chip
        other = vendor.chip()
        self.case(
            "two-chips",
            "GPU-37 GPU-39 GPU-42",
            [chip.report(), other.report()],
            says={"/nvgpu/topology": "not evaluated"},
        )
        self.case(
            "one-chip-twice", "GPU-37 GPU-38", [chip.report(), chip.report()], ["nvgpu.distinct", "nvgpu.distinct_keys"]
        )
        again = made.holder("GH100 A01 GSP FMC LF", chip.own, ca=False, extensions=[made.hopper_identity()])
        self.case(
            "one-chip-with-two-keys",
            "GPU-37",
            [chip.report(), made.Chip(vendor, chip.own, again).report()],
            ["nvgpu.distinct"],
        )
        self.case("drivers-that-differ", "GPU-39", [chip.report(), other.report({3: b"570.124.03\0"})], ["nvgpu.alike"])
        good = {**STATEMENT}
        self.case(
            "stated", "GPU-32 GPU-33 GPU-34 GPU-35", [chip.report()], statement=good, says={"/nvgpu/cc_state": "stated"}
        )
        for name, statement, change in (
            ("cc", "GPU-32", {"cc": "off"}),
            ("devtools", "GPU-33", {"devtools": "on"}),
            ("environment", "GPU-34", {"environment": "simulation"}),
            ("count", "GPU-35", {"gpus": 2}),
        ):
            self.case(f"stated-{name}", statement, [chip.report()], [f"nvgpu.{name}"], statement={**good, **change})
        pdi, gpus = b"switch-1", [b"gpu-one1", b"gpu-two2"]
        switch = vendor.chip("LS_10")
        pcie = {36: b"\2\0", 21: b"\xaa", 22: pdi * 4}
        pair = [chip.report(pcie), other.report(pcie)]
        self.case(
            "behind-a-switch",
            "GPU-40 GPU-41",
            [*pair, switch.switch_report(pdi, gpus)],
            says={"/nvgpu/topology": "match"},
        )
        self.case(
            "switch-that-is-not-here",
            "GPU-40",
            [*pair, switch.switch_report(b"switch-2", gpus)],
            ["nvgpu.topology.gpu.0", "nvgpu.topology.gpu.1"],
        )
        self.case(
            "switch-of-three-gpus",
            "GPU-41",
            [*pair, switch.switch_report(pdi, [*gpus, b"gpu-thr3"])],
            ["nvgpu.topology.switch.0"],
        )
        second = vendor.chip("LS_10")
        both = {36: b"\2\0", 21: b"\xaa", 22: pdi + b"switch-2"}
        devices = [chip.report(both), other.report(both), switch.switch_report(pdi, gpus)]
        self.case("two-switches", "GPU-40 GPU-41", [*devices, second.switch_report(b"switch-2", gpus)])
        self.case(
            "switches-that-differ",
            "GPU-41",
            [*devices, second.switch_report(b"switch-2", [gpus[0], b"gpu-thr3"])],
            ["nvgpu.topology.switch.1"],
        )

    def trusted(
        self, name: str, *rims: bytes, answers: Sequence[bytes] = (), hold: bool = False, stem: str = "driver"
    ) -> str:
        """Trust in our own NVIDIA with this collateral."""
        files = [self.piece(f"{stem if number == 0 else 'second'}.rim.xml", one) for number, one in enumerate(rims)]
        given = [remember(self.book, f"{hashlib.sha256(one).hexdigest()[:12]}.ocsp", one) for one in answers]
        return self.book.trust(f"made-nvidia-{name}", nvgpu={
            "device_roots": [self.root], "rim_roots": [self.rim_root], "rims": files, "ocsp": given,
            **({"allow_certificate_hold": True} if hold else {}),
        })  # fmt: skip

    def manifests(self) -> None:
        """Reference manifests."""
        vendor, chip = self.vendor, self.chip
        good = {0: [made.BLOCKS[1]], 1: [bytes(48), made.BLOCKS[2]]}
        rim = vendor.rim(DRIVER, good)

        def case(
            name: str, statements: str, refusals: Any, *rims: bytes, says: Any = None, device: Any = None, **how: Any
        ) -> None:
            trust = self.trusted(f"rim-{name}", *rims, **how)
            self.case(f"rim-{name}", statements, [device or chip.report()], refusals, trust=trust, says=says)

        case(
            "driver",
            "GPU-48 GPU-50 GPU-58",
            None,
            rim,
            says={"/nvgpu/devices/0/driver_rim": "match", "/nvgpu/devices/0/vbios_rim": "not evaluated"},
        )
        vbios = vendor.rim(VBIOS, {5: [made.BLOCKS[6]]})
        flash = vendor.rim(VBIOS, {5: [made.BLOCKS[6]], 6: [made.BLOCKS[7]]})
        renumbered = flash.replace(b'index="6"', b'index="9"', 1)
        refusals = ["nvgpu.0.vbios_rim.digest", "nvgpu.0.vbios_rim.measurements"]
        case("vbios-edited", "GPU-52", refusals, renumbered, stem="vbios")
        begin = flash.index(b"SignatureValue>") + 15
        broken = flash[:begin] + base64.b64encode(bytes(96)) + flash[begin + 128 :]
        case("vbios-numbers", "GPU-54", ["nvgpu.0.vbios_rim.signature_numbers"], broken, stem="vbios")
        case("vbios", "GPU-48 GPU-60", None, rim, vbios, says={"/nvgpu/devices/0/vbios_rim": "match"})
        case("index-in-both", "GPU-60", ["nvgpu.0.rim_indexes"], rim, vendor.rim(VBIOS, {1: [made.BLOCKS[2]]}))
        case("another-value", "GPU-58", ["nvgpu.0.driver_rim.measurements"], vendor.rim(DRIVER, {0: [bytes(48)]}))
        case("missing-block", "GPU-58", ["nvgpu.0.driver_rim.measurements"], vendor.rim(DRIVER, {80: [bytes(48)]}))
        case("decoder-off", "GPU-59", None, vendor.rim(DRIVER, {35: [bytes(48)], 0: [made.BLOCKS[1]]}))
        on = chip.report({11: b"\xaa"})
        case(
            "decoder-on",
            "GPU-59",
            ["nvgpu.0.driver_rim.measurements"],
            vendor.rim(DRIVER, {35: [bytes(48)], 0: [made.BLOCKS[1]]}),
            device=on,
        )
        case("of-another-version", "GPU-50", ["nvgpu.0.driver_rim"], vendor.rim("580.159.04", good))
        case("of-another-chip", "GPU-50", ["nvgpu.0.driver_rim"], vendor.rim(DRIVER, good, "GB100"))
        changed = rim.replace(b'index="0"', b'index="9"', 1)
        case("edited", "GPU-52", ["nvgpu.0.driver_rim.digest", "nvgpu.0.driver_rim.measurements"], changed)
        value = rim.index(b"SignatureValue>") + 15
        zeros = base64.b64encode(bytes(96))
        case(
            "numbers",
            "GPU-54",
            ["nvgpu.0.driver_rim.signature_numbers"],
            rim[:value] + zeros + rim[value + len(zeros) :],
        )
        other = base64.b64encode(
            base64.b64decode(rim[value : value + 128])[48:] + base64.b64decode(rim[value : value + 128])[:48]
        )
        case("signature", "GPU-55", ["nvgpu.0.driver_rim.signature"], rim[:value] + other + rim[value + 128 :])
        small = made.holder("rim signer", vendor.rim_ca, ca=False, curve=ec.SECP256R1())
        borrowed = made.Holder(vendor.rim_signer.key, small.certificate)
        text = made.payload(DRIVER, good, "GH100")
        case(
            "key",
            "GPU-53",
            ["nvgpu.0.driver_rim.key"],
            made.signed_rim(text, [borrowed, vendor.rim_ca, vendor.rim_root]),
        )
        case(
            "chain",
            "GPU-56",
            ["nvgpu.0.driver_rim.chain"],
            made.signed_rim(text, [chip.leaf, chip.own, vendor.provisioner]),
        )
        case("second-of-two-holds", "GPU-51", None, vendor.rim(DRIVER, {0: [bytes(48)]}), rim)
        structure = ["nvgpu.rims.0.structure"]
        for name, statement, text_ in (
            ("not-xml", "GPU-43", b"<"), ("with-a-doctype", "GPU-43", b"<!DOCTYPE a>" + rim), ("with-a-comment", "GPU-43", rim.replace(b"<Payload>", b"<!-- --><Payload>")),
            ("with-an-instruction", "GPU-43", b"<?a b?>" + rim), ("utf-16", "GPU-43", rim.decode().encode("utf-16")), ("xml-attribute", "GPU-43", rim.replace(b"<Payload>", b'<Payload xml:lang="en">')),
            ("other-element", "GPU-44", rim.replace(b"<Payload>", b"<Link></Link><Payload>")), ("signature-inside", "GPU-44", rim.replace(b"<Payload>", b'<Payload><ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"></ds:Signature>')),
            ("no-signature", "GPU-44", rim[: rim.index(b"<ds:Signature ")] + b"</SoftwareIdentity>"),
            ("reference-elsewhere", "GPU-45", rim.replace(b'URI=""', b'URI="#a"')), ("another-digest-method", "GPU-45", rim.replace(b"xmldsig-more#sha384", b"xmldsig-more#sha224")),
            ("another-algorithm", "GPU-45", rim.replace(b"ecdsa-sha384", b"ecdsa-sha256")), ("another-transform", "GPU-45", rim.replace(b"enveloped-signature", b"enveloped-Signature")),
            ("no-certificate", "GPU-46", rim[: rim.index(b"<ds:X509Certificate>")] + rim[rim.index(b"</ds:X509Data>") :]),
            ("index-twice", "GPU-47", rim.replace(b'index="1"', b'index="0"')), ("active-maybe", "GPU-47", rim.replace(b'active="True"', b'active="Maybe"', 1)),
            ("none-active", "GPU-47", rim.replace(b'active="True"', b'active="False"')), ("short-digest", "GPU-47", rim.replace(made.BLOCKS[1].hex().encode(), made.BLOCKS[1].hex()[:-2].encode())),
            ("of-another-type", "GPU-47", rim.replace(b'type="Measurement"', b'type="Other"', 1)),
        ):  # fmt: skip
            case(name, f"{statement} GPU-6", structure, text_, stem="broken" if statement == "GPU-43" else "driver")

    def answers(self) -> None:
        """OCSP answers."""
        vendor, chip = self.vendor, self.chip
        day = timedelta(days=1)
        all_good = chip.answers()

        def case(
            name: str, statements: str, refusals: Any, answers: Sequence[bytes], says: Any = None, hold: bool = False
        ) -> None:
            trust = self.trusted(f"ocsp-{name}", answers=answers, hold=hold)
            self.case(f"ocsp-{name}", statements, [chip.report()], refusals, trust=trust, says=says)

        bad = ["nvgpu.0.revocation"]
        case("good", "GPU-31 GPU-61 GPU-64", None, all_good, {"/nvgpu/devices/0/revocation": "good"})
        case("none-for-the-chip", "GPU-61", bad, all_good[1:])
        case("revoked", "GPU-31", bad, chip.answers(reason=x509.ReasonFlags.key_compromise))
        case("hold", "GPU-66", bad, chip.answers(reason=x509.ReasonFlags.certificate_hold))
        case(
            "hold-allowed",
            "GPU-66 GPU-67",
            None,
            chip.answers(reason=x509.ReasonFlags.certificate_hold),
            {"/nvgpu/devices/0/revocation": "hold"},
            hold=True,
        )
        case("ended", "GPU-63", bad, chip.answers(life=(made.NOW - 2 * day, made.NOW - day)))
        case("to-come", "GPU-63", bad, chip.answers(life=(made.NOW + day, made.NOW + 2 * day)))
        case("without-an-end", "GPU-63", bad, chip.answers(life=(made.NOW - day, None)))
        case("by-a-responder", "GPU-64", None, chip.answers(signer=made.responder(vendor.provisioner)))
        case("by-a-stranger", "GPU-64", bad, chip.answers(signer=made.responder(vendor.rim_ca)))
        case("of-another-issuer", "GPU-62", bad, [vendor.answer(chip.own, vendor.family), *all_good[1:]])
        older = vendor.answer(
            chip.own,
            vendor.provisioner,
            reason=x509.ReasonFlags.key_compromise,
            life=(made.NOW - 2 * day, made.NOW + day),
        )
        case("newest-decides", "GPU-65", None, [older, *all_good])
        newer = vendor.answer(
            chip.own,
            vendor.provisioner,
            reason=x509.ReasonFlags.key_compromise,
            life=(made.NOW - day / 2, made.NOW + day),
        )
        case("newest-revokes", "GPU-65", bad, [newer, *all_good])
        good = self.piece("driver.rim.xml", vendor.rim(DRIVER, {0: [made.BLOCKS[1]]}))
        many = self.book.trust(
            "made-nvidia-many", nvgpu={"device_roots": [self.root], "rim_roots": [self.rim_root], "rims": [good] * 257}
        )
        self.case("too-many-manifests", "GPU-6", [chip.report()], ["nvgpu.rims"], trust=many)
        trust = self.trusted("ocsp-malformed", answers=[b"\x30\0"])
        self.case("ocsp-malformed", "GPU-7", [chip.report()], ["nvgpu.ocsp.structure"], trust=trust)
        rim = vendor.rim(DRIVER, {0: [made.BLOCKS[1]]})
        of_rim = [vendor.answer(vendor.rim_signer, vendor.rim_ca), vendor.answer(vendor.rim_ca, vendor.rim_root)]
        trust = self.trusted("ocsp-of-a-manifest", rim, answers=[*all_good, *of_rim])
        self.case("ocsp-of-a-manifest", "GPU-57", [chip.report()], trust=trust)
        trust = self.trusted("ocsp-none-of-a-manifest", rim, answers=all_good)
        self.case("ocsp-none-of-a-manifest", "GPU-57", [chip.report()], ["nvgpu.0.driver_rim.revocation"], trust=trust)
