"""The supervisor's side of a front end, for tests: starts the real process and gives it stand-in workers."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import grpc

from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import Channel, data_channel, shared_memory
from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.enclave.zero_on_free import environment, interpreter
from hermetic.errors import BorderError, HermeticError
from hermetic.server import documents
from hermetic.server.config import AccessRule, Limits, ServerConfig
from hermetic.server.epoch_changes import changed_by_caller
from hermetic.server.messages import (
    TO_SUPERVISOR,
    Command,
    CommandReply,
    Drain,
    Drained,
    LinkLost,
    Listening,
    ModelReady,
    ModelStop,
    ModelStopped,
    NewServingKey,
    Records,
    RecordsWritten,
    Repository,
    RepositoryEntry,
    Start,
)
from hermetic.server.settings import Epoch, FrontEndSettings
from hermetic.server.shared_messages import (
    ApplyEpoch,
    AskTally,
    AskTotals,
    ChangeSettings,
    EpochApplied,
    EpochStaged,
    SettingsChanged,
    StageEpoch,
    TallyPart,
    TotalsReply,
    TraceOfRequest,
    Traces,
)
from hermetic.server.tally import Tally, total
from tests.server.certificates import Authority, Pair, subject

TIMEOUT_S = 120


class Pki:
    """Who is who in these tests: two tenants, operators, observers."""

    def __init__(self) -> None:
        self.authority = Authority("clients")
        self.partners = Authority("partners")
        self.server_authority = Authority("servers")
        self.server = self.server_authority.issue_server()
        self.infer = self.authority.issue("alice")
        self.other = self.authority.issue("bob", uris=["spiffe://tests/bob"])
        self.operate = self.authority.issue("oper")
        self.observe = self.authority.issue("watcher")
        self.everything = self.authority.issue("everything")
        self.unlisted = self.authority.issue("mallory")

    def rules(self) -> tuple[AccessRule, ...]:
        """Return the access table."""

        def rule(name: str, tenant: str, *roles: Any) -> AccessRule:
            return AccessRule(authority="clients", name=name, tenant=tenant, roles=roles)

        return (
            rule(subject("alice"), "red", "infer"),
            rule("spiffe://tests/bob", "blue", "infer"),
            rule(subject("oper"), "red", "operate"),
            rule(subject("watcher"), "red", "observe"),
            rule(subject("everything"), "red", "infer", "operate", "observe"),
        )


def settings(pki: Pki, **changes: Any) -> FrontEndSettings:
    """Return a front end's settings."""
    values: dict[str, Any] = {
        "profile": "demo",
        "host": "127.0.0.1",
        "port": 0,
        "reuse_port": False,
        "certificate_chain": pki.server.certificate.decode(),
        "waived": (),
        "uid": 65534,
        "gid": 65534,
    }
    of_epoch = {name: changes.pop(name) for name in Epoch.model_fields if name in changes}
    return FrontEndSettings.model_validate({**values, "epoch": epoch(pki, **of_epoch), **changes})


def epoch(pki: Pki, **changes: Any) -> Epoch:
    """Return an epoch."""
    values: dict[str, Any] = {
        "authorities": {"clients": pki.authority.pem.decode(), "partners": pki.partners.pem.decode()},
        "access": pki.rules(),
        "limits": Limits(),
    }
    values = {**values, **changes}
    values.setdefault("places", tuple(range(1, 1 + len(values["access"]))))
    return Epoch.model_validate(values)


