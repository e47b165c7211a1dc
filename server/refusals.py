"""What is wrong with an inference request, in Triton's own words: clients match on them. Pure.

Each function returns the error to raise; they run only where a request is refused. Where our words follow after
Triton's, they say what was expected and got. tests/vectors/triton has what Triton 2.51 says, call by call.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from hermetic.errors import InvalidRequestError

UNKNOWN_ID: Final = "<id_unknown>"
_BATCH_NOTE: Final = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


class RequestRefusedError(InvalidRequestError):
    """A refusal that Triton begins with the request's id: `with_id` puts it there."""

    def with_id(self, identifier: bytes) -> InvalidRequestError:
        """Return the error with the id of its request, which is UTF-8 or empty."""
        return InvalidRequestError(f"[request id: {identifier.decode() or UNKNOWN_ID}] {self}")


def unexpected_input(name: str, model: str, known: Iterable[str]) -> InvalidRequestError:
    """An input that the model does not have."""
    return InvalidRequestError(
        f"unexpected inference input '{name}' for model '{model}': expected one of {sorted(known)}, got '{name}'"
    )


def repeated_input(name: str) -> InvalidRequestError:
    """An input that comes twice."""
    return RequestRefusedError(f"input '{name}' already exists in request: expected it once, got it twice")


def missing_inputs(model: str, expected: range, got: Iterable[str], missing: Iterable[str]) -> InvalidRequestError:
    """Inputs that are left out. `expected`: how many there may be, more than one number where some are optional."""
    names = sorted(got)
    least, most = expected[0], expected[-1]
    wanted = f"{most} inputs" if least == most else f"number of inputs between {least} and {most}"
    return RequestRefusedError(
        f"expected {wanted} but got {len(names)} inputs for model '{model}'. "
        f"Got input(s) {_names(names)}, but missing required input(s) {_names(sorted(missing))}. "
        "Please provide all required input(s)."
    )


def wrong_datatype(name: str, model: str, got: str, expected: str) -> InvalidRequestError:
    """An input of another datatype."""
    return RequestRefusedError(
        f"inference input '{name}' data-type is '{got}', but model '{model}' expects '{expected}'"
    )


def wrong_shape(
    name: str, model: str, wanted: Sequence[int], got: Sequence[int], *, batched: bool
) -> InvalidRequestError:
    """An input of another shape; `wanted` has the batch dimension where the model is `batched`."""
    if batched and not got:
        return RequestRefusedError(f"input '{name}' has no shape but model requires batch dimension for '{model}'")
    if any(size < 0 for size in got) and not batched:
        return RequestRefusedError(
            f"All input dimensions should be specified for input '{name}' for model '{model}', got {_dimensions(got)}"
        )
    return RequestRefusedError(
        f"unexpected shape for input '{name}' for model '{model}'. Expected {_dimensions(wanted)}, "
        f"got {_dimensions(got)}. {_BATCH_NOTE if batched else ''}".rstrip()
    )


def too_many_elements(name: str, model: str, limit: int, got: Sequence[int]) -> InvalidRequestError:
    """A shape that no message can fill."""
    return RequestRefusedError(
        f"input byte size mismatch for input '{name}' for model '{model}'. Expected at most {limit} elements, "
        f"got {_dimensions(got)}"
    )


def wrong_rows(model: str, most: int, got: int) -> InvalidRequestError:
    """A batch that is too large, or empty."""
    return RequestRefusedError(
        f"inference request batch-size must be <= {most} for '{model}': expected 1 to {most}, got {got}"
    )


def unequal_rows(name: str, model: str, expected: int, got: int) -> InvalidRequestError:
    """An input with another batch size than the first."""
    return RequestRefusedError(
        f"input '{name}' batch size does not match other inputs for '{model}': expected {expected}, got {got}"
    )


def unexpected_output(name: str, model: str, known: Iterable[str]) -> InvalidRequestError:
    """A requested output that the model does not have."""
    return InvalidRequestError(
        f"unexpected inference output '{name}' for model '{model}': expected one of {sorted(known)}, got '{name}'"
    )


