"""The signed bundle: bytes <-> items, number, date and signers (docs/spec/collateral-bundle.md, "The file").

Reading needs no time and no roots: it says what someone of the site has signed. What a vendor vouches for is
vouching.py's, what of it verifiers are given trust.py's, where it lies on disk folder.py's.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Self

from hermetic.attestation.checks import Checks
from hermetic.attestation.collateral.items import Item, read
from hermetic.attestation.collateral.kinds import (
    KINDS,
    MAX_BUNDLE_SIZE,
    MAX_ENTRIES,
    MAX_ITEM_SIZE,
    MAX_MANIFEST_SIZE,
    MAX_NUMBER,
)
from hermetic.attestation.collateral.trust import trust
from hermetic.attestation.evidence import canonical
from hermetic.attestation.log.note import (
    MAX_NOTE_SIZE,
    Note,
    NoteSigner,
    NoteVerifier,
    parse_note,
    verify_note,
)
from hermetic.attestation.roots import NO_GRACE, Grace, TrustRoots
from hermetic.errors import ConfigurationError, InvalidRequestError, LogError, VerificationError

FORMAT: Final = "hermetic-collateral-bundle/1"
MAGIC: Final = f"{FORMAT}\n".encode()
MAX_SIGNERS: Final = 64  # keys of one list
SIZE: Final = 4  # bytes of a size

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MEMBERS: Final = frozenset({"created", "entries", "format", "number"})
_OF_ENTRY: Final = frozenset({"digest", "kind", "size", "source", "subject", "valid-from", "valid-until"})


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one file says; every item has the digest, subject and period that its manifest gives it."""

    number: int
    created: datetime
    digest: str  # SHA-256 of the manifest, hex
    items: tuple[Item, ...]  # in the manifest's order
    signers: tuple[str, ...]  # names of the listed signers that have signed

    @classmethod
    def load(cls, data: bytes, signers: Sequence[NoteVerifier]) -> Self:
        """Read a bundle that one of `signers` has signed; raises `VerificationError` naming the step that fails."""
        checks = Checks()
        parts = _Parts.cut(checks, data)
        found = parts.signed_by(checks, signers)
        return cls._read(checks, parts, found)

    @classmethod
    def load_without_asking_who_signed(cls, data: bytes) -> Self:
        """Read a bundle whoever has packed it: for those who verify its items again anyway. Raises `VerificationError`.

        An old bundle is as genuine as a new one: without a signer, nobody says that this is the latest.
        """
        checks = Checks()
        return cls._read(checks, _Parts.cut(checks, data), ())

    def trust(self, roots: TrustRoots, grace: Grace = NO_GRACE) -> TrustRoots:
        """The trust `roots`, with the items added, each of which it must vouch for; raises `VerificationError`."""
        return trust(self.items, roots, grace)

    @classmethod
    def _read(cls, checks: Checks, parts: "_Parts", signers: tuple[str, ...]) -> Self:
        manifest = _manifest(checks, parts.manifest)
        contents = _contents(checks, manifest["entries"], parts.contents)
        items = [_item(checks, entry, data) for entry, data in zip(manifest["entries"], contents, strict=True)]
        checks.raise_failures(VerificationError)
        return cls(
            number=manifest["number"],
            created=_time(manifest["created"]),
            digest=hashlib.sha256(parts.manifest).hexdigest(),
            items=tuple(item for item in items if item is not None),
            signers=signers,
        )


def pack(items: Sequence[Item], number: int, created: datetime, signers: Sequence[NoteSigner]) -> bytes:
    """The bundle with `items`, at most one of each kind and subject, signed by all `signers`.

    Raises `InvalidRequestError` for what a bundle cannot hold.
    """
    ordered = sorted(items, key=lambda item: item.key)
    entries = [_entry(item) for item in ordered]
    manifest = canonical(
        {"created": _text(created), "entries": entries, "format": FORMAT, "number": number},
    )
    note = _note_text(manifest)
    lines = [line for one in signers for line in one.signatures(note)]
    written = b"".join([MAGIC, _sized(manifest), _sized(Note(note, tuple(lines)).encode()), *(i.data for i in ordered)])
    if not signers:
        raise InvalidRequestError("bundle: expected at least one signer, got none")
    try:
        Bundle.load(written, [one.verifier() for one in signers])  # what is written can be read
    except VerificationError as error:
        raise InvalidRequestError(f"bundle: expected items that fit into one, got {error}") from error
    return written


