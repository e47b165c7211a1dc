"""A whole installation on this machine, thrown away afterwards: private CAs, a TPM, a broker, sealed models, a server.

The demo, the benchmarks and the flow tests all stand on it. Everything runs as it would elsewhere: the commands of
`hermetic` as processes of their own, on loopback, on ports that the kernel chooses.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import tritonclient.grpc

from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa
from hermetic.client import CallerPolicy, Tls, connect
from hermetic.client.triton import VerifiedClient
from hermetic.demo.processes import Command
from hermetic.errors import WorkerLostError
from hermetic.provision.authority import Names
from hermetic.provision.demo import DEMO_PUBLISHERS, demo_plan
from hermetic.provision.demo import govern as govern_demo
from hermetic.provision.layout import sign, write
from hermetic.provision.plan import Plan

START_TIMEOUT_S: Final = 180
LOAD_TIMEOUT_S: Final = 180
SEAL_TIMEOUT_S: Final = 120
POLL_S: Final = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sealable:
    """A model to be sealed: its folder or file, and what `hermetic seal` is told of it."""

    source: Path
    name: str
    version: int = 1
    publisher: str = DEMO_PUBLISHERS[0]
    options: tuple[str, ...] = ()
    server_settings: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(slots=True)
class Installation:
    """The folders, and the broker that runs; models are sealed with it."""

    folder: Path
    tee: str
    weaker: Sequence[str]
    broker: Command
    sign_as: str | None
    """Who signs for keys in the step that uploads them, NAME=KEYFILE; None: they stay pending."""
    models: list[Sealable] = field(default_factory=list)

    def seal(self, model: Sealable, on_line: Say = lambda _: None) -> Path:
        """Seal a model and upload its key in the same step; returns the sealed file."""
        with Command(self.seal_arguments(model), on_line) as command:
            command.succeed(SEAL_TIMEOUT_S)
        self.models.append(model)
        return self.sealed_file(model)

    def sealed_file(self, model: Sealable) -> Path:
        """Where `seal` puts a model."""
        return self.folder / "server" / "models" / f"{model.name}-{model.version}.sealed"

    def seal_arguments(self, model: Sealable) -> list[str]:
        """What `hermetic` is told to seal a model."""
        authority = self.folder / "authority"
        arguments = ["seal", str(model.source), "--name", model.name, "--version", str(model.version)]
        arguments += ["--key", f"kbs:///models/{model.name}/{model.version}", "-o", str(self.sealed_file(model))]
        arguments += ["--publisher-key", str(authority / "publishers" / f"{model.publisher}.json")]
        arguments += ["--operator", str(authority / "operator" / "operator.toml")]
        signer = [] if self.sign_as is None else ["--sign-as", self.sign_as]
        return [*arguments, *signer, *model.options]

    def add_to_server(self, model: Sealable) -> None:
        """Name a sealed model in the server's configuration, unless it is there."""
        path = f"models/{model.name}-{model.version}.sealed"
        configuration = self.folder / "server" / "server.toml"
        if f'"{path}"' in configuration.read_text():
            return
        settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in model.server_settings.items())
        with configuration.open("a") as file:
            file.write(f'\n[[models]]\npath = "{path}"\n{settings}')


@dataclass(slots=True)
class Served:
    """A running server. It has the shape of the benchmarks' `Target`."""

    installation: Installation
    server: Command
    port: int
    load_ms: Mapping[str, float]

    @property
    def address(self) -> str:
        """`host:port`, by a name of the serving certificate."""
        return f"localhost:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The CA that certifies serving keys after attestation."""
        return self.installation.folder / "client" / "serving-ca.pem"

    @property
    def certificate_file(self) -> Path:
        """The caller's certificate."""
        return self.installation.folder / "client" / "client.pem"

    @property
    def key_file(self) -> Path:
        """The caller's key."""
        return self.installation.folder / "client" / "client.key"

    @property
    def pids(self) -> Sequence[int]:
        """The server's processes: supervisor, front ends, workers."""
        return descendants(self.server.pid)

    def client(self, *, operator: bool = False) -> tritonclient.grpc.InferenceServerClient:
        """Return the stock client over mutual TLS, as the caller or as the operator."""
        drawer = self.installation.folder / "authority" / "operator"
        certificate, key = (
            (drawer / "operator.pem", drawer / "operator.key") if operator else (self.certificate_file, self.key_file)
        )
        return tritonclient.grpc.InferenceServerClient(
            self.address,
            ssl=True,
            root_certificates=str(self.ca_file),
            private_key=str(key),
            certificate_chain=str(certificate),
        )

    def verified_client(self) -> VerifiedClient:
        """Return a client that has had the server prove what it is, by the caller's own policy."""
        policy = CallerPolicy.load(self.installation.folder / "client" / "caller.toml")
        return connect(self.address, Tls(self.ca_file, self.certificate_file, self.key_file), policy)


