"""What each refusal of a model's content is called: the table of docs/spec/model-content.md.

An error's text begins with its name, so the name survives every border that carries an error as text. The same rules
hold where a model is sealed and where it is loaded: whoever sealed it may have used another tool.
"""

from enum import StrEnum

from hermetic.errors import ModelFormatError

__all__ = ["ModelRefusal", "model_refusal_of", "refused"]


class ModelRefusal(StrEnum):
    """A reason to refuse what a model's files hold."""

    PROTOBUF = "protobuf"
    PROTOBUF_SIZE = "protobuf-size"
    PROTOBUF_DEPTH = "protobuf-depth"
    PROTOBUF_UNKNOWN = "protobuf-unknown"
    PROTOBUF_TEXT = "protobuf-text"
    GRAPH_NODES = "graph-nodes"
    GRAPH_CYCLE = "graph-cycle"
    GRAPH_NAMES = "graph-names"
    GRAPH_OPERATOR = "graph-operator"
    GRAPH_FUNCTIONS = "graph-functions"
    GRAPH_TRAINING = "graph-training"
    EXTERNAL_DATA = "external-data"
    TENSOR_SHAPE = "tensor-shape"
    TENSOR_SIZE = "tensor-size"
    ARCHIVE = "archive"
    ARCHIVE_NAMES = "archive-names"
    ARCHIVE_OVERLAP = "archive-overlap"
    ARCHIVE_SIZE = "archive-size"
    PICKLE = "pickle"
    NATIVE_CODE = "native-code"
    SAFETENSORS = "safetensors"
    SAFETENSORS_NAMES = "safetensors-names"
    SAFETENSORS_PLACES = "safetensors-places"
    LOADER = "loader"


def refused(refusal: ModelRefusal, detail: str) -> ModelFormatError:
    """Return the error to raise; `detail` is a clause that says what was wanted and got."""
    return ModelFormatError(f"{refusal}: {detail}")


def model_refusal_of(error: ModelFormatError) -> ModelRefusal:
    """Return the name of a refusal; `ValueError` where the error does not carry one."""
    return ModelRefusal(str(error).partition(":")[0])
