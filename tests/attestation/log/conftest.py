"""A log with a fixed key, and the vectors by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hermetic.attestation.log import NoteSigner

ORIGIN = "log.example/test"
VECTORS = Path(__file__).parents[2] / "vectors" / "log"


@pytest.fixture
def signer() -> NoteSigner:
    return NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def vector() -> Callable[[str], Any]:
    return lambda name: json.loads((VECTORS / f"{name}.json").read_text())
