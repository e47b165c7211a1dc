"""Attacks on a log at rest: whatever is changed, the verifier names the first index that nothing vouches for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic.attestation.log import Log, LogReader, NoteSigner, UnsafeAnyKey, verify_log
from hermetic.attestation.log.checkpoint import Checkpoint
from hermetic.attestation.log.journal import Frame, encode_header, parse_journal
from hermetic.attestation.log.merkle import leaf_hash, root_hash
from hermetic.attestation.log.tiles import Edge, Tile, decode_bundle, encode_bundle, tiles_of
from hermetic.errors import LogError
from tests.attestation.log.conftest import ORIGIN

SIZE = 700  # two full tiles, one of 188
JOURNALED = 20  # entries after the published ones, in frames of one


def record(index: int, mark: str = "") -> dict[str, Any]:
    return {"kind": "test", "time": "2026-01-02T00:00:00Z", "fields": {"i": index, "mark": mark}}


def make(folder: Path, signer: NoteSigner, *, fork_at: int = SIZE + JOURNALED) -> dict[int, bytes]:
    """A log of SIZE published entries and JOURNALED in the journal, and checkpoints kept elsewhere, by size."""
    kept = {}

    def mark(index: int) -> str:
        return "fork" if index >= fork_at else ""

    with Log.open(folder, ORIGIN, signer) as log:
        while log.size < SIZE:
            log.append_all([record(i, mark(i)) for i in range(log.size, log.size + 100)])
            kept[log.size] = log.checkpoint()
    log = Log.open(folder, ORIGIN, signer)
    for index in range(SIZE, SIZE + JOURNALED):
        log.append(record(index, mark(index)))
        kept[log.size] = log.checkpoint()
    log._journal.close()
    log._lock.release()
    return kept


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, bytes], NoteSigner]:
    folder = tmp_path_factory.mktemp("original") / "log"
    signer = NoteSigner.generate(ORIGIN)
    return folder, make(folder, signer), signer


@pytest.fixture
def attacked(original: tuple[Path, dict[int, bytes], NoteSigner], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "attacked"))


@pytest.fixture
def refused(original: tuple[Path, dict[int, bytes], NoteSigner], attacked: Path) -> Callable[..., LogError]:
    def refused(*against: int) -> LogError:
        with pytest.raises(LogError) as error:
            verify_log(attacked, original[2].verifier(), against=[original[1][size] for size in against])
        assert error.value.index is None or str(error.value.index) in str(error.value)
        return error.value

    return refused


def edit_bundle(folder: Path, name: str, start: int, change: Callable[[list[bytes]], object]) -> None:
    path = folder / "tile" / "entries" / name
    entries = list(decode_bundle(path.read_bytes(), start))
    change(entries)
    path.write_bytes(encode_bundle(entries))


def edit_journal(folder: Path, change: Callable[[list[Frame]], object]) -> None:
    path = folder / "journal"
    journal = parse_journal(path.read_bytes())
    frames = list(journal.frames)
    change(frames)
    path.write_bytes(encode_header(journal.first) + b"".join(frame.encode() for frame in frames))


def rebuild(folder: Path, entries: list[bytes]) -> None:
    """Write every tile and bundle anew from other entries: what whoever has the disk, and no key, can do."""
    shutil.rmtree(folder / "tile")
    _, tiles = Edge(0).extend(entries)
    for tile in tiles_of(len(entries)):
        files = {tile.path: tiles[tile]}
        if tile.level == 0:
            files[tile.entries_path] = encode_bundle(entries[tile.index * 256 : tile.index * 256 + tile.width])
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def swap(items: list[Any], one: int, other: int) -> None:
    items[one], items[other] = items[other], items[one]


def test_the_log_verifies(original: tuple[Path, dict[int, bytes], NoteSigner]) -> None:
    folder, kept, signer = original
    verified = verify_log(folder, signer.verifier(), origin=ORIGIN, against=list(kept.values()))
    assert (verified.head.size, verified.published, verified.journaled) == (SIZE + JOURNALED, SIZE, JOURNALED)
    assert verified.note == kept[SIZE + JOURNALED]
    assert verified.torn_bytes == 0


# In published entries


def test_an_edited_entry(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_bundle(attacked, "001", 256, lambda entries: entries.__setitem__(44, entries[44].replace(b"300", b"301")))
    assert refused().index == 300


def test_a_deleted_entry(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_bundle(attacked, "000", 0, lambda entries: entries.pop(77))
    assert refused().index == 77


def test_an_inserted_entry(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_bundle(attacked, "000", 0, lambda entries: entries.insert(78, entries[77]))
    assert refused().index == 78


def test_an_entry_added_at_the_end_of_a_bundle(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_bundle(attacked, "002.p/188", 512, lambda entries: entries.append(entries[0]))
    assert refused().index == 700


def test_reordered_entries(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_bundle(attacked, "002.p/188", 512, lambda entries: swap(entries, 90, 100))
    assert refused().index == 602


def test_swapped_bundles(attacked: Path, refused: Callable[..., LogError]) -> None:
    one, other = attacked / "tile/entries/000", attacked / "tile/entries/001"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert refused().index == 0


def test_a_truncated_bundle(attacked: Path, refused: Callable[..., LogError]) -> None:
    path = attacked / "tile/entries/002.p/188"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused().index == 699
    path.unlink()
    assert refused().index == 512


def test_a_missing_bundle(attacked: Path, refused: Callable[..., LogError]) -> None:
    (attacked / "tile/entries/001").unlink()
    assert refused().index == 256


def test_an_entry_edited_together_with_its_leaf_hash(attacked: Path, refused: Callable[..., LogError]) -> None:
    def change(entries: list[bytes]) -> None:
        entries[44] = entries[44].replace(b"300", b"301")
        leaves = [leaf_hash(entry) for entry in entries]
        (attacked / "tile/0/001").write_bytes(b"".join(leaves))

    edit_bundle(attacked, "001", 256, change)
    error = refused()
    assert error.index == 256
    assert "one of the entries 256 to 511" in str(error)


def test_a_rewritten_log_without_the_key(attacked: Path, refused: Callable[..., LogError], original: Any) -> None:
    entries = list(LogReader(attacked, UnsafeAnyKey()).entries(0, SIZE))
    entries[333] = entries[333].replace(b"333", b"334")
    rebuild(attacked, entries)
    assert refused().index == 0  # nothing but the last checkpoint vouches, and that for all or nothing
    assert refused(100, 200, 300, 400).index == 300  # checkpoints kept elsewhere vouch for what they still fit


@pytest.mark.parametrize(("tile", "index"), [("0/000", 0), ("0/002.p/188", 512), ("1/000.p/2", 0)])
def test_a_missing_tile(attacked: Path, refused: Callable[..., LogError], tile: str, index: int) -> None:
    (attacked / "tile" / tile).unlink()
    assert refused().index == index


def test_a_changed_tile(attacked: Path, refused: Callable[..., LogError]) -> None:
    path = attacked / "tile/0/001"
    data = bytearray(path.read_bytes())
    data[32 * 10] ^= 1
    path.write_bytes(data)
    assert refused().index == 266
    path = attacked / "tile/1/000.p/2"
    shutil.copy(attacked / "tile/0/000", attacked / "tile/0/001.bak")
    data[32 * 10] ^= 1
    (attacked / "tile/0/001").write_bytes(data)
    upper = bytearray(path.read_bytes())
    upper[40] ^= 1
    path.write_bytes(upper)
    assert refused().index == 256


def test_a_forged_checkpoint(attacked: Path, refused: Callable[..., LogError]) -> None:
    path = attacked / "checkpoint"
    path.write_bytes(path.read_bytes().replace(b"\n700\n", b"\n512\n"))
    assert "does not verify" in str(refused())
    stranger = NoteSigner.generate(ORIGIN)
    path.write_bytes(Checkpoint(ORIGIN, 0, root_hash([])).sign(stranger))
    assert "expected a signature" in str(refused())
    path.unlink()
    assert refused().index == 0


# In the journal


def test_an_edited_journal_entry(attacked: Path, refused: Callable[..., LogError]) -> None:
    def change(frames: list[Frame]) -> None:
        frames[5] = Frame((frames[5].entries[0].replace(b"705", b"706"),), frames[5].note)

    edit_journal(attacked, change)
    assert refused().index == 705


def test_a_deleted_journal_entry(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_journal(attacked, lambda frames: frames.pop(7))
    assert refused().index == 707


def test_reordered_journal_entries(attacked: Path, refused: Callable[..., LogError]) -> None:
    edit_journal(attacked, lambda frames: swap(frames, 8, 9))
    assert refused().index == 708


def test_a_byte_changed_in_the_journal(attacked: Path, refused: Callable[..., LogError]) -> None:
    path = attacked / "journal"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"i":703', b'"i":704'))
    assert refused().index == 703
    path.write_bytes(whole.replace(b'"i":719', b'"i":718'))
    assert refused().index == 719


def test_a_cut_journal_needs_a_checkpoint_kept_elsewhere(
    original: tuple[Path, dict[int, bytes], NoteSigner], attacked: Path, refused: Callable[..., LogError]
) -> None:
    edit_journal(attacked, lambda frames: frames.__delitem__(slice(4, None)))
    assert verify_log(attacked, original[2].verifier()).head.size == 704
    error = refused(SIZE + JOURNALED)
    assert error.index == 704
    assert "entry 704 is missing" in str(error)


def test_a_missing_journal(attacked: Path, refused: Callable[..., LogError]) -> None:
    (attacked / "journal").unlink()
    assert refused().index == 700


def test_a_journal_of_a_later_start(attacked: Path, refused: Callable[..., LogError]) -> None:
    (attacked / "journal").write_bytes(encode_header(705))
    error = refused()
    assert error.index == 700
    assert "entries 700 to 704 are missing" in str(error)


def test_a_journal_of_a_fork_that_was_already_published(tmp_path: Path, signer: NoteSigner) -> None:
    """The frames are signed by the log's key and chain; at the published size they have another root."""
    entries, forked = ([record(index, mark) for index in range(4)] for mark in ("", "fork"))
    for name, records in (("log", entries), ("fork", forked)):
        log = Log.open(tmp_path / name, ORIGIN, signer)
        log.append_all(records[:2])
        log.append_all(records[2:3])
        if name == "log":
            log.close()
    log.append(forked[3])
    journal = (tmp_path / "fork" / "journal").read_bytes()
    (tmp_path / "log" / "journal").write_bytes(journal)
    with pytest.raises(LogError, match="entry 2 is not as it was logged") as error:
        verify_log(tmp_path / "log", signer.verifier())
    assert error.value.index == 2
    frames = parse_journal(journal).frames
    whole = Frame(tuple(entry for frame in frames for entry in frame.entries), frames[-1].note)
    (tmp_path / "log" / "journal").write_bytes(encode_header(0) + whole.encode())
    with pytest.raises(LogError, match="across the published size"):
        Log.open(tmp_path / "log", ORIGIN, signer)
    log.close()


