"""One demo and one plain installation, each made once for the tests that only look."""

from pathlib import Path

import pytest

from hermetic.provision.authority import Names
from hermetic.provision.layout import sign, write
from hermetic.provision.plan import Plan


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo installation with its certificates."""
    folder = tmp_path_factory.mktemp("demo") / "installation"
    write(folder, Plan(Names.of_demo(), "hermetic.demo", publishers=("demo", "third-party")))
    sign(folder)
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of one's own: requests, not yet certificates."""
    folder = tmp_path_factory.mktemp("plain") / "installation"
    write(folder, Plan(Names("Example Hospital"), "hospital.example", server_names=("inference.hospital.example",)))
    return folder
