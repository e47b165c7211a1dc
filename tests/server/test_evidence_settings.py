"""`[attestation]` of server.toml: each key for its kinds, and an attester for each kind."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hermetic.errors import ConfigurationError, DeviceError, TsmError
from hermetic.server.evidence_settings import Attestation
from hermetic.server.evidence_sources import attester_of

NO_BROKER: Any = None


def made(**settings: Any) -> Any:
    with ExitStack() as resources:
        return attester_of(Attestation.model_validate(settings), resources, NO_BROKER)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"tee": "sample"}, ("sample",)),
        ({"tee": "snp"}, ("snp",)),
        ({"tee": "tdx", "boot_log": "none"}, ("tdx",)),
        ({"tee": "snp", "devices": "nvidia"}, ("snp", "nvidia")),
    ],
)
def test_the_kinds_are_the_settings(settings: dict[str, Any], kinds: tuple[str, ...]) -> None:
    assert made(**settings).kinds == kinds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tee": "snp", "pcr": 15}, "pcr: means something for tee = 'tpm', got tee = 'snp'"),
        ({"tee": "az-snp-vtpm"}, 'endorsement: tee = "az-snp-vtpm" needs the certificate'),
        ({"tee": "tdx", "endorsement": "vcek.der"}, "endorsement: means something for tee = 'snp' or 'az-snp-vtpm'"),
        (
            {"tee": "tpm", "state_folder": "s", "tsm_folder": "t"},
            "tsm_folder: means something for tee = 'snp' or 'tdx'",
        ),
        ({"tee": "snp", "boot_log": "none"}, "boot_log: means something for tee = 'tpm' or 'tdx'"),
        ({"tee": "tpm"}, 'state_folder: tee = "tpm" needs'),
        ({"tee": "snp", "nvml_library": "x.so"}, 'nvml_library: means something for devices = "nvidia"'),
        ({"tee": "sgx"}, "Input should be 'tpm', 'snp', 'tdx', 'az-snp-vtpm' or 'sample'"),
        ({"tee": "snp", "devices": "amd"}, "Input should be 'nvidia' or 'none'"),
    ],
)
def test_a_key_of_another_kind_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Attestation.model_validate(settings)
    assert said in str(caught.value)


def test_each_kind_has_its_own_boot_log() -> None:
    def path(**settings: Any) -> Path | None:
        return Attestation.model_validate(settings).boot_log_path

    assert path(tee="tpm", state_folder="s") == Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    assert path(tee="tdx") == Path("/sys/firmware/acpi/tables/data/CCEL")
    assert path(tee="tdx", boot_log="log") == Path("log")
    assert path(tee="tdx", boot_log="none") is None
    assert path(tee="snp") is None


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "tsm"
    with pytest.raises(TsmError, match=f"{nowhere}.*expected configfs-tsm with a provider"):
        made(tee="snp", tsm_folder=nowhere).collect(bytes(48), lambda _: bytes(48))
    with pytest.raises(ConfigurationError, match=r"vcek\.der: No such file"):
        made(tee="snp", endorsement=tmp_path / "vcek.der")
    (tmp_path / "text").write_text("-----BEGIN")
    with pytest.raises(ConfigurationError, match="wanted DER"):
        made(tee="snp", crl=tmp_path / "text")
    library = tmp_path / "libnvidia-ml.so.1"
    with pytest.raises(DeviceError, match=f"expected its library at {library}"):
        made(tee="sample", devices="nvidia", nvml_library=library).collect(bytes(48), lambda _: bytes(48))
