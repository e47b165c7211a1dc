"""Rules for the requests that run before a model is ready: whole, and of the model's own tensors."""

from collections.abc import Iterator

from hermetic.enclave.configuration import Warmup, WarmupInput
from hermetic.enclave.configuration_rules.subject import Subject, element_bytes, repeated

__all__ = ["warmup_problems"]


def warmup_problems(subject: Subject) -> list[str]:
    """Return what does not fit in `model_warmup`."""
    warmup = subject.configuration.warmup
    found = [
        f"model_warmup {name!r}: expected each name once, got it twice" for name in repeated(w.name for w in warmup)
    ]
    for one in warmup:
        found += [f"model_warmup {one.name!r}: {problem}" for problem in _problems(one, subject)]
    return found


def _problems(warmup: Warmup, subject: Subject) -> Iterator[str]:
    if not 1 <= warmup.batch_size <= subject.largest_batch:
        yield f"batch_size: expected 1 to {subject.largest_batch}, got {warmup.batch_size}"
    given = [tensor.name for tensor in warmup.inputs]
    for name in repeated(given):
        yield f"inputs {name!r}: expected once, got it twice"
    missing = sorted(_needed(subject) - set(given))
    if missing:
        yield f"inputs: expected every input of the model, controls too, got none for {missing}"
    for tensor in warmup.inputs:
        why = _input_problem(tensor, subject)
        if why:
            yield f"inputs {tensor.name!r}: {why}"


def _needed(subject: Subject) -> set[str]:
    """Return the inputs that a warm-up must give: those of callers, and controls (Triton's rule).

    States begin as they begin in a sequence, and batch inputs follow from the others.
    """
    optional = {option.name for option in subject.configuration.inputs if option.optional}
    sequence = subject.configuration.sequence_batching
    controls = {control.name for control in sequence.controls} if sequence else set()
    return {spec.name for spec in subject.inputs if spec.name not in optional} | controls


def _input_problem(tensor: WarmupInput, subject: Subject) -> str | None:
    known = subject.model_inputs
    batch_inputs = {name for one in subject.configuration.batch_inputs for name in one.names}
    if tensor.name not in known or tensor.name in batch_inputs:
        return f"expected one of {sorted(known.keys() - batch_inputs)}"
    datatype, shape = known[tensor.name]
    if tensor.datatype != datatype:
        return f"expected the datatype {datatype}, got {tensor.datatype}"
    if len(tensor.shape) != len(shape) or any(
        have < 0 or want not in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
    ):
        return f"expected dims that fit {list(shape)}, all given, got {list(tensor.shape)}"
    return _file_problem(tensor, subject)


def _file_problem(tensor: WarmupInput, subject: Subject) -> str | None:
    if (tensor.data == "file") != (tensor.file is not None):
        return f"expected a file for data 'file' only, got {tensor.file!r} for {tensor.data!r}"
    if tensor.file is None:
        return None
    if tensor.file not in subject.files:
        return f"expected a file of the payload, got {tensor.file!r}"
    wanted = element_bytes(tensor.datatype, tensor.shape)
    got = subject.files[tensor.file]
    if wanted is not None and got != wanted:
        return f"expected {wanted} bytes (one row) in {tensor.file!r}, got {got}"
    return None