def test_a_hash_changed_in_an_upper_level(tmp_path: Path, signer: NoteSigner) -> None:
    entries = [b"%d" % index for index in range(65_536 + 300)]
    folder = tmp_path / "large"
    (folder / "tile").mkdir(parents=True)
    rebuild(folder, entries)
    root = root_hash([leaf_hash(entry) for entry in entries])
    (folder / "checkpoint").write_bytes(Checkpoint(ORIGIN, len(entries), root).sign(signer))
    (folder / "journal").write_bytes(encode_header(len(entries)))
    for tile, offset, index in (("1/000", 7, 7 * 256), ("1/001.p/1", 0, 65_536)):
        path = folder / "tile" / tile
        whole = path.read_bytes()
        path.write_bytes(whole[: offset * 32] + bytes(32) + whole[(offset + 1) * 32 :])
        with pytest.raises(LogError, match=f"one of the entries {index} to") as error:
            verify_log(folder, signer.verifier())
        assert error.value.index == index
        path.write_bytes(whole)


# By whoever has the key


def test_a_log_forked_by_its_own_writer(
    original: tuple[Path, dict[int, bytes], NoteSigner],
    tmp_path: Path,
    attacked: Path,
    refused: Callable[..., LogError],
) -> None:
    make(tmp_path / "fork", original[2], fork_at=450)
    shutil.rmtree(attacked)
    shutil.copytree(tmp_path / "fork", attacked)
    verify_log(attacked, original[2].verifier())  # by itself a fork is a good log
    assert refused(600).index == 0
    assert refused(300, 400, 500, 600).index == 400
    assert refused(712, 400).index == 400