def read_signers(text: str) -> tuple[NoteVerifier, ...]:
    """The verifier keys in `text`, as `NoteVerifier.parse_list` reads them.

    Raises `ConfigurationError` for a line that is no key, and for a list without any.
    """
    keys = NoteVerifier.parse_list(text)
    if not 1 <= len(keys) <= MAX_SIGNERS:
        raise ConfigurationError(f"signers: expected 1 to {MAX_SIGNERS} keys <name>+<id>+<key>, got {len(keys)}")
    return keys


@dataclass(frozen=True, slots=True)
class _Parts:
    manifest: bytes
    note: bytes
    contents: memoryview

    @classmethod
    def cut(cls, checks: Checks, data: bytes) -> Self:
        """Step 1. Sizes are compared with their limits before anything is read."""
        name = "bundle.structure"
        if len(data) > MAX_BUNDLE_SIZE:
            _refuse(checks, name, f"at most {MAX_BUNDLE_SIZE} bytes", f"{len(data)}")
        if not data.startswith(MAGIC):
            _refuse(checks, name, f"a file that begins with {FORMAT}", data[: len(MAGIC)])
        view = memoryview(data)[len(MAGIC) :]
        parts = []
        for what, limit in (("manifest", MAX_MANIFEST_SIZE), ("note", MAX_NOTE_SIZE)):
            size = int.from_bytes(view[:SIZE], "big")
            if not 1 <= size <= limit or len(view) < SIZE + size:
                there = f"{size} bytes with {max(0, len(view) - SIZE)} left"
                _refuse(checks, name, f"a {what} of 1 to {limit} bytes, all of it there", there)
            parts.append(bytes(view[SIZE : SIZE + size]))
            view = view[SIZE + size :]
        checks.hold(name)
        return cls(parts[0], parts[1], view)

    def signed_by(self, checks: Checks, signers: Sequence[NoteVerifier]) -> tuple[str, ...]:
        """Step 2. Every signature of a listed signer must verify, and there must be one."""
        name = "bundle.signature"
        wanted = f"a signature by one of {', '.join(one.name for one in signers) or 'nobody'}"
        found = []
        try:
            note = parse_note(self.note)
            for signer in signers:
                if signer.of(note):
                    verify_note(self.note, signer)
                    found.append(signer.name)
        except LogError as error:
            _refuse(checks, name, wanted, error)
        if not found:
            _refuse(checks, name, wanted, [f"{line.name}+{line.key_id.hex()}" for line in note.signatures])
        if note.text != _note_text(self.manifest):
            _refuse(checks, name, "a signature over this manifest", "one over another")
        checks.hold(name)
        return tuple(found)


def _manifest(checks: Checks, data: bytes) -> Mapping[str, Any]:
    """Step 3."""
    name = "bundle.manifest"
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or canonical(manifest) != data:
            raise InvalidRequestError("expected a JSON object in canonical form (RFC 8785), got another")
        _demand_manifest(manifest)
    except (ValueError, RecursionError, InvalidRequestError) as error:
        _refuse(checks, name, "a manifest of a bundle", error)
    checks.hold(name)
    return manifest


