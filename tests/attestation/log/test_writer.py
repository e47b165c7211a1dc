"""`Log`: what is acknowledged stays; one writer; full disks; recovery; many threads."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hermetic.attestation.log import Log, LogReader, NoteSigner, Recovery, verify_checkpoint, verify_log
from hermetic.attestation.log import storage as storage_module
from hermetic.attestation.log.journal import HEADER_SIZE, MAX_JOURNAL_SIZE
from hermetic.attestation.log.merkle import leaf_hash
from hermetic.attestation.log.tiles import encode_bundle
from hermetic.errors import ConfigurationError, LogError
from tests.attestation.log.conftest import ORIGIN

TIME = datetime(2026, 1, 2, tzinfo=UTC)


def record(index: int) -> dict[str, Any]:
    return {"kind": "test", "fields": {"i": index}}


def fill(folder: Path, signer: NoteSigner, count: int) -> Log:
    log = Log.open(folder, ORIGIN, signer)
    while log.size < count:
        log.append_all([record(log.size + n) for n in range(min(count - log.size, 256))])
    return log


def indexes(folder: Path, signer: NoteSigner) -> list[int]:
    verify_log(folder, signer.verifier())
    return [entry.fields["i"] for entry in LogReader(folder, signer.verifier()).records()]


def crash(log: Log) -> None:
    """End the writer as the kernel does after kill -9: descriptors and lock go, nothing is written."""
    log._journal.close()
    log._lock.release()


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 512, 600])
@pytest.mark.parametrize("clean", [True, False])
def test_closed_or_crashed_the_log_opens_again(folder: Path, signer: NoteSigner, count: int, clean: bool) -> None:
    log = fill(folder, signer, count)
    note = log.checkpoint()
    log.close() if clean else crash(log)
    assert indexes(folder, signer) == list(range(count))
    with Log.open(folder, ORIGIN, signer) as log:
        assert log.checkpoint() == note
        assert (log.recovery is None) == (clean or count % 256 == 0)
        assert log.append(record(count)) == count
    assert indexes(folder, signer) == list(range(count + 1))
    verify_log(folder, signer.verifier(), against=[note])


def test_the_newest_checkpoint_counts_every_acknowledged_entry(folder: Path, signer: NoteSigner) -> None:
    with Log.open(folder, ORIGIN, signer, now=lambda: TIME) as log:
        for index in range(5):
            assert log.append(record(index)) == index
            checkpoint = verify_checkpoint(log.checkpoint(), signer.verifier(), ORIGIN)
            assert checkpoint == log.head
            assert checkpoint.size == log.size == index + 1
            assert LogReader(folder, signer.verifier()).head == checkpoint
        assert log.append_all([record(5), record(6)]) == range(5, 7)
    assert LogReader(folder, signer.verifier()).record(0).time == "2026-01-02T00:00:00.000000Z"


def test_the_folder_is_as_the_vector_says(folder: Path, vector: Any) -> None:
    import hashlib

    known = vector("folder")
    signer = NoteSigner.parse(known["signing_key"])
    with Log.open(folder, known["origin"], signer) as log:
        for index in range(known["size"]):
            if str(index) in known["checkpoints"]:
                assert log.checkpoint().decode() == known["checkpoints"][str(index)]
            time = f"2026-01-02T03:{index // 60 % 60:02}:{index % 60:02}.000000Z"
            log.append({"kind": "test.vector", "time": time, "fields": {"i": index, "name": "m\u00e9"}})
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in known["files_sha256"]}
    assert found == known["files_sha256"]


def test_a_second_writer_is_refused(folder: Path, signer: NoteSigner) -> None:
    with fill(folder, signer, 3):
        with pytest.raises(LogError, match="only writer"):
            Log.open(folder, ORIGIN, signer)
        code = (
            "import sys\nfrom pathlib import Path\nfrom hermetic.attestation.log import Log, NoteSigner\n"
            "Log.open(Path(sys.argv[1]), 'log.example/test', NoteSigner.generate('x'))"
        )
        other = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "only writer" in other.stderr
    with Log.open(folder, ORIGIN, signer) as log:
        assert log.append(record(3)) == 3


def test_readers_need_no_lock(folder: Path, signer: NoteSigner) -> None:
    with fill(folder, signer, 300):
        assert indexes(folder, signer) == list(range(300))


def test_another_origin_or_key_is_refused(folder: Path, signer: NoteSigner) -> None:
    fill(folder, signer, 3).close()
    with pytest.raises(LogError, match="expected a checkpoint of the log other"):
        Log.open(folder, "other", signer)
    with pytest.raises(LogError, match="expected a signature of"):
        Log.open(folder, ORIGIN, NoteSigner.generate(ORIGIN))
    with pytest.raises(ConfigurationError, match="origin"):
        Log.open(folder, "two\nlines", signer)
    assert indexes(folder, signer) == [0, 1, 2]


def test_oversize_and_malformed_records_change_nothing(folder: Path, signer: NoteSigner) -> None:
    with fill(folder, signer, 3) as log:
        note = log.checkpoint()
        with pytest.raises(LogError, match="record of kind big is oversize"):
            log.append({"kind": "big", "fields": {"x": "y" * 70_000}})
        with pytest.raises(LogError, match="kind"):
            log.append_all([record(3), {"kind": "NO", "fields": {}}])
        with pytest.raises(LogError, match="1 to 256 records"):
            log.append_all([record(0)] * 257)
        with pytest.raises(LogError, match="1 to 256 records"):
            log.append_all([])
        assert log.checkpoint() == note
        assert log.append(record(3)) == 3
    assert indexes(folder, signer) == [0, 1, 2, 3]


def test_threads_share_commits(folder: Path, signer: NoteSigner) -> None:
    with Log.open(folder, ORIGIN, signer) as log, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: (i, log.append(record(i))), range(400)))
    assert sorted(index for _, index in found) == list(range(400))
    logged = indexes(folder, signer)
    assert all(logged[index] == i for i, index in found)


class _HeldSigner(NoteSigner):
    """Holds the first signature until it is told, so that others queue behind it; counts signatures."""

    def __init__(self) -> None:
        super().__init__(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
        self.entered, self.go, self.count, self.fail = threading.Event(), threading.Event(), 0, False

    def sign(self, text: bytes) -> bytes:
        self.count += 1
        self.entered.set()
        self.go.wait(60)
        if self.fail:
            raise RuntimeError("the key is gone")
        return super().sign(text)


@pytest.fixture
def held(folder: Path, signer: NoteSigner) -> Iterator[_HeldSigner]:
    Log.open(folder, ORIGIN, signer).close()
    held = _HeldSigner()
    yield held
    held.go.set()


def test_what_queues_behind_a_commit_is_committed_at_once(folder: Path, held: _HeldSigner) -> None:
    with Log.open(folder, ORIGIN, held) as log, ThreadPoolExecutor(9) as pool:
        first = pool.submit(log.append, record(0))
        assert held.entered.wait(60)
        rest = [pool.submit(log.append, record(i)) for i in range(1, 9)]
        while len(log._queue) < 8:
            threading.Event().wait(0.001)
        held.go.set()
        assert first.result() == 0
        assert sorted(future.result() for future in rest) == list(range(1, 9))
        assert held.count == 2


def test_a_signer_that_fails_leaves_nobody_waiting(folder: Path, held: _HeldSigner) -> None:
    with Log.open(folder, ORIGIN, held) as log, ThreadPoolExecutor(4) as pool:
        held.fail = True
        futures = [pool.submit(log.append, record(0))]
        assert held.entered.wait(60)
        futures += [pool.submit(log.append, record(i)) for i in range(1, 4)]
        while len(log._queue) < 3:
            threading.Event().wait(0.001)
        held.go.set()
        errors = [future.exception(10) for future in futures]
        assert sorted(str(error) for error in errors) == [
            "nothing was logged: the commit was interrupted",
            "nothing was logged: the commit was interrupted",
            "the key is gone",
            "the key is gone",
        ]
        held.fail = False
        assert log.append(record(0)) == 0


def test_a_closed_log_takes_nothing(folder: Path, signer: NoteSigner) -> None:
    log = fill(folder, signer, 1)
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append(record(1))
    with pytest.raises(LogError, match="closed"):
        log.publish()


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_write_is_set_aside(folder: Path, signer: NoteSigner, cut: int) -> None:
    log = fill(folder, signer, 3)
    whole = (folder / "journal").read_bytes()
    log.append(record(3))
    crash(log)
    torn = (folder / "journal").read_bytes()[len(whole) : -cut]
    (folder / "journal").write_bytes(whole + torn)
    assert verify_log(folder, signer.verifier()).torn_bytes == len(torn)
    with Log.open(folder, ORIGIN, signer) as log:
        assert log.size == 3
        assert log.recovery == Recovery(entries=3, torn_bytes=len(torn))
        assert log.append(record(3)) == 3
    assert (folder / "torn" / "3").read_bytes() == torn
    assert indexes(folder, signer) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["checkpoint", "journal", "tile/entries/000.p/3", "tile/0/000.p/3"])
def test_a_log_that_lost_a_file_is_not_opened(folder: Path, signer: NoteSigner, name: str) -> None:
    fill(folder, signer, 3).close()
    (folder / name).unlink()
    with pytest.raises(LogError):
        Log.open(folder, ORIGIN, signer)
    assert not (folder / name).exists()


def test_a_log_whose_newest_tiles_were_replaced_by_older_ones_is_not_opened(folder: Path, signer: NoteSigner) -> None:
    fill(folder, signer, 300).close()
    older = (folder / "checkpoint").read_bytes(), (folder / "journal").read_bytes()
    fill(folder, signer, 600).close()
    (folder / "journal").write_bytes(older[1])
    Log.open(folder, ORIGIN, signer).close()  # an older journal only says less than the tiles
    shutil.rmtree(folder / "tile" / "0")
    with pytest.raises(LogError):
        Log.open(folder, ORIGIN, signer)


def test_a_log_whose_newest_entry_was_rewritten_is_not_opened(folder: Path, signer: NoteSigner) -> None:
    """Entry and leaf hash fit; only the root tells."""
    fill(folder, signer, 3).close()
    forged = [b"one", b"two", b"three"]
    (folder / "tile/entries/000.p/3").write_bytes(encode_bundle(forged))
    (folder / "tile/0/000.p/3").write_bytes(b"".join(leaf_hash(entry) for entry in forged))
    with pytest.raises(LogError, match="do not lead to the root"):
        Log.open(folder, ORIGIN, signer)


def test_the_journal_is_bounded(folder: Path, signer: NoteSigner) -> None:
    with fill(folder, signer, 3) as log:
        log._journal.size = HEADER_SIZE + MAX_JOURNAL_SIZE - 100
        with pytest.raises(LogError, match="journal is full"):
            log.append(record(3))
        assert log.size == 3


def test_after_a_failed_sync_nothing_is_acknowledged(
    folder: Path, signer: NoteSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fill(folder, signer, 3)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(LogError, match="cannot write"):
            log.append(record(3))
    with pytest.raises(LogError, match="open the log anew"):
        log.append(record(3))
    assert log.size == 3
    log.close()
    with Log.open(folder, ORIGIN, signer) as log:  # the entry may be there or not; it was not acknowledged
        assert log.size in (3, 4)
        log.append(record(log.size))
    assert indexes(folder, signer) in ([0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_when_tiles_cannot_be_written_entries_stay_in_the_journal(
    folder: Path, signer: NoteSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise LogError(f"cannot write {path}: No space left on device")

    log = fill(folder, signer, 200)
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "_replace", fail)
        for index in range(200, 300):
            assert log.append(record(index)) == index
        assert log.publish_error is not None
        with pytest.raises(LogError, match="No space left"):
            log.publish()
        assert indexes(folder, signer) == list(range(300))
        with pytest.raises(LogError, match="No space left"):
            log.close()
    with Log.open(folder, ORIGIN, signer) as log:
        assert log.size == 300
        log.publish()
        assert log.publish_error is None
    assert indexes(folder, signer) == list(range(300))


def test_a_journal_whose_name_is_not_synced_takes_nothing(
    folder: Path, signer: NoteSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new journal is renamed into place, and a crash might bring the old one back."""
    log = fill(folder, signer, 3)
    real, journals = storage_module.sync_folder, (folder / "journal").stat().st_ino

    def fail(path: Path) -> None:
        if (folder / "journal").stat().st_ino != journals:
            raise LogError(f"cannot sync {path}: Input/output error")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "sync_folder", fail)
        with pytest.raises(LogError, match="cannot sync"):
            log.publish()
    with pytest.raises(LogError, match="open the log anew"):
        log.append(record(3))
    log.close()
    with Log.open(folder, ORIGIN, signer) as log:
        assert log.append(record(3)) == 3
    assert indexes(folder, signer) == [0, 1, 2, 3]


def test_partial_tiles_go_when_the_full_one_is_there(folder: Path, signer: NoteSigner) -> None:
    fill(folder, signer, 100).close()
    assert (folder / "tile/0/000.p/100").exists()
    reader = LogReader(folder, signer.verifier())
    fill(folder, signer, 300).close()
    assert not (folder / "tile/0/000.p").exists()
    assert not (folder / "tile/entries/000.p").exists()
    assert [entry.fields["i"] for entry in reader.records()] == list(range(100))
    assert reader.inclusion_proof(7)


def test_nobody_else_may_read_it(folder: Path, signer: NoteSigner) -> None:
    fill(folder, signer, 3).close()
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
