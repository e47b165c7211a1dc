"""ML-DSA-65 beside Ed25519 under notes: both are demanded, neither can be taken out, and an old reader reads on."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from hermetic.attestation.log import Log, LogReader, NoteSigner, NoteVerifier, verify_log
from hermetic.attestation.log.note import Note, Signature, parse_note, sign_note, verify_note
from hermetic.attestation.log.second_key import CONTEXT, SecondSigner
from hermetic.errors import ConfigurationError, LogError

NAME = "log.example/test"
TEXT = b"a text\nof two lines\n"
VECTOR: dict[str, Any] = json.loads(Path("tests/vectors/post-quantum/note.json").read_text())


@pytest.fixture(scope="module")
def signer() -> NoteSigner:
    return NoteSigner(NAME, Ed25519PrivateKey.from_private_bytes(bytes(32)), SecondSigner(NAME, bytes(range(32))))


@pytest.fixture(scope="module")
def lines(signer: NoteSigner) -> tuple[Signature, ...]:
    return signer.signatures(TEXT)


def only_first(signer: NoteSigner) -> NoteVerifier:
    return NoteVerifier(signer.name, signer.verifier().public_key)


def note(*lines: Signature, text: bytes = TEXT) -> bytes:
    return Note(text, lines).encode()


def test_the_vector(signer: NoteSigner) -> None:
    """Made by hand, without this code (tests/vectors/post-quantum/make_note.py)."""
    assert NoteSigner.parse(VECTOR["signing_key"]).verifier() == NoteVerifier.parse(VECTOR["key"]) == signer.verifier()
    assert verify_note(VECTOR["note"].encode(), signer.verifier()).text == VECTOR["text"].encode()
    assert NoteSigner.parse(VECTOR["signing_key"]).encode_private_key() == VECTOR["signing_key"]
    assert signer.verifier().encode() == VECTOR["key"]


def test_both_have_signed_and_an_old_reader_reads_the_first(signer: NoteSigner) -> None:
    signed = sign_note(TEXT, signer)
    assert [len(line.value) for line in parse_note(signed).signatures] == [64, 3309]
    assert verify_note(signed, signer.verifier()).text == TEXT
    assert verify_note(signed, only_first(signer)).text == TEXT


def test_a_stripped_second_signature_is_refused(signer: NoteSigner, lines: tuple[Signature, ...]) -> None:
    with pytest.raises(LogError, match=r"expected an ML-DSA-65 signature of log\.example/test.* too, got none"):
        verify_note(note(lines[0]), signer.verifier())


def test_a_stripped_first_signature_is_refused(signer: NoteSigner, lines: tuple[Signature, ...]) -> None:
    with pytest.raises(LogError, match=r"expected a signature of log\.example/test"):
        verify_note(note(lines[1]), signer.verifier())


def test_another_keys_second_signature_is_refused(signer: NoteSigner, lines: tuple[Signature, ...]) -> None:
    stranger = NoteSigner.generate(NAME, second=True).signatures(TEXT)[1]
    with pytest.raises(LogError, match="too, got none"):
        verify_note(note(lines[0], stranger), signer.verifier())
    with pytest.raises(LogError, match=r"ML-DSA-65 signature of .* does not verify"):
        verify_note(note(lines[0], Signature(NAME, lines[1].key_id, stranger.value)), signer.verifier())
    with pytest.raises(LogError, match="does not verify"):  # every line of a known key must verify
        verify_note(note(*lines, Signature(NAME, lines[1].key_id, stranger.value)), signer.verifier())


def test_halves_of_two_notes_are_refused(signer: NoteSigner, lines: tuple[Signature, ...]) -> None:
    other = signer.signatures(b"another text\n")
    for mixed in ((lines[0], other[1]), (other[0], lines[1])):
        with pytest.raises(LogError, match="does not verify"):
            verify_note(note(*mixed), signer.verifier())


def test_keys_of_mixed_types_are_refused(signer: NoteSigner, lines: tuple[Signature, ...]) -> None:
    """The value of one under the id of the other, and lengths that are neither's."""
    first, second = lines
    for mixed in (
        (Signature(NAME, first.key_id, second.value), second),
        (first, Signature(NAME, second.key_id, first.value)),
        (first, Signature(NAME, second.key_id, second.value[:-1])),
        (first, Signature(NAME, second.key_id, second.value + b"\0")),
    ):
        with pytest.raises(LogError, match="does not verify"):
            verify_note(note(*mixed), signer.verifier())


