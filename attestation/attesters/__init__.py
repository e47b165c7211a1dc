"""Evidence is made here, one module per kind (`snp`, `tdx`, `tpm`, `nvgpu`); the supervisor is the only caller.

`sample` stands in attestation/testing/. An attester needs the device; nothing here judges what it made.
"""

from typing import Protocol, runtime_checkable

from hermetic.attestation.evidence import JsonValue

__all__ = ["Attester"]


@runtime_checkable
class Attester(Protocol):
    """Makes evidence of one kind on this machine."""

    @property
    def tee(self) -> str:
        """The kind's name on the wire: "tpm", "sample"."""
        ...

    def extend(self, digest: bytes) -> None:
        """Measure a manifest's SHA-256 `digest`, so that all evidence from now on tells of it; once per boot.

        A kind that has no register for it does nothing. Raises an `OperatorError` when the device does not answer.
        """
        ...

    def collect(self, report_data: bytes) -> JsonValue:
        """Evidence bound to `report_data` (48 bytes, or already fitted to the kind's field), as it travels in RCAR.

        Raises an `OperatorError` when the device does not answer.
        """
        ...
