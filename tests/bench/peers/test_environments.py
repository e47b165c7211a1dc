"""What peers' environments are made from: exact versions with hashes, the ones that are named."""

import re
from pathlib import Path

import pytest

from hermetic.bench.peers import environments
from hermetic.errors import ConfigurationError, MeasurementError


@pytest.mark.parametrize("peer", environments.VERSIONS)
def test_every_package_is_exact_and_has_hashes(peer: str) -> None:
    text = "\n".join(line for line in environments.lock_file(peer).read_text().splitlines() if "#" not in line)
    entries = [entry for entry in re.split(r"\n(?=[a-z])", text.strip()) if entry]
    assert f"{peer}=={environments.VERSIONS[peer]} " in text
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="wanted one of kserve, mlserver"):
        environments.interpreter("nginx")


def test_a_failed_installation_is_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(command: list[str], what: str) -> None:
        asked.append(what)
        made = tmp_path / next(tmp_path.iterdir()).name if what.endswith("install") else Path(command[-1])
        made.mkdir(exist_ok=True)
        if asked.count("kserve: pip install") == 1 and what.endswith("install"):
            raise MeasurementError("kserve: pip install failed")

    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(MeasurementError, match="pip install failed"):
        environments.interpreter("kserve", tmp_path)
    whole = environments.interpreter("kserve", tmp_path)  # it is made anew, and then kept
    assert environments.interpreter("kserve", tmp_path) == whole
    assert asked == ["kserve: venv", "kserve: pip install"] * 2
