"""The methods of inference.GRPCInferenceService: each a function of one request, in one visible table.

Methods that a confidential server does not offer are in the table too: they answer why. ModelInfer's work is in
infer.py, ModelStreamInfer's in streams.py, what models look like in rendering.py, who may call what in access.py.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from hermetic.errors import InvalidRequestError, NotFoundError, NotReadyError, UnsupportedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from hermetic.server.commands import Commands
from hermetic.server.config import Limits
from hermetic.server.gate import Handler, Opener, Request
from hermetic.server.infer import InferenceService
from hermetic.server.model_config import configuration
from hermetic.server.models import Models, ServedModel, parse_version
from hermetic.server.open_streams import OpenStreams
from hermetic.server.rendering import EXTENSIONS, metadata
from hermetic.server.settings_rpc import SettingsRpcs
from hermetic.server.statistics import statistics_message
from hermetic.server.streams import Stream
from hermetic.server.tally import Tally
from hermetic.server.totals import Totals

MessageT = TypeVar("MessageT", bound=Message)

VERSION: Final = importlib.metadata.version("hermetic")  # now: a locked front end reads no files
COLD_MESSAGE_LIMIT: Final = 64 * 1024  # bytes of a request that carries no tensors

_NO_SHARED_MEMORY: Final = (
    "shared memory with a client is not offered: its pages would be open to the host of a confidential machine"
)


class InferenceMethods:
    """GRPCInferenceService over the models at hand. `draining`: the server is going away and takes nothing more."""

    def __init__(
        self, models: Models, commands: Commands, totals: Totals, settings: SettingsRpcs, limits: Limits
    ) -> None:
        self._models = models
        self._commands = commands
        self._totals = totals
        self._settings = settings
        self._infer = InferenceService(models)
        self.streams = OpenStreams(self._infer.infer_streamed, limits)
        self.draining = False

    def table(self) -> dict[str, Handler]:
        """Return every method of the service but ModelStreamInfer -> its handler."""
        handlers: dict[str, Handler] = {
            "ServerLive": _cold(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            "ServerReady": _cold(pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self.ready)),
            "ModelReady": _cold(pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": _cold(pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": _cold(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": _cold(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": _cold(pb.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "TraceSetting": lambda request, message: self._settings.trace(
                request, _parsed(pb.TraceSettingRequest, message)
            ),
            "LogSettings": lambda request, message: self._settings.logging(
                request, _parsed(pb.LogSettingsRequest, message)
            ),
        }
        for kind in ("SystemSharedMemory", "CudaSharedMemory"):
            for verb in ("Status", "Register", "Unregister"):
                handlers[kind + verb] = _refused(_NO_SHARED_MEMORY)
        return {INFERENCE + name: handler for name, handler in handlers.items()}

    def streaming(self) -> dict[str, Opener]:
        """Return the methods with many messages -> what makes the listener of a call."""
        return {INFERENCE + "ModelStreamInfer": lambda gate, call, moment: Stream(gate, call, moment, self.streams)}

    def drain(self) -> None:
        """Take nothing more; streams end when what they asked is answered."""
        self.draining = True
        self.streams.drain()

    @property
    def ready(self) -> bool:
        """Whether the server takes requests, and everything that it was told to serve, and not to unload, is ready."""
        models = [model for model in self._models.served() if not model.stopping]
        return not self.draining and bool(models) and all(model.ready for model in models)

    def check_accepting(self) -> None:
        """Raise `NotReadyError` where the server is going away."""
        if self.draining:
            raise NotReadyError("the server is shutting down")

    def _model_infer(self, request: Request, message: bytes) -> None:
        self.check_accepting()
        self._infer.infer(request, message)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._models.resolve(request.name, request.version)
        except (NotReadyError, NotFoundError):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self.draining)

    def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="hermetic", version=VERSION, extensions=EXTENSIONS)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._models.resolve(request.name, request.version)
        versions = [model.description.version] if request.version else self._models.ready_versions(request.name)
        return metadata(model.description, versions)

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        model = self._models.resolve(request.name, request.version)
        return pb.ModelConfigResponse(config=configuration(model.description, model.delay_us))

    def _model_statistics(self, request: Request, message: bytes) -> None:
        """Answer with the sums over all front ends: the supervisor knows them."""
        wanted = [model.key for model in self._models_meant(_parsed(pb.ModelStatisticsRequest, message))]

        def answer(everyone: Tally) -> bytes:
            found = {tally.key: tally for tally in everyone.models}
            return pb.ModelStatisticsResponse(
                model_stats=[statistics_message(found[key]) for key in wanted if key in found]
            ).SerializeToString()

        self._totals.ask(request, answer)

    def _models_meant(self, request: pb.ModelStatisticsRequest) -> list[ServedModel]:
        version = parse_version(request.version)
        return self._with_statistics(request.name, version) if request.name else self._models.served()

    def _with_statistics(self, name: str, version: int | None) -> list[ServedModel]:
        models = [model for model in self._models.served() if model.description.name == name]
        if not models:
            raise InvalidRequestError(f"requested model '{name}' is not available")
        models = [model for model in models if version in (None, model.description.version)]
        if not models:
            raise InvalidRequestError(f"requested model version is not available for model '{name}'")
        return models

    def _repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason)
                for entry in self._models.index()
                if entry.state == "READY" or not request.ready
            ]
        )

    def _load(self, request: Request, message: bytes) -> None:
        self.check_accepting()
        asked = _parsed(pb.RepositoryModelLoadRequest, message)
        _check_repository(asked.repository_name)
        self._commands.load(request, asked)

    def _unload(self, request: Request, message: bytes) -> None:
        self.check_accepting()
        asked = _parsed(pb.RepositoryModelUnloadRequest, message)
        _check_repository(asked.repository_name)
        self._commands.unload(request, asked)


def _cold(kind: type[MessageT], answer: Callable[[MessageT], Message]) -> Handler:
    """Return a handler that answers at once from what this process knows."""

    def handle(request: Request, message: bytes) -> None:
        request.reply(answer(_parsed(kind, message)).SerializeToString())

    return handle


def _refused(why: str) -> Handler:
    def handle(_request: Request, _message: bytes) -> None:
        raise UnsupportedError(why)

    return handle


def _parsed(kind: type[MessageT], message: bytes) -> MessageT:
    if len(message) > COLD_MESSAGE_LIMIT:
        raise InvalidRequestError(f"message: expected at most {COLD_MESSAGE_LIMIT} bytes, got {len(message)}")
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidRequestError(
            f"message: expected a serialised {kind.__name__}, got bytes that do not parse as one"
        ) from None


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError("'repository_name' specification is not supported")
