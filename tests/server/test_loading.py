"""What is refused before a worker is started, and what a worker may say of its model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import ConfigurationError
from hermetic.server.attesting import Attesting
from hermetic.server.config import Isolation, ModelSettings
from hermetic.server.cpu_plan import UNPLANNED
from hermetic.server.generation import SealedFile
from hermetic.server.loading import Loader
from tests.enclave.sealed_by_hand import manifest_of


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(manifest_of([("model.onnx", b"g")], **changes), strict=False)


def loader(*tenants: str) -> Loader:
    nobody = cast(Attesting, SimpleNamespace())  # nothing gets so far
    return Loader(Isolation(), TrustedPublishers(publishers=()), nobody, tenants)


def test_a_program_that_is_not_shared_serves_one_tenant() -> None:
    """It could keep what one tenant sends, for another to fetch."""
    program = manifest(format="torchscript", shared=False)
    with pytest.raises(ConfigurationError, match="serves one tenant, got \\['first', 'second'\\]"):
        loader("first", "second").load(SealedFile(Path("/nowhere.sealed"), ModelSettings(), program), UNPLANNED)


def test_the_description_is_the_manifests_in_every_field() -> None:
    one = manifest().description()
    for changes in ({"name": "other"}, {"version": 9}, {"shared": not one.shared}, {"max_batch_size": 3}):
        assert manifest(**changes).description() != one
    assert one.manifest_digest == manifest().digest().hex()
