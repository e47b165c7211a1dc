"""Who may import whom is pyproject's `tool.importlinter`; here it is proved that each rule can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("client", "server", "enclave", "attestation", "bench")


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package as it stands below `folder`."""
    lint = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", lint, "--no-logo", "--no-cache"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "COLUMNS": "400"},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the rules read, to break on purpose."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*ROOMS, "src", "tests/imports"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rules_hold() -> None:
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


BREAKS = (
    ("attestation", "hermetic.server.config", "attestation imports only errors and protos"),
    ("attestation", "hermetic.enclave.messages", "attestation imports only errors and protos"),
    ("enclave", "hermetic.server.config", "enclave imports only errors, protos and attestation"),
    ("enclave", "hermetic.attestation.broker", "the broker is imported by neither"),
    ("server", "hermetic.enclave.sealing", "server knows of the enclave only its door"),
    ("server", "hermetic.attestation.broker", "server makes and carries evidence, and does not judge it"),
    ("server", "hermetic.attestation.verifiers", "server makes and carries evidence, and does not judge it"),
    ("server", "torch", "no model runtime is imported outside the enclave"),
    ("client", "hermetic.enclave.messages", "client imports only errors, protos and attestation"),
    ("client", "onnxruntime", "no model runtime is imported outside the enclave"),
)


@pytest.mark.parametrize(("room", "imported", "rule"), BREAKS, ids=lambda value: str(value)[:40])
def test_a_forbidden_import_is_seen(copy: Path, room: str, imported: str, rule: str) -> None:
    (copy / room / "broken_on_purpose.py").write_text(f"import {imported}\n")
    result = _lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{rule}" in result.stdout
    assert "BROKEN" in result.stdout
    assert "broken_on_purpose" in result.stdout
