"""What the protocol shows of the server and of a model's tensors. Its configuration is model_config.py's. Pure."""

from typing import Final

from hermetic.enclave.model_description import ModelDescription
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.model_config import PLATFORMS

EXTENSIONS: Final = (
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "trace",
)
"""The extensions of the protocol that work here, exactly: tests/server/test_extensions.py uses each."""


def metadata(description: ModelDescription, versions: list[int]) -> pb.ModelMetadataResponse:
    """Return the model's metadata; shapes include the batch dimension, as Triton's do."""
    batch = (-1,) if description.max_batch_size else ()
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=description.name,
        versions=list(map(str, versions)),
        platform=PLATFORMS.get(description.format, description.format),
        inputs=[tensor(name=s.name, datatype=s.datatype, shape=(*batch, *s.shape)) for s in description.inputs],
        outputs=[tensor(name=s.name, datatype=s.datatype, shape=(*batch, *s.shape)) for s in description.outputs],
    )
