"""Opens sealed bytes the way a worker does, for the tests of this folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hermetic.enclave import sealing
from hermetic.enclave.publishers import TrustedPublishers
from tests.enclave.sealed_by_hand import KEY, publishers


@contextmanager
def descriptor_of(data: bytes) -> Iterator[int]:
    """A descriptor of `data`, as a worker inherits one."""
    fd = os.memfd_create("sealed")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def open_all(data: bytes, *, key: bytes = KEY, trusted: str | None = None, threads: int = 2) -> dict[str, bytes]:
    """All files of a sealed model, after every check; `SealedModelError` otherwise."""
    with descriptor_of(data) as fd:
        manifest = sealing.verify_manifest(sealing.read_header(fd), TrustedPublishers.loads(trusted or publishers()))
        with sealing.open_payload(fd, manifest, bytearray(key), threads) as opened:
            return {name: bytes(opened.view(name)) for name in opened.names}
