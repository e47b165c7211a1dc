"""Sealed files, written: two passes over the sources, one new file, linked to its name when everything is safe.

Source: docs/spec/sealed-model.md section 7. The first pass computes the digests, which the manifest and thereby the
encryption need; the second encrypts, and refuses a source that changed in between. Collecting the sources is not here
(collect.py), nor who gets the key (the caller's `deliver`).
"""

import bisect
import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pydantic import ValidationError

from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.enclave.manifest import (
    FileEntry,
    Manifest,
    ModelFormat,
    PayloadFacts,
    explain,
    lay_out,
)
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.container import encode_head, encode_signatures
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.streaming_aead import (
    KEY_BYTES,
    SEGMENT_BYTES,
    SegmentCipher,
    key_check,
    new_header,
    segment,
    segment_count,
    wipe,
)
from hermetic.errors import ConfigurationError, ModelFormatError

__all__ = ["MemoryFile", "ModelFacts", "PlainFile", "SealedKey", "new_key", "seal", "write_sealed"]

HASH_BYTES: Final = 1 << 20  # bytes read at a time by the first pass

Progress = Callable[[int], None]
"""Called with the bytes of plaintext that were read since the last call; every byte is read twice."""


class PlainFile(Protocol):
    """A source: a file's name in the model, its size in bytes, and its content."""

    @property
    def name(self) -> str:
        """The name in the manifest."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`; `ModelFormatError` where the file is shorter than `size`."""


class MemoryFile(NamedTuple):
    """A source that lies in memory."""

    name: str
    content: bytes | bytearray

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self.content[offset : offset + len(buffer)]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the manifest says of a model beside its files; members as in the specification."""

    name: str
    version: int
    format: ModelFormat
    architecture: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    key_id: str
    created: str
    shared: bool = False
    configuration: ModelConfiguration = INFERRED


class SealedKey(NamedTuple):
    """A model's key on its way to whoever keeps it. `key` is wiped once it is delivered: copy nothing."""

    manifest: Manifest
    key: bytearray


def new_key() -> bytearray:
    """Return a fresh model key in memory that can be wiped."""
    key = bytearray(KEY_BYTES)
    with Path("/dev/urandom").open("rb", buffering=0) as random:
        random.readinto(key)
    return key


