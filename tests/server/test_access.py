"""Every method against every role, through the real front end; and the table's own rules."""

import grpc
import pytest

from hermetic.errors import AccessDeniedError, ConfigurationError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import (
    INFERENCE,
    RULES,
    AccessTable,
    Principal,
    check_access,
    check_every_method_has_a_rule,
)
from hermetic.server.config import AccessRule
from hermetic.server.identity import Identity
from tests.server.calls import TIMEOUT_S
from tests.server.far_side import FarSide

WHO = {"infer": "infer", "operate": "operate", "observe": "observe"}


def test_rules_cover_exactly_the_services() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    inference = {INFERENCE + method.name for method in service.methods}
    assert inference == {method for method in RULES if method.startswith(INFERENCE)}
    check_every_method_has_a_rule(RULES)


def test_a_method_without_a_rule_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="New"):
        check_every_method_has_a_rule([*RULES, INFERENCE + "New"])
    with pytest.raises(ConfigurationError, match="ServerLive"):
        check_every_method_has_a_rule(RULES.keys() - {INFERENCE + "ServerLive"})


@pytest.mark.parametrize("method", sorted(RULES))
@pytest.mark.parametrize("role", sorted(WHO))
def test_every_method_and_role(side: FarSide, method: str, role: str) -> None:
    with side.channel_as(getattr(side.pki, WHO[role])) as channel:
        call = channel.unary_stream(method) if method.endswith("Watch") else channel.unary_unary(method)
        try:
            reply = call(b"", timeout=TIMEOUT_S)
            if method.endswith("Watch"):
                next(reply)
                reply.cancel()
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
    allowed = role in RULES[method]
    assert (code != grpc.StatusCode.PERMISSION_DENIED) == allowed, (method, role, code)


def test_an_identity_listed_twice_is_a_mistake() -> None:
    rule = AccessRule(authority="a", name="n", tenant="t", roles=("infer",))
    with pytest.raises(ConfigurationError, match="two"):
        AccessTable([rule, rule.model_copy(update={"tenant": "u"})], ["a"])


def test_an_unknown_authority_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="'b'"):
        AccessTable([AccessRule(authority="b", name="n", tenant="t", roles=("infer",))], ["a"])


def test_unlisted_and_unruled_are_denied() -> None:
    table = AccessTable([], [])
    with pytest.raises(AccessDeniedError):
        table.principal(Identity("a", "n"))
    with pytest.raises(AccessDeniedError, match="one of the roles"):
        check_access(Principal(Identity("a", "n"), "t", frozenset({"observe"})), frozenset({"infer", "operate"}))
