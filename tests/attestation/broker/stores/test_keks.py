"""What every kind of KEK does, asked of a real token and a real service: round trips, bindings, rotation."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermetic.attestation.broker.key_store import MAX_SECRET_BYTES, ModelFacts, ResourcePath, StoredKey
from hermetic.attestation.broker.stores import folder as folder_module
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.kek import Kek, KekRing, probe
from hermetic.attestation.broker.stores.local_kek import LocalKek
from hermetic.attestation.broker.stores.opening import open_keks
from hermetic.attestation.broker.stores.rotation import rotate
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import ConfigurationError, KeyStoreError, KeyStoreUnavailableError

FACTS = b'{"facts":1}\n'
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def stored(tag: str, version: int = 1) -> StoredKey:
    facts = ModelFacts("m", version, "ab" * 32, "Publisher")
    return StoredKey(ResourcePath("models", "key", tag), facts, "production", NOW)


def secret_of(store: FolderKeyStore, key: StoredKey) -> bytes:
    with store.unwrap(key.resource) as memory, memory.view as view:
        return bytes(view)


def opened(line: str, tmp_path: Path, *former: str) -> KekRing:
    return open_keks(line, former, tmp_path / "store" / "keys", None)


@pytest.mark.parametrize("size", [1, 32, MAX_SECRET_BYTES])
def test_a_secret_comes_back(kek_line: str, tmp_path: Path, size: int) -> None:
    ring, secret = opened(kek_line, tmp_path), os.urandom(size)
    wrapped = ring.current.wrap(memoryview(secret), FACTS)
    assert secret not in wrapped or size == 1
    assert ring.current.wrap(memoryview(secret), FACTS) != wrapped
    with ring.current.unwrap(wrapped, FACTS) as memory, memory.view as view:
        assert bytes(view) == secret
    ring.close()


def test_another_name_opens_nothing(kek_line: str, tmp_path: Path) -> None:
    """The attack: put the ciphertext of one model under the name of another."""
    ring = opened(kek_line, tmp_path)
    wrapped = ring.current.wrap(memoryview(bytes(32)), FACTS)
    for other in (b"", FACTS[:-1], FACTS + b"\n", FACTS.replace(b"1", b"2")):
        with pytest.raises(KeyStoreError, match=r"expected an authentic ciphertext|authentication failed") as refused:
            ring.current.unwrap(wrapped, other)
        assert not isinstance(refused.value, KeyStoreUnavailableError)
    ring.close()


def test_a_changed_or_shortened_ciphertext_opens_nothing(kek_line: str, tmp_path: Path) -> None:
    ring = opened(kek_line, tmp_path)
    good = ring.current.wrap(memoryview(bytes(range(32))), FACTS)
    step = max(1, len(good) // 12)
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), step)]
    for bad in [*flipped, good[:-1], good[:20], good[:5], b"", good + b"A", good * 2]:
        with pytest.raises(KeyStoreError) as refused:
            ring.current.unwrap(bad, FACTS)
        assert not isinstance(refused.value, KeyStoreUnavailableError), (refused.value, bad)
    with ring.current.unwrap(good, FACTS) as memory, memory.view as view:
        assert bytes(view) == bytes(range(32))
    ring.close()


def test_a_store_works_and_an_old_version_takes_no_newer_ones_place(kek_line: str, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "keys"
    store = FolderKeyStore(folder, opened(kek_line, tmp_path))
    keys = {tag: stored(tag, version) for version, tag in enumerate(("m-1", "m-2"), start=1)}
    for tag, key in keys.items():
        store.create(key, memoryview(tag.encode() * 8))
    assert [secret_of(store, key) for key in keys.values()] == [b"m-1" * 8, b"m-2" * 8]
    old, new = (store.path(key.resource) for key in keys.values())
    lines = new.read_bytes().split(b"\n", 2)
    new.write_bytes(b"\n".join([*lines[:2], old.read_bytes().split(b"\n", 2)[2]]))
    with pytest.raises(KeyStoreError, match=r"expected an authentic ciphertext|authentication failed"):
        store.unwrap(keys["m-2"].resource)
    new.write_bytes(old.read_bytes())
    with pytest.raises(KeyStoreError, match="expected the key of models/key/m-2, got that of models/key/m-1"):
        store.unwrap(keys["m-2"].resource)
    store.close()


class IgnoresFacts(LocalKek):
    """A KEK whose mechanism knows no associated data."""

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        _ = facts
        return super().wrap(secret, b"")

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        _ = facts
        return super().unwrap(wrapped, b"")


class GivesOthers(LocalKek):
    """A KEK that is out of order."""

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        _ = wrapped, facts
        return KeyMemory(32)


@pytest.mark.parametrize(("kek", "why"), [(IgnoresFacts, "ignores it"), (GivesOthers, "got other bytes")])
def test_the_probe_refuses_a_kek_that_does_not_bind(kek: type[LocalKek], why: str) -> None:
    with pytest.raises(KeyStoreError, match=why):
        probe(kek(bytes(32)))
    probe(LocalKek(bytes(32)))


def local(tmp_path: Path, name: str) -> str:
    path = tmp_path / "elsewhere" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return f"file:{path}"


def test_rotation_while_a_broker_serves(kek_line: str, tmp_path: Path) -> None:
    """From a file to each kind; the broker that has both serves all the time; afterwards the old KEK opens nothing."""
    former, folder = local(tmp_path, "former"), tmp_path / "store" / "keys"
    first = FolderKeyStore(folder, opened(former, tmp_path))
    keys = [stored(f"m-{version}", version) for version in (1, 2, 3)]
    for key in keys[:2]:
        first.create(key, memoryview(key.resource.tag.encode()))
    old_file = first.path(keys[0].resource).read_bytes()
    serving = FolderKeyStore(folder, opened(kek_line, tmp_path, former))
    assert [secret_of(serving, key) for key in keys[:2]] == [b"m-1", b"m-2"]

    done = rotate(folder, opened(kek_line, tmp_path, former))
    assert done.before == {opened(former, tmp_path).current.identifier: 2}
    serving.create(keys[2], memoryview(b"m-3"))
    assert [secret_of(serving, key) for key in keys] == [b"m-1", b"m-2", b"m-3"]
    assert serving.count_by_kek() == {done.kek: 3}
    serving.close()
    with pytest.raises(KeyStoreError, match="expected a key wrapped by the KEK local:"):
        secret_of(first, keys[0])
    first.close()

    after = FolderKeyStore(folder, opened(kek_line, tmp_path))
    assert [secret_of(after, key) for key in keys] == [b"m-1", b"m-2", b"m-3"]
    after.path(keys[0].resource).write_bytes(old_file)  # the attack: an old wrapping, rolled back
    with pytest.raises(KeyStoreError, match=f"expected a key wrapped by the KEK {done.kek}, got one by 'local:"):
        secret_of(after, keys[0])
    after.close()


def test_a_rotation_that_is_cut_off_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, new, folder = local(tmp_path, "former"), local(tmp_path, "new"), tmp_path / "store" / "keys"
    store = FolderKeyStore(folder, opened(former, tmp_path))
    keys = [stored(f"m-{version}", version) for version in (1, 2, 3)]
    for key in keys:
        store.create(key, memoryview(key.resource.tag.encode()))
    store.close()
    sync, calls = folder_module._sync_folder, []

    def cut_off(path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise OSError("power failure")
        sync(path)

    monkeypatch.setattr(folder_module, "_sync_folder", cut_off)
    with pytest.raises(OSError, match="power failure"):
        rotate(folder, opened(new, tmp_path, former))
    both = FolderKeyStore(folder, opened(new, tmp_path, former))
    assert sorted(both.count_by_kek().values()) == [1, 2]
    assert [secret_of(both, key) for key in keys] == [b"m-1", b"m-2", b"m-3"]
    both.close()
    assert sum(rotate(folder, opened(new, tmp_path, former)).before.values()) == 3
    after = FolderKeyStore(folder, opened(new, tmp_path))
    assert [secret_of(after, key) for key in keys] == [b"m-1", b"m-2", b"m-3"]
    after.close()


def test_a_rotation_replaces_nothing_that_it_cannot_open_again(tmp_path: Path) -> None:
    former, folder = local(tmp_path, "former"), tmp_path / "store" / "keys"
    store = FolderKeyStore(folder, opened(former, tmp_path))
    store.create(stored("m-1"), memoryview(bytes(range(32))))
    path = store.path(stored("m-1").resource)
    before = path.read_bytes()
    with pytest.raises(KeyStoreError, match="expected the same secret in its new wrapping, got another"):
        rotate(folder, KekRing(GivesOthers(bytes(32)), [opened(former, tmp_path).current]))
    assert path.read_bytes() == before
    assert secret_of(store, stored("m-1")) == bytes(range(32))
    store.close()


def test_one_rotation_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, folder = local(tmp_path, "kek"), tmp_path / "store" / "keys"
    FolderKeyStore(folder, opened(line, tmp_path)).close()
    refused: list[str] = []

    def second(self: FolderKeyStore) -> tuple[StoredKey, ...]:
        monkeypatch.undo()
        with pytest.raises(KeyStoreError, match="expected one rotation at a time") as error:
            rotate(folder, opened(line, tmp_path))
        refused.append(str(error.value))
        return self.list()

    kept = FolderKeyStore.list
    calls = iter([kept, second])
    monkeypatch.setattr(FolderKeyStore, "list", lambda self: next(calls)(self))  # noqa: PLW0108 - a method
    rotate(folder, opened(line, tmp_path))
    assert refused


@pytest.mark.parametrize("line", ["", "kek", "vault:x", "pkcs11", "PKCS11:token=a"])
def test_other_lines_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"(kek|pkcs11: URI): expected"):
        opened(line, tmp_path)


def test_a_kek_that_is_named_twice(tmp_path: Path) -> None:
    line = local(tmp_path, "kek")
    with pytest.raises(ConfigurationError, match=r"expected each KEK once, got local:[0-9a-f]{16} twice"):
        opened(line, tmp_path, line)


def test_the_kinds_are_keks(kek_line: str, tmp_path: Path) -> None:
    ring = opened(kek_line, tmp_path)
    kek: Kek = ring.current
    assert kek.identifier.split(":")[0] in ("local", "pkcs11", "openbao")
    with pytest.raises(KeyStoreError, match=f"expected a key wrapped by the KEK {kek.identifier}, got one by 'x'"):
        ring.by("x")
    ring.close()
    with pytest.raises(KeyStoreError, match="got a closed one"):
        kek.wrap(memoryview(b"x"), FACTS)
