"""Every bit of the signed part of each good recorded report and manifest, flipped: `make evidence-bits`, minutes.

`make test` flips a sample of them, and every byte of a signature. Here each flipped report goes through the whole
verifier. Of a manifest, one bit of every byte of the signed document is flipped: what is read has another digest, or
cannot be read.
"""

import base64
import re
from datetime import datetime
from typing import Any

import pytest

from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.roots import nvidia
from hermetic.errors import InvalidRequestError
from tests.attestation.verifiers.nvgpu_recorded import CASES, devices_of, evidence_of, failures, nonce_of, rim

GOOD = [case for case in CASES if case["verdict"] == "pass" and not case["rims"]]
MANIFESTS = ["hopper_535.vbios_rim_match.xml", "switch_vbios_rim_5612_0002_890_9610550001.xml"]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: str(case["name"]))
@pytest.mark.timeout(3600)
def test_every_bit_of_a_report(case: dict[str, Any]) -> None:
    first = devices_of(evidence_of(case))[0]
    sound = base64.b64decode(first["evidence"])
    nonce, trust, time = nonce_of([first]), nvidia.load(), datetime.fromisoformat(case["time"])
    assert failures([first], nonce, trust, time) == set()
    for bit in range(8 * (len(sound) - 96)):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = {**first, "evidence": base64.b64encode(flipped).decode()}
        found = failures([changed], nonce, trust, time)
        assert found & {"nvgpu.0.report.signature", "nvgpu.0.report.structure"}, bit


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.timeout(3600)
def test_every_byte_of_a_manifest(name: str) -> None:
    sound = rim(name)
    signed = re.sub(rb"<ds:Signature .*</ds:Signature>", lambda found: b"\0" * len(found[0]), sound, flags=re.DOTALL)
    good = Rim.parse(sound)
    assert good.digest == good.content_digest
    end = sound.rindex(b">") + 1
    for at in range(end):
        if not signed[at]:
            continue
        flipped = sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :]
        try:
            read = Rim.parse(flipped)
        except InvalidRequestError:
            continue
        assert read.digest != read.content_digest, at
