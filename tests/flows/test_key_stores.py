"""A server gets its model's key out of a broker whose KEK is in an HSM, or in OpenBao.

A KEK of the broker's own is what every other flow runs with.
"""

import json
from pathlib import Path

import pytest

from tests.attestation.broker.stores.bao import Bao
from tests.attestation.broker.stores.softhsm import SoftHsm
from tests.flows.networks import dense
from tests.flows.scene import check_answers, scene

OWN_KEK = 'kek = "file:../credentials/kek"'


@pytest.fixture(params=["pkcs11", "openbao"])
def kek(request: pytest.FixtureRequest) -> str:
    """The configuration's line."""
    if request.param == "pkcs11":
        hsm: SoftHsm = request.getfixturevalue("hsm")
        return hsm.uri("hermetic", "kek")
    bao: Bao = request.getfixturevalue("bao")
    return bao.uri()


def test_from_upload_to_answers(kek: str) -> None:
    def prepare(folder: Path) -> None:
        path = folder / "broker" / "broker.toml"
        text = path.read_text()
        assert OWN_KEK in text
        path.write_text(text.replace(OWN_KEK, f'kek = "{kek}"'))

    with scene("sample", prepare) as place:
        network = dense(place.workshop, "dense", seed=1)
        sealed = place.seal(network)
        with place.serve([sealed]) as served, served.client() as client:
            check_answers(client, network)
        started, *_, released = (r for r in place.records("broker") if r.kind in ("broker.started", "broker.release"))
        assert str(started.fields["keks"]).startswith(f"['{kek.split(':', 1)[0]}:")
        assert released.fields["outcome"] == "released"
        rows = json.loads(
            place.run("broker", "kek", "check", "--config", place.folder / "broker/broker.toml", "--json")
        )
        assert rows["keys"] == {rows["keks"][0]: 1}
