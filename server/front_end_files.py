"""The files of a payload that a front end needs, such as labels and first states: copied once, then checked.

The worker has written them behind the buffers of the shared memory. It could go on writing: so what is checked is the
copy, against the digests in the manifest, which the publisher has signed.
"""

import hashlib

from hermetic.enclave.buffers import BufferLayout
from hermetic.errors import BorderError
from hermetic.server.foreign import ForeignMemory


def front_end_files(memory: ForeignMemory, layout: BufferLayout) -> dict[str, bytes]:
    """Return name -> content; `BorderError` where the worker has written anything else."""
    files = {}
    for place in layout.files:
        content = memory.part(place.offset, place.offset + place.file.size).copied(place.file.size)
        digest = hashlib.sha256(content).hexdigest()
        if digest != place.file.sha256:
            raise BorderError(f"file '{place.file.name}': wanted SHA-256 {place.file.sha256}, got {digest}")
        files[place.file.name] = content
    return files
