"""What a process that has locked itself down says of its room: it goes into evidence, metrics and `doctor`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hermetic.attestation.claims import ZeroingBy


class LostLayer(BaseModel):
    """A layer that a process could not have: why, and what rests on one other layer without it, or on none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layer: str
    reason: str
    cost: str


class LockdownReport(BaseModel):
    """What a locked-down process holds: each property with the layers that give it alone; what overwrites freed memory.

    `layers` are all that hold, `lost` those that the host does not give. `memory_bounds` say what bounds its memory,
    and at which size: a control group (v2 or v1), its address space, or both. `key_memory` is the kind of memory that
    its keys lie in (attestation/key_memory.py); None: it has none of ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    properties: dict[str, tuple[str, ...]]
    waived: tuple[str, ...]
    warnings: tuple[str, ...]
    zeroing: Literal["enforced", "best effort"]
    key_memory: Literal["secret", "locked", "unlocked"] | None = None
    zeroing_by: ZeroingBy = "nothing"
    layers: tuple[str, ...] = ()
    lost: tuple[LostLayer, ...] = ()
    memory_bounds: tuple[str, ...] = ()
