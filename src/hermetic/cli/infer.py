"""`hermetic infer`: one request to a model of a server that has proved what it is, from and to NumPy's files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermetic.cli import callers, output
from hermetic.errors import ConfigurationError, NotReadyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="infer")(infer)


def infer(
    server: callers.ServerArgument,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    inputs: Annotated[
        list[str], typer.Option("--input", metavar="NAME=FILE.npy", help="An input. May be given several times.")
    ],
    save: Annotated[Path | None, typer.Option(help="A folder for the outputs, NAME.npy each.")] = None,
    version: Annotated[str, typer.Option(help="The model's version; the newest when not given.")] = "",
    ca: callers.CaOption = None,
    cert: callers.CertificateOption = None,
    key: callers.KeyOption = None,
    policy: callers.PolicyOption = None,
    name: callers.NameOption = None,
    timeout_s: callers.TimeoutOption = 20,
    as_json: output.JsonOption = False,
) -> None:
    """Verify a server, then ask a model once; nothing is sent to a server that does not prove what it is."""
    from tritonclient.utils import InferenceServerException

    from hermetic.client import connect

    given = dict(map(_given, inputs))
    tls, demanded = callers.tls_of(ca, cert, key, name), callers.policy_of(policy)
    with connect(server, tls, demanded, timeout_s=timeout_s) as client:
        try:
            result = client.infer(model, _tensors(given), model_version=version, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise NotReadyError(f"{model}: expected an answer, got {error.status()}: {error.message()}") from None
    outputs = {one.name: result.as_numpy(one.name) for one in result.get_response().outputs}
    if save is not None:
        _save(outputs, save)
    shown = [(name, str(one.dtype), list(one.shape), _values(one)) for name, one in outputs.items()]
    document = {"model": model, "outputs": [dict(zip(_COLUMNS, row, strict=True)) for row in shown]}
    output.show(
        document, as_json=as_json, human=lambda: output.table(model, _COLUMNS, [tuple(map(str, row)) for row in shown])
    )


_COLUMNS = ("name", "dtype", "shape", "values")


def _given(text: str) -> "tuple[str, NDArray[np.generic]]":
    import numpy as np

    name, _, path = text.partition("=")
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--input {text}: expected NAME=FILE.npy, got {error}") from None
    return name, array


def _tensors(given: "dict[str, NDArray[np.generic]]") -> list[Any]:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, array in given.items():
        datatype = np_to_triton_dtype(array.dtype)
        if datatype is None:
            raise ConfigurationError(f"--input {name}: expected a datatype that the protocol has, got {array.dtype}")
        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def _save(outputs: "dict[str, NDArray[np.generic]]", folder: Path) -> None:
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for name, array in outputs.items():
        if "/" in name or name.startswith("."):
            raise ConfigurationError(f"--save: expected an output's name that is a file's, got {name!r}")
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _values(array: "NDArray[np.generic]") -> Any:  # noqa: ANN401 - numbers, lists of lists of them, or text
    """The elements as JSON has them; bytes as text."""
    if array.dtype == object:
        return [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in array.ravel()]
    return array.tolist()
