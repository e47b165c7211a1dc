"""What is refused before a worker is started, what a worker may say of its model, and which limits its load has."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.supervisor import WorkerSettings
from hermetic.errors import ConfigurationError
from hermetic.server import loading
from hermetic.server.attesting import Attesting, Release
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import Isolation, ModelSettings, ServerConfig
from hermetic.server.cpu_plan import UNPLANNED, Place
from hermetic.server.generation import SealedFile
from hermetic.server.loading import Loader
from tests.enclave import sealed_by_hand
from tests.enclave.sealed_by_hand import forge, manifest_of


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(manifest_of([("model.onnx", b"g")], **changes), strict=False)


def loader(*tenants: str) -> Loader:
    nobody = cast(Attesting, SimpleNamespace())  # nothing gets so far
    return Loader(Isolation(), TrustedPublishers(publishers=()), nobody, tenants)


def test_a_program_that_is_not_shared_serves_one_tenant() -> None:
    """It could keep what one tenant sends, for another to fetch."""
    program = manifest(format="torchscript", shared=False)
    with pytest.raises(ConfigurationError, match="serves one tenant, got \\['first', 'second'\\]"):
        loader("first", "second").load(SealedFile(Path("/nowhere.sealed"), ModelSettings(), program), UNPLANNED)


def test_the_description_is_the_manifests_in_every_field() -> None:
    one = manifest().description()
    for changes in ({"name": "other"}, {"version": 9}, {"shared": not one.shared}, {"max_batch_size": 3}):
        assert manifest(**changes).description() != one
    assert one.manifest_digest == manifest().digest().hex()


SERVER = """
profile = "demo"
publishers = "publishers.toml"
broker = {{ url = "https://b", authority = "a", certificate = "c", key = "k" }}
attestation = {{ tee = "sample", state_folder = "s" }}
log = {{ folder = "l", origin = "o", key = "k" }}
access = [{{ authority = "a", name = "n", tenant = "t", roles = ["infer"] }}]
tls = {{ authorities = {{ a = "a.pem" }} }}
{models}
"""
THREADS = 3


class WorkerDouble:
    """A worker without a process, which keeps how long it may take to open its model, and how its key must come."""

    def __init__(self, settings: WorkerSettings, limits: dict[str, object]) -> None:
        self.settings = settings
        self.limits = limits
        self.public_key: dict[str, str] = {}
        self.hybrid_key, self.report = "", None
        self.description = manifest().description()

    def open(self, _sealed: int, _jwe: bytes, _digest: bytes, *, timeout_s: float, cpu_s: float, **_: object) -> None:
        told = {"threads": self.settings.threads, "key_wrap": self.settings.key_wrap}
        self.limits |= {"timeout_s": timeout_s, "cpu_s": cpu_s, **told}

    def kill(self) -> None:
        pytest.fail("killed")


@pytest.mark.parametrize(
    ("models", "cpu_s", "timeout_s"),
    [
        ('models = [{ path = "one.sealed", load_cpu_s = 7 }]', 7, 120),
        ('repository = { folder = ".", models = { NAME = { load_cpu_s = 0.5, load_timeout_s = 9 } } }', 0.5, 9),
        ('repository = { folder = ".", defaults = { load_cpu_s = 11 } }', 11, 120),
        ('models = [{ path = "one.sealed", load_timeout_s = 20 }]', THREADS * 20, 20),
        ('models = [{ path = "one.sealed", load_cpu_s = "auto" }]', THREADS * 120, 120),
    ],
)
def test_a_loads_limits_come_from_the_servers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str, cpu_s: float, timeout_s: float
) -> None:
    """All the way from server.toml to the worker that is ended by them (tests/enclave/test_load_limits.py)."""
    got = loaded(tmp_path, monkeypatch, models)
    assert got == {"timeout_s": timeout_s, "cpu_s": cpu_s, "threads": THREADS, "key_wrap": "any"}


def test_a_worker_is_told_that_its_key_comes_in_a_hybrid_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its lock-down: it then opens no other, whoever wraps it (tests/enclave/test_worker.py)."""
    assert loaded(tmp_path, monkeypatch, 'models = [{ path = "one.sealed" }]', "hybrid")["key_wrap"] == "hybrid"


def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str, key_wrap: str = "any") -> dict[str, object]:
    """What the worker of a model in this server.toml is given; `key_wrap` is what the server demands."""
    text = SERVER.format(models=models.replace("NAME", f'"{manifest().name}"'))
    (tmp_path / "server.toml").write_text(text)
    (tmp_path / "one.sealed").write_bytes(forge([("model.onnx", b"g")]).pack())
    config = ServerConfig.load(tmp_path / "server.toml")
    trusted = TrustedPublishers.loads(sealed_by_hand.publishers())
    (file,) = Catalogue(config.models, config.repository, trusted).look(settled=False).files.values()

    got: dict[str, object] = {}
    start = SimpleNamespace(start=lambda settings: WorkerDouble(settings, got))
    monkeypatch.setattr(loading, "Worker", start)
    release = Release(b"jwe", "token", None)
    broker = SimpleNamespace(lease_key=str, key_wrap=key_wrap, release_key=lambda *_: release)
    Loader(Isolation(), trusted, cast(Attesting, broker), ("t",)).load(file, Place(threads=THREADS))
    return got