def seal(
    target: Path,
    facts: ModelFacts,
    files: Sequence[PlainFile],
    signer: PublisherKey,
    *,
    deliver: Callable[[SealedKey], None],
    threads: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Seal `files`, the model itself first, into a new file at `target`; return its manifest.

    `deliver` gets the key when the sealed file is safe on the disk and before it has its name; where it raises, no file
    is left. Raises `ConfigurationError` where `target` exists or cannot be written, `ModelFormatError` where the files
    or facts cannot be a manifest or a source changes meanwhile.
    """
    if target.exists():
        raise _cannot_write(target, "it exists, and a sealed model is never overwritten")
    key = new_key()
    try:
        with _new_file_beside(target) as (fd, publish):
            try:
                manifest = write_sealed(fd, facts, files, signer, key, threads=threads, progress=progress)
                os.fsync(fd)
            except OSError as error:
                raise _cannot_write(target, error.strerror) from None
            deliver(SealedKey(manifest, key))
            publish()
    finally:
        wipe(key)
    return manifest


def write_sealed(
    fd: int,
    facts: ModelFacts,
    files: Sequence[PlainFile],
    signer: PublisherKey,
    key: bytearray,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Write a sealed file to the empty file or memfd behind `fd`; return its manifest. `key` stays the caller's."""
    report = progress or (lambda _: None)
    header = new_header()
    manifest = _manifest(facts, signer.name, [_entry(file, report) for file in files], header, key)
    digest = manifest.digest()
    head = encode_head(manifest.encode(), encode_signatures(digest, signer.sign(digest)))
    _write(fd, head, 0)
    _write(fd, header, len(head))
    with SegmentCipher(key, header, digest) as cipher:
        _Encryption(fd, len(head), manifest, files, cipher, report).run(threads)
    return manifest


def _manifest(
    facts: ModelFacts, publisher: str, files: Sequence[tuple[str, int, str]], header: bytes, key: bytearray
) -> Manifest:
    placed = lay_out([(name, size) for name, size, _ in files])
    try:
        entries = tuple(
            FileEntry(name=place.name, offset=place.offset, size=place.size, sha256=sha256)
            for place, (_, _, sha256) in zip(placed, files, strict=True)
        )
        payload = PayloadFacts(
            plaintext_size=entries[-1].end if entries else 0,
            header=header.hex(),
            key_check=key_check(key, header).hex(),
        )
        return Manifest(
            name=facts.name,
            version=facts.version,
            format=facts.format,
            architecture=facts.architecture,
            files=entries,
            inputs=facts.inputs,
            outputs=facts.outputs,
            max_batch_size=facts.max_batch_size,
            key_id=facts.key_id,
            publisher=publisher,
            created=facts.created,
            shared=facts.shared,
            payload=payload,
            configuration=facts.configuration,
        )
    except ValidationError as error:
        raise ModelFormatError(f"the model cannot be sealed: {explain(error)}") from None


def _entry(file: PlainFile, report: Progress) -> tuple[str, int, str]:
    digest, buffer = hashlib.sha256(), bytearray(HASH_BYTES)
    view = memoryview(buffer)
    for offset in range(0, file.size, HASH_BYTES):
        part = view[: min(HASH_BYTES, file.size - offset)]
        file.read_into(part, offset)
        digest.update(part)
        report(len(part))
    wipe(buffer)
    return file.name, file.size, digest.hexdigest()


class _Encryption:
    """The second pass: this thread reads and hashes in order, others encrypt and write."""

    def __init__(
        self,
        fd: int,
        start: int,
        manifest: Manifest,
        files: Sequence[PlainFile],
        cipher: SegmentCipher,
        report: Progress,
    ) -> None:
        self._fd = fd
        self._start = start
        self._manifest = manifest
        self._sources = list(zip(manifest.files, files, strict=True))
        self._ends = [entry.end for entry in manifest.files]
        self._digests = [hashlib.sha256() for _ in files]
        self._cipher = cipher
        self._report = report

    def run(self, threads: int) -> None:
        buffers = [(bytearray(SEGMENT_BYTES), bytearray(SEGMENT_BYTES)) for _ in range(2 * threads)]
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="seal") as pool:
                self._feed(pool, buffers)
        finally:
            for plain, _ in buffers:
                wipe(plain)
        self._check_digests()

    def _feed(self, pool: ThreadPoolExecutor, buffers: Sequence[tuple[bytearray, bytearray]]) -> None:
        """Fill segment after segment and give it to the pool; a buffer is filled again once its segment is written."""
        size = self._manifest.payload.plaintext_size
        at_work: list[Future[None] | None] = [None] * len(buffers)
        for index in range(segment_count(size)):
            slot = index % len(buffers)
            earlier = at_work[slot]
            if earlier is not None:
                earlier.result()
            where = segment(index, size)
            plaintext = memoryview(buffers[slot][0])[: where.plaintext_bytes]
            self._fill(plaintext, where.plaintext_offset)
            at_work[slot] = pool.submit(self._encrypt, index, plaintext, buffers[slot][1])
        for work in at_work:
            if work is not None:
                work.result()

    def _fill(self, plaintext: memoryview, start: int) -> None:
        """Fill one segment from the files that meet it, zeros between them."""
        wipe(plaintext)
        end = start + len(plaintext)
        first = bisect.bisect_right(self._ends, start)
        for (entry, file), digest in zip(self._sources[first:], self._digests[first:], strict=True):
            if entry.offset >= end:
                break
            low, high = max(start, entry.offset), min(end, entry.end)
            part = plaintext[low - start : high - start]
            file.read_into(part, low - entry.offset)
            digest.update(part)
            self._report(len(part))

    def _encrypt(self, index: int, plaintext: memoryview, buffer: bytearray) -> None:
        where = segment(index, self._manifest.payload.plaintext_size)
        ciphertext = memoryview(buffer)[: where.ciphertext_bytes]
        self._cipher.encrypt_into(where, plaintext, ciphertext)
        _write(self._fd, ciphertext, self._start + where.ciphertext_offset)

    def _check_digests(self) -> None:
        for (entry, _), digest in zip(self._sources, self._digests, strict=True):
            if digest.hexdigest() != entry.sha256:
                raise ModelFormatError(
                    f"{entry.name!r} changed while it was sealed: "
                    f"expected SHA-256 {entry.sha256}, got {digest.hexdigest()}"
                )


@contextlib.contextmanager
def _new_file_beside(target: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """Give a new file and the act that names it `target`; without that act nothing is left behind."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(target, error.strerror) from None

    def publish() -> None:
        try:
            os.link(partial, target)  # unlike a rename it never replaces a file that appeared meanwhile
        except OSError as error:
            raise _cannot_write(target, error.strerror) from None

    try:
        yield fd, publish
    finally:
        os.close(fd)
        partial.unlink()
        _flush_directory(target.parent)


def _flush_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _cannot_write(target: Path, reason: str | None) -> ConfigurationError:
    return ConfigurationError(f"cannot write {target}: {reason}")
