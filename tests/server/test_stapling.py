import base64
from pathlib import Path

import pytest

from hermetic.errors import ConfigurationError
from hermetic.server.stapling import BUNDLE_LIMIT, stapled


def test_the_folders_bundle_is_carried_as_it_is_and_read_anew(tmp_path: Path) -> None:
    assert stapled(None) == ()
    (tmp_path / "bundle").write_bytes(b"one")
    assert [base64.b64decode(item) for item in stapled(tmp_path)] == [b"one"]
    (tmp_path / "bundle").write_bytes(b"two")
    assert [base64.b64decode(item) for item in stapled(tmp_path)] == [b"two"]


def test_a_folder_without_a_bundle_and_one_that_is_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"attestation\.collateral: .*No such file"):
        stapled(tmp_path)
    (tmp_path / "bundle").write_bytes(bytes(BUNDLE_LIMIT + 1))
    with pytest.raises(ConfigurationError, match=f"at most {BUNDLE_LIMIT}"):
        stapled(tmp_path)
