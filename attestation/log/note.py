"""Signed notes (c2sp.org/signed-note): a text and the signatures of named keys under it, Ed25519 and ML-DSA-65.

Here: the format, key ids, signing, verifying, and the text form of keys. What the text says is checkpoint.py's;
witnesses' signatures of type 0x04 are witness.py's, ML-DSA-65 beside Ed25519 second_key.py's. No other signature type
is known; a line of an unknown key is ignored, as the format demands.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic.attestation.log.second_key import SecondKey, SecondSigner, is_second
from hermetic.errors import ConfigurationError, LogError

MAX_NOTE_SIZE: Final = 64 * 1024  # bytes, signatures included
MAX_SIGNATURES: Final = 64  # lines; the format demands that at least 16 are accepted
MAX_KEY_NAME_SIZE: Final = 255  # bytes of UTF-8
KEY_ID_SIZE: Final = 4  # bytes
KEY_SIZE: Final = 32  # bytes, an Ed25519 public key or seed
SIGNATURE_SIZE: Final = 64  # bytes, Ed25519

ED25519: Final = 0x01
COSIGNATURE_V1: Final = 0x04

_DASH: Final = "\N{EM DASH} "
_PRIVATE: Final = "PRIVATE+KEY"
_BAD_IN_NAME: Final = re.compile(r"[\s+]")
_BAD_IN_NOTE: Final = re.compile(rb"[\x00-\x09\x0b-\x1f]")


class Signer(Protocol):
    """What signs notes: a key in memory, or one held elsewhere behind the same three names."""

    @property
    def name(self) -> str:
        """The key's name: not empty, without spaces and plus."""

    def sign(self, text: bytes) -> bytes:
        """The Ed25519 signature of `text`, 64 bytes."""

    def signatures(self, text: bytes) -> "tuple[Signature, ...]":
        """The lines that stand under a note with `text`: of each key that this signer has."""

    def verifier(self) -> "NoteVerifier":
        """The public half."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, not yet verified: key name, key id (4 bytes), what follows the id."""

    name: str
    key_id: bytes
    value: bytes

    def line(self) -> bytes:
        """The line as it stands in a note, newline included."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.value).decode()}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A note taken apart: `text` ends in a newline, `signatures` are not yet verified."""

    text: bytes
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """The note as bytes."""
        return self.text + b"\n" + b"".join(signature.line() for signature in self.signatures)


