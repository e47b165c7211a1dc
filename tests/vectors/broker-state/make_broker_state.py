"""The vectors of docs/spec/broker-state.md, made and read by code that shares nothing with ours.

    python tests/vectors/broker-state/make_broker_state.py      writes *.json beside itself, always the same bytes

hashlib, hmac, json, an Ed25519 and an AES-GCM are all that is used. The functions that open are what a test reads rows
and files of the broker's own with.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ORIGIN = "vectors.example/broker"
SEED = bytes(range(32))
OTHER_SEED = bytes(range(32, 64))
CELLS = b"hermetic-broker-state/1 cells"
BACKUP = b"hermetic-broker-backup/1"
NONCE = bytes(range(12))
NOW = 1_800_000_000.0

Row = tuple[Any, ...]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hkdf(seed: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes: one block."""
    prk = hmac.digest(bytes(32), seed, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def mth(entries: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1."""
    if not entries:
        return sha(b"")
    if len(entries) == 1:
        return sha(b"\x00" + entries[0])
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return sha(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def checkpoint(entries: Sequence[bytes], seed: bytes = SEED, origin: str = ORIGIN) -> bytes:
    """A signed note (C2SP signed-note) over origin, size and root."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    text = f"{origin}\n{len(entries)}\n{b64(mth(entries))}\n".encode()
    identifier = sha(origin.encode() + b"\n\x01" + key.public_key().public_bytes_raw())[:4]
    return text + f"\n— {origin} {b64(identifier + key.sign(text))}\n".encode()


def private_key(seed: bytes = SEED) -> str:
    """The log's key as a file has it."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    identifier = sha(ORIGIN.encode() + b"\n\x01" + public)[:4]
    return f"PRIVATE+KEY+{ORIGIN}+{identifier.hex()}+{b64(bytes([1]) + seed)}"


def entry(number: int) -> bytes:
    return f'{{"fields":{{"n":{number}}},"kind":"a.test","time":"2026-11-23T00:00:00Z"}}'.encode()


def cell_head(row: Sequence[Any]) -> bytes:
    name, alias, kind, owner, expires, version = row
    return json.dumps([name, alias, kind, owner, repr(float(expires)), int(version)], separators=(",", ":")).encode()


def seal_cell(head: Sequence[Any], content: Mapping[str, Any], seed: bytes = SEED) -> bytes:
    plain = json.dumps(content, separators=(",", ":")).encode()
    return NONCE + AESGCM(hkdf(seed, CELLS)).encrypt(NONCE, plain, cell_head(head))


def open_cell(row: Sequence[Any], seed: bytes = SEED) -> dict[str, Any]:
    """What a row of `hermetic_cells` holds; raises where it is none of this key's."""
    value = bytes(row[6])
    return dict(json.loads(AESGCM(hkdf(seed, CELLS)).decrypt(value[:12], value[12:], cell_head(row[:6]))))


def seal_backup(members: Mapping[str, Any], seed: bytes = SEED) -> bytes:
    line = BACKUP + b"\n"
    return line + NONCE + AESGCM(hkdf(seed, BACKUP)).encrypt(NONCE, json.dumps(members).encode(), line)


def open_backup(data: bytes, seed: bytes = SEED) -> dict[str, Any]:
    """What a back-up holds; raises where it is none of this key's."""
    line, rest = BACKUP + b"\n", data[len(BACKUP) + 1 :]
    assert data.startswith(line)
    return dict(json.loads(AESGCM(hkdf(seed, BACKUP)).decrypt(rest[:12], rest[12:], line)))


def ledgers() -> dict[str, Any]:
    """Rows (position, entry, note), and which of them are refused."""
    entries = [entry(number) for number in range(5)]
    one, all_of_them = checkpoint(entries[:2]), checkpoint(entries)
    good: list[Row] = [(at, text, {1: one, 4: all_of_them}.get(at)) for at, text in enumerate(entries)]

    def but(at: int, *change: Any) -> list[Row]:
        return [(*change,) if row[0] == at else row for row in good]

    cases = {
        "accepted": good,
        "accepted-nothing": [],
        "accepted-first-commit": good[:2],
        "refused-no-checkpoint-at-the-end": good[:4],
        "refused-missing-row": good[:2] + good[3:],
        "refused-begins-later": good[1:],
        "refused-changed-entry": but(3, 3, entry(7), None),
        "refused-changed-entry-of-the-first-commit": but(0, 0, entry(7), None),
        "refused-other-key": but(4, 4, entries[4], checkpoint(entries, OTHER_SEED)),
        "refused-other-origin": but(4, 4, entries[4], checkpoint(entries, origin="another.example/broker")),
        "refused-other-size": but(4, 4, entries[4], checkpoint(entries[:4])),
        "refused-unsigned": but(4, 4, entries[4], all_of_them.partition(b"\n\n")[0] + b"\n\n"),
        "refused-order": [(0, entries[1], None), (1, entries[0], one), *good[2:]],
    }
    shown = {
        name: [[at, text.decode(), None if note is None else note.decode()] for at, text, note in rows]
        for name, rows in cases.items()
    }
    return {"origin": ORIGIN, "key": private_key(), "cases": shown}


def cells() -> dict[str, Any]:
    """Rows of `hermetic_cells`, what they hold, and rows that are no cells."""
    head = (sha(b"a session").hex(), sha(b"a token").hex(), "session", sha(b"an owner").hex(), NOW + 300.5, 3)
    plain = {"owner": "an owner", "value": {"nonce": "AAAA", "tee": "tpm", "attested": None}}
    value = seal_cell(head, plain)
    without = (*head[:1], None, *head[2:])
    ended = (*head[:4], NOW, head[5])
    rows: dict[str, Row] = {
        "accepted": (*head, value),
        "accepted-without-alias": (*without, seal_cell(without, plain)),
        "refused-ended": (*ended, seal_cell(ended, plain)),
        "refused-other-key": (*head, seal_cell(head, plain, OTHER_SEED)),
        "refused-other-name": (sha(b"another").hex(), *head[1:], value),
        "refused-other-alias": (head[0], sha(b"another").hex(), *head[2:], value),
        "refused-other-kind": (*head[:2], "enrolment", *head[3:], value),
        "refused-other-owner": (*head[:3], sha(b"another").hex(), *head[4:], value),
        "refused-later-end": (*head[:4], NOW + 3000.5, head[5], value),
        "refused-older-version": (*head[:5], 2, value),
        "refused-changed-value": (*head, value[:-1] + bytes([value[-1] ^ 1])),
        "refused-short": (*head, value[:12]),
    }
    shown = {name: [*row[:6], b64(row[6])] for name, row in rows.items()}
    return {"origin": ORIGIN, "key": private_key(), "now": NOW, "content": plain, "rows": shown}


def backups() -> dict[str, Any]:
    """Back-ups, and files that are none."""
    entries = [entry(number) for number in range(3)]
    keys = {"models/m/1.key": b64(b"a wrapped key")}
    members: dict[str, Any] = {
        "origin": ORIGIN, "checkpoint": b64(checkpoint(entries)), "entries": [*map(b64, entries)], "keys": keys
    }  # fmt: skip
    whole = seal_backup(members)
    other = {**members, "origin": "another.example/broker"}
    files = {
        "accepted": whole,
        "refused-other-key": seal_backup(members, OTHER_SEED),
        "refused-other-format": b"hermetic-broker-backup/2" + whole[len(BACKUP) :],
        "refused-changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "refused-cut": whole[:-20],
        "refused-nothing": b"",
        "refused-other-origin": seal_backup(other),
        "refused-entry-lost": seal_backup({**members, "entries": members["entries"][:2]}),
        "refused-entry-changed": seal_backup({**members, "entries": [*map(b64, [entry(9), *entries[1:]])]}),
        "refused-unsigned": seal_backup({**members, "checkpoint": b64(checkpoint(entries, OTHER_SEED))}),
    }
    return {
        "origin": ORIGIN, "key": private_key(), "content": members,
        "files": {name: b64(data) for name, data in files.items()},
    }  # fmt: skip


def documents() -> dict[str, str]:
    """File name -> text."""
    found = {"ledger.json": ledgers(), "cells.json": cells(), "backup.json": backups()}
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in found.items()}


if __name__ == "__main__":
    for file, text in documents().items():
        Path(__file__).with_name(file).write_text(text)
