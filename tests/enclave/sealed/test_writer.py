"""Writing a sealed file: whole or not at all, read back by our reader and by nobody without the key."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import MemoryFile, ModelFacts, SealedKey, seal, write_sealed
from hermetic.errors import ConfigurationError, ModelFormatError, SealedModelError
from tests.enclave.opening import open_all

TENSOR = TensorSpec(name="x", datatype="FP32", shape=(1,))
SIGNER = PublisherKey.generate("acme")
TRUSTED = json.dumps({"publishers": [SIGNER.publisher().document()]})
FILES = [MemoryFile("model.onnx", b"graph"), MemoryFile("w.bin", os.urandom(2_500_000)), MemoryFile("empty", b"")]


def facts(**changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "name": "m",
        "version": 1,
        "format": "onnx",
        "architecture": None,
        "inputs": (TENSOR,),
        "outputs": (TENSOR,),
        "max_batch_size": 0,
        "key_id": "kbs:///a/b/c",
        "created": "2026-01-01T00:00:00Z",
    }
    return ModelFacts(**values | changes)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Keeper:
    """Takes the key as a broker would."""

    def __init__(self) -> None:
        self.key = b""
        self.buffer = bytearray()

    def __call__(self, sealed: SealedKey) -> None:
        self.key = bytes(sealed.key)
        self.buffer = sealed.key


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_sealed_is_opened(tmp_path: Path, threads: int) -> None:
    keeper, target = Keeper(), tmp_path / "m-1.sealed"
    manifest = seal(target, facts(), FILES, SIGNER, deliver=keeper, threads=threads)
    assert open_all(target.read_bytes(), key=keeper.key, trusted=TRUSTED) == {f.name: f.content for f in FILES}
    assert [entry.name for entry in manifest.files] == [file.name for file in FILES]
    assert names_in(tmp_path) == [target.name]
    assert keeper.buffer == bytes(32)  # wiped once it was delivered


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=4), st.integers(1, 3))
def test_sizes(sizes: list[int], threads: int) -> None:
    files = [MemoryFile(f"f{at}", bytes([at + 1]) * (size + (at == 0))) for at, size in enumerate(sizes)]
    fd, key = os.memfd_create("sealed"), bytearray(range(32))
    try:
        write_sealed(fd, facts(), files, SIGNER, key, threads=threads)
        data = os.pread(fd, os.lseek(fd, 0, os.SEEK_END), 0)
    finally:
        os.close(fd)
    assert open_all(data, key=bytes(key), trusted=TRUSTED) == {f.name: f.content for f in files}


def test_two_seals_of_one_model_have_nothing_in_common(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        keeper = Keeper()
        seal(tmp_path / name, facts(), FILES, SIGNER, deliver=keeper)
        keys.append(keeper.key)
    assert keys[0] != keys[1]
    assert (tmp_path / "a").read_bytes()[-1000:] != (tmp_path / "b").read_bytes()[-1000:]


def test_no_plaintext_lies_in_the_file(tmp_path: Path) -> None:
    canary = b"0123456789abcdef" * 4
    seal(tmp_path / "m", facts(), [MemoryFile("model.onnx", canary * 50_000)], SIGNER, deliver=Keeper())
    assert canary[:16] not in (tmp_path / "m").read_bytes()


def test_progress_counts_every_byte_twice(tmp_path: Path) -> None:
    seen: list[int] = []
    seal(tmp_path / "m", facts(), FILES, SIGNER, deliver=Keeper(), progress=seen.append)
    assert sum(seen) == 2 * sum(file.size for file in FILES)


# --------------------------------------------------------------------------------------------------------- no half file


def test_a_killed_seal_leaves_no_half_file(tmp_path: Path) -> None:
    script = Path(__file__).with_name("crash_while_sealing.py")
    done = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True, timeout=60)
    runs = json.loads(done.stdout)
    assert {run["step"] for run in runs} == {"open", "progress", "deliver", "os.link", "os.remove", ""}
    trusted = (tmp_path / "publishers.json").read_text()
    whole = 0
    for number, run in enumerate(runs, start=1):
        folder = tmp_path / str(number)
        if "m-1.sealed" in run["files"]:
            # It has its name, so it is whole, and its key was delivered before.
            open_all((folder / "m-1.sealed").read_bytes(), key=(folder / "key").read_bytes(), trusted=trusted)
            whole += 1
        elif run["step"] == "os.link":
            assert "key" in run["files"]
    assert 1 < whole < len(runs) - 4
    assert runs[-1] == {"step": "", "files": ["key", "m-1.sealed", "step"]}


def test_a_key_that_nobody_takes_leaves_no_file(tmp_path: Path) -> None:
    buffers = []

    def refuse(sealed: SealedKey) -> None:
        buffers.append(sealed.key)
        raise ConfigurationError("the broker says no")

    with pytest.raises(ConfigurationError, match="says no"):
        seal(tmp_path / "m", facts(), FILES, SIGNER, deliver=refuse)
    assert names_in(tmp_path) == []
    assert buffers == [bytearray(32)]


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ConfigurationError, match=r"cannot write .*m: File too large"):
            seal(tmp_path / "m", facts(), FILES, SIGNER, deliver=Keeper())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names_in(tmp_path) == []


def test_a_sealed_file_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"before")
    with pytest.raises(ConfigurationError, match="exists"):
        seal(target, facts(), FILES, SIGNER, deliver=Keeper())
    target.unlink()

    def appear(_: SealedKey) -> None:  # while the key is on its way
        target.write_bytes(b"meanwhile")

    with pytest.raises(ConfigurationError, match="File exists"):
        seal(target, facts(), FILES, SIGNER, deliver=appear)
    assert target.read_bytes() == b"meanwhile"
    assert names_in(tmp_path) == ["m"]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        seal(tmp_path / "no" / "m", facts(), FILES, SIGNER, deliver=Keeper())


# ------------------------------------------------------------------------------------------------------ what is refused


class Changing:
    """A source that reads otherwise the second time."""

    name, size = "model.onnx", 4

    def __init__(self) -> None:
        self.reads = 0

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.reads += 1
        buffer[:] = bytes([self.reads]) * len(buffer)


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="changed while"):
        seal(tmp_path / "m", facts(), [Changing()], SIGNER, deliver=Keeper())
    assert names_in(tmp_path) == []


NOT_SEALABLE: dict[str, Callable[[], tuple[ModelFacts, list[MemoryFile]]]] = {
    "name": lambda: (facts(name="../m"), FILES),
    "version": lambda: (facts(version=0), FILES),
    "format": lambda: (facts(format="pickle"), FILES),
    "key id": lambda: (facts(key_id="kbs:///a/../c"), FILES),
    "architecture": lambda: (facts(format="safetensors"), FILES),
    "no file": lambda: (facts(), []),
    "an empty model": lambda: (facts(), [MemoryFile("model.onnx", b"")]),
    "a name that leaves": lambda: (facts(), [MemoryFile("../x", b"x")]),
    "an absolute name": lambda: (facts(), [MemoryFile("/x", b"x")]),
    "a reserved name": lambda: (facts(), [*FILES, MemoryFile(".hermetic/else", b"x")]),
    "one name twice": lambda: (facts(), [*FILES, MemoryFile("w.bin", b"x")]),
    "known answers first": lambda: (facts(), [MemoryFile(".hermetic/known-answer", b"x")]),
}


@pytest.mark.parametrize("what", NOT_SEALABLE)
def test_what_cannot_be_a_manifest_is_not_sealed(tmp_path: Path, what: str) -> None:
    some_facts, files = NOT_SEALABLE[what]()
    with pytest.raises(ModelFormatError, match="cannot be sealed"):
        seal(tmp_path / "m", some_facts, files, SIGNER, deliver=Keeper())
    assert names_in(tmp_path) == []


def test_one_algorithm_signs_alone_where_the_publisher_has_one(tmp_path: Path) -> None:
    full = SIGNER.model_dump(by_alias=True)
    signer = PublisherKey.model_validate({"name": "acme", "ed25519": full["ed25519"]})
    keeper = Keeper()
    seal(tmp_path / "m", facts(), FILES[:1], signer, deliver=keeper)
    trusted = json.dumps({"publishers": [signer.publisher().document()]})
    assert open_all((tmp_path / "m").read_bytes(), key=keeper.key, trusted=trusted)
    with pytest.raises(SealedModelError, match="signature-missing"):
        open_all((tmp_path / "m").read_bytes(), key=keeper.key, trusted=TRUSTED)
