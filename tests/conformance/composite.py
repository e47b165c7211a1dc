"""Cases of docs/spec/composite-evidence.md: a processor and GPUs with keys of our own, whole and taken apart."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.evidence import canonical, device_report_data, report_data
from hermetic.attestation.verifiers.certificates import spki
from tests.attestation import amd
from tests.attestation.verifiers.nvgpu_made import NOW, Chip, Vendor
from tests.conformance import corpus, snp, tdx
from tests.conformance.build import Book, remember, source

PAGE = "composite-evidence"
KEY = {
    "alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}  # fmt: skip
"""That of RFC 7515, A.3."""
NONCE = base64.b64encode(b"composite".ljust(32, b"-")).decode()
OTHER_NONCE = base64.b64encode(b"another".ljust(32, b"-")).decode()
TRUST = "made-machine"
STATEMENT = {"cc": "on", "devtools": "off", "environment": "production", "gpus": 2}
BOUND = ["composite.bound", "snp.report_data"]
ADDITIONS = {"profile": "production", "waivers": []}
TPM = "../tpm/tpm_evidence.json"
MEMBERS = (
    "/attestation_report/report_data", "/attestation_report/chip_id", "/attestation_report/signature/r",
    "/attestation_report/signature/s", "/cert_chain",
)  # fmt: skip
"""In what two reports differ."""


def cases(book: Book) -> None:
    """All of them."""
    Machine(book).cases()


@dataclass(frozen=True)
class Made:
    """One attestation: what the primary says, and the text beside it."""

    primary: Any
    text: str


class Machine:
    """A processor and two GPUs."""

    def __init__(self, book: Book, page: str = PAGE) -> None:
        self.book, self.page = book, page
        self.amd = amd.Vendor(Generation.MILAN)
        self.nvidia = Vendor()
        self.gpus = [self.nvidia.chip(), self.nvidia.chip()]
        self.bases: dict[str, str] = {}
        authorities = self.amd.authorities()
        given = {
            role: self.file(f"machine-{role}.der", getattr(authorities, role).der) for role in ("ark", "ask", "asvk")
        }
        self.roots = [self.file("machine-nvidia-root.der", _der(self.nvidia.root.certificate))]
        self.snp = {"authorities": [{"generation": "Milan", **given}]}
        self.trust = f"{TRUST}-{page}"
        book.trust(self.trust, snp=self.snp, nvgpu={"device_roots": self.roots})

    def file(self, name: str, data: bytes) -> str:
        """A file that is made, of this page."""
        return remember(self.book, f"{self.page}-{name}", data)

    def piece(self, name: str, data: bytes) -> Any:
        """A source: the first of its name a file, the others edits of it."""
        if name not in self.bases:
            self.bases[name] = self.file(name, data)
        return source(self.bases[name], data)

    def written(self, primary: Any) -> Any:
        """A template of the processor's evidence: the first a file, the others with members of it changed."""
        if not hasattr(self, "_primary"):
            self._primary = primary
            self._base = self.file("processor.json", json.dumps(primary).encode())
        edits = [one for pointer in MEMBERS if (one := _edit(pointer, self._primary, primary))]
        template = {"$json": self._base, **({"edits": edits} if edits else {})}
        assert corpus.edited(json.loads(json.dumps(self._primary)), edits) == json.loads(json.dumps(primary))
        return template

    def processor(self, data: bytes, chip: str = "one") -> Any:
        """The processor's evidence over `data` (48 bytes)."""
        chip_id = amd.chip_id(chip)
        unsigned = amd.report(report_data=data.ljust(64, b"\0"), chip_id=chip_id)
        vcek = self.amd.vcek(chip_id, amd.tcb_of(Generation.MILAN))
        return amd.evidence(amd.sign(unsigned, amd.signing_key(chip_id)), vceks=(vcek,))

    def devices(self, data: bytes, chips: Sequence[Chip] | None = None, **statement: Any) -> dict[str, Any]:
        """The GPUs' evidence over `data` (48 bytes), and what the guest's driver says."""
        listed = [gpu.report(nonce=data[:32]) for gpu in (self.gpus if chips is None else chips)]
        return {"device_evidence_list": listed, "hermetic": {**STATEMENT, **statement}}

    def made(self, devices: Any = None, *, nonce: str = NONCE, text: str | None = None, chip: str = "one",
             hermetic: Any = None) -> Made:  # fmt: skip
        """A machine's answer to the challenge `nonce`; `devices` replaces its own."""
        own = self.devices(device_report_data(nonce, KEY)) if devices is None else devices
        said = canonical({"nvidia": own}).decode() if text is None else text
        digest = report_data(nonce, KEY, additional_evidence=said, hermetic=hermetic)
        return Made(self.processor(digest, chip), said)

    def case(self, name: str, statements: str, made: Made, refusals: Any = None, *, says: Any = None, trust: str | None = None,
             tee: str = "snp", evidence: Any = None, hermetic: Any = None) -> None:  # fmt: skip
        """A case about what a machine answered."""
        given = {"nonce": NONCE, "tee-pubkey": KEY, **({} if hermetic is None else {"hermetic": hermetic})}
        self.book.case(self.page, name, statements, "composite", refusals, tee=tee, given=given, trust=trust or self.trust, time=NOW,
                       evidence=evidence or self.written(made.primary),
                       additional=self.piece("devices.txt", made.text.encode()) if made.text else {"hex": ""},
                       **({"says": says} if says else {}))  # fmt: skip

    def cases(self) -> None:
        """All of them."""
        whole = self.made()
        chips = {f"/nvgpu/devices/{at}/device": _device(one) for at, one in enumerate(self.gpus)}
        self.case(
            "whole",
            "CMP-1 CMP-2 CMP-4 CMP-10 CMP-11",
            whole,
            says={"/snp/debug": False, "/nvgpu/cc_state": "stated", **chips},
        )
        self.case("without-devices", "CMP-2 CMP-12", self.made(text=""), says={"/snp/vmpl": 0})
        self.case("text-in-another-form", "CMP-3", self.made(text=f" {{\n{whole.text[1:]}"), says=chips)
        self.case("text-changed-after-hashing", "CMP-3 CMP-4", Made(whole.primary, whole.text + " "), BOUND)
        self.case("with-runtime-data", "CMP-4", self.made(hermetic=ADDITIONS), hermetic=ADDITIONS, says=chips)
        self.case("runtime-data-left-out", "CMP-4", self.made(hermetic=ADDITIONS), BOUND)
        self._mixed(whole)
        self._devices()
        self._forms()
        self._kinds(whole)
        self._primaries(whole)

    def _mixed(self, whole: Made) -> None:
        """Pieces of two machines, or of two sessions."""
        other = self.made(nonce=OTHER_NONCE, chip="two")
        nonces = ["nvgpu.0.report.nonce", "nvgpu.1.report.nonce"]
        self.case(
            "devices-of-another-session", "CMP-1 CMP-5 CMP-11", Made(whole.primary, other.text), [*BOUND, *nonces]
        )
        self.case("primary-of-another-machine", "CMP-4 CMP-11", Made(other.primary, whole.text), BOUND)
        self.case("all-of-another-session", "CMP-1 CMP-4 CMP-5", other, [*BOUND, *nonces])
        self.case("devices-left-out-on-the-way", "CMP-4 CMP-12", Made(whole.primary, ""), ["snp.report_data"])
        added = Made(self.made(text="").primary, whole.text)
        self.case("devices-added-on-the-way", "CMP-4 CMP-11", added, BOUND)
        forged = json.loads(json.dumps(other.primary))
        forged["attestation_report"]["signature"]["r"] = forged["attestation_report"]["signature"]["s"]
        off = canonical({"nvidia": self.devices(device_report_data(NONCE, KEY), cc="off")}).decode()
        self.case("everything-at-once", "CMP-5 CMP-11", Made(forged, off), [*BOUND, "nvgpu.cc", "snp.signature"])

    def _devices(self) -> None:
        """What the guest changes before it hashes."""
        ours, digest = self.gpus, device_report_data(NONCE, KEY)
        listed = self.devices(digest)["device_evidence_list"]
        stray = ours[1].report(nonce=device_report_data(OTHER_NONCE, KEY)[:32])
        for name, devices, refusals in (
            ("gpu-of-another-session", {"device_evidence_list": [listed[0], stray]}, ["nvgpu.1.report.nonce"]),
            ("gpu-missing", self.devices(digest, ours[:1]), ["nvgpu.count"]),
            ("gpu-too-many", self.devices(digest, gpus=1), ["nvgpu.count"]),
            ("gpu-twice", {"device_evidence_list": [listed[0]] * 2}, ["nvgpu.distinct", "nvgpu.distinct_keys"]),
            ("cc-off", self.devices(digest, cc="off"), ["nvgpu.cc"]),
            ("devtools-on", self.devices(digest, devtools="on"), ["nvgpu.devtools"]),
            ("simulation", self.devices(digest, environment="simulation"), ["nvgpu.environment"]),
        ):
            self.case(name, "CMP-1 CMP-10" if "session" in name else "CMP-10", self.made(devices), refusals)
        stranger = self.made(self.devices(digest, [Vendor().chip()], gpus=1))
        self.case("gpu-of-another-vendor", "CMP-10", stranger, ["nvgpu.0.chain"])

    def _forms(self) -> None:
        """Texts that are no object of kinds."""
        sixteen = {f"device-{number:02}": 1 for number in range(16)}
        self.case("sixteen-kinds", "CMP-6 CMP-7", self.made(text=json.dumps(sixteen)), ["composite.kinds"])
        for name, text in (
            ("seventeen-kinds", json.dumps({**sixteen, "device-16": 1})),
            ("a-kind-twice", '{"nvidia": [], "nvidia": []}'),
            ("a-list", "[]"),
            ("no-json", "nvidia"),
            ("a-space", " "),
        ):
            self.case(name, "CMP-6", self.made(text=text), ["malformed"])

    def _kinds(self, whole: Made) -> None:
        """Machines as devices, and devices as machines."""
        digest = device_report_data(NONCE, KEY)
        for kind, evidence in (
            ("snp", self.processor(digest)),
            ("tpm", json.loads(corpus.data(TPM))),
            ("sample", {}),
            ("other", {}),
        ):
            self.case(f"{kind}-as-a-device", "CMP-7", self.made(text=json.dumps({kind: evidence})), ["composite.kinds"])
        self.book.trust("made-machine-without-gpus", snp=self.snp)
        self.case("devices-without-roots", "CMP-8", whole, ["composite.kinds"], trust="made-machine-without-gpus")
        devices = {"$json": self.piece("gpus.json", json.dumps(self.devices(digest)).encode())}
        alone = self.made(text="")
        self.case("devices-as-the-primary", "CMP-9", alone, ["composite.kinds"], tee="nvidia", evidence=devices)
        self.case("devices-as-primary-and-device", "CMP-9", whole, ["composite.kinds"], tee="nvidia", evidence=devices)
        self.case("no-such-primary", "CMP-10", alone, ["kind"], tee="other")

    def _primaries(self, whole: Made) -> None:
        """Every kind of primary says in its own words that it is over something else."""
        self.book.trust("made-machine-of-intel", dcap={"roots": [tdx.ROOT]}, nvgpu={"device_roots": self.roots})
        key = hashlib.sha256(base64.b64decode(json.loads(corpus.data(TPM))["ak_public"])).hexdigest()
        self.book.trust("made-machine-of-a-tpm", tpm={"provisioned_aks": [key]}, nvgpu={"device_roots": self.roots})
        self.book.trust("made-machine-of-azure", snp={"authorities": snp.SHIPPED}, nvgpu={"device_roots": self.roots})
        self.book.trust("made-machine-demo", profile="demo", nvgpu={"device_roots": self.roots})
        for tee, base, trust, refusals in (
            ("tdx", {"quote": {"$bytes": tdx.PHALA, "as": "base64"}}, "of-intel", ["tdx.report_data"]),
            ("sgx", {"quote": {"$bytes": tdx.SGX, "as": "base64"}}, "of-intel", ["sgx.report_data"]),
            ("tpm", {"$json": TPM}, "of-a-tpm", ["tpm.quote.nonce", "tpm.quote.nonce_length"]),
            (
                "az-snp-vtpm",
                {"$json": "../snp/az_snp_milan_v1.json"},
                "of-azure",
                ["tpm.quote.nonce", "tpm.quote.nonce_length"],
            ),
            ("sample", {"svn": "1", "report_data": ""}, "demo", ["sample.report_data"]),
        ):
            self.case(f"{tee}-over-something-else", "CMP-11", whole, ["composite.bound", *refusals], tee=tee, evidence=base,
                      trust=f"made-machine-{trust}")  # fmt: skip


def _edit(pointer: str, old: Any, new: Any) -> Any:
    """The edit that makes the member of `old` that of `new`; None where they are alike."""
    found = json.loads(json.dumps(corpus.at(new, pointer)))
    if found == json.loads(json.dumps(corpus.at(old, pointer))):
        return None
    is_bytes = all(isinstance(one, int) for one in found)
    return {"pointer": pointer, "set": {"$bytes": {"hex": bytes(found).hex()}, "as": "numbers"} if is_bytes else found}


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _device(gpu: Chip) -> str:
    return hashlib.sha256(spki(gpu.own.certificate)).hexdigest()
