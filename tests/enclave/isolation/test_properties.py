"""The decision: holds, waived, missing; and the warnings."""

import pytest

from hermetic.enclave.isolation import layers as the
from hermetic.enclave.isolation.layers import OWN_LAYERS
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.isolation.properties import FRONT_END_PROPERTIES, WORKER_PROPERTIES, decide
from hermetic.enclave.lockdown_report import LostLayer
from hermetic.errors import ConfigurationError, IsolationError

WORKER = PROFILES["onnx-cpu"]


def test_a_layer_gives_a_property_where_it_stops_all_of_its_attempts() -> None:
    assert WORKER_PROPERTIES == {
        "no-network": ("seccomp",),  # a network namespace has vsocks, and sockets with a path
        "no-files": ("empty-root", "landlock-files", "seccomp"),
        "no-exec": ("seccomp",),  # the others leave programs in memory
        "no-reach": ("own-uid", "landlock-scopes", "seccomp"),
        "bounded-memory": ("cgroup-memory", "rlimit-memory"),
        "bounded-threads": ("cgroup-tasks", "rlimit-threads"),
    }
    front_end = {"no-connect": ("seccomp",), "bounded-threads": ("cgroup-tasks", "rlimit-threads", "seccomp")}
    rest = {name: given for name, given in WORKER_PROPERTIES.items() if name != "no-network"}
    assert {**rest, **front_end} == FRONT_END_PROPERTIES  # it has no threads


def test_with_every_layer_everything_holds_without_a_warning() -> None:
    decision = decide(WORKER, OWN_LAYERS)
    assert set(decision.holds) == set(WORKER_PROPERTIES)
    assert (decision.waived, decision.warnings) == ((), ())


def test_every_missing_property_is_named_with_the_reason() -> None:
    with pytest.raises(IsolationError) as raised:
        decide(WORKER, [the.RLIMIT_MEMORY], unavailable={"seccomp": "seccomp: Function not implemented"})
    text = str(raised.value)
    for name in ("no-network", "no-files", "no-exec", "no-reach", "bounded-threads"):
        assert name in text
    assert "bounded-memory" not in text
    assert "seccomp: Function not implemented" in text


def test_a_waiver_is_for_one_property_by_name() -> None:
    layers = OWN_LAYERS - {the.SECCOMP}
    with pytest.raises(IsolationError, match="no-exec"):
        decide(WORKER, layers, waived=["no-network"])
    decision = decide(WORKER, layers, waived=["no-exec", "no-network"])
    assert decision.waived == ("no-exec", "no-network")
    assert "no-exec" not in decision.holds


def test_a_waiver_that_nothing_needs_is_a_warning_and_not_in_force() -> None:
    decision = decide(WORKER, OWN_LAYERS, waived=["no-files"])
    assert decision.waived == ()
    assert decision.warnings == ("the waiver of no-files is not needed here",)


def test_a_waiver_of_nothing_known_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no-fils"):
        decide(WORKER, OWN_LAYERS, waived=["no-fils"])


def lost(*layers: str) -> tuple[LostLayer, ...]:
    return decide(WORKER, OWN_LAYERS - set(layers)).lost


def test_of_a_missing_layer_it_is_said_what_rests_on_less() -> None:
    (found,) = decide(WORKER, OWN_LAYERS - {the.EMPTY_ROOT}, unavailable={"empty-root": "not permitted"}).lost
    expected = "only seccomp stops stat_file, connect_unix"
    assert found == LostLayer(layer="empty-root", reason="not permitted", cost=expected)


def test_what_nothing_stops_comes_first() -> None:
    (found,) = lost(the.DIES_WITH_PARENT)
    assert found.cost == "nothing stops outlive_parent"
    both = lost(the.IPC_NAMESPACE, the.EMPTY_ROOT)
    assert [found.layer for found in both] == ["ipc-namespace", "empty-root"]


def test_a_layer_whose_work_others_do_is_missed_all_the_same() -> None:
    (found,) = lost(the.NO_NEW_PRIVILEGES)
    assert found.cost == "two other layers or more stop the same"


def test_what_a_profile_is_without_is_not_lost() -> None:
    torch = PROFILES["torch-cpu"]
    assert decide(torch, torch.layers).lost == ()


def test_a_cgroup_that_somebody_else_made_counts() -> None:
    layers = OWN_LAYERS - {the.RLIMIT_MEMORY} | {the.CGROUP_MEMORY}
    assert decide(WORKER, layers).holds["bounded-memory"] == ("cgroup-memory",)
