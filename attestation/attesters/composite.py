"""Evidence of a whole machine: its devices' first, then the primary's over the very text of theirs.

RCAR's order (docs/spec/composite-evidence.md): devices are asked for reports over a digest of nonce and key; what they
answer becomes one JSON text; the primary evidence is over a digest into which that text went. So whoever takes a
device away, adds one or changes a letter has other report data than the machine signed. Not here: the digests
(evidence.py), each kind's device (snp.py, nvgpu.py), any judgement (verifiers/).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hermetic.attestation.attesters import Attester
from hermetic.attestation.evidence import JsonValue, canonical, fit_to
from hermetic.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class CompositeEvidence:
    """What travels as `tee-evidence`: the primary's JSON, and the devices' as text ("" where there are none)."""

    primary: JsonValue
    additional: str


class CompositeAttester:
    """One machine: a primary that speaks for it, and its devices by kind. As thread-safe as its parts."""

    def __init__(self, primary: Attester, devices: Sequence[Attester] = ()) -> None:
        """Keep the parts; raises `ConfigurationError` where two are of one kind."""
        kinds = [primary.tee, *(device.tee for device in devices)]
        if len(set(kinds)) != len(kinds):
            raise ConfigurationError(f"attestation: expected each kind of evidence once, got {', '.join(kinds)}")
        self._primary = primary
        self._devices = tuple(devices)

    @property
    def tee(self) -> str:
        """The primary's kind, which a session at the broker is begun with."""
        return self._primary.tee

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that is collected, the primary's first."""
        return (self.tee, *(device.tee for device in self._devices))

    def extend(self, digest: bytes) -> None:
        """Measure a manifest's SHA-256 `digest` wherever there is a register for it; raises an `OperatorError`."""
        for part in (self._primary, *self._devices):
            part.extend(digest)

    def collect(self, device_digest: bytes, primary_digest: Callable[[str], bytes]) -> CompositeEvidence:
        """Evidence of every part.

        `device_digest` (48 bytes) is what the devices' evidence is over; `primary_digest` gives, for the text of
        theirs, the 48 bytes that the primary's is over. Raises an `OperatorError` when one of the parts does not
        answer: evidence of half a machine is none.
        """
        made = {device.tee: device.collect(fit_to(device.tee, device_digest)) for device in self._devices}
        text = canonical(made).decode() if made else ""
        return CompositeEvidence(self._primary.collect(fit_to(self.tee, primary_digest(text))), text)
