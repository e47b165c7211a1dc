"""`LogReader`: entries, proofs of published and journaled ones, and reading while a writer works."""

import threading
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.log import Log, LogReader, NoteSigner, verify_consistency, verify_log, verify_proof
from hermetic.errors import LogError
from tests.attestation.log.conftest import ORIGIN


def record(index: int) -> dict[str, Any]:
    return {"kind": "test", "fields": {"i": index}}


@pytest.fixture
def log(folder: Path, signer: NoteSigner) -> Log:
    log = Log.open(folder, ORIGIN, signer)
    log.append_all([record(index) for index in range(256)])
    log.append_all([record(index) for index in range(256, 400)])
    return log


def test_ranges(log: Log, folder: Path, signer: NoteSigner) -> None:
    reader = LogReader(folder, signer.verifier(), ORIGIN)
    for start, stop in ((0, None), (0, 0), (3, 4), (250, 260), (256, 400), (399, 900), (400, None), (500, 600)):
        found = [entry.fields["i"] for entry in reader.records(start, stop)]
        assert found == list(range(400))[start:stop]
    assert reader.record(399).fields == {"i": 399}
    for index in (-1, 400):
        with pytest.raises(LogError, match="below the log's size 400"):
            reader.entry(index)
        with pytest.raises(LogError, match="below the tree size 400"):
            reader.prove(index)
    log.close()


def test_proofs_of_every_kind_of_entry(log: Log, folder: Path, signer: NoteSigner) -> None:
    older = {log.size: log.checkpoint()}
    for index in range(400, 410):
        log.append(record(index))
        older[log.size] = log.checkpoint()
    reader = LogReader(folder, signer.verifier())
    for index in (0, 1, 255, 256, 399, 400, 409):
        checkpoint = verify_proof(reader.prove(index).encode(), reader.entry(index), signer.verifier(), ORIGIN)
        assert checkpoint == reader.head == log.head
    for size, note in older.items():
        verify_consistency(note, reader.checkpoint(), reader.consistency_proof(size), signer.verifier())
    with pytest.raises(LogError, match="at most 410, got 411"):
        reader.consistency_proof(3, 411)
    assert reader.inclusion_proof(3, 10) != reader.inclusion_proof(3)
    log.close()


def test_a_forged_entry_is_not_given_out(log: Log, folder: Path, signer: NoteSigner) -> None:
    log.close()
    path = folder / "tile/entries/000"
    path.write_bytes(path.read_bytes().replace(b'"i":44}', b'"i":45}'))
    reader = LogReader(folder, signer.verifier())
    assert reader.record(43).fields == {"i": 43}
    with pytest.raises(LogError, match="entry 44 is not as it was logged"):
        reader.record(44)


def test_no_log_is_said_so(tmp_path: Path, signer: NoteSigner) -> None:
    with pytest.raises(LogError, match="expected a log in"):
        LogReader(tmp_path, signer.verifier())
    with pytest.raises(LogError, match="expected a log in"):
        verify_log(tmp_path / "nowhere", signer.verifier())


def test_reading_and_verifying_while_a_writer_works(log: Log, folder: Path, signer: NoteSigner) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            log.append_all([record(log.size + n) for n in range(40)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = [400]
        while sizes[-1] < 3000:
            reader = LogReader(folder, signer.verifier())
            assert reader.record(reader.size - 1).fields == {"i": reader.size - 1}
            assert verify_log(folder, signer.verifier(), against=[reader.checkpoint()]).head.size >= reader.size
            assert reader.size >= sizes[-1]
            sizes.append(reader.size)
    finally:
        stop.set()
        writer.join()
        log.close()
