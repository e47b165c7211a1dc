from pathlib import Path

import pytest

from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.testing.software_tpm import SoftwareTpm
from hermetic.errors import ConfigurationError


def test_each_power_on_is_another_boot_with_fresh_pcrs(tpm: SoftwareTpm) -> None:
    with TpmDevice(tpm.tcti) as device:
        first = device.boot()
        device.extend(14, b"x" * 32)
    tpm.restart()
    with TpmDevice(tpm.tcti) as device:
        assert device.boot() == (first[0] + 1, 0)
        assert device.pcrs()[14] == bytes(32)


def test_it_stops_cleanly_and_twice(manufactured: SoftwareTpm) -> None:
    manufactured.start()
    process = manufactured._process
    assert process is not None
    manufactured.stop()
    manufactured.stop()
    assert process.returncode is not None
    assert not Path(manufactured.tcti.removeprefix("swtpm:path=")).exists()


def test_its_sockets_are_private(tpm: SoftwareTpm) -> None:
    path = Path(tpm.tcti.removeprefix("swtpm:path="))
    for socket in (path, path.with_name("sock.ctrl")):
        assert socket.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="shorter path"):
        SoftwareTpm(Path("/tmp") / ("x" * 100))
