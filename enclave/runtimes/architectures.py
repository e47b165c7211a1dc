"""Architectures whose weights can be served from safetensors: the code is here, reviewed; a model brings numbers only.

To add one: a function from its `config.json` to a module, a line in `ARCHITECTURES`, a test that loads it.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from hermetic.errors import ModelFormatError

__all__ = ["ARCHITECTURES", "MlpClassifier", "build"]

Size = Annotated[int, Field(ge=1, le=1 << 20)]


class MlpConfig(BaseModel):
    """`layers`: features from the input to the classes; `output`: what the last layer's values become."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    layers: Annotated[list[Size], Field(min_length=2, max_length=256)]
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    output: Literal["logits", "softmax"] = "logits"


_ACTIVATIONS: Final[Mapping[str, Callable[[], nn.Module]]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MlpClassifier(nn.Module):
    """A multi-layer perceptron: parameters `layers.0.weight`, `layers.0.bias`, `layers.1.weight`, ..."""

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        sizes = zip(config.layers, config.layers[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(given, wanted) for given, wanted in sizes)
        self.activation = _ACTIVATIONS[config.activation]()
        self.softmax = config.output == "softmax"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, classes] for `x` of [rows, features]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        x = last(x)
        return torch.softmax(x, dim=-1) if self.softmax else x


def _mlp_classifier(config: Mapping[str, object]) -> nn.Module:
    return MlpClassifier(MlpConfig.model_validate(config))


ARCHITECTURES: Final[Mapping[str, Callable[[Mapping[str, object]], nn.Module]]] = {"mlp-classifier": _mlp_classifier}
"""Name as in the manifest's `architecture` -> what builds it from `config.json`."""


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the architecture `name` without memory for its weights; `ModelFormatError` where there is none such."""
    if name not in ARCHITECTURES:
        raise ModelFormatError(f"architecture: wanted one of {sorted(ARCHITECTURES)}, got {name!r}")
    try:
        with torch.device("meta"):
            return ARCHITECTURES[name](config)
    except ValidationError as error:
        fields = [".".join(map(str, problem["loc"])) for problem in error.errors()]
        raise ModelFormatError(
            f"architecture {name}: wanted a fitting config.json, got wrong members: {fields}"
        ) from None