@contextmanager
def install(
    folder: Path,
    *,
    tee: Literal["tpm", "snp", "sample"] | None = None,
    devices: Literal["nvidia", "none"] = "none",
    prepare: Callable[[Path], None] = lambda _: None,
    govern: Callable[[Path], str | None] = govern_demo,
) -> Iterator[Installation]:
    """Make an installation in the new folder `folder`, with a running broker; stop it at the end.

    `prepare` may change what is written there before the broker reads it, `govern` names the operators in its log, and
    returns who signs for keys when they are uploaded.
    """
    plan = Plan(
        Names.of_demo(),
        "hermetic.demo",
        devices=devices,
        server_port=0,
        broker_port=0,
        admin_port=0,
        publishers=DEMO_PUBLISHERS,
    )
    plan, weaker = demo_plan(plan, tee=tee)
    with ExitStack() as resources:
        if plan.tee == "tpm":
            ca = SoftwareTpmCa(folder / "tpm-ca")
            tpm = resources.enter_context(SoftwareTpm.manufacture(folder / "tpm", ca))
            plan = replace(plan, tcti=tpm.tcti, ek_authorities=_written(folder / "tpm-ca"))
        write(folder, plan)
        sign(folder)
        prepare(folder)
        sign_as = govern(folder)
        broker = resources.enter_context(
            Command(["broker", "serve", "--json", "--config", str(folder / "broker" / "broker.toml")])
        )
        public = broker.wait_for(r'"public": (\d+)', START_TIMEOUT_S)[1]
        admin = broker.wait_for(r'"admin": (\d+)', START_TIMEOUT_S)[1]
        _set_port(folder / "server" / "server.toml", public)
        _set_port(folder / "authority" / "operator" / "operator.toml", admin)
        yield Installation(folder, plan.tee, weaker, broker, sign_as)


class Serving:
    """The server as a process, with every model that was sealed: a context that gives `Served` once all are ready.

    `drain` is its SIGTERM and exit status; leaving the context drains too.
    """

    def __init__(
        self,
        installation: Installation,
        on_line: Say = lambda _: None,
        *,
        program: Sequence[str] = ("-m", "hermetic"),
    ) -> None:
        """Nothing is started before the context is entered. `program` is what runs as `hermetic serve`."""
        self._program = program
        self._installation = installation
        self._on_line = on_line
        self._began: dict[str, float] = {}
        self._ready: dict[str, float] = {}

    def __enter__(self) -> Served:
        """Start, and wait for each model; `WorkerLostError` with the server's lines where one is refused."""
        for model in self._installation.models:
            self._installation.add_to_server(model)
        configuration = self._installation.folder / "server" / "server.toml"
        self._server = Command(["serve", "--config", str(configuration)], self._hear, program=self._program)
        try:
            port = int(self._server.wait_for(r"^listening on .*:(\d+)$", START_TIMEOUT_S)[1])
            for model in self._installation.models:
                name = rf"^model {model.name} version {model.version}: "
                self._server.wait_for(name + "READY", LOAD_TIMEOUT_S, but_not=name + "UNAVAILABLE (?!not loaded)")
            self._wait_for_front_ends(served := self._served(port))
        except BaseException:
            self._server.__exit__(None, None, None)
            raise
        return served

    def _served(self, port: int) -> Served:
        times = {name: 1000 * (ready - self._began[name]) for name, ready in self._ready.items()}
        return Served(self._installation, self._server, port, times)

    def _wait_for_front_ends(self, served: Served) -> None:
        """Wait until callers see every model: the supervisor knows it a moment earlier."""
        client = served.client()
        end = time.monotonic() + START_TIMEOUT_S
        try:
            while not all(client.is_model_ready(model.name) for model in self._installation.models):
                if time.monotonic() > end:
                    raise WorkerLostError(f"server: wanted every model ready within {START_TIMEOUT_S} s, got not ready")
                time.sleep(POLL_S)
        finally:
            client.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain."""
        self._server.__exit__(kind, error, trace)

    def _hear(self, line: str) -> None:
        if match := re.match(r"^model (\S+) version \d+: (LOADING|READY)$", line):
            times = self._began if match[2] == "LOADING" else self._ready
            times.setdefault(match[1], time.monotonic())
        self._on_line(line)


def descendants(pid: int) -> list[int]:
    """Return `pid` and every process below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it has ended meanwhile
    return found


def _written(folder: Path) -> tuple[Path, ...]:
    """Return the files of the software TPMs' CA: the root, which the broker trusts, and what signs below it."""
    return (folder / "swtpm-localca-rootca-cert.pem", folder / "issuercert.pem")


def _set_port(path: Path, port: str) -> None:
    """Put the port that the kernel chose where the configuration says 0."""
    text = path.read_text()
    path.write_text(text.replace("localhost:0", f"localhost:{port}"))
