"""Keys at rest: create-only, authentic, useless without the KEK, whole or not there after a crash."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermetic.attestation.broker.key_store import KeyExistsError, ModelFacts, ResourcePath, StoredKey
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.local_kek import Kek, load_kek
from hermetic.errors import ConfigurationError, InvalidRequestError, KeyStoreError

SECRET = bytes(range(100, 132))
RESOURCE = ResourcePath("models", "key", "m-1")
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KEY = StoredKey(RESOURCE, ModelFacts("m", 1, "ab" * 32, "Publisher"), "production", NOW)


def kek() -> Kek:
    return Kek(bytes(range(32)))


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


def reopened(store: FolderKeyStore, folder: Path, other: Kek | None = None) -> FolderKeyStore:
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
        reopened(store, folder, Kek(bytes(32)))


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
    assert not draft.exists()


def test_a_store_is_opened_by_one_process(store: FolderKeyStore, folder: Path) -> None:
    with pytest.raises(KeyStoreError, match="another process"):
        FolderKeyStore(folder, kek())


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "/a/b", "../b/c", "a/b/.c", "a/b/c\n", "a/b/" + "c" * 129, "a//c"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected repository/type/tag"):
        ResourcePath.parse(path)


def test_the_vector_opens() -> None:
    """docs/spec/key-broker.md, section 8: a file made once, from then on the format."""
    from hermetic.attestation.broker.stores import key_file

    vector = json.loads((VECTORS / "wrapped-key.json").read_text())
    data = bytes.fromhex(vector["file"])
    read = key_file.decode(data, ResourcePath.parse(vector["resource"]), Kek(bytes.fromhex(vector["kek"])))
    assert read.key.model is not None
    assert read.key.model.to_json() == vector["model"]
    with read.unwrap(Kek(bytes.fromhex(vector["kek"]))) as buffer, buffer.view as view:
        assert bytes(view).hex() == vector["secret"]
    with memoryview(bytes.fromhex(vector["secret"])) as secret:
        again = key_file.encode(read.key, secret, bytes.fromhex(vector["nonce"]), Kek(bytes.fromhex(vector["kek"])))
    assert again == data


VECTORS = Path(__file__).parents[3] / "vectors" / "key-broker"


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
        assert load_kek(source, store_folder, None).identifier == Kek(bytes(32)).identifier

    def test_hex(self, tmp_path: Path, store_folder: Path) -> None:
        source = self.kek_file(tmp_path / "elsewhere" / "kek", b"00" * 32 + b"\n")
        assert load_kek(source, store_folder, None).identifier == Kek(bytes(32)).identifier

    def test_beside_or_in_the_store_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        for place in (store_folder / "kek", store_folder / "deep" / "kek", store_folder.parent / "kek"):
            with pytest.raises(ConfigurationError, match="beside it"):
                load_kek(self.kek_file(place), store_folder, None)
        beside = store_folder.parent / "kek"
        link = tmp_path / "elsewhere" / "kek"
        link.parent.mkdir()
        link.symlink_to(beside)
        with pytest.raises(ConfigurationError, match="beside it"):
            load_kek(f"file:{link}", store_folder, None)

    def test_readable_by_others_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        source = self.kek_file(tmp_path / "elsewhere" / "kek", mode=0o640)
        with pytest.raises(ConfigurationError, match="mode 0640"):
            load_kek(source, store_folder, None)

    @pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), b"zz" * 32, bytes(1000)])
    def test_content_that_is_no_kek_is_refused(self, tmp_path: Path, store_folder: Path, content: bytes) -> None:
        with pytest.raises(ConfigurationError, match=r"KEK|kek"):
            load_kek(self.kek_file(tmp_path / "elsewhere" / "kek", content), store_folder, None)

    def test_a_missing_file_is_refused(self, tmp_path: Path, store_folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            load_kek(f"file:{tmp_path / 'elsewhere' / 'kek'}", store_folder, None)

    def test_a_descriptor(self, store_folder: Path) -> None:
        reader, writer = os.pipe()
        os.write(writer, bytes(32))
        os.close(writer)
        assert load_kek(f"fd:{reader}", store_folder, None).identifier == Kek(bytes(32)).identifier
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reader)

    def test_a_systemd_credential(self, tmp_path: Path, store_folder: Path) -> None:
        (tmp_path / "kek").write_bytes(bytes(32))
        assert load_kek("credential:kek", store_folder, tmp_path).identifier == Kek(bytes(32)).identifier
        with pytest.raises(ConfigurationError, match="CREDENTIALS_DIRECTORY"):
            load_kek("credential:kek", store_folder, None)
        with pytest.raises(ConfigurationError, match="name"):
            load_kek("credential:../kek", store_folder, tmp_path)

    @pytest.mark.parametrize("source", ["", "kek", "env:KEK", "fd:x", "file:"])
    def test_other_sources_are_refused(self, store_folder: Path, source: str) -> None:
        with pytest.raises(ConfigurationError, match="kek: expected"):
            load_kek(source, store_folder, None)


CRASH = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.local_kek import Kek
from hermetic.attestation.broker.key_store import ResourcePath, StoredKey

calls = int(sys.argv[2])
def killer(event, arguments):
    global calls
    if event in ("open", "os.link", "os.remove", "os.mkdir") and sys.argv[1] in str(arguments[0]):
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), 9)
store = FolderKeyStore(Path(sys.argv[1]), Kek(bytes(range(32))))
sys.addaudithook(killer)
key = StoredKey(ResourcePath("models", "key", "m-1"), None, "production", datetime.now(UTC))
store.create(key, memoryview(bytes(range(100, 132))))
print("created")
"""


@pytest.mark.parametrize("call", range(1, 11))
def test_a_crash_leaves_a_whole_key_or_none(folder: Path, call: int) -> None:
    """Killed at each file operation in turn; what was acknowledged is there, and nothing is half there."""
    command = [sys.executable, "-c", CRASH, str(folder), str(call)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    store = FolderKeyStore(folder, kek())
    try:
        found = store.list()
        if "created" in done.stdout:
            assert len(found) == 1
        if found:
            assert unwrapped(store) == SECRET
    finally:
        store.close()