class Verifier(Protocol):
    """What verifies notes: a `NoteVerifier`, or `UnsafeAnyKey` by its frightening name."""

    @property
    def name(self) -> str:
        """The key's name."""

    @property
    def key_id(self) -> bytes:
        """The key's id, 4 bytes."""

    def of(self, note: Note) -> tuple[Signature, ...]:
        """The signatures under `note` that this key answers for."""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise `LogError` unless `signature` is of this key over `message`."""

    def verify_second(self, note: Note) -> None:
        """Raise `LogError` where a second key is demanded, and has not signed `note` too."""


class UnsafeAnyKey:
    """Takes every note for genuine, forged ones too: only to look into a log whose key is not at hand."""

    name = "any key"
    key_id = b""

    def of(self, note: Note) -> tuple[Signature, ...]:
        """Every signature."""
        return note.signatures

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check nothing."""

    def verify_second(self, note: Note) -> None:
        """Check nothing."""


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A named public key for one signature type, ED25519 or COSIGNATURE_V1.

    Where it has a `second` key of the same name, both must have signed.
    """

    name: str
    public_key: bytes
    type: int = ED25519
    second: SecondKey | None = None

    def __post_init__(self) -> None:
        """Refuse a name or key that cannot stand in a note."""
        check_key_name(self.name)
        if len(self.public_key) != KEY_SIZE:
            raise ConfigurationError(f"expected an Ed25519 key of {KEY_SIZE} bytes, got {len(self.public_key)}")
        if self.second is not None and (self.second.name, self.type) != (self.name, ED25519):
            raise ConfigurationError(f"expected an ML-DSA-65 key of {self.name} beside it, got {self.second.name}'s")

    @classmethod
    def parse(cls, text: str) -> "NoteVerifier":
        """Read one verifier, as `parse_list` reads several; raises `ConfigurationError`."""
        verifiers = cls.parse_list(text)
        if len(verifiers) != 1:
            raise ConfigurationError(f"expected one verifier key <name>+<id>+<key>, got {len(verifiers)}")
        return verifiers[0]

    @classmethod
    def parse_list(cls, text: str) -> "tuple[NoteVerifier, ...]":
        """Read the verifier keys in `text`, one a line: `<name>+<key id in hex>+<base64(type || key)>`.

        A line with an ML-DSA-65 key belongs to the Ed25519 key of the same name in the line before it. Empty lines and
        those that start with `#` say nothing. Raises `ConfigurationError`.
        """
        found: list[NoteVerifier] = []
        for line in filter(None, map(str.strip, text.splitlines())):
            if line.startswith("#"):
                continue
            if not is_second(line):
                found.append(cls._parse_line(line))
                continue
            second = SecondKey.parse(line)
            if not found or found[-1].second is not None:
                raise ConfigurationError(f"expected an Ed25519 key of {second.name} before its ML-DSA-65 key, got none")
            found[-1] = replace(found[-1], second=second)
        return tuple(found)

    @classmethod
    def _parse_line(cls, text: str) -> "NoteVerifier":
        parts = text.strip().split("+", 2)
        if len(parts) != 3:  # noqa: PLR2004 - name, id, key
            raise ConfigurationError("expected a verifier key <name>+<id>+<key>")
        name, key_id, encoded = parts
        kind, key = _type_and_key(encoded, "verifier key")
        if kind not in (ED25519, COSIGNATURE_V1):
            raise ConfigurationError(f"expected a verifier key of type 0x01 or 0x04, got {kind:#04x}")
        verifier = cls(name, key, kind)
        if key_id != verifier.key_id.hex():
            raise ConfigurationError(f"expected key id {verifier.key_id.hex()} in the verifier key, got {key_id}")
        return verifier

    @property
    def key_id(self) -> bytes:
        """SHA-256(name || newline || type || key)[:4]."""
        hashed = hashlib.sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public_key)
        return hashed.digest()[:KEY_ID_SIZE]

    def encode(self) -> str:
        """The key as the text that `parse` reads: a line, or two where there is a second key."""
        line = f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes([self.type]) + self.public_key).decode()}"
        return line if self.second is None else f"{line}\n{self.second.encode()}"

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise `LogError` unless `signature` is this key's Ed25519 signature of `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, message)
        except InvalidSignature as error:
            raise LogError(f"the signature of {self.name} does not verify") from error

    def of(self, note: Note) -> tuple[Signature, ...]:
        """The lines of `note` that carry this key's name and id."""
        return tuple(line for line in note.signatures if line.name == self.name and line.key_id == self.key_id)

    def verify_second(self, note: Note) -> None:
        """Raise `LogError` unless the second key, where there is one, has signed too, and each line of it verifies."""
        if self.second is None:
            return
        wanted = (self.second.name, self.second.key_id)
        lines = [line for line in note.signatures if (line.name, line.key_id) == wanted]
        if not lines:
            raise LogError(f"expected an ML-DSA-65 signature of {self.name}+{self.second.key_id.hex()} too, got none")
        for line in lines:
            self.second.verify(note.text, line.value)


class NoteSigner:
    """An Ed25519 key in this process's memory, with its name, and maybe an ML-DSA-65 key beside it."""

    def __init__(self, name: str, key: Ed25519PrivateKey, second: SecondSigner | None = None) -> None:
        """Raise `ConfigurationError` for a name that cannot stand in a note, and a second key of another name."""
        check_key_name(name)
        self.name = name
        self._key = key
        self._second = second
        self._verifier = NoteVerifier(
            name, key.public_key().public_bytes_raw(), second=None if second is None else second.verifier()
        )

    @classmethod
    def generate(cls, name: str, *, second: bool = False) -> "NoteSigner":
        """A new random key; with `second`, one of ML-DSA-65 beside it."""
        return cls(name, Ed25519PrivateKey.generate(), SecondSigner.generate(name) if second else None)

    @classmethod
    def parse(cls, text: str) -> "NoteSigner":
        """Read `PRIVATE+KEY+<name>+<key id in hex>+<base64(0x01 || seed)>`, and a second key's line where there is one.

        Raises `ConfigurationError`.
        """
        first, _, rest = text.strip().partition("\n")
        second = SecondSigner.parse(rest) if rest.strip() else None
        parts = first.strip().split("+", 4)
        if len(parts) != 5 or "+".join(parts[:2]) != _PRIVATE:  # noqa: PLR2004 - PRIVATE, KEY, name, id, key
            raise ConfigurationError(f"expected a signing key {_PRIVATE}+<name>+<id>+<key>")
        kind, seed = _type_and_key(parts[4], "signing key")
        if kind != ED25519:
            raise ConfigurationError(f"expected a signing key of type 0x01, got {kind:#04x}")
        signer = cls(parts[2], Ed25519PrivateKey.from_private_bytes(seed), second)
        if parts[3] != signer.verifier().key_id.hex():
            raise ConfigurationError(f"expected key id {signer.verifier().key_id.hex()} in the signing key")
        return signer

    def encode_private_key(self) -> str:
        """The private key as the text that `parse` reads. For a key file, and nothing else."""
        seed = base64.b64encode(bytes([ED25519]) + self._key.private_bytes_raw()).decode()
        line = f"{_PRIVATE}+{self.name}+{self.verifier().key_id.hex()}+{seed}"
        return line if self._second is None else f"{line}\n{self._second.encode_private_key()}"

    def sign(self, text: bytes) -> bytes:
        """The Ed25519 signature of `text`, 64 bytes."""
        return self._key.sign(text)

    def signatures(self, text: bytes) -> tuple[Signature, ...]:
        """The lines that stand under a note with `text`: Ed25519's, then the second key's."""
        lines = (Signature(self.name, self._verifier.key_id, self.sign(text)),)
        if self._second is None or self._verifier.second is None:
            return lines
        return (*lines, Signature(self.name, self._verifier.second.key_id, self._second.sign(text)))

    def derive(self, label: bytes) -> bytes:
        """32 bytes for another use, which nobody without this key can compute: HKDF-SHA256, info = `label`."""
        return HKDF(SHA256(), 32, None, label).derive(self._key.private_bytes_raw())

    def verifier(self) -> NoteVerifier:
        """The public half."""
        return self._verifier


