"""Which files are believed: signed, all there, and settled where that is asked for."""

import os
from pathlib import Path

import pytest

from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import ConfigurationError
from hermetic.server import catalogue
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import Model, ModelSettings, RepositorySettings
from tests.enclave import sealed_by_hand
from tests.enclave.sealed_by_hand import OTHER_SEEDS, forge

TRUSTED = TrustedPublishers.loads(sealed_by_hand.publishers())


def content(name: str = "iris", version: int = 1, payload: bytes = b"graph") -> bytes:
    return forge([("model.onnx", payload)], name=name, version=version).pack()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def catalogue_of(folder: Path, *listed: Model, **settings: object) -> Catalogue:
    return Catalogue(listed, RepositorySettings.model_validate({"folder": folder, **settings}), TRUSTED)


def names(one: Catalogue, *, settled: bool = False) -> dict[str, tuple[str, int]]:
    files = one.look(settled=settled).files.values()
    return {file.path.name: (file.manifest.name, file.manifest.version) for file in files}


def test_sealed_files_of_the_folder_are_found_and_others_are_not_looked_at(folder: Path) -> None:
    (folder / "iris-1.sealed").write_bytes(content())
    (folder / "iris-2.sealed").write_bytes(content(version=2))
    (folder / ".iris-3.sealed").write_bytes(content(version=3))
    (folder / "iris-4.sealed.part").write_bytes(content(version=4))
    (folder / "folder.sealed").mkdir()
    os.mkfifo(folder / "pipe.sealed")
    one = catalogue_of(folder)
    assert names(one) == {"iris-1.sealed": ("iris", 1), "iris-2.sealed": ("iris", 2)}
    assert one.look(settled=False).refused == {}


def test_what_nobody_trusted_has_signed_is_refused_under_its_files_name(folder: Path) -> None:
    (folder / "junk.sealed").write_bytes(b"junk")
    (folder / "forged.sealed").write_bytes(forge([("model.onnx", b"g")], seeds=OTHER_SEEDS).pack())
    listing = catalogue_of(folder).look(settled=False)
    assert not listing.files
    assert {path.name for path in listing.refused} == {"junk.sealed", "forged.sealed"}
    assert all("SealedModelError" in reason for reason in listing.refused.values())


@pytest.mark.parametrize("kept", [10, 200, -1])
def test_a_file_that_is_not_all_there_is_refused_until_it_is(folder: Path, kept: int) -> None:
    file, whole = folder / "iris-1.sealed", content()
    file.write_bytes(whole[:kept])
    one = catalogue_of(folder)
    assert list(one.look(settled=False).refused) == [file]
    file.write_bytes(whole)
    assert names(one) == {"iris-1.sealed": ("iris", 1)}


def test_a_file_of_the_right_length_is_not_believed_while_it_changes(folder: Path) -> None:
    one, file = catalogue_of(folder), folder / "iris-1.sealed"
    one.look(settled=True)
    file.write_bytes(content())
    listing = one.look(settled=True)
    assert not listing.files
    assert listing.unsettled == {file}
    os.utime(file, ns=(1, 1))  # somebody writes again
    assert one.look(settled=True).unsettled == {file}
    assert names(one, settled=True) == {"iris-1.sealed": ("iris", 1)}


def test_a_file_that_is_only_renamed_is_believed_at_once(folder: Path) -> None:
    one, file = catalogue_of(folder), folder / "iris-1.sealed"
    file.write_bytes(content())
    one.look(settled=False)
    file.rename(folder / "other.sealed")
    assert names(one, settled=True) == {"other.sealed": ("iris", 1)}


def test_an_unchanged_file_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = catalogue.read_manifest

    def counted(path: Path, trusted: TrustedPublishers) -> Manifest:
        reads.append(path)
        return read(path, trusted)

    monkeypatch.setattr(catalogue, "read_manifest", counted)
    one, file = catalogue_of(folder), folder / "iris-1.sealed"
    file.write_bytes(content())
    for _ in range(3):
        one.look(settled=False)
    assert reads == [file]
    file.write_bytes(content(payload=b"another graph"))
    one.look(settled=False)
    assert reads == [file, file]


def test_one_version_in_two_files_is_served_from_the_first(folder: Path) -> None:
    (folder / "a.sealed").write_bytes(content())
    (folder / "b.sealed").write_bytes(content())
    listing = catalogue_of(folder).look(settled=False)
    assert [path.name for path in listing.files] == ["a.sealed"]
    assert listing.refused == {folder / "b.sealed": "iris version 1 is in a.sealed already"}


def test_named_files_come_first_and_keep_their_settings(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "z.sealed"
    named.write_bytes(content())
    (folder / "rose.sealed").write_bytes(content("rose"))
    (folder / "lily.sealed").write_bytes(content("lily"))
    one = catalogue_of(
        folder,
        Model(path=named, instances=3, load_at_start=False),
        defaults=ModelSettings(buffers=8),
        models={"lily": ModelSettings(buffers=16)},
    )
    one.check()
    files = {file.manifest.name: file for file in one.look(settled=False).files.values()}
    assert files["iris"].settings == ModelSettings(instances=3)
    assert (files["rose"].settings.buffers, files["lily"].settings.buffers) == (8, 16)
    assert {name: one.load_at_start(file.path) for name, file in files.items()} == {
        "iris": False,
        "rose": True,
        "lily": True,
    }


def test_more_files_than_the_limit_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FILES_LIMIT", 1)
    (folder / "iris-1.sealed").write_bytes(content())
    (folder / "iris-2.sealed").write_bytes(content(version=2))
    listing = catalogue_of(folder).look(settled=False)
    assert [path.name for path in listing.files] == ["iris-1.sealed"]
    assert [path.name for path in listing.refused] == ["iris-2.sealed"]


def test_a_named_file_or_folder_that_is_not_there_stops_the_start(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.sealed"):
        catalogue_of(folder, Model(path=folder / "gone.sealed")).check()
    with pytest.raises(ConfigurationError, match="nowhere"):
        catalogue_of(folder / "nowhere").check()


def test_a_folder_that_goes_away_takes_its_files_with_it(folder: Path) -> None:
    file = folder / "iris-1.sealed"
    file.write_bytes(content())
    one = catalogue_of(folder)
    assert names(one)
    file.unlink()
    folder.rmdir()
    assert names(one) == {}
