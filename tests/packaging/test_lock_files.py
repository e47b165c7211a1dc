"""What is installed is locked: exact versions, every one with hashes, and every declared dependency among them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"), key=lambda path: path.name)
LOCKS = [path for path in LOCKS if path.name != "overrides.txt"]


def _entries(path: Path) -> list[str]:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    return [entry for entry in re.split(r"\n(?=[a-z])", text.replace("\\\n", " ")) if entry.strip()]


def _locked() -> dict[str, list[Version]]:
    versions: dict[str, list[Version]] = {}
    for path in (ROOT / "requirements" / "dev.txt", ROOT / "requirements" / "tpm.txt"):
        for entry in _entries(path):
            requirement = Requirement(entry.split(" --hash")[0])
            version = re.fullmatch(r"==(\S+)", str(requirement.specifier))
            assert version is not None, entry
            versions.setdefault(requirement.name, []).append(Version(version[1]))
    return versions


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_entry_is_exact_and_has_hashes(path: Path) -> None:
    for entry in _entries(path):
        assert re.match(r"[a-z0-9-]+==[^\s;]+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_every_declared_dependency_is_locked_in_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: entries for name, entries in project["optional-dependencies"].items() if name not in ("torch", "gpu")
    }
    locked = _locked()
    for entry in [*project["dependencies"], *(entry for entries in extras.values() for entry in entries)]:
        requirement = Requirement(entry)
        assert requirement.name in locked, f"{entry} is not locked: run `make lock`"
        for version in locked[requirement.name]:
            assert version in requirement.specifier, f"{entry}, locked {version}: run `make lock`"


@pytest.mark.parametrize("name", ["server.txt", "build.txt"])
def test_what_is_released_is_what_was_tested(name: str) -> None:
    versions = {entry.split(" ")[0] for entry in _entries(ROOT / "requirements" / "dev.txt")}
    for entry in _entries(ROOT / "requirements" / name):
        assert entry.split(" ")[0] in versions, entry


def test_torch_is_the_same_version_wherever_it_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = project["optional-dependencies"]["torch"]
    install = (ROOT / "requirements" / "install").read_text()
    assert f"TORCH={torch.removeprefix('torch==')}" in install
