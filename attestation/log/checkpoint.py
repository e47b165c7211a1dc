"""Checkpoints (c2sp.org/tlog-checkpoint): a log's origin, size and root as the text of a signed note.

Here: the text, signing it, verifying it. Extension lines are neither written nor accepted, because no monitor can
audit them. Whether two checkpoints are of one log is for `verify_consistency`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.log.merkle import HASH_SIZE, verify_consistency_proof
from hermetic.attestation.log.note import Signer, Verifier, sign_note, verify_note
from hermetic.errors import ConfigurationError, LogError

MAX_TREE_SIZE: Final = 2**63 - 1  # entries
MAX_ORIGIN_SIZE: Final = 255  # bytes of UTF-8
_LINES: Final = 3  # origin, size, root
_MAX_DIGITS: Final = len(str(MAX_TREE_SIZE))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the log's origin, its size in entries, its root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The text of the note, three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    def sign(self, signer: Signer) -> bytes:
        """The checkpoint as a signed note."""
        return sign_note(self.text(), signer)


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Read the text of a note; raises `LogError` for anything but one canonical checkpoint without extensions."""
    lines = text.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if len(lines) != _LINES:
        raise LogError(f"expected a checkpoint of {_LINES} lines, got {len(lines)}")
    origin, size, root = lines
    digits = size.isascii() and size.isdigit() and len(size) <= _MAX_DIGITS
    if not origin or not digits or int(size) > MAX_TREE_SIZE:
        raise LogError(f"expected a checkpoint's origin and size, got {origin[:80]!r} and {size[:80]!r}")
    try:
        checkpoint = Checkpoint(origin, int(size), base64.b64decode(root, validate=True))
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise LogError("the root in a checkpoint is not base64") from error
    if len(checkpoint.root) != HASH_SIZE:
        raise LogError(f"expected a root of {HASH_SIZE} bytes in a checkpoint, got {len(checkpoint.root)}")
    if checkpoint.text() != text:
        raise LogError("a checkpoint is not in its one canonical form")
    return checkpoint


def verify_checkpoint(note: bytes, verifier: Verifier, origin: str | None = None) -> Checkpoint:
    """The checkpoint in `note`, signed by `verifier`, of the log `origin` where one is given; raises `LogError`."""
    checkpoint = parse_checkpoint(verify_note(note, verifier).text)
    if origin is not None and checkpoint.origin != origin:
        raise LogError(f"expected a checkpoint of the log {origin}, got one of {checkpoint.origin}")
    return checkpoint


def verify_consistency(old: bytes, new: bytes, proof: Sequence[bytes], verifier: Verifier) -> Checkpoint:
    """The new checkpoint, once it is proved that its tree starts with the whole tree of the old one.

    `old` and `new` are signed notes of one log; `proof` is RFC 6962's consistency proof. Raises `LogError`.
    """
    before = verify_checkpoint(old, verifier)
    after = verify_checkpoint(new, verifier, before.origin)
    verify_consistency_proof(before.size, after.size, proof, before.root, after.root)
    return after


def check_origin(origin: str) -> None:
    """Raise `ConfigurationError` for an origin that cannot stand in a checkpoint as one line."""
    if not origin or not origin.isprintable() or len(origin.encode()) > MAX_ORIGIN_SIZE:
        raise ConfigurationError(f"expected a log origin of one printable line, at most {MAX_ORIGIN_SIZE} bytes")
