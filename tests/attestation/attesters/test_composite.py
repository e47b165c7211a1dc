"""Evidence of whole machines is made in RCAR's order, and of whole machines only."""

import json
from dataclasses import dataclass, field

import pytest

from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import ConfigurationError, DeviceError


@dataclass
class Part:
    """An attester that notes what it is asked."""

    tee: str
    asked: list[bytes] = field(default_factory=list)
    measured: list[bytes] = field(default_factory=list)
    broken: bool = False

    def extend(self, digest: bytes) -> None:
        self.measured.append(digest)

    def collect(self, report_data: bytes) -> JsonValue:
        if self.broken:
            raise DeviceError("gone")
        self.asked.append(report_data)
        return {"über": self.tee, "a": [1, None]}


def test_the_primary_is_over_the_devices_text() -> None:
    primary, device = Part("snp"), Part("nvidia")
    texts: list[str] = []

    def digest(additional: str) -> bytes:
        texts.append(additional)
        return b"P" * 48

    made = CompositeAttester(primary, [device]).collect(b"D" * 48, digest)
    assert device.asked == [b"D" * 32], "cut to the 32 bytes of a GPU's nonce"
    assert primary.asked == [b"P" * 48 + bytes(16)], "padded to a processor's 64"
    assert texts == [made.additional]
    assert json.loads(made.additional) == {"nvidia": {"über": "nvidia", "a": [1, None]}}


def test_without_devices_the_text_is_empty() -> None:
    made = CompositeAttester(Part("sample")).collect(b"D" * 48, lambda text: text.encode().ljust(48, b"P"))
    assert made.additional == ""


def test_every_part_measures() -> None:
    primary, device = Part("tpm"), Part("nvidia")
    whole = CompositeAttester(primary, [device])
    whole.extend(b"m" * 32)
    assert primary.measured == device.measured == [b"m" * 32]
    assert (whole.tee, whole.kinds) == ("tpm", ("tpm", "nvidia"))


def test_a_device_that_does_not_answer_leaves_no_evidence() -> None:
    primary = Part("snp")
    with pytest.raises(DeviceError):
        CompositeAttester(primary, [Part("nvidia", broken=True)]).collect(bytes(48), lambda _: bytes(48))
    assert primary.asked == []


@pytest.mark.parametrize("devices", [["snp"], ["nvidia", "nvidia"]])
def test_each_kind_once(devices: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="each kind of evidence once"):
        CompositeAttester(Part("snp"), [Part(kind) for kind in devices])
