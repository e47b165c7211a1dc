"""What the parts of the supervisor share: its loop, its front ends, and how things are recorded and told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hermetic.attestation.evidence import JsonValue
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd

__all__ = ["Recorder", "Surroundings"]

Recorder = Callable[[str, Mapping[str, JsonValue]], None]
"""Writes one record of this kind, durably."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`front_ends`: by process id, the supervisor's own mapping, which changes; `publish` tells all of a change."""

    loop: EventLoop
    front_ends: Mapping[int, FrontEnd]
    record: Recorder
    publish: Event
