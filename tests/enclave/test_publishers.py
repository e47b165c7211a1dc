"""The list of trusted publishers: read strictly, digested canonically, its signatures all demanded."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.publishers import ALGORITHMS, Publisher, TrustedPublishers, signed_message, verify_signatures
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.errors import ConfigurationError
from tests.enclave.sealed_by_hand import SEEDS, public_keys, publishers

KEYS = public_keys(SEEDS)


def test_toml_and_json_say_the_same() -> None:
    keys = f'ed25519 = "{KEYS["ed25519"]}"\nml-dsa-65 = "{KEYS["ml-dsa-65"]}"'
    toml = f'[[publishers]]\nname = "acme"\n{keys}\ncode = true\n'
    read = TrustedPublishers.loads(toml)
    assert read == TrustedPublishers.loads(publishers(code=True))
    assert read == TrustedPublishers.loads(read.text)
    assert read.publishers[0].algorithms == ALGORITHMS


def test_the_digest_does_not_depend_on_order_or_on_what_is_default() -> None:
    one, two = ({"name": name, **KEYS} for name in ("acme", "rival"))
    both = TrustedPublishers.loads(json.dumps({"publishers": [one, two]}))
    again = TrustedPublishers.loads(json.dumps({"publishers": [two | {"code": False}, one | {"native_code": False}]}))
    assert both.digest() == again.digest()
    assert len(both.digest()) == 32


@pytest.mark.parametrize("change", ["code", "key", "name", "one more", "algorithm"])
def test_the_digest_depends_on_everything_else(change: str) -> None:
    entry: dict[str, Any] = {"name": "acme", **KEYS}
    other = {
        "code": [entry | {"code": True}],
        "key": [entry | {"ed25519": public_keys({"ed25519": bytes(32)})["ed25519"]}],
        "name": [entry | {"name": "acme2"}],
        "one more": [entry, entry | {"name": "acme2"}],
        "algorithm": [{"name": "acme", "ed25519": KEYS["ed25519"]}],
    }[change]
    digests = {TrustedPublishers.loads(json.dumps({"publishers": entries})).digest() for entries in ([entry], other)}
    assert len(digests) == 2


REFUSED: dict[str, str] = {
    "not a list": "{}",
    "not TOML": "publishers = ",
    "unknown key": json.dumps({"publishers": [{"name": "acme", **KEYS, "trusted": True}]}),
    "unknown key at the top": json.dumps({"publishers": [], "more": 1}),
    "no algorithm": json.dumps({"publishers": [{"name": "acme"}]}),
    "no name": json.dumps({"publishers": [KEYS]}),
    "a path for a name": json.dumps({"publishers": [{"name": "../acme", **KEYS}]}),
    "one name twice": json.dumps({"publishers": [{"name": "acme", **KEYS}] * 2}),
    "a short key": json.dumps({"publishers": [{"name": "acme", "ed25519": "AAAA"}]}),
    "no base64": json.dumps({"publishers": [{"name": "acme", "ed25519": "!"}]}),
    "native code without code": json.dumps({"publishers": [{"name": "acme", **KEYS, "native_code": True}]}),
    "code as text": json.dumps({"publishers": [{"name": "acme", **KEYS, "code": "yes"}]}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_malformed_list_is_refused(what: str) -> None:
    with pytest.raises(ConfigurationError, match="trusted publishers"):
        TrustedPublishers.loads(REFUSED[what])


def test_code_is_not_taken_for_granted_from_toml_text() -> None:
    with pytest.raises(ConfigurationError):
        TrustedPublishers.loads(f'[[publishers]]\nname = "acme"\ned25519 = "{KEYS["ed25519"]}"\ncode = "true"\n')


def test_what_is_signed_is_the_digest_in_its_domain() -> None:
    assert signed_message(b"d" * 32) == b"hermetic-sealed-model/1 manifest signature\x00" + b"d" * 32


def test_fresh_keys_sign_for_their_own_entry() -> None:
    key = PublisherKey.generate("acme")
    entry = key.publisher(code=True)
    assert isinstance(verify_signatures(entry, b"d" * 32, key.sign(b"d" * 32)), Publisher)
    assert entry.code
    assert not entry.native_code


def test_keys_come_back_from_their_file(tmp_path: Path) -> None:
    key, path = PublisherKey.generate("acme"), tmp_path / "acme.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PublisherKey.load(path) == key
    with pytest.raises(ConfigurationError, match="exists"):
        key.save(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "acme.key"
    PublisherKey.generate("acme").save(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="expected mode 0600"):
        PublisherKey.load(path)


@pytest.mark.parametrize("text", ["", "{}", '{"name": "acme"}', '{"name": "acme", "ed25519": "AAAA"}'])
def test_what_is_no_key_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "acme.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="publisher key") as caught:
        PublisherKey.load(path)
    assert "AAAA" not in str(caught.value)


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        PublisherKey.load(tmp_path / "none")


def test_private_keys_are_not_shown() -> None:
    key = PublisherKey.generate("acme")
    assert repr(key) == "PublisherKey(name='acme')"
