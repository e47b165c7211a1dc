"""Signed notes and their keys, by vectors."""

from collections.abc import Callable
from typing import Any

import pytest

from hermetic.attestation.log.note import (
    MAX_NOTE_SIZE,
    NoteSigner,
    NoteVerifier,
    UnsafeAnyKey,
    parse_note,
    sign_note,
    verify_note,
)
from hermetic.errors import ConfigurationError, LogError


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("note")
    for key in known["keys"]:
        assert NoteVerifier.parse(key).encode() == key
    for case in known["notes"]:
        signer = NoteSigner.parse(case["signing_key"])
        assert signer.verifier().encode() == case["key"]
        assert signer.encode_private_key() == case["signing_key"]
        assert sign_note(case["text"].encode(), signer) == case["note"].encode()
        note = verify_note(case["note"].encode(), NoteVerifier.parse(case["key"]))
        assert note.text == case["text"].encode()
        assert note.encode() == case["note"].encode()


def test_refused_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("note")
    verifier = NoteVerifier.parse(known["key"])
    for case in known["refused"]:
        with pytest.raises(LogError) as refusal:
            verify_note(case["note"].encode(), verifier)
        assert case["error"] in str(refusal.value), case["what"]
    for case in known["refused_keys"]:
        with pytest.raises(ConfigurationError) as error:
            NoteVerifier.parse(case["key"])
        assert case["error"] in str(error.value)


def test_unknown_signatures_are_ignored(signer: NoteSigner) -> None:
    others = [NoteSigner.generate(f"other.example/{number}") for number in range(16)]
    note = parse_note(sign_note(b"text\n", signer))
    lines = [parse_note(sign_note(b"text\n", other)).signatures[0] for other in others]
    data = type(note)(note.text, (*lines, *note.signatures)).encode()
    assert verify_note(data, signer.verifier()).text == b"text\n"


def test_a_note_is_bounded_and_utf8(signer: NoteSigner) -> None:
    with pytest.raises(LogError, match=f"at most {MAX_NOTE_SIZE} bytes"):
        verify_note(b"x" * MAX_NOTE_SIZE + sign_note(b"text\n", signer), signer.verifier())
    with pytest.raises(LogError, match="not UTF-8"):
        parse_note(sign_note(b"\xff\n", signer))


def test_any_key_takes_forged_notes(signer: NoteSigner) -> None:
    forged = sign_note(b"text\n", signer).replace(b"text", b"tixt")
    assert verify_note(forged, UnsafeAnyKey()).text == b"tixt\n"


def test_a_private_key_is_refused_where_it_does_not_fit(signer: NoteSigner) -> None:
    text = signer.encode_private_key()
    with pytest.raises(ConfigurationError, match="key id"):
        NoteSigner.parse(text.replace("test+", "tset+"))
    with pytest.raises(ConfigurationError, match="expected a signing key") as error:
        NoteSigner.parse(text.removeprefix("PRIVATE+"))
    assert text.rpartition("+")[2] not in str(error.value)
