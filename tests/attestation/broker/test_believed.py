"""Collateral at a running broker: what is there at the start, what is carried in meanwhile, what cannot be loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.broker.believed import Believed
from hermetic.attestation.broker.build import build
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.collateral import vendor_roots
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import ConfigurationError, VerificationError
from tests.attestation.broker.independent_guest import IndependentGuest
from tests.attestation.broker.world import InThread, World
from tests.attestation.collateral import by_hand
from tests.attestation.collateral.by_hand import ROWS, whole

SETTINGS = {
    "[key_store]": '[roots]\namd = "shipped"\n[collateral]\nfolder = "collateral"\nsigners = "signers"\n[key_store]'
}
FEWER = ROWS[:6]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.write_config(change=SETTINGS)
    (tmp_path / "signers").write_text(by_hand.verifier_line())
    put(tmp_path, whole())
    return world


def put(folder: Path, data: bytes) -> None:
    """Replace the bundle as an import does: by one rename."""
    place = folder / "collateral"
    place.mkdir(exist_ok=True)
    (place / "new").write_bytes(data)
    (place / "new").rename(place / "bundle")


@pytest.fixture
def broker(world: World) -> Iterator[InThread]:
    with world.start() as running:
        yield running


def last(world: World, kind: str) -> Any:
    return [record for record in world.records() if record.kind == kind][-1].fields


def attest(broker: InThread) -> None:
    with broker.http() as http:
        IndependentGuest(http).handshake()


def page(broker: InThread) -> str:
    with broker.admin_http() as http:
        answer = http.get("/metrics")
    assert answer.status_code == 200
    return answer.text


def test_what_is_carried_in_is_taken_up_and_recorded(world: World, broker: InThread) -> None:
    assert last(world, "broker.started")["collateral"]["number"] == 7
    put(world.folder, whole(FEWER, 8))
    attest(broker)
    taken = last(world, "broker.collateral")
    assert (taken["outcome"], taken["in_use"]["number"], taken["reasons"]) == ("loaded", 8, [])
    assert "hermetic_collateral_bundle_number 8" in page(broker)
    assert 'hermetic_broker_attestations_total{kinds="sample",outcome="genuine"} 1' in page(broker)


def test_what_cannot_be_loaded_leaves_what_is_in_use(world: World, broker: InThread) -> None:
    put(world.folder, whole(FEWER, 8)[:-1])
    attest(broker)
    attest(broker)
    refused = [record.fields for record in world.records() if record.kind == "broker.collateral"]
    assert [(one["outcome"], one["in_use"]["number"]) for one in refused] == [("refused", 7)], "said once"
    assert "bundle.contents" in str(refused[0]["reasons"])
    assert "hermetic_collateral_reload_failures_total 1" in page(broker)


def test_a_broker_does_not_start_on_a_strangers_bundle(world: World) -> None:
    put(world.folder, whole(FEWER, 8, name=by_hand.STRANGER, seed=by_hand.STRANGER_SEED))
    with pytest.raises(VerificationError, match=r"bundle\.signature"):
        build(BrokerConfig.load(world.folder / "broker.toml"))
    (world.folder / "collateral" / "bundle").unlink()
    with pytest.raises(ConfigurationError, match="expected a readable file"):
        build(BrokerConfig.load(world.folder / "broker.toml"))


def test_vendors_that_are_not_believed_stay_so(world: World) -> None:
    """A site has one bundle: what it says of a vendor without roots here is vouched for, and not used."""
    writer: Any = None
    believed = Believed(TrustRoots("demo", snp=vendor_roots().snp))
    believed.watch(world.folder / "collateral", writer)
    trust = believed.trust()
    assert trust.snp.endorsements
    assert trust.dcap == TrustRoots().dcap
    assert trust.nvgpu == TrustRoots().nvgpu


def test_metrics_are_for_operators(broker: InThread) -> None:
    with broker.http() as http:
        assert http.get("/metrics").status_code == 404
