"""What every flow stands on: an installation of processes, servers of it with chosen models, and questions to them."""

import contextlib
import json
import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import tritonclient.grpc
from cryptography import x509
from numpy.typing import NDArray

from hermetic.attestation.testing.software_tpm import is_installed
from hermetic.demo.processes import Command
from hermetic.demo.stage import LOAD_TIMEOUT_S, START_TIMEOUT_S, Installation, Served, install
from tests.flows.networks import Network

COMMAND_TIMEOUT_S = 60
FIRST_UID = 100_000  # of the locked processes; far from those that other servers on this host take
UIDS_OF_ONE_TEST_PROCESS = 16

Tee = Literal["tpm", "sample"]
Client: TypeAlias = tritonclient.grpc.InferenceServerClient


@dataclass(slots=True)
class Scene:
    """An installation with a running broker, and the sealed files in it."""

    installation: Installation
    workshop: Path
    """Where plain models are made: it belongs to publishers, not to the installation."""
    sealed: dict[str, Path] = field(default_factory=dict)
    """Name-version of a model, or whatever a test calls a file -> the sealed file."""

    @property
    def folder(self) -> Path:
        return self.installation.folder

    @property
    def models(self) -> Path:
        return self.folder / "server" / "models"

    def seal(self, network: Network) -> Path:
        path = self.installation.seal(network.sealable)
        self.sealed[network.name] = path
        return path

    def configuration(self, files: Sequence[Path], *, replace: Sequence[tuple[str, str]] = ()) -> Path:
        """Write a configuration that serves these sealed files; `replace` changes the rest of it."""
        text = (self.folder / "server" / "server.toml").read_text()
        for old, new in (("[isolation]", f"[isolation]\nuid = {_own_uids()}"), *replace):
            if old not in text:
                raise ValueError(f"server.toml: wanted {old!r} in it")
            text = text.replace(old, new)
        text += "".join(f'\n[[models]]\npath = "{file}"\n' for file in files)
        path = self.folder / "server" / "server-of-test.toml"
        path.write_text(text)
        return path

    @contextlib.contextmanager
    def serve(
        self, ready: Sequence[Path], *, refused: Sequence[Path] = (), replace: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Served]:
        """Run a server of sealed files until the files `ready` are served and the files `refused` are not."""
        configuration = self.configuration([*ready, *refused], replace=replace)
        with Command(["serve", "--config", str(configuration)]) as command:
            served = Served(self.installation, command, listening_port(command), {})
            for file in ready:
                wait_for_state(served, file, "READY")
            for file in refused:
                wait_for_state(served, file, "UNAVAILABLE")
            yield served

    def run(self, *arguments: str | Path) -> str:
        """Run `hermetic ...` to its good end; returns what it printed."""
        with Command([str(argument) for argument in arguments]) as command:
            command.succeed(COMMAND_TIMEOUT_S)
            return command.output

    def inspect(self, sealed: Path) -> dict[str, Any]:
        """What `hermetic inspect` shows of a sealed file."""
        publishers = self.folder / "server" / "publishers.toml"
        shown: dict[str, Any] = json.loads(self.run("inspect", "--json", sealed, "--publishers", publishers))
        return shown

    def records(self, whose: Literal["server", "broker"]) -> list[dict[str, Any]]:
        """The records of a log, read by `hermetic audit`, which verifies it."""
        folder = self.folder / whose
        text = self.run("audit", "show", folder / "log", "--key", folder / "log.pub", "--json", "--limit", "100000")
        records: list[dict[str, Any]] = json.loads(text)["records"]
        return records


def best_tee() -> Tee:
    """A TPM where there is a software one."""
    return "tpm" if is_installed() else "sample"


@contextlib.contextmanager
def scene(tee: Tee) -> Iterator[Scene]:
    """A new installation in a folder whose name is short: a software TPM's sockets live there."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder, install(Path(folder, "i"), tee=tee) as installation:
        yield Scene(installation, Path(folder, "plain"))


def listening_port(command: Command) -> int:
    return int(command.wait_for(r"^listening on .*:(\d+)$", START_TIMEOUT_S)[1])


def wait_for_state(served: Served, file: Path, state: str) -> re.Match[str]:
    """Wait for the server to say so of a sealed file; READY and UNAVAILABLE exclude each other."""
    name, version = file.stem.rsplit("-", 1)
    line = rf"^model {name} version {version}: "
    refusal = line + r"(UNAVAILABLE (?!not loaded|unloaded).*)$"
    if state == "READY":
        return served.server.wait_for(line + "(READY)$", LOAD_TIMEOUT_S, but_not=refusal)
    return served.server.wait_for(refusal, LOAD_TIMEOUT_S, but_not=line + "READY$")


def serving_certificate(served: Served) -> x509.Certificate:
    """What a server shows in a handshake, before it has looked at anything of ours."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", served.port)).encode())


def question(rows: NDArray[np.float32]) -> list[tritonclient.grpc.InferInput]:
    tensor = tritonclient.grpc.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def check_answers(client: Client, network: Network, **options: Any) -> None:
    """The served answers are the plain model's."""
    rows = network.rows()
    result = client.infer(network.name, question(rows), **options)
    np.testing.assert_allclose(result.as_numpy("y"), network.answer(rows), rtol=1e-5, atol=1e-5)


def index_of(operator: Client) -> dict[str, tuple[str, str]]:
    """RepositoryIndex: name -> (state, reason)."""
    return {entry.name: (entry.state, entry.reason) for entry in operator.get_model_repository_index().models}


def _own_uids() -> int:
    """Each worker counts the threads of its uid, so tests that run side by side need other uids."""
    return FIRST_UID + UIDS_OF_ONE_TEST_PROCESS * (os.getpid() % 4096)
