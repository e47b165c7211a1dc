"""Insiders: an admin of one prefix who issues tokens; one who may only upload; an operator with a strange key."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from hermetic.attestation.admin_client import ModelKeyFacts
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.governance import Operator
from hermetic.attestation.governance.contents import SMALL_ORDER
from hermetic.errors import BrokerRefusedError, ConfigurationError
from tests.attestation.broker.test_governed import DIGEST, denied, governed, released, sign_key, upload
from tests.attestation.broker.world import World

SECOND = '{ name = "second", audience = "broker", public_key = "second.pub", roles = ["operator"] }'
BOUND = SECOND.replace("operator", "march")
UNBOUND = SECOND.replace(', roles = ["operator"]', "")


def test_an_admin_of_one_prefix_names_no_other_role(world: World) -> None:
    """Who holds a key that issues tokens writes any role into them, and the issuer is bound to roles."""
    second = {"issuer": "second", "key": "second", "audience": "broker"}
    with world.start() as broker, broker.operator(**second, role="operator") as admin:
        admin.retire("april", 1)  # as it is where that role is among them
    world.write_config(change={SECOND: BOUND})
    with world.start() as broker:
        with broker.operator(**second, role="march") as admin:
            admin.retire("march-1", 1)
        for role in ("operator", "narrow", "rollback"):
            with (
                broker.operator(**second, role=role) as admin,
                pytest.raises(BrokerRefusedError, match="a role that its issuer may name"),
            ):
                admin.retire("april", 2)


def test_an_issuer_of_every_role_is_refused_beside_others_and_beside_roles_for_some_names(world: World) -> None:
    bound = BrokerConfig.load(world.write_config())
    assert all(one.roles for one in bound.admin.issuers)
    with pytest.raises(ConfigurationError, match="issuer second: expected roles"):
        BrokerConfig.load(world.write_config(change={SECOND: UNBOUND}))
    alone = {f"  {SECOND},\n": "", ', roles = ["operator", "march", "rollback", "narrow"]': ""}
    with pytest.raises(ConfigurationError, match="issuer operator: expected roles"):
        BrokerConfig.load(world.write_config(change=alone))
    everywhere = BrokerConfig.load(world.write_config(change={**alone, ', names = ["march-"]': ""}))
    assert everywhere.admin.issuers[0].roles is None


def test_roles_of_issuers_are_known_roles(world: World) -> None:
    with pytest.raises(Exception, match="nobody"):
        BrokerConfig.load(world.write_config(change={SECOND: BOUND.replace('"march"', '"nobody"')}))


def test_a_key_that_nobody_signed_for_retires_no_older_one(world: World) -> None:
    """With `latest-only` the newest key of a name decides; one person who may only upload would stop all others."""
    with governed(world).start() as broker:
        path, key = upload(broker, "latest-x")
        sign_key(broker, path)
        with broker.operator() as admin:
            facts = ModelKeyFacts("latest-x", 2**53 - 1, DIGEST, "P")
            admin.upload("kbs:///models/latest-x/huge", os.urandom(32), facts)
        world.clock.advance(hours=2)  # past roll_over_s
        assert released(broker, path) == key
        newer, _ = upload(broker, "latest-x", 2)
        sign_key(broker, newer)
        world.clock.advance(hours=2)
        assert "release.latest_only" in denied(broker, path)


def test_a_key_by_which_everybody_signs_is_no_operators() -> None:
    """Of a point of small order anybody makes signatures, of any message, without a private key."""
    identity = SMALL_ORDER[1]
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"whatever anybody likes")
    for point in SMALL_ORDER:
        for key in (point, point[:-1] + bytes([point[-1] | 0x80])):
            with pytest.raises(ValidationError, match="small order"):
                Operator(key=key.hex(), name="mallory", prefixes=("",))
