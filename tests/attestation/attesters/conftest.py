"""A kernel with configfs-tsm, for tests of what uses it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem

Mount = Callable[[TsmFilesystem], ConfigfsTsm]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a file system and return the interface on it; it is gone at the end."""
    with ExitStack() as stack:

        def mounted(filesystem: TsmFilesystem) -> ConfigfsTsm:
            folder = tmp_path / "report"
            folder.mkdir()
            try:
                return ConfigfsTsm(stack.enter_context(filesystem.mounted(folder)))
            except (FileNotFoundError, PermissionError) as error:
                pytest.skip(f"FUSE cannot be mounted here: {error}")

        yield mounted
