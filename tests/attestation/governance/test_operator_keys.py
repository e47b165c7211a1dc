"""What operators sign with: files under a passphrase, keys in a real token (SoftHSM2). Attacks first."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hermetic.attestation.governance import OperatorKey, OperatorSet
from hermetic.attestation.governance.encrypted_key import ROUNDS
from hermetic.attestation.governance.operator_key import OperatorSigner, open_signer
from hermetic.attestation.governance.operator_token import OperatorToken
from hermetic.errors import ConfigurationError, KeyStoreUnavailableError
from tests.attestation.broker.stores import softhsm
from tests.attestation.broker.stores.softhsm import NO, PIN, YES, SoftHsm
from tests.attestation.governance.people import begun, failed, operator, proposed

PASSPHRASE = b"correct horse"


def never() -> bytearray:
    raise AssertionError("nobody is to be asked")


def typed(text: bytes = PASSPHRASE) -> bytearray:
    return bytearray(text)


def counts(signer: OperatorSigner) -> list[str]:
    """What is wrong with a change that is signed by alice with this key, and by bob."""
    people = [operator("alice").model_copy(update={"key": signer.public}), operator("bob")]
    state = begun(OperatorSet.of(people, 1))
    return list(failed(state, signer.sign(proposed(state), "alice")))


def test_a_copied_key_file_signs_nothing_without_its_passphrase(tmp_path: Path) -> None:
    key, path = OperatorKey.generate(), tmp_path / "alice.key"
    key.save(path, PASSPHRASE)
    data = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    for wrong in (b"", b"correct hors", b"wrong"):
        with pytest.raises(ConfigurationError, match="expected a private key"):
            OperatorKey.load(path, lambda wrong=wrong: typed(wrong))  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="or a passphrase"):
        OperatorKey.load(path)
    loaded = OperatorKey.load(path, typed)
    assert loaded.public == key.public
    assert counts(loaded) == []


def test_a_passphrase_is_asked_for_only_where_one_is_needed_and_overwritten(tmp_path: Path) -> None:
    key, plain, closed = OperatorKey.generate(), tmp_path / "plain", tmp_path / "closed"
    key.save(plain)
    key.save(closed, PASSPHRASE)
    assert OperatorKey.load(plain, never).public == key.public
    given = typed()
    assert OperatorKey.load(closed, lambda: given).public == key.public
    assert given == bytes(len(PASSPHRASE))


def test_no_two_files_of_one_key_and_passphrase_are_alike(tmp_path: Path) -> None:
    key = OperatorKey.generate()
    for name in "ab":
        key.save(tmp_path / name, PASSPHRASE)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    key, ours, theirs = OperatorKey.generate(), tmp_path / "ours", tmp_path / "theirs"
    key.save(ours, PASSPHRASE)
    give = ["-passin", f"pass:{PASSPHRASE.decode()}"]
    shown = subprocess.run(
        ["openssl", "pkey", "-in", ours, *give, "-noout", "-text"], check=True, capture_output=True, timeout=60
    )
    public = shown.stdout.decode().split("pub:")[1]
    assert "".join(public.split()).replace(":", "") == key.public
    asn1 = subprocess.run(["openssl", "asn1parse", "-in", ours], check=True, capture_output=True, timeout=60).stdout
    assert f":{ROUNDS:06X}".encode() in asn1
    scrypt: list[str | Path] = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-scrypt",
        "-in",
        ours,
        "-out",
        theirs,
        *give,
        "-passout",
        "pass:another",
    ]
    subprocess.run(scrypt, check=True, capture_output=True, timeout=60)
    assert OperatorKey.load(theirs, lambda: typed(b"another")).public == key.public


def test_a_key_in_a_token_signs_and_counts(hsm: SoftHsm) -> None:
    hsm.make_signing_key("hermetic", "alice")
    try:
        with open_signer(hsm.uri("hermetic", "alice"), never) as signer:
            assert counts(signer) == []
        asked = hsm.uri("hermetic", "alice").partition("&pin-source")[0]
        with OperatorToken(asked, lambda: bytearray(PIN.encode())) as signer:
            assert counts(signer) == []
        with pytest.raises(KeyStoreUnavailableError):
            OperatorToken(asked.replace("object=alice", "object=kek"), lambda: bytearray(PIN.encode()))
    finally:
        hsm.destroy_all("hermetic", "alice")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({softhsm.EXTRACTABLE: YES}, "CKA_EXTRACTABLE: expected false, got true"),
        ({softhsm.SENSITIVE: NO}, "CKA_SENSITIVE: expected true, got false"),
        ({softhsm.SIGN: NO}, "CKA_SIGN: expected true, got false"),
    ],
)
def test_a_signing_key_that_may_leave_its_token_is_refused(hsm: SoftHsm, change: Mapping[int, bytes], why: str) -> None:
    hsm.make_signing_key("bad keys", "loose", change)
    try:
        with pytest.raises(KeyStoreUnavailableError, match=why):
            OperatorToken(hsm.uri("bad keys", "loose"), never)
    finally:
        hsm.destroy_all("bad keys", "loose")


def test_a_token_that_does_not_show_the_public_key_is_refused(hsm: SoftHsm) -> None:
    hsm.make_signing_key("bad keys", "hidden", shown=False)
    try:
        with pytest.raises(ConfigurationError, match="expected the public key"):
            OperatorToken(hsm.uri("bad keys", "hidden"), never)
    finally:
        hsm.destroy_all("bad keys", "hidden")


def test_a_wrong_pin_is_given_once(hsm: SoftHsm) -> None:
    hsm.make_signing_key("wrong pin", "alice")
    uri = hsm.uri("wrong pin", "alice").partition("&pin-source")[0]
    hsm.log_out("wrong pin")
    with pytest.raises(KeyStoreUnavailableError, match="CKR_PIN_INCORRECT"):
        OperatorToken(uri, lambda: bytearray(os.urandom(4).hex().encode()))
