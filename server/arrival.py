"""What comes with the frame that names a worker: its data channel and its shared memory, taken whole or not at all."""

import os
from typing import NamedTuple

from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.channel import Channel, map_shared_memory
from hermetic.server.foreign import ForeignMemory
from hermetic.server.front_end_files import front_end_files
from hermetic.server.messages import ModelReady

__all__ = ["Arrival", "arrive"]


class Arrival(NamedTuple):
    """A worker at the door. `files`: name -> content of those of the payload that a front end needs, checked."""

    channel: Channel
    memory: ForeignMemory
    place: BufferLayout
    files: dict[str, bytes]

    def close(self) -> None:
        """Turn it away."""
        self.channel.close()
        self.memory.close()


def arrive(ready: ModelReady, channel: int, memory: int) -> Arrival:
    """Return what these descriptors are, which belong to it from now on.

    Raises `BorderError` or `ConfigurationError`, and closes both, where they are not what `ready` says.
    """
    try:
        place = layout(ready.description, ready.buffers, ready.variable_tensor_bytes)
        mapped = map_shared_memory(memory, place.size)
    except BaseException:
        os.close(channel)
        os.close(memory)
        raise
    foreign = ForeignMemory(mapped, memory)
    try:
        end = Channel.of_descriptor(channel)
    except BaseException:
        foreign.close()
        raise
    try:
        files = front_end_files(foreign, place)
    except BaseException:
        end.close()
        foreign.close()
        raise
    end.settimeout(0)
    return Arrival(end, foreign, place, files)
