"""A whole server with the models of this bench, its processes by their roles, and callers who plant canaries."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

import grpc
import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic.attestation.admin_client import AdminClient
from hermetic.attestation.governance.alone import sign_restore
from hermetic.attestation.log import LogReader, NoteVerifier
from hermetic.attestation.operator_settings import OperatorSettings
from hermetic.bench.cpu_time import OTHER as SERVER
from hermetic.bench.cpu_time import processes_by_role
from hermetic.bench.forget.canaries import Canary, rows_of, tensor, text, weights_of
from hermetic.bench.forget.models import Model, write_model
from hermetic.demo.stage import Installation, Sealable, Served, Serving, descendants, install
from hermetic.errors import MeasurementError
from hermetic.protos.inference import grpc_service_pb2 as pb

__all__ = ["PROCESSES", "Plan", "Process", "Question", "Stage", "staged"]

Process = Literal["front end", "supervisor", "worker", "broker"]
PROCESSES: Final[tuple[Process, ...]] = ("front end", "supervisor", "worker", "broker")

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
CALL_TIMEOUT_S: Final = 60
UNBOUNDED: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
THREADS: Final = 1  # of each model
# What the claims of a JSON Web Token of the broker begin with, and the dot before them: text that only the broker and
# the supervisor know. Not the header: it is the same in all tokens, public, and kept by the signer.
EAR_START: Final = b".eyJlYXRfcHJvZmlsZSI6InRhZzpnaXRodWIuY29tLDIw"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which models take part: format and floats of a row; and how many rows requests have."""

    models: Sequence[tuple[str, int]]
    batches: Sequence[int]


@dataclass(frozen=True, slots=True)
class Question:
    """A request with canaries in all of its parts, and the canaries: its own, and those of its answer."""

    request: pb.ModelInferRequest
    metadata: tuple[tuple[str, str], ...]
    canaries: tuple[Canary, ...]

    @classmethod
    def to(cls, model: Model, rows: int, turns: int = 0) -> Self:
        """A new question: `rows` rows, which take `turns` turns."""
        x, note, token = rows_of(model.columns, rows), text(), text()
        request = pb.ModelInferRequest(model_name=model.name, id=note)
        request.parameters["note"].string_param = note
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        request.inputs.add(name="turns", datatype="INT64", shape=[rows, 1])
        request.raw_input_contents.extend([x.tobytes(), np.full(rows, turns, np.int64).tobytes()])
        what = f"{model.name}, {rows} rows"
        canaries = (
            tensor("input", what, x),
            tensor("output", what, x * 2),
            Canary.of("metadata", what, note.encode()),
            Canary.of("token", what, token.encode()),
        )
        return cls(request, (("x-note", note), ("authorization", f"Bearer {token}")), canaries)