def _demand_manifest(manifest: Mapping[str, Any]) -> None:
    if set(manifest) != _MEMBERS or manifest["format"] != FORMAT:
        raise InvalidRequestError(f"expected members {sorted(_MEMBERS)}, format {FORMAT}, got {sorted(manifest)}")
    number, entries = manifest["number"], manifest["entries"]
    if type(number) is not int or not 1 <= number <= MAX_NUMBER:
        raise InvalidRequestError(f"number: expected 1 to {MAX_NUMBER}, got {number!r}")
    _time(manifest["created"])
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_ENTRIES:
        raise InvalidRequestError(f"entries: expected a list of 1 to {MAX_ENTRIES}, got another")
    for index, entry in enumerate(entries):
        try:
            _demand_entry(entry)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"entry {index}: {error}") from error
    keys = [(entry["kind"], entry["subject"]) for entry in entries]
    if keys != sorted(set(keys)):
        raise InvalidRequestError("entries: expected each kind and subject once, in ascending order, got another order")


def _demand_entry(entry: object) -> None:
    if not isinstance(entry, dict) or set(entry) != _OF_ENTRY:
        raise InvalidRequestError(f"expected members {sorted(_OF_ENTRY)}, got others")
    if entry["kind"] not in KINDS:
        raise InvalidRequestError(f"kind: expected one of {', '.join(KINDS)}, got {str(entry['kind'])[:80]!r}")
    if not isinstance(entry["digest"], str) or not _DIGEST.fullmatch(entry["digest"]):
        raise InvalidRequestError("digest: expected 64 hex digits, got another")
    if type(entry["size"]) is not int or not 1 <= entry["size"] <= MAX_ITEM_SIZE:
        raise InvalidRequestError(f"size: expected 1 to {MAX_ITEM_SIZE} bytes, got {entry['size']!r}")
    for name in ("subject", "source"):
        if not isinstance(entry[name], str):
            raise InvalidRequestError(f"{name}: expected text, got {type(entry[name]).__name__}")
    _time(entry["valid-from"])
    _time(entry["valid-until"])


def _contents(checks: Checks, entries: Sequence[Mapping[str, Any]], data: memoryview) -> list[bytes]:
    """Step 4."""
    total = sum(entry["size"] for entry in entries)
    if total != len(data):
        _refuse(checks, "bundle.contents", f"{total} bytes, as the manifest says", f"{len(data)}")
    checks.hold("bundle.contents")
    found, at = [], 0
    for entry in entries:
        found.append(bytes(data[at : at + entry["size"]]))
        at += entry["size"]
    return found


def _item(checks: Checks, entry: Mapping[str, Any], data: bytes) -> Item | None:
    """Steps 5 to 7."""
    called = f"{entry['kind']} {entry['subject']}"
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["digest"]:
        checks.fail("item.digest", f"{called}: {entry['digest']}", digest)
        return None
    try:
        item = read(entry["kind"], data, entry["source"])
    except InvalidRequestError as error:
        checks.fail("item.structure", f"{called}: an item of its kind", error)
        return None
    if item.subject != entry["subject"]:
        checks.fail("item.subject", f"{called}: an item about this", item.subject)
    said, held = (entry["valid-from"], entry["valid-until"]), (_text(item.start), _text(item.end))
    if said != held:
        checks.fail("item.period", f"{called}: {' to '.join(said)}", " to ".join(held))
    return item


def _entry(item: Item) -> dict[str, str | int]:
    return {
        "digest": item.digest,
        "kind": item.kind,
        "size": len(item.data),
        "source": item.source,
        "subject": item.subject,
        "valid-from": _text(item.start),
        "valid-until": _text(item.end),
    }


def _note_text(manifest: bytes) -> bytes:
    return f"{FORMAT}\n{hashlib.sha256(manifest).hexdigest()}\n".encode()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(SIZE, "big") + data


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime(_TIME)


def _time(text: object) -> datetime:
    try:
        found = datetime.strptime(str(text), _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRequestError(f"expected a time such as 2026-11-23T06:00:00Z, got {str(text)[:40]!r}") from error
    if _text(found) != text:
        raise InvalidRequestError(f"expected a time such as 2026-11-23T06:00:00Z, got {str(text)[:40]!r}")
    return found


def _refuse(checks: Checks, name: str, wanted: object, got: object) -> NoReturn:
    """Record a failure behind which there is nothing more to look at, and raise it."""
    checks.fail(name, wanted, got)
    raise VerificationError(checks.failed)