def sign_note(text: bytes, signer: Signer) -> bytes:
    """The note with `text`, which ends in a newline, and the signature of each key of `signer`."""
    return Note(text, signer.signatures(text)).encode()


def parse_note(data: bytes) -> Note:
    """Take a note apart, verifying nothing; raises `LogError` for what is not a note."""
    if len(data) > MAX_NOTE_SIZE:
        raise LogError(f"expected a note of at most {MAX_NOTE_SIZE} bytes, got {len(data)}")
    if _BAD_IN_NOTE.search(data):
        raise LogError("a note holds a control character")
    head, blank, tail = data.rpartition(b"\n\n")
    if not blank or not data.endswith(b"\n"):
        raise LogError("expected a note: text, blank line, signature lines, newline")
    try:
        head.decode()
        lines = tail.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise LogError("a note is not UTF-8") from error
    if len(lines) > MAX_SIGNATURES:
        raise LogError(f"expected at most {MAX_SIGNATURES} signatures under a note, got {len(lines)}")
    return Note(head + b"\n", tuple(_parse_line(line) for line in lines))


def verify_note(data: bytes, verifier: Verifier) -> Note:
    """The note, once a signature of `verifier` under it has been verified; every line of that key must verify."""
    note = parse_note(data)
    lines = verifier.of(note)
    if not lines:
        signers = ", ".join(f"{line.name}+{line.key_id.hex()}" for line in note.signatures)
        raise LogError(f"expected a signature of {verifier.name}+{verifier.key_id.hex()}, got {signers}")
    for line in lines:
        verifier.verify(note.text, line.value)
    verifier.verify_second(note)
    return note


def check_key_name(name: str) -> None:
    """Raise `ConfigurationError` for a name that is empty, too long, or holds a space, plus or control character."""
    if not name or _BAD_IN_NAME.search(name) or not name.isprintable():
        raise ConfigurationError(f"expected a key name without spaces, plus and control characters, got {name!r}")
    if len(name.encode()) > MAX_KEY_NAME_SIZE:
        raise ConfigurationError(f"expected a key name of at most {MAX_KEY_NAME_SIZE} bytes, got {len(name.encode())}")


def _parse_line(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not name or _BAD_IN_NAME.search(name):
        raise LogError(f"expected a signature line {_DASH}<name> <base64>, got {line[:80]!r}")
    try:
        value = base64.b64decode(encoded, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise LogError(f"the signature of {name} is not base64") from error
    if len(value) <= KEY_ID_SIZE:
        raise LogError(f"expected more than {KEY_ID_SIZE} bytes in the signature of {name}, got {len(value)}")
    return Signature(name, value[:KEY_ID_SIZE], value[KEY_ID_SIZE:])


def _type_and_key(encoded: str, what: str) -> tuple[int, bytes]:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise ConfigurationError(f"the key of the {what} is not base64") from error
    if len(decoded) != 1 + KEY_SIZE:
        raise ConfigurationError(f"expected {1 + KEY_SIZE} bytes in the {what}, got {len(decoded)}")
    return decoded[0], decoded[1:]