def no_data(name: str, model: str) -> InvalidRequestError:
    """An input without contents."""
    return InvalidRequestError(
        f"unable to find data for input tensor '{name}' for model '{model}' in request. "
        "Expected raw or typed contents, got neither"
    )


def too_many_contents(expected: int, got: int) -> InvalidRequestError:
    """More raw contents than inputs. Triton ignores them."""
    return InvalidRequestError(f"raw_input_contents: expected {expected} elements, one per input, got {got}")


def two_contents(name: str, model: str) -> InvalidRequestError:
    """An input with typed contents in a request with raw ones."""
    return InvalidRequestError(
        f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
    )


def wrong_field(name: str, model: str, filled: str, datatype: str, field: str) -> InvalidRequestError:
    """Typed contents of another datatype; `field` is the right one."""
    return InvalidRequestError(
        f"unexpected explicit tensor data for input tensor '{name}' for model '{model}' of type '{filled}', "
        f"expected datatype '{datatype}' in {field}"
    )


def out_of_range(name: str, datatype: str) -> InvalidRequestError:
    """A typed value that its datatype does not have. Triton cuts it to size in silence."""
    return InvalidRequestError(f"input '{name}': expected values of {datatype}, got one that is out of its range")


def wrong_size(name: str, model: str, expected: int, got: int) -> InvalidRequestError:
    """Contents of another length than the shape says."""
    return RequestRefusedError(
        f"input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
    )


def too_few_strings(name: str, model: str, expected: int, got: int) -> InvalidRequestError:
    """Fewer BYTES elements than the shape says."""
    return RequestRefusedError(
        f"expected {expected} string elements for inference input '{name}' for model '{model}', got {got}"
    )


def too_many_strings(name: str, model: str, expected: int, got: int) -> InvalidRequestError:
    """More BYTES elements than the shape says."""
    return RequestRefusedError(
        f"unexpected number of string elements {got} for inference input '{name}' for model '{model}', "
        f"expecting {expected}"
    )


def too_many_strings_at_all(model: str, expected: int, got: int) -> InvalidRequestError:
    """More BYTES elements in one request than there is time to walk; not Triton's, which has no such limit."""
    return RequestRefusedError(
        f"elements of BYTES for model '{model}': expected at most {expected} in all inputs, got {got}"
    )


def cut_length(name: str, model: str, left: int) -> InvalidRequestError:
    """A BYTES element whose length is cut off."""
    return RequestRefusedError(
        f"incomplete string length indicator for inference input '{name}' for model '{model}', expecting 4 bytes but "
        f"only {left} bytes available. Please make sure the string length indicator is in one buffer."
    )


def cut_string(name: str, length: int, left: int) -> InvalidRequestError:
    """A BYTES element that is cut off."""
    return InvalidRequestError(
        f"incomplete string data for inference input '{name}', expecting string of length {length} but only {left} "
        "bytes available"
    )


def wrong_kind(parameter: str, expected: Sequence[str], got: str | None) -> InvalidRequestError:
    """A parameter of another type."""
    wanted = " or ".join(expected)
    return InvalidRequestError(
        f"invalid value type for '{parameter}' parameter, expected {wanted}. Got {got or 'none'}."
    )


def below_zero(parameter: str, got: int) -> InvalidRequestError:
    """A parameter that counts something, and is negative."""
    return InvalidRequestError(f"invalid value for '{parameter}', expected value >= 0. Got {got}.")


def reserved_parameter(allowed: Iterable[str]) -> InvalidRequestError:
    """A parameter whose name is the server's."""
    return InvalidRequestError(
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
        f"'triton_' are allowed: {' '.join(allowed)}"
    )


def parameter_of_no_kind(parameter: str) -> InvalidRequestError:
    """A parameter without a value, or a client's own that is unsigned."""
    return InvalidRequestError(
        f"invalid value type for '{parameter}' parameter, expected int64_param, bool_param, or string_param."
    )


def _dimensions(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
