"""What the Dockerfile releases: the package without its fakes, which works without them and refuses what they make."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("client", "server", "enclave", "attestation", "bench")

IMPORT_ALL = """
import importlib, pkgutil, sys
import hermetic
rooms = ("client", "server", "enclave", "attestation", "cli", "provision")
for room in rooms:
    package = importlib.import_module(f"hermetic.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"hermetic.{room}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert not [name for name in sys.modules if name.startswith("hermetic.attestation.testing")]
assert hermetic.__file__.startswith(sys.argv[1]), hermetic.__file__
"""

REFUSE_SAMPLE = """
from datetime import UTC, datetime
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import verify
from hermetic.errors import VerificationError
try:
    verify("sample", {"svn": "1", "report_data": ""}, bytes(48), TrustRoots(profile="demo"), datetime.now(UTC))
except VerificationError as error:
    assert error.failures
else:
    raise SystemExit("sample evidence was accepted")
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the image holds it: real folders, no `attestation/testing`, no `bench/variants`."""
    site = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__", *ROOMS)
    shutil.copytree(ROOT / "src/hermetic", site / "hermetic", ignore=ignore)
    for room in ROOMS:
        shutil.copytree(ROOT / room, site / "hermetic" / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(site / "hermetic/attestation/testing")
    shutil.rmtree(site / "hermetic/bench/variants")  # servers with a protection taken away
    return site


@pytest.mark.parametrize("program", [IMPORT_ALL, REFUSE_SAMPLE], ids=["imports", "refuses sample evidence"])
def test_the_package_without_its_fakes(released: Path, program: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program, str(released)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(released), "ORT_DISABLE_TELEMETRY": "1"},
    )
    assert result.returncode == 0, result.stderr


def test_the_image_takes_the_fakes_out_and_ends_as_an_ordinary_user() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    removed = re.search(r"&& rm -r ((?:[^&]|\n)*?)&&", stages[-2])
    assert removed is not None
    site = "/opt/hermetic/lib/python3*/site-packages/hermetic"
    assert removed[1].replace("\\\n", "").split() == [f"{site}/attestation/testing", f"{site}/bench/variants"]
    assert re.search(r"^USER \d+:\d+$", stages[-1], re.MULTILINE)
    for compiler in ("gcc", "libc6-dev", "python3-dev", "build-essential", "libtss2-dev"):
        assert compiler not in stages[-1]
