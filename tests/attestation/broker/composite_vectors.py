"""Writes tests/vectors/composite-evidence/: `python -m tests.attestation.broker.composite_vectors`.

Signatures are made with new keys each time, so the files are made once and kept. `roots.json` is whom to believe and at
which time; every other file is one attestation with the names of the checks that refuse it.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.evidence import canonical, device_report_data, report_data
from tests.attestation.broker.independent_guest import make_key
from tests.attestation.machines import AMD, Machine
from tests.attestation.verifiers.nvgpu_made import Vendor

FOLDER = Path(__file__).parents[2] / "vectors" / "composite-evidence"
TIME = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class Made:
    """One attestation of the `Machine` here, for a nonce and key."""

    nonce: str
    key: dict[str, Any]
    primary: Any
    additional: str

    def case(self, name: str, statement: str, refused_by: list[str]) -> None:
        members = {
            "statement": statement,
            "tee": "snp",
            "nonce": self.nonce,
            "tee-pubkey": self.key,
            "tee-evidence": {"primary_evidence": self.primary, "additional_evidence": self.additional},
            "refused_by": sorted(refused_by),
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(members, indent=1) + "\n")


def attested(machine: Machine, devices: Callable[[Any], Any] = lambda same: same) -> Made:
    """Evidence of `machine`, whose guest changes its devices' before it hashes them."""
    nonce, key = base64.b64encode(machine.label.encode().ljust(32, b"-")).decode(), make_key("P-256")[1]
    own = machine.devices.collect(device_report_data(nonce, key))
    text = canonical({"nvidia": devices(json.loads(canonical(own)))}).decode()
    made = CompositeAttester(machine.primary).collect(
        bytes(48), lambda _: report_data(nonce, key, additional_evidence=text)
    )
    return Made(nonce, key, made.primary, text)


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    vendor = Vendor((TIME - timedelta(days=30), TIME + timedelta(days=365)))
    here, elsewhere = (Machine(label, [vendor.chip(), vendor.chip()]) for label in ("here", "elsewhere"))
    authorities = AMD.authorities()
    roots = {
        "time": TIME.isoformat(),
        "generation": str(authorities.generation),
        **{role: _b64(getattr(authorities, role).der) for role in ("ark", "ask", "asvk")},
        "nvidia": _b64(vendor.root.certificate.public_bytes(Encoding.DER)),
    }
    (FOLDER / "roots.json").write_text(json.dumps(roots, indent=1) + "\n")

    whole, other = attested(here), attested(elsewhere)
    bound = ["composite.bound", "snp.report_data"]
    foreign = json.loads(other.additional)["nvidia"]["device_evidence_list"]
    both = [f"nvgpu.{index}.report.nonce" for index in range(2)]
    whole.case("whole", "A processor and its two GPUs, bound to each other, to the nonce and to the key.", [])
    Made(whole.nonce, whole.key, whole.primary, other.additional).case(
        "devices-of-another-machine", "Device evidence of another session, exchanged on the way.", [*bound, *both]
    )
    Made(whole.nonce, whole.key, other.primary, whole.additional).case(
        "primary-of-another-machine", "The devices are for this session, the processor's report is not.", bound
    )
    Made(whole.nonce, whole.key, whole.primary, whole.additional + " ").case(
        "text-changed-after-hashing", "The text is hashed as it came: a space more is another text.", bound
    )
    Made(whole.nonce, whole.key, whole.primary, "").case(
        "devices-left-out-on-the-way", "Without the text the primary is over something else.", ["snp.report_data"]
    )
    attested(here, lambda one: {**one, "device_evidence_list": [one["device_evidence_list"][0], foreign[1]]}).case(
        "gpu-for-another-nonce", "A guest includes a GPU's report for another challenge.", ["nvgpu.1.report.nonce"]
    )
    attested(here, lambda one: {**one, "device_evidence_list": one["device_evidence_list"][:1]}).case(
        "gpu-missing", "The driver counts two GPUs, the list has one.", ["nvgpu.count"]
    )
    attested(here, lambda one: {**one, "device_evidence_list": one["device_evidence_list"][:1] * 2}).case(
        "gpu-twice", "The same GPU stands twice in the list.", ["nvgpu.distinct", "nvgpu.distinct_keys"]
    )
    attested(here, lambda one: {**one, "hermetic": {**one["hermetic"], "cc": "off"}}).case(
        "cc-off", "The guest's driver says that confidential computing is off.", ["nvgpu.cc"]
    )
    attested(here, lambda one: {**one, "hermetic": {**one["hermetic"], "devtools": "on"}}).case(
        "devtools-on", "The guest's driver says that DEVTOOLS is on.", ["nvgpu.devtools"]
    )
    stray = attested(here)
    text = canonical({"snp": other.primary}).decode()
    primary = CompositeAttester(here.primary).collect(
        bytes(48), lambda _: report_data(stray.nonce, stray.key, additional_evidence=text)
    )
    Made(stray.nonce, stray.key, primary.primary, text).case(
        "machine-as-a-device", "Only kinds of devices come beside a primary.", ["composite.kinds"]
    )


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
