"""Ask the served models through the stock `tritonclient`, and compare with what the plain models answer here."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import tritonclient.grpc
from magika import Magika
from numpy.typing import NDArray

from hermetic.errors import KnownAnswerError

ABSOLUTE_TOLERANCE: Final = 1e-5  # of a probability


class Asked:
    """A served model with one input and one output, and how long each answer took."""

    def __init__(self, client: tritonclient.grpc.InferenceServerClient, model: str, datatype: str) -> None:
        """Look up the model's one input and output; `datatype` is the input's v2 datatype."""
        metadata = client.get_model_metadata(model)
        self.model = model
        self.milliseconds: list[float] = []
        self._client = client
        self._datatype = datatype
        self._input = metadata.inputs[0].name
        self._output = metadata.outputs[0].name

    def __call__(self, rows: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the model's answer to `rows`, of any number."""
        tensor = tritonclient.grpc.InferInput(self._input, list(rows.shape), self._datatype)
        tensor.set_data_from_numpy(rows)
        begin = time.perf_counter()
        result = self._client.infer(self.model, [tensor])
        self.milliseconds.append(1000 * (time.perf_counter() - begin))
        answer: NDArray[np.float32] = result.as_numpy(self._output)
        return answer


def compare_rows(ask: Asked, rows: NDArray[np.float32], wanted: NDArray[np.float32]) -> int:
    """Ask for each row alone; return how many were asked. `KnownAnswerError` where one differs from `wanted`."""
    for index, (row, probabilities) in enumerate(zip(rows, wanted, strict=True)):
        answer = ask(row[None])
        if not np.allclose(answer[0], probabilities, rtol=0, atol=ABSOLUTE_TOLERANCE):
            raise KnownAnswerError(f"{ask.model}, row {index}: wanted {probabilities}, got {answer[0]}")
    return len(rows)


class _ServedSession:
    """Stands where the `magika` library holds its ONNX Runtime session, and asks our server instead."""

    def __init__(self, ask: Asked) -> None:
        self._ask = ask

    def run(self, _outputs: Sequence[str], inputs: dict[str, NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """Return [target_label] as ONNX Runtime would."""
        return [self._ask(np.asarray(rows, np.int32)) for rows in inputs.values()]


def compare_files(ask: Asked, files: Sequence[Path]) -> int:
    """Detect the type of each file with the library as it is and with our server behind it; return their number.

    `KnownAnswerError` where label or score differ.
    """
    plain, served = Magika(), Magika()
    served._onnx_session = _ServedSession(ask)  # noqa: SLF001 - the library has no seam of its own
    for file in files:
        wanted, got = plain.identify_path(file), served.identify_path(file)
        same_score = abs(wanted.score - got.score) <= ABSOLUTE_TOLERANCE
        if wanted.output.label != got.output.label or not same_score:
            raise KnownAnswerError(
                f"magika, {file.name}: wanted {wanted.output.label} {wanted.score}, got {got.output.label} {got.score}"
            )
    return len(files)
