"""How do KServe and MLServer come onto this machine? Each into a virtual environment of its own, by hash, from PyPI.

    python -m hermetic.bench.peers.environments       installs both, prints their interpreters

The environments lie in `~/.cache/hermetic/peers` and are made at first use. Every package is locked with hashes
(`<peer>.txt` beside this file). Nothing of them is shipped with Hermetic. Triton's way is bench/triton.py.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from hermetic.errors import ConfigurationError, HermeticError, MeasurementError

VERSIONS: Final = {"kserve": "0.21.0", "mlserver": "1.7.1"}
INSTALL_TIMEOUT_S: Final = 900
MARK: Final = "installed"


def cache_folder() -> Path:
    """Return where the environments are kept between runs."""
    return Path.home() / ".cache" / "hermetic" / "peers"


def lock_file(peer: str) -> Path:
    """Return the list of a peer's packages with their hashes; `ConfigurationError` for a name that is no peer's."""
    if peer not in VERSIONS:
        raise ConfigurationError(f"peer: wanted one of {', '.join(VERSIONS)}, got {peer!r}")
    return Path(__file__).with_name(f"{peer}.txt")


def interpreter(peer: str, folder: Path | None = None) -> Path:
    """Return the Python that has the peer, installed first unless it is there; `MeasurementError` says why not.

    The folder's name holds the lock file's digest: another lock file is another environment.
    """
    lock = lock_file(peer)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    made = (folder or cache_folder()) / f"{peer}-{VERSIONS[peer]}-{digest}"
    python = made / "bin" / "python"
    if not (made / MARK).is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        # An environment cannot be moved once it is made, so it is made in place and marked when it is whole.
        _run([sys.executable, "-m", "venv", "--clear", str(made)], f"{peer}: venv")
        pip = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
        ]
        pip += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(lock)]
        _run(pip, f"{peer}: pip install")
        (made / MARK).touch()
    return python


def _run(command: list[str], what: str) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementError(f"{what}: {error}") from None
    if ended.returncode != 0:
        raise MeasurementError(f"{what} failed: {' / '.join(ended.stderr.strip().splitlines()[-2:])}")


def main() -> None:
    """Install every peer into the cache folder, and print the interpreters."""
    try:
        for peer in VERSIONS:
            sys.stdout.write(f"{interpreter(peer)}\n")
    except HermeticError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
