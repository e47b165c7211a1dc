"""The bare install is the caller's side: it imports without any runtime, web server or TPM library."""

import importlib.util
import pkgutil
import subprocess
import sys

import hermetic.client
import hermetic.protos

BLOCKED = (
    "onnxruntime",
    "onnx",
    "torch",
    "httptools",
    "uvloop",
    "uvloop",
    "httptools",
    "tpm2_pytss",
    "prometheus_client",
    "sklearn",
    "tritonclient",
    "OpenSSL",
)
LATE = ("hermetic.client.triton", "hermetic.client.aio.triton")  # connect() imports them, and says what is missing
ALONE = ("hermetic.attestation.governance.alone", "hermetic.attestation.broker.record")
"""What operators sign with, and auditors look with, on machines of their own."""


def _modules() -> list[str]:
    packages = [hermetic.client, hermetic.protos]
    names = [
        module.name
        for package in packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    verifiers = importlib.util.find_spec("hermetic.attestation.verifiers")
    assert verifiers is not None
    names = [name for name in names if name not in LATE]
    return [*names, "hermetic.attestation.verifiers", "hermetic.attestation.exchange", *ALONE, "hermetic.cli"]


def test_the_callers_side_imports_without_the_extras() -> None:
    program = (
        "import sys\n"
        f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
        "import importlib\n"
        f"for name in {_modules()!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_connect_says_which_package_is_missing() -> None:
    program = (
        "import sys\n"
        "sys.modules['tritonclient'] = None\n"
        "from hermetic.client import connect\n"
        "from hermetic.errors import ConfigurationError\n"
        "try: connect('localhost:1', None, None)\n"
        "except ConfigurationError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "pip install 'hermetic[client]'" in result.stdout, result.stderr
