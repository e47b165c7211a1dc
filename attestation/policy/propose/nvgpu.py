"""The table [nvgpu] that known-good sets of NVIDIA devices ask for."""

from collections.abc import Callable, Sequence

from hermetic.attestation.claims import NvGpuClaims, NvidiaDevice
from hermetic.attestation.policy.nvgpu import SWITCH, driver_number, vbios_number
from hermetic.attestation.policy.propose.draft import ANY, Entry, Table, Value, if_all, seen


def nvgpu_tables(captures: Sequence[NvGpuClaims]) -> tuple[Table, ...]:
    """The tables for exactly these sets of devices."""
    devices = [device for one in captures for device in one.devices]
    archs = sorted({device.arch for device in devices})
    return (
        Table("nvgpu", (*_set(captures, devices), *_state(captures, devices)), "GPUs and NVSwitches."),
        *(_firmware(arch, [one for one in devices if one.arch == arch]) for arch in archs),
    )


def _set(captures: Sequence[NvGpuClaims], devices: Sequence[NvidiaDevice]) -> tuple[Entry, ...]:
    gpus = {sum(device.arch != SWITCH for device in one.devices) for one in captures}
    switches = {sum(device.arch == SWITCH for device in one.devices) for one in captures}
    return (
        Entry("gpus", _number(gpus), "Exactly so many.", _differ(gpus)),
        Entry("switches", _number(switches), "", _differ(switches)),
        Entry("devices", seen(one.device for one in devices), "SHA-256 of the chips' own keys: exactly those seen."),
    )


def _state(captures: Sequence[NvGpuClaims], devices: Sequence[NvidiaDevice]) -> tuple[Entry, ...]:
    gpus = [one for one in devices if one.arch != SWITCH]
    drivers, vbios = (
        if_all(gpus, lambda one: one.driver_rim == "match"),
        if_all(devices, lambda one: one.vbios_rim == "match"),
    )
    revocation = _known([one.revocation for one in devices], "not evaluated")
    stated = if_all(captures, lambda one: one.cc_state == "stated")
    modes = seen(one.mode for one in gpus)
    no_rim = "no manifest was given: measurements were not compared"
    return (
        Entry("driver_rim", drivers, "", no_rim if drivers == ANY else ""),
        Entry("vbios_rim", vbios, "", no_rim if vbios == ANY else ""),
        Entry("revocation", revocation, "", _revocation_review(revocation)),
        Entry(
            "cc_state",
            stated,
            "The guest says: confidential computing on, DEVTOOLS off.",
            'the evidence does not say it; what our own server sends does: write "required"' if stated == ANY else "",
        ),
        Entry("mode", modes),
        Entry("topology", if_all(captures, lambda one: one.topology == "match")),
    )


def _revocation_review(value: tuple[str, ...] | str) -> str:
    if value == ANY:
        return "no OCSP answer was given: a revoked key would pass"
    return "a certificate is on hold: NVIDIA has doubts about this device" if "hold" in value else ""


def _known(values: Sequence[str], unknown: str) -> tuple[str, ...] | str:
    return seen(None if one == unknown else one for one in values)


def _number(numbers: set[int]) -> Value:
    return next(iter(numbers)) if len(numbers) == 1 else ANY


def _differ(numbers: set[int]) -> str:
    return "" if len(numbers) == 1 else f"the captures differ: {sorted(numbers)}"


def _firmware(arch: str, devices: Sequence[NvidiaDevice]) -> Table:
    entries = (
        Entry("driver", _least([one.driver_version for one in devices], driver_number)),
        Entry("vbios", _least([one.vbios_version for one in devices], vbios_number)),
    )
    return Table(f"nvgpu.archs.{arch}", entries, f"Least versions of {arch}: the least ones seen.")


def _least(versions: Sequence[str | None], number: Callable[[str], tuple[int, ...] | None]) -> Value:
    """A floor at the least version; exactly what was seen where that cannot be compared; "any" where none was said."""
    known = [one for one in versions if one is not None]
    if len(known) != len(versions):
        return ANY
    ranked = sorted((rank, one) for one in known if (rank := number(one)) is not None)
    return {"at_least": ranked[0][1]} if len(ranked) == len(known) else seen(known)