class Caller:
    """One connection of a client."""

    def __init__(self, served: Served) -> None:
        files = (served.ca_file, served.key_file, served.certificate_file)
        credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
        self._channel = grpc.secure_channel(served.address, credentials, UNBOUNDED)
        self._infer = self._channel.unary_unary(
            METHOD,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

    def ask(self, question: Question) -> None:
        """Ask and check the answer; `MeasurementError` where it is none, or another."""
        try:
            answer = self._infer(question.request, metadata=question.metadata, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise MeasurementError(f"{question.request.model_name}: wanted an answer, got {error}") from None
        # So that a canary of an answer is one that really was there.
        if not answer.raw_output_contents[0].startswith(question.canaries[1].patterns["raw"]):
            raise MeasurementError(f"{question.request.model_name}: wanted twice the input, got another answer")

    def begin(self, question: Question) -> Any:  # noqa: ANN401 - gRPC has no types
        """Send a question; returns the call."""
        return self._infer.future(question.request, metadata=question.metadata, timeout=CALL_TIMEOUT_S)

    def close(self) -> None:
        """Go away."""
        self._channel.close()


@dataclass(slots=True)
class Stage:
    """The running server and broker, and what is known of their secrets."""

    served: Served
    installation: Installation
    models: Sequence[Model]
    plan: Plan
    keys: Sequence[Canary]
    asked: list[Canary] = field(default_factory=list)
    """Canaries of every question so far."""

    def processes(self) -> dict[Process, list[int]]:
        """The process ids of each role, now."""
        ours = processes_by_role(self.served.pids)
        return {
            "front end": ours.get("front end", []),
            "supervisor": ours.get(SERVER, []),
            "worker": ours.get("worker", []),
            "broker": descendants(self.installation.broker.pid),
        }

    def worker_of(self, model: Model) -> int:
        """The process id of the worker that has loaded the model last."""
        folder = self.installation.folder / "server"
        log = LogReader(folder / "log", NoteVerifier.parse((folder / "log.pub").read_text()))
        pids = [r.fields["pid"] for r in log.records() if r.kind == "model.loaded" and r.fields["model"] == model.name]
        if not pids or not isinstance(pids[-1], int):
            raise MeasurementError(f"the server's log: wanted the worker of {model.name}, got none")
        return pids[-1]

    def revoke(self, model: Model) -> None:
        """Revoke every lease of a model, as the broker's operator."""
        with self._broker() as broker:
            if not broker.revoke_leases({"model": model.name}, "bench forget"):
                raise MeasurementError(f"{model.name}: wanted a lease to revoke, got none")

    def restore(self, model: Model) -> None:
        """Take that back, and have the model loaded again."""
        signer = self.installation.sign_as
        if signer is None:
            raise MeasurementError("expected an installation where one signature is enough")
        with self._broker() as broker:
            sign_restore(broker, {"model": model.name}, "bench forget", signer)
        operator = self.served.client(operator=True)
        operator.load_model(model.name)
        operator.close()

    def _broker(self) -> AdminClient:
        operator = self.installation.folder / "authority" / "operator" / "operator.toml"
        return OperatorSettings.load(operator).connect()

    def question(self, model: Model, rows: int, turns: int = 0) -> Question:
        """A question whose canaries are looked for from now on."""
        question = Question.to(model, rows, turns)
        self.asked += question.canaries
        return question

    def caller(self) -> Caller:
        """A new connection."""
        return Caller(self.served)

    @property
    def weights(self) -> list[Canary]:
        """The canaries of all models."""
        return [canary for model in self.models for canary in weights_of(model)]


@contextmanager
def staged(plan: Plan) -> Iterator[Stage]:
    """Seal the models of a plan and serve them; everything is stopped and removed afterwards."""
    random = np.random.default_rng()
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-forget-") as folder,
        install(Path(folder) / "installation") as installation,
    ):
        models = [
            write_model(Path(folder) / f"{form}-{columns}", f"{form}-{columns}", form, columns, random)
            for form, columns in plan.models
        ]
        with ThreadPoolExecutor(2) as pool:
            keys = dict(pool.map(lambda model: (model.name, _seal(installation, model)), models))
        kek = next((installation.folder).rglob("credentials/kek")).read_bytes()
        with Serving(installation) as served:
            yield Stage(served, installation, models, plan, _keys(kek, keys))


def _seal(installation: Installation, model: Model) -> bytes:
    """Seal a model; returns its key, which nobody else keeps beside the broker."""
    kept = model.folder.with_suffix(".key")
    options = ("--key-out", str(kept), "--threads", str(THREADS))
    installation.seal(Sealable(model.folder, model.name, options=options, server_settings={"threads": THREADS}))
    return kept.read_bytes()


def _keys(kek: bytes, models: Mapping[str, bytes]) -> list[Canary]:
    """The keys of the models, the key that wraps them in the broker, and what is derived of it (local_kek.py)."""
    keys = [Canary.of("key", f"model key of {name}", key) for name, key in models.items()]
    keys.append(Canary.of("key", "key-encryption key", kek))
    derived = HKDF(SHA256(), len(kek), None, b"hermetic-wrapped-key/2 wrap").derive(kek)
    keys.append(Canary.of("key", "key-encryption key, wrap", derived))
    return [*keys, Canary("token", "attestation token", {"raw": EAR_START})]
