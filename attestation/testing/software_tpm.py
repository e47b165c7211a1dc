"""A real software TPM 2.0 (swtpm) with an EK certificate of a CA of its own: for tests and the demo.

It proves the protocol, not the hardware: whoever owns the folder owns the "TPM". Its CA is admitted only by the profile
"demo". Needs Debian's packages swtpm and swtpm-tools. Sockets are Unix sockets in a private folder, made before the
process starts, so that nobody waits for it to listen.
"""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cryptography import x509

from hermetic.errors import ConfigurationError

MAX_SOCKET_PATH: Final = 100  # bytes; sockaddr_un holds 108, and the control socket's name is longer by 5
SETUP_TIMEOUT_S: Final = 60  # making two endorsement keys; on a busy machine RSA takes its time
STOP_TIMEOUT_S: Final = 5
MANUFACTURER: Final = "id:00001014"
"""What swtpm's EK certificates name as manufacturer."""


def is_installed() -> bool:
    """Whether this host has swtpm."""
    return all(shutil.which(program) for program in ("swtpm", "swtpm_setup", "swtpm_localca"))


class SoftwareTpmCa:
    """The manufacturer: signs the EK certificates of the software TPMs that are made with it."""

    def __init__(self, folder: Path) -> None:
        """Use (or, at the first TPM, make) the CA in `folder`."""
        self.folder = folder

    def certificates(self) -> tuple[x509.Certificate, x509.Certificate]:
        """The root, and the CA below it that signs EK certificates."""
        root = (self.folder / "swtpm-localca-rootca-cert.pem").read_bytes()
        issuer = (self.folder / "issuercert.pem").read_bytes()
        return x509.load_pem_x509_certificate(root), x509.load_pem_x509_certificate(issuer)


class SoftwareTpm:
    """One software TPM; `start` is a power-on, `stop` pulls the plug. Use it in a `with`, or call both."""

    def __init__(self, folder: Path) -> None:
        """Use the TPM that was manufactured in `folder`."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        if len(str(self._socket).encode()) > MAX_SOCKET_PATH:
            raise ConfigurationError(f"software TPM: expected a shorter path for its sockets, got {folder}")

    @classmethod
    def manufacture(cls, folder: Path, ca: SoftwareTpmCa) -> Self:
        """Make a TPM in the new folder `folder`, with an EK certificate of `ca`; raises `ConfigurationError`."""
        if not is_installed():
            raise ConfigurationError("software TPM: expected the programs swtpm, swtpm_setup and swtpm_localca")
        folder.mkdir(mode=0o700, parents=True)
        ca.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder / "state"
        state.mkdir(mode=0o700)
        command = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--create-ek-cert", "--overwrite"]
        command += ["--pcr-banks", "sha256", "--config", str(_write_configuration(folder, ca.folder))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S, check=False)
        if done.returncode:
            raise ConfigurationError(f"software TPM: swtpm_setup failed: {(done.stdout + done.stderr)[-500:]}")
        return cls(folder)

    @property
    def tcti(self) -> str:
        """How the TPM library finds it."""
        return f"swtpm:path={self._socket}"

    @property
    def _socket(self) -> Path:
        return self._folder / "sock"

    @property
    def _control(self) -> Path:
        return self._folder / "sock.ctrl"  # the name that the TCTI looks for

    def start(self) -> Self:
        """Power on: PCRs are reset, the reset count rises."""
        with _listening(self._socket) as server, _listening(self._control) as control:
            command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._folder / 'state'}"]
            command += ["--server", f"type=unixio,fd={server.fileno()}", "--ctrl", f"type=unixio,fd={control.fileno()}"]
            command += ["--flags", "not-need-init,startup-clear"]
            self._process = subprocess.Popen(
                command,
                pass_fds=(server.fileno(), control.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return self

    def stop(self) -> None:
        """Pull the plug; the process is gone when this returns."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for path in (self._socket, self._control):
            path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Another boot of the same TPM."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        """Power on."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Power off."""
        self.stop()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        yield listener


def _write_configuration(folder: Path, ca: Path) -> Path:
    """The files that keep swtpm_setup away from the system-wide CA."""
    (folder / "ca.options").write_text(
        "--platform-manufacturer Hermetic\n--platform-version 1\n--platform-model software-TPM\n"
    )
    (folder / "ca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\n"
        f"certserial = {ca}/certserial\n"
    )
    configuration = folder / "setup.conf"
    configuration.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\ncreate_certs_tool_config = {folder}/ca.conf\n"
        f"create_certs_tool_options = {folder}/ca.options\nactive_pcr_banks = sha256\n"
    )
    return configuration
