"""Rules for dynamic batching, its priorities and queue policies, for instances and for versions."""

from collections.abc import Iterator

from hermetic.enclave.configuration import ALL_GPUS, DynamicBatching
from hermetic.enclave.configuration_rules.subject import Subject, repeated

__all__ = ["batching_problems"]


def batching_problems(subject: Subject) -> list[str]:
    """Return what does not fit in `dynamic_batching`, `instances`, `gpus` and `version_policy`."""
    configuration = subject.configuration
    found = [*_versions(subject), *_instances(subject)]
    schedulers = [
        name
        for name, part in (
            ("dynamic_batching", configuration.dynamic_batching),
            ("sequence_batching", configuration.sequence_batching),
            ("ensemble", configuration.ensemble),
        )
        if part is not None
    ]
    if len(schedulers) > 1:
        found.append(f"scheduling: expected at most one of {', '.join(schedulers)}, got them together")
    if configuration.dynamic_batching is not None:
        found += _dynamic(configuration.dynamic_batching, subject.max_batch_size)
    return found


def _dynamic(batching: DynamicBatching, max_batch_size: int) -> Iterator[str]:
    for size in batching.preferred_batch_sizes:
        if size > max(1, max_batch_size):
            yield f"dynamic_batching.preferred_batch_size: expected at most max_batch_size {max_batch_size}, got {size}"
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield (
            f"dynamic_batching.default_priority_level: expected 1 to {levels} (priority_levels), "
            f"got {batching.default_priority_level}"
        )
    if not levels and batching.default_priority_level:
        yield (
            "dynamic_batching.default_priority_level: expected 0 without priority_levels, "
            f"got {batching.default_priority_level}"
        )
    for entry in batching.priority_queue_policies:
        if entry.level > levels:
            yield f"dynamic_batching.priority_queue_policy: expected a level of 1 to {levels}, got {entry.level}"
    for level in repeated(str(entry.level) for entry in batching.priority_queue_policies):
        yield f"dynamic_batching.priority_queue_policy: expected each level once, got {level} twice"
    if batching.preserve_ordering:
        yield from _ordering(batching)


def _ordering(batching: DynamicBatching) -> Iterator[str]:
    """Answers in the order of arrival: nothing may overtake."""
    if batching.priority_levels > 1:
        yield (
            "dynamic_batching.preserve_ordering: expected at most one priority level, "
            f"got {batching.priority_levels} priority_levels"
        )
    policies = [batching.default_queue_policy, *(entry.policy for entry in batching.priority_queue_policies)]
    if any(policy.timeout_action == "DELAY" and policy.default_timeout_us for policy in policies):
        yield "dynamic_batching.preserve_ordering: expected timeout_action REJECT, got DELAY"


def _versions(subject: Subject) -> Iterator[str]:
    policy = subject.configuration.version_policy
    if (policy.kind == "specific") != bool(policy.versions):
        yield f"version_policy: expected versions for 'specific' only, got {list(policy.versions)} for {policy.kind!r}"
    if policy.kind != "latest" and policy.latest != 1:
        yield f"version_policy: expected num_versions for 'latest' only, got {policy.latest} for {policy.kind!r}"


def _instances(subject: Subject) -> Iterator[str]:
    instances, gpus = subject.configuration.instances, subject.configuration.gpus
    if gpus and instances != 1:
        yield f"instance_group: expected one worker on each GPU, got {instances} instances beside gpus"
    if gpus != ALL_GPUS and len(set(gpus)) != len(gpus):
        yield f"instance_group.gpus: expected each GPU once, got {list(gpus)}"
