"""Broker processes over one PostgreSQL: one is killed amid a handshake, and nobody but its connections notices."""

import os
import signal

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.initial import fix_operators
from hermetic.attestation.governance.proposing import Proposer
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.state.conftest import of_postgres
from tests.attestation.broker.state.postgres_server import PostgresServer
from tests.attestation.broker.state.test_brokers import EVENTS, share
from tests.attestation.broker.test_process import guest_http, model, operator, served
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import World
from tests.attestation.governance.people import THREE, signed

DIGEST = b"\5" * 32
PATH = "models/key/shared"


def test_a_killed_process_takes_nothing_with_it(world: World, postgres: PostgresServer) -> None:
    share(world, of_postgres(postgres))
    config = world.folder / "broker.toml"
    config.write_text(config.read_text().replace('governance = "none"', 'governance = "operators"'))
    fix_operators(BrokerConfig.load(config), THREE, world.clock)
    key = os.urandom(32)
    with served(world) as first, served(world) as second, guest_http(world, second) as other:
        with guest_http(world, first) as http, operator(world, first) as admin:
            admin.upload(f"kbs:///{PATH}", key, model("shared", DIGEST))
            guest = IndependentGuest(http, extra={"hermetic": {"version": 1}})
            claims = hermetic_claims(DIGEST) | {"lease-key": guest.lease_key()}
            guest.auth()
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(60)
        guest.http = other
        assert guest.attest(guest.body(claims)).status_code == 200
        assert "release.signed" in refused(guest.resource(PATH), "PolicyDeny")
        with operator(world, second) as admin:
            change = Proposer.of_json(admin.governance()).key(PATH, "a test", world.clock())
            admin.hand_in(signed(change, "alice", "bob").dumps())
        response = guest.resource(PATH)
        assert guest.open(response) == key
        with operator(world, second) as admin:
            assert admin.revoke_leases({"model": "shared"}, "stolen") == 1
    with served(world) as third, guest_http(world, third) as http:  # both are gone; what they decided is not
        assert len(http.get(EVENTS, params={"after": -1, "wait_s": 0}).json()["events"]) == 1
        with operator(world, third) as admin:
            admin.retire("other", 2)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert "release.revoked" in refused(guest.resource(PATH), "PolicyDeny")
