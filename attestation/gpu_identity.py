"""What this host's own evidence says of each of its GPUs: which card, by which driver and firmware, in which mode.

For the host itself: whether the GPU under a model is still the one that it was loaded on (docs/spec/leases.md, 2). It
reads what was made a moment ago and judges nothing: whether evidence is genuine is for verifiers/, elsewhere.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.attestation.abi.nvgpu import Report
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import DeviceError, GpuChangedError, HermeticError

__all__ = ["GpuFacts", "check_gpu", "gpus_in"]

_CHIP = 1  # the chip's place in its chain: above the key that signs reports


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU. `uuid`: what the driver calls it. `device`: SHA-256 of its chip's public key, as in claims."""

    uuid: str
    device: str
    architecture: str
    driver: str
    vbios: str
    cc: str
    devtools: str
    environment: str

    def facts(self) -> dict[str, JsonValue]:
        """Return it as records and metrics keep it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def changes(self, now: "GpuFacts") -> list[str]:
        """Return what is another, by name: wanted and got."""
        before, after = self.facts(), now.facts()
        return [f"{name}: wanted {before[name]}, got {after[name]}" for name in before if before[name] != after[name]]


def gpus_in(additional: str, nonce: bytes) -> tuple[GpuFacts, ...]:
    """Return the GPUs of `additional`, the devices' text of composite evidence over `nonce` (32 bytes); "" has none.

    Raises `DeviceError` where a report is not over this nonce, or not to be read.
    """
    evidence = json.loads(additional or "{}").get("nvidia")
    if evidence is None:
        return ()
    try:
        devices, said = evidence["device_evidence_list"], evidence["hermetic"]
        return tuple(_facts(device, said, nonce) for device in devices)
    except (LookupError, TypeError, ValueError, HermeticError) as error:
        text = f"{type(error).__name__}: {error}"
        raise DeviceError(f"GPU evidence: wanted it as this host makes it, over its nonce, got {text}") from None


def check_gpu(uuid: str, at_load: GpuFacts | None, gpus: Sequence[GpuFacts]) -> GpuFacts:
    """Return what there is of the GPU `uuid`, under a model that was loaded with `at_load` (None: it is being loaded).

    Raises `GpuChangedError` where it is gone, or not what it was.
    """
    found = [gpu for gpu in gpus if gpu.uuid == uuid]
    if len(found) != 1:
        raise GpuChangedError(f"GPU {uuid}: wanted it in this host's evidence, got {[gpu.uuid for gpu in gpus]}")
    if at_load is not None and (changes := at_load.changes(found[0])):
        raise GpuChangedError(f"GPU {uuid}: wanted what the model was loaded on, got another {'; '.join(changes)}")
    return found[0]


def _facts(device: Mapping[str, str], said: Mapping[str, str], nonce: bytes) -> GpuFacts:
    report = Report.parse(base64.b64decode(device["evidence"], validate=True))
    if report.request_nonce != nonce:
        raise ValueError(f"a report over {report.request_nonce.hex()}")
    chain = x509.load_pem_x509_certificates(base64.b64decode(device["certificate"], validate=True))
    chip = chain[_CHIP].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return GpuFacts(
        uuid=device["uuid"],
        device=hashlib.sha256(chip).hexdigest(),
        architecture=device["arch"],
        driver=report.driver_version or "",
        vbios=report.vbios_version or "",
        cc=said["cc"],
        devtools=said["devtools"],
        environment=said["environment"],
    )
