"""A broker whose keys an HSM or a service opens: it says "later" while that is away, and goes on afterwards."""

import os

import pytest

from hermetic.errors import BrokerUnreachableError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.stores.bao import Bao
from tests.attestation.broker.stores.softhsm import BrittleToken, SoftHsm
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import InThread, World

FILE_KEK = 'kek = "file:elsewhere/kek"'


def configured(world: World, line: str) -> None:
    world.write_config(change={FILE_KEK: f'kek = "{line}"'})


def told_later(broker: InThread, digest: bytes) -> None:
    with broker.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        answer = guest.resource("models/key/m")
        detail = refused(answer, "KeyStoreUnavailable", 503)
        assert detail == "key store: it does not answer now; ask again later"
        assert answer.headers["retry-after"] == "5"


def upload_told_later(broker: InThread, digest: bytes) -> None:
    with pytest.raises(BrokerUnreachableError, match="503 KeyStoreUnavailable"):
        broker.upload("models/key/later", os.urandom(32), "later", 1, digest)


def released(broker: InThread, key: bytes, digest: bytes) -> None:
    with broker.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        assert guest.open(guest.resource("models/key/m")) == key


def test_an_hsm_is_unplugged_and_plugged_in_again(world: World, hsm: SoftHsm, brittle: BrittleToken) -> None:
    digest, key = os.urandom(32), os.urandom(32)
    configured(world, hsm.uri("brittle", "kek", module=brittle.module))
    with world.start() as broker:
        broker.upload("models/key/m", key, "m", 1, digest)
        released(broker, key, digest)
        brittle.order("unplugged")
        try:
            told_later(broker, digest)
        finally:
            brittle.order("")
        released(broker, key, digest)
    started = next(record for record in world.records() if record.kind == "broker.started")
    assert started.fields["keks"] == ["pkcs11:kek:01"]


def test_openbao_is_sealed_and_unsealed(world: World, bao: Bao) -> None:
    digest, key = os.urandom(32), os.urandom(32)
    configured(world, bao.uri())
    with world.start() as broker:
        broker.upload("models/key/m", key, "m", 1, digest)
        released(broker, key, digest)
        bao.seal()
        try:
            told_later(broker, digest)
            upload_told_later(broker, digest)
        finally:
            bao.unseal()
        released(broker, key, digest)
        broker.upload("models/key/later", os.urandom(32), "later", 1, digest)
    assert world.outcomes("broker.release") == ["released"] * 3
