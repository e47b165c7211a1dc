"""Make build/gpu-environment on a bare machine: what its Python has, and above that the wheels of build/gpu-wheels.

Needs Python and nothing else: no network, no pip. Run by the Python that has torch, numpy and onnxruntime. Wheels are
taken by the hashes of gpu.txt, and others are refused. Prints the environment's Python. The second time it only looks.
"""

import hashlib
import re
import shutil
import site
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEELS = ROOT / "build" / "gpu-wheels"
ENVIRONMENT = ROOT / "build" / "gpu-environment"
STAMP = "made-of"


def main() -> int:
    """Make it; returns the exit status."""
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels:
        print(f"{WHEELS}: wanted wheels (`make gpu-wheels` elsewhere), got none", file=sys.stderr)
        return 2
    try:
        python = make(wheels, allowed((HERE / "gpu.txt").read_text()), ENVIRONMENT)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(python)
    return 0


def allowed(requirements: str) -> frozenset[str]:
    """Return the SHA-256 digests in a file of requirements."""
    return frozenset(re.findall("--hash=sha256:([0-9a-f]{64})", requirements))


def make(wheels: list[Path], digests: frozenset[str], to: Path) -> Path:
    """Return the Python of an environment with these wheels; `ValueError` names one that is not among the digests."""
    contents = {wheel: wheel.read_bytes() for wheel in wheels}
    made_of = "\n".join([sys.executable, str(ROOT), *(hashlib.sha256(one).hexdigest() for one in contents.values())])
    python = to / "bin" / "python"
    if (to / STAMP).exists() and (to / STAMP).read_text() == made_of:
        return python
    for wheel, content in contents.items():
        if hashlib.sha256(content).hexdigest() not in digests:
            raise ValueError(f"{wheel.name}: wanted a wheel of requirements/gpu.txt, got another")
    shutil.rmtree(to, ignore_errors=True)
    venv.create(to, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(to), "platbase": str(to)}))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    # After what was carried: what this Python has, and the checkout. Processes that we start look there as well.
    folders = [*site.getsitepackages(), site.getusersitepackages()] if site.ENABLE_USER_SITE else site.getsitepackages()
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    (packages / "carried.pth").write_text("\n".join([str(ROOT / "src"), *lines, ""]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = packages / f"{project['name']}-{project['version']}.dist-info"  # a package is asked for its version
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (to / STAMP).write_text(made_of)
    return python


if __name__ == "__main__":
    sys.exit(main())