def test_what_the_key_signs_elsewhere_is_no_signature_of_a_note(
    signer: NoteSigner, lines: tuple[Signature, ...]
) -> None:
    key = MLDSA65PrivateKey.from_seed_bytes(bytes(range(32)))
    for context in (None, b"another use"):
        value = key.sign(TEXT, context)
        with pytest.raises(LogError, match="does not verify"):
            verify_note(note(lines[0], Signature(NAME, lines[1].key_id, value)), signer.verifier())
    verify_note(note(lines[0], Signature(NAME, lines[1].key_id, key.sign(TEXT, CONTEXT))), signer.verifier())


def test_a_list_pairs_keys_of_one_name(signer: NoteSigner) -> None:
    one, two = signer.verifier(), NoteSigner.generate("other.example").verifier()
    text = f"# who may sign\n{one.encode()}\n\n{two.encode()}\n"
    assert NoteVerifier.parse_list(text) == (one, two)
    assert one.second is not None
    for wrong in (
        one.second.encode(),  # nobody's second
        f"{two.encode()}\n{one.second.encode()}",  # another's
        f"{one.encode()}\n{one.second.encode()}",  # a third
    ):
        with pytest.raises(ConfigurationError, match="ML-DSA-65 key"):
            NoteVerifier.parse_list(wrong)


@pytest.mark.parametrize("change", ["short", "long", "type", "id", "base64", "parts"])
def test_what_is_no_second_key_is_refused(signer: NoteSigner, change: str) -> None:
    first, _, second = signer.verifier().encode().partition("\n")
    name, key_id, key = second.split("+", 2)
    changed = {
        "short": f"{name}+{key_id}+{key[:-4]}",
        "long": f"{name}+{key_id}+{key[:-4]}AAAA{key[-4:]}",
        "type": f"{name}+{key_id}+{key[0]}a{key[2:]}",
        "id": f"{name}+{'0' * 8}+{key}",
        "base64": f"{name}+{key_id}+{key[:-1]}*",
        "parts": f"{name}+{key}",
    }[change]
    with pytest.raises(ConfigurationError):
        NoteVerifier.parse(f"{first}\n{changed}")


def test_a_second_key_of_another_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"beside it, got other\.example's"):
        NoteSigner(NAME, Ed25519PrivateKey.generate(), SecondSigner.generate("other.example"))


def test_a_log_is_signed_with_both_and_verified_with_both(tmp_path: Path, signer: NoteSigner) -> None:
    with Log.open(tmp_path / "log", NAME, signer) as log:
        log.append({"kind": "kind", "fields": {"number": 1}})
    assert verify_log(tmp_path / "log", signer.verifier()).head.size == 1
    assert verify_log(tmp_path / "log", only_first(signer)).head.size == 1
    assert len(list(LogReader(tmp_path / "log", signer.verifier()).records())) == 1


@pytest.mark.parametrize("file", ["checkpoint", "journal"])
def test_a_log_written_with_one_key_is_refused_where_both_are_demanded(
    tmp_path: Path, signer: NoteSigner, file: str
) -> None:
    """Whoever has broken Ed25519 goes on with the log as its old key would."""
    classical = NoteSigner(NAME, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with Log.open(tmp_path / "log", NAME, signer) as log:
        log.append({"kind": "kind", "fields": {"number": 1}})
    log = Log.open(tmp_path / "log", NAME, classical)
    log.append({"kind": "kind", "fields": {"number": 2}})
    if file == "checkpoint":
        log.close()
    with pytest.raises(LogError, match="ML-DSA-65 signature"):
        verify_log(tmp_path / "log", signer.verifier())
    log.close()
    with pytest.raises(LogError, match="ML-DSA-65 signature"):
        Log.open(tmp_path / "log", NAME, signer)
