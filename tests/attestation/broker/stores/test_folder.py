"""Keys at rest: create-only, authentic, useless without the KEK, whole or not there after a crash."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.broker.key_store import KeyExistsError, ModelFacts, ResourcePath, StoredKey
from hermetic.attestation.broker.stores import facts_key, key_file
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.kek import KekRing
from hermetic.attestation.broker.stores.local_kek import LocalKek, open_local_kek
from hermetic.errors import ConfigurationError, InvalidRequestError, KeyStoreError

SECRET = bytes(range(100, 132))
RESOURCE = ResourcePath("models", "key", "m-1")
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KEY = StoredKey(RESOURCE, ModelFacts("m", 1, "ab" * 32, "Publisher"), "production", NOW)


def kek(key: bytes = bytes(range(32))) -> KekRing:
    return KekRing(LocalKek(key))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def store(folder: Path) -> Iterator[FolderKeyStore]:
    opened = FolderKeyStore(folder, kek())
    yield opened
    opened.close()


def unwrapped(store: FolderKeyStore, resource: ResourcePath = RESOURCE) -> bytes:
    with store.unwrap(resource) as buffer, buffer.view as view:
        return bytes(view)


def file_of(folder: Path, resource: ResourcePath = RESOURCE) -> Path:
    return folder / resource.repository / resource.type / f"{resource.tag}.key"


def reopened(store: FolderKeyStore, folder: Path, other: KekRing | None = None) -> FolderKeyStore:
    store.close()
    return FolderKeyStore(folder, other or kek())


def test_a_key_comes_back(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    again = reopened(store, folder)
    assert again.find(RESOURCE) == KEY
    assert again.list() == (KEY,)
    assert unwrapped(again) == SECRET
    assert again.find(ResourcePath("models", "key", "m-2")) is None


def test_the_file_is_its_owners_and_holds_no_secret(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    data = file_of(folder).read_bytes()
    assert SECRET not in data
    assert file_of(folder).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_existing_key_stays(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    before = file_of(folder).read_bytes()
    with pytest.raises(KeyExistsError, match="models/key/m-1"):
        store.create(KEY, memoryview(bytes(32)))
    assert file_of(folder).read_bytes() == before
    assert [path.name for path in file_of(folder).parent.iterdir()] == ["m-1.key"]


def test_every_changed_byte_is_refused(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    path = file_of(folder)
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(KeyStoreError):
            unwrapped(store)
    for changed in (good[:-1], good + b"x", b"", good[:10]):
        path.write_bytes(changed)
        with pytest.raises(KeyStoreError):
            unwrapped(store)


def test_facts_cannot_be_changed_without_the_kek(store: FolderKeyStore, folder: Path) -> None:
    """The attack: raise the version of an old key, or let another manifest have it."""
    store.create(KEY, memoryview(SECRET))
    path = file_of(folder)
    first, _, rest = path.read_bytes().partition(b"\n")
    facts = json.loads(first)
    facts["model"]["version"] = 2
    forged = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(forged + b"\n" + rest)
    with pytest.raises(KeyStoreError, match="expected authentic facts"):
        reopened(store, folder)


def test_a_key_cannot_take_anothers_place(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    other = ResourcePath("models", "key", "m-2")
    file_of(folder, other).write_bytes(file_of(folder).read_bytes())
    with pytest.raises(KeyStoreError, match="expected the key of models/key/m-2, got that of models/key/m-1"):
        reopened(store, folder)


def test_another_kek_opens_nothing(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    with pytest.raises(KeyStoreError, match="expected a key wrapped by the KEK"):
        reopened(store, folder, kek(bytes(32)))


def test_a_symlink_is_not_followed(store: FolderKeyStore, folder: Path, tmp_path: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    path = file_of(folder)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(KeyStoreError, match="cannot read"):
        unwrapped(store)


def test_a_draft_that_a_crash_left_is_no_key(store: FolderKeyStore, folder: Path) -> None:
    store.create(KEY, memoryview(SECRET))
    draft = file_of(folder).with_name(".m-2.0123456789abcdef.key")
    draft.write_bytes(b"half a key")
    again = reopened(store, folder)
    assert again.list() == (KEY,)
    assert draft.exists()  # another process may be writing it
    os.utime(draft, (0, 0))
    assert again.list() == (KEY,)
    assert not draft.exists()


def test_several_processes_serve_one_store(store: FolderKeyStore, folder: Path) -> None:
    """What one stores the other finds, and neither replaces what the other stored."""
    other = FolderKeyStore(folder, kek())
    store.create(KEY, memoryview(SECRET))
    assert other.find(RESOURCE) == KEY
    assert other.list() == (KEY,)
    assert unwrapped(other) == SECRET
    with pytest.raises(KeyExistsError, match="expected a new one"):
        other.create(KEY, memoryview(bytes(32)))
    other.close()


def test_keys_without_their_facts_key_are_refused(store: FolderKeyStore, folder: Path) -> None:
    """The attack: let the broker make a new facts key, and believe none of the old facts, or ones of ours."""
    store.create(KEY, memoryview(SECRET))
    (folder / "facts.key").unlink()
    with pytest.raises(KeyStoreError, match=r"expected facts\.key beside its keys, got none"):
        reopened(store, folder)


def test_a_key_is_no_facts_key(store: FolderKeyStore, folder: Path) -> None:
    """The attack: know a secret that the KEK has wrapped, and let it authenticate facts."""
    store.create(KEY, memoryview(SECRET))
    wrapped = file_of(folder).read_bytes().split(b"\n", 2)[2]
    path = folder / "facts.key"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + wrapped)
    with pytest.raises(KeyStoreError, match="expected an authentic ciphertext"):
        reopened(store, folder)


def test_a_child_of_the_process_gets_a_refusal_instead_of_a_crash(store: FolderKeyStore) -> None:
    store.create(KEY, memoryview(SECRET))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.unwrap(RESOURCE)
        except KeyStoreError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert b"open it after the fork" in said.read()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "/a/b", "../b/c", "a/b/.c", "a/b/c\n", "a/b/" + "c" * 129, "a//c"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected repository/type/tag"):
        ResourcePath.parse(path)


def test_the_vectors_open() -> None:
    """docs/spec/key-stores.md: files made once, from then on the format."""
    vector: dict[str, Any] = json.loads((VECTORS / "wrapped-key.json").read_text())
    vector |= {name: bytes.fromhex(vector[name]) for name in BINARY}
    keks = kek(vector["kek"])
    code = facts_key.decode(vector["facts_file"], keks)
    read = key_file.decode(vector["file"], ResourcePath.parse(vector["resource"]), code)
    assert read.key.model is not None
    assert read.key.model.to_json() == vector["model"]
    with read.unwrap(keks) as buffer, buffer.view as view:
        assert bytes(view) == vector["secret"]
    wrapping = LocalKek(vector["kek"])
    with memoryview(vector["secret"]) as secret:
        wrapped = wrapping.wrap_with(vector["nonce"], secret, read.facts)
    first, line, _ = vector["file"].split(b"\n", 2)
    assert first + b"\n" + line + b"\n" + wrapped == vector["file"]
    assert code.code(first + b"\n").hex().encode() == line


BINARY = ("kek", "facts_key", "nonce", "secret", "file", "facts_file")
VECTORS = Path(__file__).parents[3] / "vectors" / "key-stores"


class TestKekSources:
    @pytest.fixture
    def store_folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "broker" / "keys"
        folder.mkdir(parents=True)
        return folder

    def kek_file(self, path: Path, content: bytes = bytes(32), mode: int = 0o600) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return f"file:{path}"

    def test_a_file_elsewhere(self, tmp_path: Path, store_folder: Path) -> None:
        source = self.kek_file(tmp_path / "elsewhere" / "kek")
        assert open_local_kek(source, store_folder, None).identifier == LocalKek(bytes(32)).identifier

    def test_hex(self, tmp_path: Path, store_folder: Path) -> None:
        source = self.kek_file(tmp_path / "elsewhere" / "kek", b"00" * 32 + b"\n")
        assert open_local_kek(source, store_folder, None).identifier == LocalKek(bytes(32)).identifier

    def test_beside_or_in_the_store_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        for place in (store_folder / "kek", store_folder / "deep" / "kek", store_folder.parent / "kek"):
            with pytest.raises(ConfigurationError, match="beside it"):
                open_local_kek(self.kek_file(place), store_folder, None)
        beside = store_folder.parent / "kek"
        link = tmp_path / "elsewhere" / "kek"
        link.parent.mkdir()
        link.symlink_to(beside)
        with pytest.raises(ConfigurationError, match="beside it"):
            open_local_kek(f"file:{link}", store_folder, None)

    def test_readable_by_others_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        source = self.kek_file(tmp_path / "elsewhere" / "kek", mode=0o640)
        with pytest.raises(ConfigurationError, match="mode 0640"):
            open_local_kek(source, store_folder, None)

    @pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), b"zz" * 32, bytes(1000)])
    def test_content_that_is_no_kek_is_refused(self, tmp_path: Path, store_folder: Path, content: bytes) -> None:
        with pytest.raises(ConfigurationError, match=r"KEK|kek"):
            open_local_kek(self.kek_file(tmp_path / "elsewhere" / "kek", content), store_folder, None)

    def test_a_missing_file_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            open_local_kek(f"file:{tmp_path / 'elsewhere' / 'kek'}", store_folder, None)

    def test_a_descriptor(self, store_folder: Path) -> None:
        reader, writer = os.pipe()
        os.write(writer, bytes(32))
        os.close(writer)
        assert open_local_kek(f"fd:{reader}", store_folder, None).identifier == LocalKek(bytes(32)).identifier
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reader)

    def test_a_systemd_credential(self, tmp_path: Path, store_folder: Path) -> None:
        (tmp_path / "kek").write_bytes(bytes(32))
        assert open_local_kek("credential:kek", store_folder, tmp_path).identifier == LocalKek(bytes(32)).identifier
        with pytest.raises(ConfigurationError, match="CREDENTIALS_DIRECTORY"):
            open_local_kek("credential:kek", store_folder, None)
        with pytest.raises(ConfigurationError, match="name"):
            open_local_kek("credential:../kek", store_folder, tmp_path)

    @pytest.mark.parametrize("source", ["", "kek", "env:KEK", "fd:x", "file:"])
    def test_other_sources_are_refused(self, store_folder: Path, source: str) -> None:
        with pytest.raises(ConfigurationError, match="kek: expected"):
            open_local_kek(source, store_folder, None)


CRASH = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.kek import KekRing
from hermetic.attestation.broker.stores.local_kek import LocalKek
from hermetic.attestation.broker.key_store import ResourcePath, StoredKey

calls = int(sys.argv[2])
def killer(event, arguments):
    global calls
    if event in ("open", "os.link", "os.remove", "os.mkdir") and sys.argv[1] in str(arguments[0]):
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), 9)
store = FolderKeyStore(Path(sys.argv[1]), KekRing(LocalKek(bytes(range(32)))))
sys.addaudithook(killer)
key = StoredKey(ResourcePath("models", "key", "m-1"), None, "production", datetime.now(UTC))
store.create(key, memoryview(bytes(range(100, 132))))
print("created")
"""


@pytest.mark.parametrize("call", range(1, 11))
def test_a_crash_leaves_a_whole_key_or_none(folder: Path, call: int) -> None:
    """Killed at each file operation in turn; what was acknowledged is there, and nothing is half there."""
    command = [sys.executable, "-c", CRASH, str(folder), str(call)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    store = FolderKeyStore(folder, kek())
    try:
        found = store.list()
        if "created" in done.stdout:
            assert len(found) == 1
        if found:
            assert unwrapped(store) == SECRET
    finally:
        store.close()
