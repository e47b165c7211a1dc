"""Whether a device runs firmware that NVIDIA has published: its measurements against reference manifests (RIM).

The steps are those of docs/spec/nvgpu-evidence.md, "Reference manifests". Manifests come as bytes; one that is for
another version than a device's is not looked at, because a store holds many, and old ones expire.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.x509 import ocsp

from hermetic.attestation.abi.nvgpu import DISABLED, Opaque, Report
from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Evaluated
from hermetic.attestation.roots import NvGpuTrust
from hermetic.attestation.verifiers import certificates, p384
from hermetic.attestation.verifiers import ocsp as revocation
from hermetic.errors import InvalidRequestError

MAX_RIMS: Final = 256
RIMS_KEPT: Final = MAX_RIMS  # read ones, so that the manifests of a fleet are not read again for each device
NVDEC0_INDEX: Final = 35
"""Measures the video decoder; says nothing where the report says that the decoder is off (NVIDIA's own rule)."""

parse = lru_cache(maxsize=RIMS_KEPT)(Rim.parse)
"""Read a manifest, once for whoever asks: loading collateral, and every piece of evidence after that."""


@dataclass(frozen=True, slots=True)
class Collateral:
    """What was given to judge devices with, read; None for OCSP answers that were not given."""

    rims: tuple[Rim, ...]
    answers: tuple[ocsp.OCSPResponse, ...] | None


def check_collateral(checks: Checks, trust: NvGpuTrust) -> Collateral:
    """Check that all of it can be read, also what no device needs."""
    rims: list[Rim] = []
    if len(trust.rims) > MAX_RIMS:
        checks.fail("nvgpu.rims", f"at most {MAX_RIMS}", len(trust.rims))
    for index, data in enumerate(trust.rims[:MAX_RIMS]):
        try:
            rims.append(parse(data))
        except InvalidRequestError as error:
            checks.fail(f"nvgpu.rims.{index}.structure", "a reference manifest", error)
    answers = None
    if trust.ocsp:
        try:
            answers = revocation.parse(trust.ocsp)
        except InvalidRequestError as error:
            checks.fail("nvgpu.ocsp.structure", "OCSP answers", error)
    return Collateral(tuple(rims), answers)


def check_manifest(checks: Checks, name: str, rim: Rim, trust: NvGpuTrust, time: datetime) -> None:
    """Check a manifest by itself: that NVIDIA has signed it, and stands by it at `time`. `name` begins the names."""
    _check_genuine(checks, name, rim, trust.rim_roots, time, check_collateral(checks, trust), trust)


@dataclass(frozen=True, slots=True)
class Firmware:
    """Checks of one device's measurements; `at` begins the names of its checks."""

    at: str
    report: Report
    chip: str
    collateral: Collateral
    trust: NvGpuTrust
    time: datetime

    def check(self, checks: Checks) -> tuple[Evaluated, Evaluated]:
        """Check the driver's and the VBIOS's manifest; what of the two was evaluated."""
        driver = self._chosen(checks, "driver_rim", self.report.driver_version, is_vbios=False)
        vbios = self._chosen(checks, "vbios_rim", self.report.vbios_version, is_vbios=True)
        if driver is not None and vbios is not None:
            both = sorted(driver.measurements.keys() & vbios.measurements.keys())
            checks.equal(f"{self.at}.rim_indexes", [], both)
        return _evaluated(driver), _evaluated(vbios)

    def _chosen(self, checks: Checks, kind: str, version: str | None, *, is_vbios: bool) -> Rim | None:
        """The first manifest that is for this device and holds, with its checks; else those of all that are for it.

        A version may have several: NVIDIA signs one again before its signer's certificate ends.
        """
        name = f"{self.at}.{kind}"
        given = [rim for rim in self.collateral.rims if rim.is_vbios == is_vbios]
        if version is None or not given:
            checks.skip(name, "the report names no version" if version is None else "no such manifest was given")
            return None
        fitting = [rim for rim in given if (rim.version, rim.product) == (version, self.chip)]
        of = [f"{rim.product} {rim.version}" for rim in given]
        checks.demand(name, bool(fitting), f"a manifest of {self.chip} {version}", of)
        failed = []
        for rim in fitting:
            tried = self._tried(name, rim)
            if not tried.failed:
                checks.include(tried)
                return rim
            failed.append(tried)
        for tried in failed:
            checks.include(tried)
        return None

    def _tried(self, name: str, rim: Rim) -> Checks:
        checks = Checks()
        _check_genuine(checks, name, rim, self.trust.rim_roots, self.time, self.collateral, self.trust)
        mismatches = _mismatches(rim.measurements, self.report)
        checks.demand(f"{name}.measurements", not mismatches, "all active measurements", "; ".join(mismatches))
        return checks


def _check_genuine(
    checks: Checks,
    name: str,
    rim: Rim,
    roots: Sequence[x509.Certificate],
    time: datetime,
    collateral: Collateral,
    trust: NvGpuTrust,
) -> None:
    """Check digest, signature, chain and revocation of a manifest."""
    checks.equal(f"{name}.digest", rim.content_digest, rim.digest)
    try:
        leaf, *rest = map(certificates.parse, rim.certificates)
        p384.check_signature(checks, name, leaf.public_key(), rim.signature, rim.signed_info)
        end = min(one.not_valid_after_utc for one in (leaf, *rest))
        kind = "vbios-rim" if rim.is_vbios else "driver-rim"
        path = certificates.verify_path(leaf, rest, roots, trust.grace.judged_at(kind, end, time))
        trust.grace.say(checks, f"{name}.chain", kind, end, time)
    except InvalidRequestError as error:
        checks.fail(f"{name}.chain", "a chain to a root of reference manifests", error)
        return
    checks.hold(f"{name}.chain")
    check_revocation(checks, f"{name}.revocation", path, collateral, trust, time)


def check_revocation(
    checks: Checks,
    name: str,
    path: Sequence[x509.Certificate],
    collateral: Collateral,
    trust: NvGpuTrust,
    time: datetime,
    first: int = 0,
) -> revocation.Status | None:
    """Check all of the chain `path` from number `first` on but the root; None where nothing was evaluated."""
    if collateral.answers is None:
        checks.skip(name, "no OCSP answers were given")
        return None
    try:
        states = [
            revocation.verify_status(path[index:], collateral.answers, time, trust.grace)
            for index in range(first, len(path) - 1)
        ]
    except InvalidRequestError as error:
        checks.fail(name, "certificates that are not revoked", error)
        return None
    for state in states:
        trust.grace.say(checks, name, revocation.KIND, state.end, time)
    is_held = any(state.status == "hold" for state in states)
    wanted = "no certificate on hold"
    checks.demand(name, trust.allow_certificate_hold or not is_held, wanted, "certificateHold" if is_held else "good")
    return "hold" if is_held else "good"


def _mismatches(wanted: Mapping[int, tuple[bytes, ...]], report: Report) -> list[str]:
    """What does not match, as text: index `i` of a manifest is block `i + 1` of a report."""
    is_decoder_off = report.opaque.get(Opaque.NVDEC0_STATUS) == bytes([DISABLED])
    found = []
    for index, digests in sorted(wanted.items()):
        if index == NVDEC0_INDEX and is_decoder_off:
            continue
        block = report.blocks.get(index + 1)
        if block is None or block.value not in digests:
            found.append(f"index {index}: {'no block' if block is None else block.value.hex()}")
    return found


def _evaluated(rim: Rim | None) -> Evaluated:
    return "not evaluated" if rim is None else "match"
