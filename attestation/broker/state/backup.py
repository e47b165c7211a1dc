"""Back-ups of a broker: its record and its wrapped keys in one sealed file (docs/spec/broker-state.md, section 6).

The file is encrypted and authenticated (AES-256-GCM) under a key that only the log's key gives. Keys stay wrapped by
their KEK, which is not in it, and neither is the log's key. Sessions are not in it either: they last minutes.
"""

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.state.ledger import Ledger
from hermetic.attestation.broker.state.opening import open_state
from hermetic.attestation.broker.state.record import Record, check_against, read_record
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import NoteSigner, verify_checkpoint
from hermetic.attestation.log.journal import MAX_FRAME_ENTRIES
from hermetic.errors import ConfigurationError, LogError

FORMAT: Final = "hermetic-broker-backup/1"
MAX_BYTES: Final = 1 << 30
MAX_KEY_FILE_BYTES: Final = 1 << 20
NONCE_BYTES: Final = 12

_MAGIC: Final = FORMAT.encode() + b"\n"
_SUFFIX: Final = ".key"


@dataclass(frozen=True, slots=True)
class Backup:
    """What a back-up holds: the record, and the files of the key store by their paths in it."""

    origin: str
    record: Record
    keys: Mapping[str, bytes]

    def seal(self, signer: NoteSigner) -> bytes:
        """The file."""
        members = {
            "origin": self.origin,
            "checkpoint": _b64(self.record.note),
            "entries": list(map(_b64, self.record.entries)),
            "keys": {name: _b64(data) for name, data in sorted(self.keys.items())},
        }
        nonce = os.urandom(NONCE_BYTES)
        return _MAGIC + nonce + _cipher(signer).encrypt(nonce, json.dumps(members).encode(), _MAGIC)

    @classmethod
    def open(cls, data: bytes, signer: NoteSigner, origin: str) -> "Backup":
        """Read and check a back-up; raises `ConfigurationError` for none of ours, `LogError` for a damaged record."""
        if not data.startswith(_MAGIC):
            raise ConfigurationError(f"back-up: expected a file that begins with {FORMAT}, got another")
        nonce, sealed = data[len(_MAGIC) : len(_MAGIC) + NONCE_BYTES], data[len(_MAGIC) + NONCE_BYTES :]
        try:
            members = json.loads(_cipher(signer).decrypt(nonce, sealed, _MAGIC))
        except (InvalidTag, ValueError) as error:
            raise ConfigurationError("back-up: expected one of this log's key, whole, got another") from error
        record = Record(tuple(map(base64.b64decode, members["entries"])), base64.b64decode(members["checkpoint"]))
        if members["origin"] != origin:
            raise ConfigurationError(f"back-up: expected one of the log {origin}, got {members['origin']}")
        check_against(record, signer.verifier(), origin, ())
        return cls(origin, record, {name: base64.b64decode(text) for name, text in members["keys"].items()})


def back_up(config: BrokerConfig, signer: NoteSigner) -> Backup:
    """Take a back-up; a broker may be at work. Raises `LogError`, `SharedStateError`, `ConfigurationError`."""
    # Keys first: each that is in the back-up has its upload in the record that is read after it.
    keys = dict(_key_files(config.key_store.folder))
    return Backup(config.log.origin, read_record(config, signer.verifier()), keys)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a restore must not go behind: checkpoints that were kept elsewhere. `loss` says why it may all the same."""

    not_behind: Sequence[bytes] = ()
    loss: str | None = None


def restore(
    config: BrokerConfig, backup: Backup, signer: NoteSigner, demand: Demand, clock: Callable[[], datetime]
) -> int:
    """Put a back-up where there is nothing yet, and record that; returns how many records were lost that are known of.

    Raises `LogError` where it is behind a checkpoint and nobody said that it may be, `ConfigurationError` where there
    is something already.
    """
    lost, why = _lost(backup, signer, demand), ""
    if lost:
        if demand.loss is None:
            raise LogError(
                f"the back-up is behind a checkpoint that is known: {lost} records, or another history, would be lost",
                index=len(backup.record.entries),
            )
        why = demand.loss
    if any(True for _ in _key_files(config.key_store.folder)):
        raise ConfigurationError(f"{config.key_store.folder}: expected an empty key store to restore into")
    with contextlib.ExitStack() as undo:
        state = open_state(config, signer, undo, clock)
        if state.ledger.news():
            raise ConfigurationError("expected an empty log to restore into, got one with records")
        for name, data in backup.keys.items():
            _write(config.key_store.folder / _checked(name), data)
        for at in range(0, len(backup.record.entries), MAX_FRAME_ENTRIES):
            _append(state.ledger, backup.record.entries[at : at + MAX_FRAME_ENTRIES])
        state.ledger.rewind()  # the journal adds everything up itself
        fields: dict[str, JsonValue] = {"size": len(backup.record.entries), "lost": lost, "reason": why}
        Journal(state.ledger, clock).write(entries.RESTORED, fields)
    return lost


def _lost(backup: Backup, signer: NoteSigner, demand: Demand) -> int:
    """How many records the demanded checkpoints count that the back-up lacks; at least 1 for another history."""
    verifier, size = signer.verifier(), len(backup.record.entries)
    try:
        check_against(backup.record, verifier, backup.origin, demand.not_behind)
    except LogError:
        newest = max(verify_checkpoint(note, verifier, backup.origin).size for note in demand.not_behind)
        return max(newest - size, 1)
    return 0


def _append(ledger: Ledger, entries: Sequence[bytes]) -> None:
    ledger.commit(lambda _news, _size: entries)


def _key_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob(f"*{_SUFFIX}")) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if len(data) > MAX_KEY_FILE_BYTES:
            raise ConfigurationError(f"{path}: expected at most {MAX_KEY_FILE_BYTES} bytes, got {len(data)}")
        yield path.relative_to(folder).as_posix(), data


def _checked(name: str) -> PurePosixPath:
    """A path within the key store, and nothing else."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.endswith(_SUFFIX) or path.name.startswith("."):
        raise ConfigurationError(f"back-up: expected a file of a key store, got {name!r}")
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _cipher(signer: NoteSigner) -> AESGCM:
    return AESGCM(signer.derive(FORMAT.encode()))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
