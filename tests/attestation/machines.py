"""Whole machines of our own make: a software chip of "AMD's" and GPUs of "NVIDIA's" that sign whatever they are asked.

Real bytes over real interfaces, under roots that only tests have. What the attesters above them do is the product's.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from hermetic.attestation.abi import snp_certificates
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm, TsmReport
from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
from hermetic.attestation.roots import SnpTrust, TrustRoots
from tests.attestation import amd
from tests.attestation.attesters.nvml_double import NvmlDouble, Report
from tests.attestation.attesters.test_snp import table
from tests.attestation.verifiers.nvgpu_made import BLOCKS, GPU_OPAQUE, Chip, Holder, Vendor, transcript

HOPPER = 9  # NVML_DEVICE_ARCH_HOPPER
GENERATION = Generation.MILAN
AMD = amd.Vendor(GENERATION)


def vendor_of_now() -> Vendor:
    """Our own NVIDIA, whose certificates are good today."""
    now = datetime.now(UTC)
    return Vendor((now - timedelta(days=300), now + timedelta(days=300)))


def processor(label: str, report_data: bytes) -> tuple[bytes, bytes]:
    """What the chip `label` answers: its report, and the table with its certificate."""
    chip = amd.chip_id(label)
    unsigned = amd.report(report_data=report_data, chip_id=chip.ljust(64, b"\0"))
    return amd.sign(unsigned, amd.signing_key(chip)), table((snp_certificates.VCEK, vcek(label)))


def vcek(label: str) -> bytes:
    return AMD.vcek(amd.chip_id(label), amd.tcb_of(GENERATION))


class ChipTsm(ConfigfsTsm):
    """The kernel's interface to the chip `label`, without a kernel."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def report(self, report_data: bytes) -> TsmReport:
        return TsmReport("sev_guest", *processor(self._label, report_data))


@dataclass(frozen=True)
class Gpu:
    """What a GPU has: the key that signs its reports, and its chain (PEM)."""

    leaf: Holder
    chain: bytes

    @classmethod
    def load(cls, path: Path) -> "Gpu":
        """A GPU that `save` wrote, for another process."""
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        chain = path.read_bytes()
        return cls(Holder(key, x509.load_pem_x509_certificates(chain)[0]), chain)

    def save(self, path: Path) -> None:
        key = self.leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.with_suffix(".key").write_bytes(key)
        path.write_bytes(self.chain)


class SigningNvml(NvmlDouble):
    """The module `pynvml` on a machine with these GPUs, each signing for the nonce that it is given."""

    def __init__(self, chips: Sequence[Gpu]) -> None:
        super().__init__([])
        self.chips: Sequence[Gpu] = ()
        self.hold(chips)

    def hold(self, chips: Sequence[Gpu]) -> None:
        """From now on these GPUs are there."""
        self.chips = chips
        self.gpus = [(HOPPER, b"", chip.chain) for chip in chips]

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: int, nonce: Any) -> Report:  # noqa: N802 - NVML's name
        data = transcript(self.chips[handle].leaf, bytes(nonce), BLOCKS, GPU_OPAQUE)
        self.gpus[handle] = (HOPPER, data, self.chips[handle].chain)
        return super().nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)


@dataclass
class Machine:
    """One machine: the label of its processor, and its GPUs."""

    label: str
    gpus: list[Chip]
    nvml: SigningNvml = field(init=False)

    def __post_init__(self) -> None:
        self.nvml = SigningNvml([Gpu(chip.leaf, chip.chain) for chip in self.gpus])

    @property
    def primary(self) -> SnpAttester:
        return SnpAttester(SnpSettings(ChipTsm(self.label)))

    @property
    def devices(self) -> NvGpuAttester:
        return NvGpuAttester(NvmlLibrary(self.nvml))

    @property
    def attester(self) -> CompositeAttester:
        return CompositeAttester(self.primary, [self.devices] if self.gpus else [])


def chip_name(label: str) -> str:
    """The claim `chip_id` of the chip `label`."""
    return amd.chip_id(label).hex()


def device_name(chip: Chip) -> str:
    """The claim `device` of a GPU: SHA-256 of its chip's public key."""
    spki = chip.own.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def device_name_of(gpu: Gpu) -> str:
    """What the doubles of a driver call this GPU: by its chip."""
    chip = x509.load_pem_x509_certificates(gpu.chain)[1].public_key()
    spki = chip.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"GPU-{hashlib.sha256(spki).hexdigest()[:8]}"


def trust(vendor: Vendor) -> TrustRoots:
    """Trust in both vendors of our own."""
    return TrustRoots("demo", snp=SnpTrust((AMD.authorities(),)), nvgpu=vendor.trust())


def write_roots(folder: Path, vendor: Vendor) -> None:
    """Both vendors' roots as the broker's settings take them: `amd/`, `nvidia/`."""
    (folder / "amd").mkdir(parents=True)
    authorities = AMD.authorities()
    for role in ("ark", "ask", "asvk"):
        (folder / "amd" / f"{GENERATION.lower()}-{role}.der").write_bytes(getattr(authorities, role).der)
    devices = folder / "nvidia" / "devices"
    devices.mkdir(parents=True)
    (devices / "root.pem").write_bytes(vendor.root.pem)
