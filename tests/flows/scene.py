"""What every flow stands on: an installation of processes, servers of it with chosen models, and questions to them."""

import contextlib
import json
import os
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from unittest import mock

import numpy as np
import pytest
import tritonclient.grpc
from cryptography import x509
from numpy.typing import NDArray
from typer.testing import CliRunner

from hermetic.attestation.log import LogReader, NoteVerifier
from hermetic.attestation.log.record import Record
from hermetic.attestation.testing.software_tpm import is_installed
from hermetic.cli import broker_kek, build, seal
from hermetic.demo.processes import Command
from hermetic.demo.stage import START_TIMEOUT_S, Installation, Sealable, Served, install
from hermetic.provision.demo import govern as govern_demo
from tests.flows.networks import Network

LINE_TIMEOUT_S = 240  # a worker with torch, on a machine with other things to do
REFUSED = "UNAVAILABLE (?!not loaded|unloaded)"

Tee = Literal["tpm", "snp", "sample"]
Client: TypeAlias = tritonclient.grpc.InferenceServerClient


class Ear:
    """The lines that a process prints, so that one can wait for a line after a moment of one's own."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def hear(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    @property
    def now(self) -> int:
        """The present moment, for `wait_for`."""
        return len(self._lines)

    def wait_for(self, pattern: str, after: int, *, but_not: str = r"(?!)") -> str:
        """Return the first line of that pattern from the moment `after` on."""
        return self._lines[self._place_of(pattern, after, but_not)]

    def wait_for_each(self, *patterns: str, after: int) -> None:
        """Wait for lines of these patterns, each after the one before.

        What was said before the moment `after` may still be heard after it: only the first pattern need be new.
        """
        for pattern in patterns:
            after = self._place_of(pattern, after, r"(?!)") + 1

    def _place_of(self, pattern: str, after: int, but_not: str) -> int:
        def found() -> bool:
            return any(re.search(f"{pattern}|{but_not}", line) for line in self._lines[after:])

        with self._changed:
            heard = self._changed.wait_for(found, LINE_TIMEOUT_S)
        lines = enumerate(self._lines[after:], after)
        place = next((at for at, line in lines if re.search(f"{pattern}|{but_not}", line)), 0) if heard else 0
        if not heard or re.search(but_not, self._lines[place]):
            pytest.fail(f"wanted a line like {pattern!r}, got:\n" + "\n".join(self._lines[after:]))
        return place


@dataclass(slots=True)
class Running(Served):
    """A running server, whose lines can be waited for."""

    ear: Ear

    def wait_until_ready(self, file: Path, after: int = 0) -> None:
        self.ear.wait_for(f"{_model(file)}READY$", after, but_not=_model(file) + REFUSED)

    def wait_until_refused(self, file: Path, after: int = 0) -> str:
        return self.ear.wait_for(_model(file) + REFUSED, after, but_not=f"{_model(file)}READY$")

    def wait_until_lost_and_ready(self, file: Path, after: int) -> None:
        """Wait for a worker's loss to be said, and then for the model to come back by itself."""
        self.ear.wait_for_each(_model(file) + "UNAVAILABLE worker lost", f"{_model(file)}READY$", after=after)

    def children(self, program: str) -> list[int]:
        """The process ids of `hermetic.server.frontend` or `hermetic.enclave.worker`."""
        return [pid for pid in self.pids if program in _arguments(pid)]


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
        """Seal in this process, with an answer of the plain model: a worker and a process less for each."""
        rows, golden = network.rows(1), self.workshop / f"{network.name}-{network.sealable.version}.npz"
        np.savez(golden, allow_pickle=False, **{"inputs/x": rows, "outputs/y": network.answer(rows)})
        path = self.sealed[network.name] = self.seal_model(network.sealable, "--golden", golden)
        return path

    def seal_model(self, model: Sealable, *options: str | Path) -> Path:
        """Seal in this process; a locked worker computes the answers, where `options` name none."""
        self.run(*self.installation.seal_arguments(model), *options)
        return self.installation.sealed_file(model)

    def configuration(
        self, files: Sequence[Path], *, replace: Sequence[tuple[str, str]] = (), each: Sequence[str] = ()
    ) -> Path:
        """Write a configuration that serves these sealed files; `replace` changes the rest of it.

        `each`: more settings of each file, in their order.
        """
        text = (self.folder / "server" / "server.toml").read_text()
        for old, new in replace:
            if old not in text:
                raise ValueError(f"server.toml: wanted {old!r} in it")
            text = text.replace(old, new)
        settings = each or [""] * len(files)
        text += "".join(f'\n[[models]]\npath = "{file}"\n{more}\n' for file, more in zip(files, settings, strict=True))
        path = self.folder / "server" / "server-of-test.toml"
        path.write_text(text)
        return path

    @contextlib.contextmanager
    def serve(
        self,
        ready: Sequence[Path],
        *,
        refused: Sequence[Path] = (),
        replace: Sequence[tuple[str, str]] = (),
        program: Sequence[str] = ("-m", "hermetic"),
        each: Sequence[str] = (),
    ) -> Iterator[Running]:
        """Run a server of sealed files until the files `ready` are served and the files `refused` are not."""
        configuration = self.configuration([*ready, *refused], replace=replace, each=each)
        ear = Ear()
        with Command(["serve", "--config", str(configuration)], ear.hear, program=program) as command:
            port = int(command.wait_for(r"^listening on .*:(\d+)$", START_TIMEOUT_S)[1])
            running = Running(self.installation, command, port, {}, ear)
            for file in ready:
                running.wait_until_ready(file)
            for file in refused:
                running.wait_until_refused(file)
            yield running

    def run(self, *arguments: str | Path) -> str:
        """Run `hermetic ...` in this process, which stays as it is, to its good end; returns what it printed."""
        with contextlib.ExitStack() as kept:
            kept.enter_context(mock.patch.dict(os.environ, HERMETIC_ZERO_ON_FREE="1"))  # as if replaced already
            for module in (seal, broker_kek):
                kept.enter_context(mock.patch.object(module, "keep_memory_private"))
            result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
        if result.exit_code:
            pytest.fail(f"{arguments[0]}: wanted exit status 0, got {result.exit_code}:\n{result.output}")
        return result.output

    def inspect(self, sealed: Path) -> dict[str, Any]:
        """What `hermetic inspect` shows of a sealed file."""
        publishers = self.folder / "server" / "publishers.toml"
        shown: dict[str, Any] = json.loads(self.run("inspect", "--json", sealed, "--publishers", publishers))
        return shown

    def records(self, whose: Literal["server", "broker"]) -> list[Record]:
        """All records of a log; its signatures are verified on the way."""
        folder = self.folder / whose
        return list(LogReader(folder / "log", NoteVerifier.parse((folder / "log.pub").read_text())).records())


def best_tee() -> Tee:
    """A TPM where there is a software one."""
    return "tpm" if is_installed() else "sample"


@contextlib.contextmanager
def scene(
    tee: Tee,
    prepare: Callable[[Path], None] = lambda _: None,
    *,
    devices: Literal["nvidia", "none"] = "none",
    govern: Callable[[Path], str | None] = govern_demo,
) -> Iterator[Scene]:
    """A new installation in a folder whose name is short: a software TPM's sockets live there."""
    with (
        tempfile.TemporaryDirectory(prefix="hf-") as folder,
        install(Path(folder, "i"), tee=tee, devices=devices, prepare=prepare, govern=govern) as installation,
    ):
        yield Scene(installation, Path(folder, "plain"))


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


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def index_of(operator: Client) -> dict[str, tuple[str, str]]:
    """RepositoryIndex: name -> (state, reason)."""
    return {entry.name: (entry.state, entry.reason) for entry in operator.get_model_repository_index().models}


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return []


def _model(file: Path) -> str:
    name, version = file.stem.rsplit("-", 1)
    return rf"^model ({re.escape(name)} version {version}|{re.escape(file.name)} version 1): "
