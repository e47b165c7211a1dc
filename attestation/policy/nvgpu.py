"""What the NVIDIA devices of a machine must be: the table [nvgpu] of a form, and its rules.

DEVTOOLS is never acceptable and has no field: verifiers refuse it. No report says it, so `cc_state = "required"`
demands that the guest does. A list of devices does not say whose machine asks: a GPU answers whoever can talk to it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import MAX_DEVICES, NvGpuClaims, NvidiaDevice
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.values import MAX_LIST, Any, Digests, Form, Required

SWITCH: Final = "LS10"
_DRIVER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){1,3}")
_VBIOS: Final = re.compile(r"[0-9A-Fa-f]{1,4}(?:\.[0-9A-Fa-f]{1,4}){1,7}")

Version: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{1,9}(?:\.[0-9A-Fa-f]{1,9}){1,7}$")]
Versions: TypeAlias = Annotated[tuple[Version, ...], Field(min_length=1, max_length=MAX_LIST)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MAX_DEVICES, strict=True)]
Mode: TypeAlias = Literal["single", "multiple", "protected-pcie"]


class AtLeast(Form):
    """The least version that is taken."""

    at_least: Version


class FirmwareForm(Form):
    """Versions of one architecture: numbers of one do not compare with another's. A switch has no driver."""

    driver: Versions | AtLeast | Any
    vbios: Versions | AtLeast | Any

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if isinstance(self.driver, AtLeast) and driver_number(self.driver.at_least) is None:
            raise ValueError(f"driver.at_least: expected decimal numbers with dots, got {self.driver.at_least}")
        return self


class ArchsForm(Form):
    """Versions for each architecture that is accepted; one that is not written is refused."""

    hopper: FirmwareForm | None = Field(default=None, alias="HOPPER")
    blackwell: FirmwareForm | None = Field(default=None, alias="BLACKWELL")
    ls10: FirmwareForm | None = Field(default=None, alias="LS10")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if not self.accepted:
            raise ValueError("expected at least one of HOPPER, BLACKWELL, LS10")
        return self

    @property
    def accepted(self) -> dict[str, FirmwareForm]:
        """The versions of each architecture that is written."""
        every = {"HOPPER": self.hopper, "BLACKWELL": self.blackwell, SWITCH: self.ls10}
        return {name: form for name, form in every.items() if form is not None}


class NvGpuForm(Form):
    """What the NVIDIA devices of a machine must be."""

    gpus: Count | Any = Field(description="exactly so many")
    switches: Count | Any
    devices: Digests | Any = Field(description="SHA-256 of the chips' own keys: no others may be there")
    archs: ArchsForm | Any
    driver_rim: Required
    vbios_rim: Required
    revocation: Annotated[tuple[Literal["good", "hold"], ...], Field(min_length=1, max_length=2)] | Any
    cc_state: Required
    mode: Annotated[tuple[Mode, ...], Field(min_length=1, max_length=3)] | Any
    topology: Required


def judge_nvgpu(checks: Checks, claims: NvGpuClaims, form: NvGpuForm) -> None:
    """Record in `checks` what `form` says to the genuine `claims`: one check for each rule, over all devices."""
    gpus = [one for one in claims.devices if one.arch != SWITCH]
    switches = [one for one in claims.devices if one.arch == SWITCH]
    for name, wanted, got in (("gpus", form.gpus, gpus), ("switches", form.switches, switches)):
        rules.one_of(checks, f"nvgpu.{name}", wanted if wanted == "any" else (wanted,), len(got))
    rules.only(checks, "nvgpu.devices", form.devices, [one.device for one in claims.devices])
    _judge_firmware(checks, claims.devices, form)
    # A switch runs no driver, and says no mode.
    _matched(checks, "nvgpu.driver_rim", form.driver_rim, [one.driver_rim for one in gpus])
    _matched(checks, "nvgpu.vbios_rim", form.vbios_rim, [one.vbios_rim for one in claims.devices])
    rules.only(checks, "nvgpu.revocation", form.revocation, [one.revocation for one in claims.devices])
    rules.flag(checks, "nvgpu.cc_state", form.cc_state, True if claims.cc_state == "stated" else None)
    rules.only(checks, "nvgpu.mode", form.mode, [one.mode or "unsaid" for one in gpus])
    _matched(checks, "nvgpu.topology", form.topology, [claims.topology])


def _matched(checks: Checks, name: str, wanted: Required, got: Sequence[str]) -> None:
    rules.only(checks, name, "any" if wanted == "any" else ("match",), got)


def _judge_firmware(checks: Checks, devices: Sequence[NvidiaDevice], form: NvGpuForm) -> None:
    if form.archs == "any":
        for name in ("arch", "driver", "vbios"):
            checks.skip(f"nvgpu.{name}", rules.ACCEPTED)
        return
    accepted = form.archs.accepted
    rules.only(checks, "nvgpu.arch", accepted, [one.arch for one in devices])
    known = [(one, accepted[one.arch]) for one in devices if one.arch in accepted]
    drivers = [(one.driver_version, versions.driver) for one, versions in known]
    _judge_versions(checks, "nvgpu.driver", drivers, driver_number)
    _judge_versions(
        checks, "nvgpu.vbios", [(one.vbios_version, versions.vbios) for one, versions in known], vbios_number
    )


def _judge_versions(
    checks: Checks,
    name: str,
    pairs: Sequence[tuple[str | None, Versions | AtLeast | Any]],
    number: Callable[[str], tuple[int, ...] | None],
) -> None:
    judged = [(got, wanted) for got, wanted in pairs if wanted != "any"]
    if not judged:
        checks.skip(name, rules.ACCEPTED)
        return
    bad = [f"{got or 'unsaid'} (wanted {_told(wanted)})" for got, wanted in judged if not _fits(got, wanted, number)]
    told = sorted({_told(wanted) for _, wanted in judged})
    checks.demand(name, not bad, told, bad or [got for got, _ in judged])


def _told(wanted: Versions | AtLeast | Any) -> str:
    return f"at least {wanted.at_least}" if isinstance(wanted, AtLeast) else " or ".join(wanted)


def _fits(got: str | None, wanted: Versions | AtLeast | Any, number: Callable[[str], tuple[int, ...] | None]) -> bool:
    if got is None:
        return False
    if not isinstance(wanted, AtLeast):
        return got.lower() in {one.lower() for one in wanted}
    seen, least = number(got), number(wanted.at_least)
    return seen is not None and least is not None and seen >= least


def driver_number(text: str) -> tuple[int, ...] | None:
    """A driver's version, decimal numbers with dots, as it compares; None for another text."""
    return tuple(map(int, text.split("."))) if _DRIVER.fullmatch(text) else None


def vbios_number(text: str) -> tuple[int, ...] | None:
    """A VBIOS version, hexadecimal numbers with dots, as it compares; None for another text."""
    return tuple(int(one, 16) for one in text.split(".")) if _VBIOS.fullmatch(text) else None
