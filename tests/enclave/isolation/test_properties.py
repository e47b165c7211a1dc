"""The decision: holds, waived, missing; and the warnings."""

import pytest

from hermetic.enclave.isolation import properties
from hermetic.enclave.isolation.properties import OWN_LAYERS, WORKER_PROPERTIES, decide
from hermetic.errors import ConfigurationError, IsolationError


def test_with_every_layer_everything_holds_without_a_warning() -> None:
    decision = decide(WORKER_PROPERTIES, OWN_LAYERS)
    assert set(decision.holds) == set(WORKER_PROPERTIES)
    assert (decision.waived, decision.warnings) == ((), ())


def test_every_missing_property_is_named_with_the_reason() -> None:
    with pytest.raises(IsolationError) as raised:
        decide(
            WORKER_PROPERTIES, [properties.RLIMIT_MEMORY], unavailable={"seccomp": "seccomp: Function not implemented"}
        )
    text = str(raised.value)
    for name in ("no-network", "no-files", "no-exec", "no-reach", "bounded-threads"):
        assert name in text
    assert "bounded-memory" not in text
    assert "seccomp: Function not implemented" in text


def test_a_waiver_is_for_one_property_by_name() -> None:
    layers = OWN_LAYERS - {properties.SECCOMP}
    with pytest.raises(IsolationError, match="no-exec"):
        decide(WORKER_PROPERTIES, layers, waived=["no-network"])
    decision = decide(WORKER_PROPERTIES, layers, waived=["no-exec"])
    assert decision.waived == ("no-exec",)
    assert "no-exec" not in decision.holds


def test_a_waiver_that_nothing_needs_is_a_warning_and_not_in_force() -> None:
    decision = decide(WORKER_PROPERTIES, OWN_LAYERS, waived=["no-files"])
    assert decision.waived == ()
    assert decision.warnings == ("the waiver of no-files is not needed here",)


def test_a_waiver_of_nothing_known_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no-fils"):
        decide(WORKER_PROPERTIES, OWN_LAYERS, waived=["no-fils"])


def test_fewer_layers_than_possible_is_a_warning_with_the_reason() -> None:
    layers = OWN_LAYERS - {properties.EMPTY_ROOT}
    decision = decide(WORKER_PROPERTIES, layers, unavailable={"empty-root": "unshare: Operation not permitted"})
    assert decision.warnings == (
        "no-files holds by landlock-files, seccomp without empty-root (unshare: Operation not permitted)",
    )


def test_a_cgroup_that_somebody_else_made_counts() -> None:
    layers = OWN_LAYERS - {properties.RLIMIT_MEMORY} | {properties.CGROUP_MEMORY}
    assert decide(WORKER_PROPERTIES, layers).holds["bounded-memory"] == ("cgroup-memory",)
