"""The payload, decrypted into memory and checked whole before anyone sees a byte of it.

Source: docs/spec/sealed-model.md section 6, steps 12 to 17. Segments are decrypted in parallel straight into a memfd:
the peak is one model and one segment per thread. Needs of a locked-down process: pread, lseek, ftruncate, mmap, munmap,
madvise, fcntl (F_ADD_SEALS, F_DUPFD_CLOEXEC), threads; and memfd_create and memfd_secret, unless it passes memories
made before.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor
from typing import Final, Self

from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave.manifest import FileEntry, Manifest
from hermetic.enclave.sealed.container import MAGIC, PREFIX, read_exactly
from hermetic.enclave.sealed.header import check_length
from hermetic.enclave.sealed.refusals import Refusal, refused
from hermetic.enclave.streaming_aead import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    Segment,
    SegmentCipher,
    segment,
    segment_at,
    segment_count,
    verify_key,
    wipe,
)
from hermetic.errors import SealedModelError

__all__ = ["OpenedModel", "open_payload"]

BLOCK_SEGMENTS: Final = 8  # segments that one thread decrypts in a row
HASH_BYTES: Final = 4 << 20  # bytes hashed at a time: what has just been decrypted is still in the cache
_ZEROS: Final = bytes(1 << 20)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class OpenedModel:
    """A verified model's files in memory. Views stay valid, and turn to zeros, when it is wiped."""

    def __init__(self, manifest: Manifest, memory: mmap.mmap) -> None:
        self.manifest = manifest
        self._memory = memory
        self._view = memoryview(memory)
        self._wiped = False

    def __enter__(self) -> Self:
        """Return the model."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe it."""
        self.wipe()

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names, the model itself first."""
        return tuple(entry.name for entry in self.manifest.files)

    def view(self, name: str, *, writable: bool = False) -> memoryview:
        """Return the file's bytes, uncopied and page-aligned; `KeyError` where the manifest has no such name.

        `writable` is for runtimes that take no read-only memory; nobody writes to it.
        """
        if self._wiped:
            raise ValueError("the model has been wiped")
        entry = self.manifest.file(name)
        part = self._view[entry.offset : entry.end]
        return part if writable else part.toreadonly()

    def unchecked_plaintext(self) -> memoryview:
        """Return the whole memory, writable, for the code that fills and checks it: nobody else calls this."""
        return self._view[:]

    def wipe(self) -> None:
        """Overwrite the model with zeros and give its memory back to the system. Can be called again."""
        if self._wiped:
            return
        self._wiped = True
        _zero(self._view)
        self._memory.madvise(mmap.MADV_REMOVE)
        self._view.release()
        with contextlib.suppress(BufferError):  # a runtime still holds a view: it sees zeros, the mapping goes with it
            self._memory.close()


def open_payload(
    fd: int,
    manifest: Manifest,
    key: bytearray | memoryview,
    threads: int,
    *,
    memory_fd: int | None = None,
    key_memory: KeyMemory | None = None,
) -> OpenedModel:
    """Decrypt and check the payload of the sealed file behind `fd`; return the model's files.

    `manifest` is what `verify_manifest` returned. `key` is consumed: it is all zeros afterwards, whatever happens.
    `memory_fd` is an empty memfd made with MFD_ALLOW_SEALING; without it one is made here. It is sized and sealed
    against resizing, and may be closed afterwards. `key_memory` is where the derived key is to lie; without it one is
    made here, which a locked-down process cannot. Runs up to `threads` threads beside the caller's.
    Raises `SealedModelError`, naming the refusal, with everything decrypted so far wiped.
    """
    try:
        # Steps 12 to 14.
        start = _payload_offset(fd, manifest)
        check_length(fd, manifest, start)
        header = _check_header(fd, manifest, start)
        verify_key(key, header, bytes.fromhex(manifest.payload.key_check))
        cipher = SegmentCipher(key, header, manifest.digest(), key_memory)
    finally:
        wipe(key)
    with cipher:
        opened = OpenedModel(manifest, _map(manifest.payload.plaintext_size, memory_fd))
        try:
            # Steps 15 to 17.
            _Opening(fd, start, manifest, cipher, opened.unchecked_plaintext()).run(threads)
        except BaseException:
            opened.wipe()
            raise
    return opened


class _Opening:
    """One payload on its way into memory."""

    def __init__(self, fd: int, start: int, manifest: Manifest, cipher: SegmentCipher, plaintext: memoryview) -> None:
        self._fd = fd
        self._start = start
        self._files = manifest.files
        self._size = manifest.payload.plaintext_size
        self._cipher = cipher
        self._plaintext = plaintext
        self._buffers = threading.local()  # one ciphertext segment for each thread

    def run(self, threads: int) -> None:
        """Decrypt and check everything. A changed segment is reported before padding, padding before a file."""
        largest = max(self._files, key=lambda entry: entry.size)
        with ThreadPoolExecutor(threads, thread_name_prefix="unseal") as pool:
            firsts = range(0, segment_count(self._size), BLOCK_SEGMENTS)
            blocks = [pool.submit(self._decrypt_block, first) for first in firsts]
            # The pool is first in, first out: by the time a digest starts, every block has, so waiting cannot lock up.
            digests = [pool.submit(self._check_file, entry, blocks) for entry in self._files if entry is not largest]
            # The caller's thread follows the others through the largest file while they decrypt.
            digests.append(_run_here(lambda: self._check_file(largest, blocks)))
        for block in blocks:
            block.result()
        self._check_padding()
        for digest in digests:
            digest.result()

    def _decrypt_block(self, first: int) -> None:
        for index in range(first, min(first + BLOCK_SEGMENTS, segment_count(self._size))):
            where = segment(index, self._size)
            out = self._plaintext[where.plaintext_offset : where.plaintext_offset + where.plaintext_bytes]
            self._cipher.decrypt_into(where, self._read(where), out)

    def _read(self, where: Segment) -> memoryview:
        buffer = getattr(self._buffers, "segment", None)
        if buffer is None:
            buffer = self._buffers.segment = memoryview(bytearray(SEGMENT_BYTES))
        part: memoryview = buffer[: where.ciphertext_bytes]
        filled = 0
        while filled < len(part):
            got = os.preadv(self._fd, [part[filled:]], self._start + where.ciphertext_offset + filled)
            if got == 0:
                raise refused(
                    Refusal.PAYLOAD_TRUNCATED, f"segment {where.index}: expected {len(part)} bytes, got {filled}"
                )
            filled += got
        return part

    def _check_file(self, entry: FileEntry, blocks: Sequence[Future[None]]) -> None:
        digest = hashlib.sha256()
        for start, end in _steps(entry.offset, entry.end, HASH_BYTES):
            for block in _covering(blocks, start, end):
                block.result()
            digest.update(self._plaintext[start:end])
        if digest.hexdigest() != entry.sha256:
            raise refused(
                Refusal.FILE_CHANGED, f"{entry.name!r}: expected SHA-256 {entry.sha256}, got {digest.hexdigest()}"
            )

    def _check_padding(self) -> None:
        for entry, after in zip(self._files, self._files[1:], strict=False):
            if any(self._plaintext[entry.end : after.offset]):
                raise refused(
                    Refusal.PADDING_CHANGED,
                    f"after {entry.name!r}: expected zero bytes up to the next file, got others",
                )


def _covering(blocks: Sequence[Future[None]], start: int, end: int) -> Sequence[Future[None]]:
    """Return the blocks that carry the plaintext from `start` up to `end`, in bytes."""
    return blocks[segment_at(start) // BLOCK_SEGMENTS : segment_at(end - 1) // BLOCK_SEGMENTS + 1]


def _run_here(task: Callable[[], None]) -> Future[None]:
    """Return a future of what `task` does now, in this thread."""
    done: Future[None] = Future()
    try:
        task()
        done.set_result(None)
    except SealedModelError as error:
        done.set_exception(error)
    return done


def _steps(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, size):
        yield at, min(at + size, end)


def _payload_offset(fd: int, manifest: Manifest) -> int:
    """Return where the payload begins, for a file that begins with exactly this manifest."""
    magic, manifest_bytes, signatures_bytes = PREFIX.unpack(read_exactly(fd, PREFIX.size, 0))
    if magic != MAGIC or read_exactly(fd, manifest_bytes, PREFIX.size) != manifest.encode():
        raise refused(Refusal.MANIFEST_CHANGED, "expected the manifest that was verified, got another")
    return PREFIX.size + int(signatures_bytes) + int(manifest_bytes)


def _check_header(fd: int, manifest: Manifest, start: int) -> bytes:
    header = read_exactly(fd, HEADER_BYTES, start)
    if header.hex() != manifest.payload.header:
        raise refused(Refusal.PAYLOAD_HEADER_CHANGED, f"expected {manifest.payload.header}, got {header.hex()}")
    return header


def _map(size: int, memory_fd: int | None) -> mmap.mmap:
    if memory_fd is not None:
        return _map_sized(memory_fd, size)
    made = os.memfd_create("hermetic-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        return _map_sized(made, size)
    finally:
        os.close(made)  # the mapping keeps the memory


def _map_sized(fd: int, size: int) -> mmap.mmap:
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    memory = mmap.mmap(fd, size)
    memory.madvise(mmap.MADV_DONTDUMP)
    return memory


def _zero(view: memoryview) -> None:
    for start, end in _steps(0, len(view), len(_ZEROS)):
        view[start:end] = _ZEROS[: end - start]
