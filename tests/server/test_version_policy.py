"""Which versions are served: Triton's three policies."""

import pytest

from hermetic.enclave.configuration import VersionPolicy
from hermetic.server.version_policy import chosen, describe


@pytest.mark.parametrize(
    ("policy", "served", "words"),
    [
        (VersionPolicy(), {9}, "latest 1"),
        (VersionPolicy(latest=2), {4, 9}, "latest 2"),
        (VersionPolicy(latest=10), {1, 4, 9}, "latest 10"),
        (VersionPolicy(kind="all"), {1, 4, 9}, "all"),
        (VersionPolicy(kind="specific", versions=(4, 1, 7)), {1, 4}, "specific 4, 1, 7"),
        (VersionPolicy(kind="specific", versions=(7,)), set(), "specific 7"),
    ],
)
def test_a_policy_chooses(policy: VersionPolicy, served: set[int], words: str) -> None:
    assert chosen(policy, [4, 1, 9]) == served
    assert describe(policy) == words


def test_nothing_is_chosen_of_nothing() -> None:
    assert chosen(VersionPolicy(), []) == frozenset()
