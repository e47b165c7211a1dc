"""Which versions of a model are served. Pure; the rules are Triton's, and the highest version's policy counts."""

from collections.abc import Collection

from hermetic.enclave.configuration import VersionPolicy

__all__ = ["chosen", "describe"]


def chosen(policy: VersionPolicy, versions: Collection[int]) -> frozenset[int]:
    """Return those of `versions` that `policy` serves; none where it names only others."""
    if policy.kind == "all":
        return frozenset(versions)
    if policy.kind == "specific":
        return frozenset(versions) & frozenset(policy.versions)
    return frozenset(sorted(versions)[-policy.latest :])


def describe(policy: VersionPolicy) -> str:
    """Return the policy in a few words, for whoever asks why a version is not served."""
    if policy.kind == "all":
        return "all"
    if policy.kind == "specific":
        return f"specific {', '.join(map(str, policy.versions))}"
    return f"latest {policy.latest}"