def test_a_log_rolled_back_to_its_own_past(
    original: tuple[Path, dict[int, bytes], NoteSigner], attacked: Path, refused: Callable[..., LogError]
) -> None:
    rebuild(attacked, list(LogReader(attacked, UnsafeAnyKey()).entries(0, 200)))
    (attacked / "checkpoint").write_bytes(original[1][200])
    (attacked / "journal").write_bytes(encode_header(200))
    assert verify_log(attacked, original[2].verifier()).head.size == 200
    assert refused(720).index == 200


def test_a_checkpoint_of_another_log_says_nothing(
    original: tuple[Path, dict[int, bytes], NoteSigner], attacked: Path
) -> None:
    other = Checkpoint("other.example/log", 10, root_hash([])).sign(original[2])
    with pytest.raises(LogError, match="expected a checkpoint of the log"):
        verify_log(attacked, original[2].verifier(), against=[other])
    with pytest.raises(LogError, match="expected a checkpoint of the log"):
        verify_log(attacked, original[2].verifier(), origin="other.example/log")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found(
    original: tuple[Path, dict[int, bytes], NoteSigner], attacked: Path, data: st.DataObject
) -> None:
    """In every file of the log; with the newest checkpoint kept elsewhere, so that a cut is found as well."""
    needed = [tile.path for tile in tiles_of(SIZE)] + [tile.entries_path for tile in map(Tile, [0] * 2, range(2))]
    name = data.draw(st.sampled_from(["checkpoint", "journal", "tile/entries/002.p/188", *needed]))
    whole = (original[0] / name).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    (attacked / name).write_bytes(changed)
    try:
        with pytest.raises(LogError):
            verify_log(attacked, original[2].verifier(), against=[original[1][SIZE + JOURNALED]])
    finally:
        (attacked / name).write_bytes(whole)
