"""Shipped roots everywhere, roots of one's own in a demo only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.roots.shipped_or_own import amd_roots, intel_roots, nvidia_roots
from hermetic.errors import ConfigurationError
from tests.attestation.machines import AMD, vendor_of_now, write_roots

ALL = [amd_roots, intel_roots, nvidia_roots]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roots")
    write_roots(path, vendor_of_now())
    return path


def test_what_is_shipped_is_the_vendors() -> None:
    assert len(amd_roots("shipped", "production").authorities) == 3
    assert len(intel_roots("shipped", "production").roots) == 1
    nvidia = nvidia_roots("shipped", "production")
    assert (len(nvidia.device_roots), len(nvidia.rim_roots)) == (1, 1)


def test_none_believes_nobody() -> None:
    assert amd_roots("none", "production").authorities == ()
    assert intel_roots("none", "production").roots == ()
    assert nvidia_roots("none", "production").device_roots == ()


@pytest.mark.parametrize("load", ALL)
def test_a_folder_is_for_a_demo_only(load: Callable[..., Any], folder: Path) -> None:
    with pytest.raises(ConfigurationError, match='expected "shipped" or "none" outside profile = "demo"'):
        load(folder, "production")


@pytest.mark.parametrize("load", ALL)
def test_a_folder_that_is_none_is_refused(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a folder"):
        load(tmp_path / "missing", "demo")
    with pytest.raises(ConfigurationError, match="expected"):
        load(tmp_path, "demo")


def test_a_demos_folders_are_read(folder: Path) -> None:
    (found,) = amd_roots(folder / "amd", "demo").authorities
    assert found == AMD.authorities() or found.ark.spki == AMD.authorities().ark.spki
    assert len(nvidia_roots(folder / "nvidia", "demo").device_roots) == 1
    assert len(intel_roots(folder / "nvidia" / "devices", "demo").roots) == 1


def test_a_generation_is_whole_or_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "milan-ark.der").write_bytes((folder / "amd" / "milan-ark.der").read_bytes())
    with pytest.raises(ConfigurationError, match=r"milan-ask\.der: No such file"):
        amd_roots(tmp_path, "demo")
    (tmp_path / "milan-ask.der").write_bytes(b"0" * 100)
    with pytest.raises(ConfigurationError, match=r"milan-ask\.der: expected one of AMD's certificates"):
        amd_roots(tmp_path, "demo")
