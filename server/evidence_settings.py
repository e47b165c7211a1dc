"""The table `[attestation]` of server.toml: which evidence this host makes, and where each kind's source is.

Each key belongs to certain kinds; one that is set for another kind is refused, because it would have no effect.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from hermetic.server.section import Section

Tee = Literal["tpm", "snp", "tdx", "az-snp-vtpm", "sample"]
Devices = Literal["nvidia", "none"]

TPM_BOOT_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
TDX_BOOT_LOG: Final = Path("/sys/firmware/acpi/tables/data/CCEL")

_TSM: Final = ("snp", "tdx")
_KINDS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "tcti": ("tpm", "az-snp-vtpm"),
    "pcr": ("tpm",),
    "boot_log": ("tpm", "tdx"),
    "tsm_folder": _TSM,
    "endorsement": ("snp", "az-snp-vtpm"),
    "crl": ("snp",),
}
"""For which `tee` a key means something."""


class Attestation(Section):
    """How this host makes evidence. `sample` proves nothing and needs `profile = "demo"`.

    `tee` speaks for the machine; `devices` are asked too, and go into its evidence. `boot_log` is the firmware's event
    log (the kind's usual place unless it is set), which alone can show that the code is measured: with "none" it is
    not.

    `tpm`: `pcr` is the static register that manifests are extended into, `state_folder` keeps the log of it. `snp`:
    `endorsement` (VCEK or VLEK certificate) and `crl`, both DER, are for hypervisors that give none; Azure's
    `az-snp-vtpm` needs the first. `nvml_library` is the driver's library, where the linker does not find it.

    Callers who ask for evidence share one quote for each `evidence_interval_ms`; `collateral` is a folder that
    `hermetic collateral import` fills, whose bundle they are given beside it.
    """

    tee: Tee
    devices: Devices = "none"
    tcti: str = "device:/dev/tpmrm0"
    pcr: Annotated[int, Field(ge=0, le=23)] = 14
    state_folder: Path | None = None
    boot_log: Literal["default", "none"] | Path = "default"
    tsm_folder: Path = Path("/sys/kernel/config/tsm/report")
    endorsement: Path | None = None
    crl: Path | None = None
    nvml_library: Path | None = None
    collateral: Path | None = None
    evidence_interval_ms: Annotated[int, Field(ge=1, le=60_000)] = 100

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Self:
        for name, kinds in _KINDS_OF.items():
            if self.tee not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                wanted = " or ".join(map(repr, kinds))
                raise ValueError(f"{name}: means something for tee = {wanted}, got tee = {self.tee!r}")
        if self.tee == "tpm" and self.state_folder is None:
            raise ValueError('state_folder: tee = "tpm" needs a folder for the log of what it has extended')
        if self.tee == "az-snp-vtpm" and self.endorsement is None:
            raise ValueError('endorsement: tee = "az-snp-vtpm" needs the certificate of the chip\'s VCEK')
        if self.devices == "none" and self.nvml_library is not None:
            raise ValueError('nvml_library: means something for devices = "nvidia", got devices = "none"')
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of evidence that this host makes, the primary's first."""
        return (self.tee,) if self.devices == "none" else (self.tee, self.devices)

    @property
    def boot_log_path(self) -> Path | None:
        """Where the firmware's event log lies; None where none is sent."""
        if self.boot_log == "none" or self.tee not in _KINDS_OF["boot_log"]:
            return None
        if self.boot_log == "default":
            return TPM_BOOT_LOG if self.tee == "tpm" else TDX_BOOT_LOG
        return Path(self.boot_log)
