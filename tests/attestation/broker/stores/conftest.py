"""A token that fails when it is told to, and each kind of KEK in turn."""

from pathlib import Path

import pytest

from tests.attestation.broker.stores.bao import Bao
from tests.attestation.broker.stores.softhsm import BrittleToken, SoftHsm


@pytest.fixture(scope="session")
def brittle(hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> BrittleToken:
    hsm.make_key("brittle", "kek")
    return BrittleToken(tmp_path_factory.mktemp("brittle"), hsm)


@pytest.fixture(params=["local", "pkcs11", "openbao"])
def kek_line(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The configuration's line, once for each kind of KEK."""
    if request.param == "pkcs11":
        hsm: SoftHsm = request.getfixturevalue("hsm")
        return hsm.uri("hermetic", "kek")
    if request.param == "openbao":
        bao: Bao = request.getfixturevalue("bao")
        return bao.uri()
    path = tmp_path / "elsewhere" / "kek"
    path.parent.mkdir()
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return f"file:{path}"
