"""The attesters of this host, made from `[attestation]`: the one place that knows which kind is made by what.

Nothing is asked of a device here but what its attester asks when it is made; a start fails at the first evidence
where one does not answer. Not here: their order and binding (attestation/attesters/composite.py).
"""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
from hermetic.attestation.attesters.tdx import TdxAttester, TdxSettings
from hermetic.attestation.exchange import BrokerClient
from hermetic.errors import ConfigurationError
from hermetic.server.evidence_settings import Attestation

EVENT_LOG: Final = "event-log.json"
MAX_DER_BYTES: Final = 64 * 1024  # of a certificate or a revocation list


def attester_of(settings: Attestation, resources: ExitStack, broker: BrokerClient) -> CompositeAttester:
    """Return what makes this host's evidence; `resources` lets devices go.

    Raises `ConfigurationError`, `TpmError` or `TsmError` where a source cannot be what the settings say.
    """
    devices = [] if settings.devices == "none" else [NvGpuAttester(NvmlLibrary(library=settings.nvml_library))]
    return CompositeAttester(_primary(settings, resources, broker), devices)


def _primary(settings: Attestation, resources: ExitStack, broker: BrokerClient) -> Attester:
    match settings.tee:
        case "tpm":
            return _tpm(settings, resources, broker)
        case "snp":
            tsm = ConfigfsTsm(settings.tsm_folder)
            return SnpAttester(SnpSettings(tsm, _der(settings.endorsement), _der(settings.crl)))
        case "tdx":
            return TdxAttester(TdxSettings(ConfigfsTsm(settings.tsm_folder), settings.boot_log_path))
        case "az-snp-vtpm":
            return _azure(settings, resources)
        case "sample":
            return _sample()


def _tpm(settings: Attestation, resources: ExitStack, broker: BrokerClient) -> Attester:
    """Return a TPM whose attestation key is enrolled with the broker."""
    # The TPM library is wanted only where there is a TPM.
    from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings  # noqa: PLC0415 - see above
    from hermetic.server.enrolled_tpm import EnrolledTpm  # noqa: PLC0415 - see above

    folder = settings.state_folder
    if folder is None:
        raise ConfigurationError('attestation.state_folder: tee = "tpm" needs it, got none')
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tpm = TpmAttester(TpmSettings(settings.tcti, settings.pcr, folder / EVENT_LOG, settings.boot_log_path))
    return EnrolledTpm(resources.enter_context(tpm), broker, lambda: datetime.now(UTC))


def _azure(settings: Attestation, resources: ExitStack) -> Attester:
    from hermetic.attestation.attesters.azure import AzureSnpAttester  # noqa: PLC0415 - as above

    endorsement = _der(settings.endorsement)
    if endorsement is None:
        raise ConfigurationError('attestation.endorsement: tee = "az-snp-vtpm" needs it, got none')
    return resources.enter_context(AzureSnpAttester(settings.tcti, endorsement))


def _sample() -> Attester:
    """Return the attester that proves nothing; release images do not carry it."""
    try:
        from hermetic.attestation.testing.sample import SampleAttester  # noqa: PLC0415 - release images do not carry it
    except ImportError:
        raise ConfigurationError('attestation.tee: "sample" is not part of this build') from None
    return SampleAttester()


def _der(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DER_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_DER_BYTES or not data.startswith(b"\x30"):
        raise ConfigurationError(f"{path}: wanted DER of at most {MAX_DER_BYTES} bytes, got something else")
    return data
