"""How is a real Triton Inference Server started here? Out of a wheel on PyPI, by hash, on loopback, without a GPU.

    python -m hermetic.bench.triton            prints the path of the installed server
    with Triton(repository) as triton: ...     triton.grpc is "127.0.0.1:port"

The wheel of nvidia-pytriton 0.7.0 carries the server of Triton 2.51 (container 24.10) with one backend, Python's, which
wants numpy 1. On it stands a backend of ours named `onnxruntime` (triton_onnxruntime.py), so that a repository of ONNX
models is served unchanged, by the same onnxruntime as Hermetic's own workers: this interpreter's. Nothing of Triton is
shipped with Hermetic. Not here: load on it, and what is compared.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from hermetic.errors import HermeticError, MeasurementError
from hermetic.protos.inference import grpc_service_pb2 as pb

TRITON_VERSION: Final = "2.51.0"
REQUIREMENTS: Final = """\
nvidia-pytriton==0.7.0 --hash=sha256:21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
numpy==1.26.4 --hash=sha256:666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5 \\
    --hash=sha256:675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed
"""
PLATFORMS: Final = ("manylinux_2_35_x86_64", "manylinux_2_17_x86_64")
SERVER: Final = "pytriton/tritonserver"
BACKEND: Final = Path(__file__).with_name("triton_onnxruntime.py")
STUB: Final = "triton_python_backend_stub"
LIBRARY: Final = "libtriton_python.so"
MODULE: Final = "triton_python_backend_utils.py"
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
INSTALL_TIMEOUT_S: Final = 600
START_TIMEOUT_S: Final = 120
STOP_TIMEOUT_S: Final = 20
CALL_TIMEOUT_S: Final = 2
POLL_S: Final = 0.1
LAST_WORDS: Final = 5  # lines of the server's log in an error


def cache_folder() -> Path:
    """Return where the server is kept between runs."""
    return Path.home() / ".cache" / "hermetic" / "peers" / f"triton-{TRITON_VERSION}"


def find() -> Path | None:
    """Return the server's binary if it has been installed."""
    binary = cache_folder() / SERVER / "bin" / "tritonserver"
    return binary if binary.is_file() else None


def install(folder: Path | None = None) -> Path:
    """Return the server's binary in `folder`, which is filled first unless it is there; `MeasurementError` if not."""
    folder = folder or cache_folder()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="triton-", dir=folder.parent) as scratch:
            unpacked = Path(scratch) / "unpacked"
            _pip(Path(scratch), unpacked)
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
    return folder / SERVER / "bin" / "tritonserver"


class Triton:
    """A running server; a context manager that ends it. Its settings are those that a small host wants."""

    def __init__(
        self,
        repository: Path | Sequence[Path],
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it on free ports of loopback, with these `arguments` more; `MeasurementError` where it does not."""
        binary = install()
        self.folder = tempfile.TemporaryDirectory(prefix="hermetic-triton-")
        self.log = Path(self.folder.name) / "log"
        repositories = [repository] if isinstance(repository, Path) else repository
        ports = free_ports(2)
        self.grpc = f"127.0.0.1:{ports[0]}"
        self.metrics = f"127.0.0.1:{ports[1]}"
        command = [str(binary), *(f"--model-repository={path}" for path in repositories)]
        command += [f"--backend-directory={_backends(Path(self.folder.name), binary.parents[1])}"]
        command += [f"--cache-directory={binary.parents[1] / 'caches'}"]
        command += ["--allow-http=false", "--grpc-address=127.0.0.1", f"--grpc-port={ports[0]}"]
        command += ["--metrics-address=127.0.0.1", f"--metrics-port={ports[1]}", "--allow-gpu-metrics=false"]
        self._regions = f"hermetic-triton-{ports[0]}-"
        command += [f"--backend-config=python,shm-region-prefix-name={self._regions}"]
        command += ["--exit-on-error=false", "--pinned-memory-pool-byte-size=0"]
        command += arguments
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**_environment(), **(environment or {})}
            )
        try:
            self._await_live()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, and kill it where that is not enough; its log goes too."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()
        for region in SHARED_MEMORY.glob(f"{self._regions}*"):  # those of models that failed to load stay
            region.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Return the end of its log."""
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-LAST_WORDS:])

    def _await_live(self) -> None:
        """Return when it answers. With models that failed to load it is live, and not ready."""
        end = time.monotonic() + START_TIMEOUT_S
        with grpc.insecure_channel(self.grpc) as channel:
            live = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive", lambda request: request.SerializeToString()
            )
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    raise MeasurementError(f"tritonserver ended with {self.process.returncode}: {self.last_words()}")
                try:
                    live(pb.ServerLiveRequest(), timeout=CALL_TIMEOUT_S)
                except grpc.RpcError:
                    time.sleep(POLL_S)
                else:
                    return
        raise MeasurementError(f"tritonserver is not live within {START_TIMEOUT_S} s: {self.last_words()}")


def _pip(scratch: Path, target: Path) -> None:
    """Let pip unpack the wheel; it refuses what does not have the pinned hash."""
    (scratch / "requirements.txt").write_text(REQUIREMENTS)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--no-compile"]
    command += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command += ["--root-user-action=ignore", "--disable-pip-version-check"]
    command += ["--require-hashes", "-r", str(scratch / "requirements.txt"), "--target", str(target)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"pip install did not end within {INSTALL_TIMEOUT_S} s") from None
    if ended.returncode != 0:
        raise MeasurementError(f"pip install failed: {' / '.join(ended.stderr.strip().splitlines()[-2:])}")


def _backends(folder: Path, server: Path) -> Path:
    """Make a folder of backends: Python's, with this Python's stub and packages, and ours for ONNX on it.

    Copies: a link would be followed to its own folder. The stub ignores PYTHONPATH, so the modules that it imports
    first are told where the packages are; those of this interpreter come last, for their numpy is too new.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub, library = server / "python_backend_stubs" / version / STUB, server / "backends" / "python" / LIBRARY
    if not stub.is_file():
        raise MeasurementError(f"Triton {TRITON_VERSION} has no stub for Python {version}")
    python, onnx = folder / "backends" / "python", folder / "backends" / "onnxruntime"
    for each in (python, onnx):
        each.mkdir(parents=True)
    shutil.copy(stub, python / STUB)
    shutil.copy(library, python / LIBRARY)
    packages = [str(server.parents[1])] + [
        path for path in sys.path if path.endswith(("site-packages", "dist-packages"))
    ]
    see_them = f"import sys\n\nsys.path[:0] = {packages!r}\n"
    (python / MODULE).write_text(see_them + library.with_name(MODULE).read_text())
    (onnx / "model.py").write_text(see_them + BACKEND.read_text())
    return python.parent


def _environment() -> dict[str, str]:
    """What the server's processes see: the libraries, and no telemetry."""
    server = cache_folder()
    libraries = [str(server / "nvidia_pytriton.libs")]
    if directory := sysconfig.get_config_var("LIBDIR"):
        libraries.append(str(directory))
    return {
        "LANG": "C.UTF-8",
        "PATH": os.defpath,
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago; the server cannot take a bound socket."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main() -> None:
    """Install the server into the cache folder, and print the binary's path."""
    try:
        binary = install()
    except HermeticError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{binary}\n")


if __name__ == "__main__":
    main()
