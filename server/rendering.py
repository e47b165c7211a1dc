"""What the protocol shows of a model: its metadata and its configuration, from the description. Pure."""

from typing import Final

from hermetic.enclave.messages import ModelDescription, TensorSpec
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.protos.inference import model_config_pb2 as config_pb

EXTENSIONS: Final = ("model_configuration", "model_repository", "statistics")
"""The extensions of the protocol that work here, exactly."""

_PLATFORMS: Final = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_libtorch", "torch-export": "pytorch_export"}
_BACKENDS: Final = {
    "onnx": "onnxruntime",
    "torchscript": "pytorch",
    "torch-export": "pytorch",
    "safetensors": "pytorch",
}


def metadata(description: ModelDescription, versions: list[int]) -> pb.ModelMetadataResponse:
    """Return the model's metadata; shapes include the batch dimension, as Triton's do."""
    batch = (-1,) if description.max_batch_size else ()
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=description.name,
        versions=list(map(str, versions)),
        platform=_PLATFORMS.get(description.format, description.format),
        inputs=[tensor(name=s.name, datatype=s.datatype, shape=(*batch, *s.shape)) for s in description.inputs],
        outputs=[tensor(name=s.name, datatype=s.datatype, shape=(*batch, *s.shape)) for s in description.outputs],
    )


def configuration(description: ModelDescription, delay_us: int) -> config_pb.ModelConfig:
    """Return the model's configuration; shapes leave out the batch dimension, as Triton's do."""
    config = config_pb.ModelConfig(
        name=description.name,
        platform=_PLATFORMS.get(description.format, description.format),
        backend=_BACKENDS.get(description.format, ""),
        max_batch_size=description.max_batch_size,
        input=[config_pb.ModelInput(name=s.name, data_type=_data_type(s), dims=s.shape) for s in description.inputs],
        output=[config_pb.ModelOutput(name=s.name, data_type=_data_type(s), dims=s.shape) for s in description.outputs],
    )
    config.version_policy.specific.versions.append(description.version)
    if description.max_batch_size:
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    return config


def _data_type(spec: TensorSpec) -> config_pb.DataType.ValueType:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return config_pb.DataType.Value(f"TYPE_{name}")
