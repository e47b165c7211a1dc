"""What a publisher says of a model beside its files: `model.toml`, and the same from the command line.

An ONNX graph names its own inputs and outputs; a torch program or weights do not, so they stand here. Unknown keys are
refused. Not here: reading the files (collect.py).

    format = "torch-export"        # where the file's name does not tell
    max_batch_size = 64            # shapes then leave out the batch dimension
    [[inputs]]
    name = "features"
    datatype = "FP32"
    shape = [30]
    [[outputs]]
    ...
    [known_answer.ranges]          # how inputs are made up for which the answers are computed
    features = [-3.0, 3.0]
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermetic.enclave.manifest import NAME_PATTERN, ModelFormat, explain
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import ConfigurationError

__all__ = ["DESCRIPTION_NAME", "Description", "SampleRules"]

DESCRIPTION_NAME: Final = "model.toml"
DESCRIPTION_LIMIT: Final = 1 << 20  # bytes
ROWS_LIMIT: Final = 4096  # rows of one computed case
FREE_DIMENSION_LIMIT: Final = 1 << 20  # elements

Range = tuple[float, float]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleRules(_Form):
    """How inputs are made up. `ranges`: values from low up to, not including, high, for an input by name."""

    rows: Annotated[int, Field(ge=1, le=ROWS_LIMIT)] = 4
    free_dimension: Annotated[int, Field(ge=1, le=FREE_DIMENSION_LIMIT)] = 8
    ranges: Mapping[str, Range] = Field(default_factory=dict)


class Description(_Form):
    """Everything that a publisher may say. None: the file's name or the graph tells."""

    format: ModelFormat | None = None
    architecture: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    max_batch_size: Annotated[int, Field(ge=0, lt=2**31)] = 0
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    extra_files: tuple[str, ...] = ()
    """Files that are sealed although the model does not name them."""
    ignored_files: tuple[str, ...] = ()
    """Patterns of files in the model's folder that are left out."""
    shared: bool = False
    """One worker may serve several tenants although the format is code."""
    known_answer: SampleRules = Field(default_factory=SampleRules)

    @classmethod
    def load(cls, path: Path | None, overrides: Mapping[str, Any]) -> Self:
        """Return the description in the file at `path` (none: an empty one), with what the command line says instead.

        An override of None says nothing. Raises `ConfigurationError`.
        """
        said = {} if path is None else _read(path)
        said |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            raise ConfigurationError(f"{path or 'model'}: {explain(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.loads(file.read(DESCRIPTION_LIMIT).decode())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: expected TOML, got {error}") from None