class Worker:
    """A stand-in worker's process."""

    def __init__(
        self,
        description: ModelDescription,
        ready: ModelReady,
        function: str,
        *,
        report: bool,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        place = layout(description, ready.buffers, ready.variable_tensor_bytes)
        self.memory = shared_memory(place.size)
        for file in place.files:
            os.pwrite(self.memory, (files or {})[file.file.name], file.offset)
        self.front_end_side, worker_side = data_channel()
        self._orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(TIMEOUT_S)
        self._batches: deque[dict[str, Any]] = deque()
        options = {
            "description": description.model_dump(mode="json"),
            "buffers": ready.buffers,
            "variable_tensor_bytes": ready.variable_tensor_bytes,
            "function": function,
            "report": report,
        }
        descriptors = (worker_side, self.memory, orders.fileno())
        script = str(Path(__file__).with_name("standin_worker.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, *map(str, descriptors), json.dumps(options)], pass_fds=descriptors
        )
        os.close(worker_side)
        orders.close()

    def order(self, text: str) -> None:
        """Give an order, and wait until it is taken."""
        self._orders.send(text.encode())
        while (report := self._report()) != {"obeyed": text}:
            self._batches.append(report)

    def batch(self) -> dict[str, Any]:
        """Return the report of the next batch."""
        return self._batches.popleft() if self._batches else self._report()

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self._orders.recv(65536))
        return report

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._orders.close()


class FarSide:
    """A front end's process, seen from its supervisor."""

    def __init__(
        self,
        pki: Pki,
        front_end: FrontEndSettings,
        *,
        write: bool = True,
        row: int | None = None,
    ) -> None:
        self.pki = pki
        ours, theirs = Channel.pair()
        key = os.memfd_create("key")
        os.write(key, pki.server.key)
        self.process = subprocess.Popen(
            [*interpreter(), "-m", "hermetic.server.frontend", str(theirs.fileno())],
            env=environment(),
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.channel = ours
        self.channel.settimeout(TIMEOUT_S)
        document = documents.in_memory(documents.encoded(front_end))
        self.channel.send(Start().encode(), (key, document) if row is None else (key, document, row))
        os.close(document)
        os.close(key)
        self.workers: list[Worker] = []
        self.records: list[dict[str, Any]] = []
        self.frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.lost_links: queue.SimpleQueue[LinkLost] = queue.SimpleQueue()
        self.epoch = front_end.epoch
        self._changing: int | None = None  # the id of a change of settings that is under way
        self.traces: list[TraceOfRequest] = []
        self._tally_text = ""
        self._asked = 0  # how often it was asked for its tally
        self.tally = Tally()  # what the front end said last that it has counted
        self.counted_elsewhere = Tally()  # what it is told that others have
        self.write = write  # whether records are acknowledged
        self.obey: Callable[[Command], CommandReply] = lambda command: CommandReply(id=command.id, error="", text="")
        try:
            frame, _ = self.channel.receive()
        except (BorderError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self.process.kill()
            self.process.wait(TIMEOUT_S)
            self.channel.close()
            raise
        self.listening = Listening.decode(frame)
        self.port = self.listening.port
        self.channel.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                frame, _ = self.channel.receive()
            except (BorderError, OSError):
                return
            message = decode_control(frame, TO_SUPERVISOR)
            if isinstance(message, Records):
                self.records += map(json.loads, message.records)
                if self.write:
                    with suppress(BorderError, OSError):  # it has been ended meanwhile
                        self.channel.send(RecordsWritten(count=len(message.records)).encode())
            elif isinstance(message, LinkLost):
                self.lost_links.put(message)
            elif isinstance(message, Command):
                self.frames.put(message)
                self.channel.send(self.obey(message).encode())
            elif not self._heard_of_all(message):
                self.frames.put(message)

    def _heard_of_all(self, message: Frame) -> bool:
        """Whether a frame was about what all front ends do together, and is dealt with."""
        if isinstance(message, TallyPart):
            self._take_tally(message)
        elif isinstance(message, AskTotals):
            self._tell_totals(message)
        elif isinstance(message, Traces):
            self.traces += message.traces
        elif isinstance(message, ChangeSettings):
            self._change_settings(message)
        elif self._changing is not None and isinstance(message, EpochStaged):
            self.channel.send(ApplyEpoch(number=message.number).encode())
        elif self._changing is not None and isinstance(message, EpochApplied):
            answer, self._changing = SettingsChanged(id=self._changing), None
            self.channel.send(answer.encode())
        else:
            return False
        return True

    def _take_tally(self, part: TallyPart) -> None:
        self._tally_text += part.text
        if part.last:
            self.tally = self.tally.followed_by(Tally.model_validate_json(self._tally_text))
            self._tally_text = ""
            if part.ask:
                self.frames.put(part)

    def _change_settings(self, asked: ChangeSettings) -> None:
        """Have the front end take another epoch, as the supervisor would have all of them."""
        try:
            _, epoch = changed_by_caller(asked, cast("ServerConfig", None), self.epoch)
        except HermeticError as error:
            answer = SettingsChanged(id=asked.id, error=type(error).__name__, text=str(error))
            self.channel.send(answer.encode())
            return
        self.epoch = epoch.model_copy(update={"number": self.epoch.number + 1})
        self._changing = asked.id
        text = documents.encoded(self.epoch)
        document = documents.in_memory(text)
        self.channel.send(StageEpoch(number=self.epoch.number, sha256=documents.digest(text)).encode(), (document,))
        os.close(document)

    def _tell_totals(self, asked: AskTotals) -> None:
        document = documents.in_memory(documents.encoded(total((self.tally, self.counted_elsewhere))))
        self.channel.send(TotalsReply(id=asked.id).encode(), (document,))
        os.close(document)

    def next_frame(self, kind: type[Frame]) -> Frame:
        """Return the next frame that is no record; it must be of `kind`."""
        frame = self.frames.get(timeout=TIMEOUT_S)
        assert isinstance(frame, kind), frame
        return frame

    def serve(
        self,
        description: ModelDescription,
        function: str = "echo",
        *,
        report: bool = True,
        files: Mapping[str, bytes] | None = None,
        **changes: int,
    ) -> Worker:
        """Give the front end a worker for a model, and wait until it serves."""
        values = {
            "instance": 0,
            "buffers": 4,
            "batches_in_flight": 2,
            "variable_tensor_bytes": 1 << 16,
            "max_queue_delay_us": 0,
            "requests_waiting": 256,
        }
        ready = ModelReady(description=description, **{**values, **changes})
        worker = Worker(description, ready, function, report=report, files=files)
        self.channel.send(ready.encode(), (worker.front_end_side, worker.memory))
        os.close(worker.front_end_side)
        os.close(worker.memory)
        self.workers.append(worker)
        return worker

    def serve_ensemble(self, description: ModelDescription, generation: int = 1, requests_waiting: int = 256) -> None:
        """Give the front end an ensemble: it has no worker."""
        ready = ModelReady(
            description=description,
            generation=generation,
            instance=0,
            buffers=1,
            batches_in_flight=1,
            variable_tensor_bytes=1 << 16,
            requests_waiting=requests_waiting,
        )
        self.channel.send(ready.encode())

    def publish(self, *entries: RepositoryEntry) -> None:
        """Tell the front end which models exist."""
        self.channel.send(Repository(models=entries).encode())

    def stop_model(self, description: ModelDescription, generation: int = 1) -> None:
        """Have the front end let go of a generation of a model."""
        self.channel.send(ModelStop(name=description.name, version=description.version, generation=generation).encode())

    def await_stopped(self) -> ModelStopped:
        """Return the front end's word that it has let go of a model."""
        frame = self.next_frame(ModelStopped)
        assert isinstance(frame, ModelStopped)
        return frame

    def await_link_lost(self) -> LinkLost:
        """Return the front end's word that it has given up a link to a worker."""
        return self.lost_links.get(timeout=TIMEOUT_S)

    def drain(self, grace_s: float = 10.0) -> None:
        """Have the front end drain."""
        self.channel.send(Drain(grace_s=grace_s).encode())

    def counted(self) -> Tally:
        """Ask the front end for its tally, and return it."""
        self._asked += 1
        self.channel.send(AskTally(ask=self._asked).encode())
        self.next_frame(TallyPart)
        return self.tally

    def await_drained(self) -> tuple[Drained, int]:
        """Return what it says at its end, and its exit status."""
        frame = self.next_frame(Drained)
        assert isinstance(frame, Drained)
        return frame, self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        """End every process."""
        for worker in self.workers:
            worker.kill()
        self.process.kill()
        self.process.wait()
        self._thread.join(TIMEOUT_S)
        self.channel.close()

    def credentials(self, client: Pair | None) -> grpc.ChannelCredentials:
        """Return a client's TLS credentials."""
        if client is None:
            return grpc.ssl_channel_credentials(self.pki.server_authority.pem)
        return grpc.ssl_channel_credentials(self.pki.server_authority.pem, client.key, client.certificate)

    def renew(self, pair: Pair) -> None:
        """Have the front end show another certificate."""
        key = documents.in_memory(pair.key)
        self.channel.send(NewServingKey(certificate_chain=pair.certificate.decode()).encode(), (key,))
        os.close(key)

    @contextmanager
    def channel_as(self, client: Pair | None) -> Iterator[grpc.Channel]:
        """A gRPC channel as `client`."""
        with grpc.secure_channel(f"localhost:{self.port}", self.credentials(client)) as channel:
            yield channel


def description(
    name: str = "echo",
    *,
    version: int = 1,
    inputs: Sequence[tuple[str, str, tuple[int, ...]]] = (("INPUT0", "FP32", (4,)),),
    outputs: Sequence[tuple[str, str, tuple[int, ...]]] | None = None,
    max_batch_size: int = 8,
    shared: bool = False,
    configuration: ModelConfiguration = INFERRED,
) -> ModelDescription:
    """Return a model that a stand-in can serve: its outputs are its inputs under other names."""

    def specs(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in tensors)

    if outputs is None:
        outputs = [(n.replace("INPUT", "OUTPUT"), d, s) for n, d, s in inputs]
    return ModelDescription(
        name=name,
        version=version,
        format="onnx",
        publisher="tests",
        manifest_digest="ab" * 32,
        inputs=specs(inputs),
        outputs=specs(outputs),
        max_batch_size=max_batch_size,
        shared=shared,
        configuration=configuration,
    )
