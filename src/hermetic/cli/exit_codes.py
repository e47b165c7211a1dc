"""The exit codes of `hermetic`, and which error of the tree means which. CONTRIBUTING.md prints the same table."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from hermetic import errors


class ExitCode(IntEnum):
    """What a caller in a script can tell from the exit status."""

    OK = 0
    INTERNAL = 1  # a bug in Hermetic, or a process that broke a border
    USAGE = 2  # wrong arguments, a wrong setting, a missing package
    SEALED_FILE_REFUSED = 3
    NOT_GENUINE = 4  # evidence, or a log, that does not verify
    POLICY_REFUSED = 5
    BROKER_REFUSED = 6  # or unreachable
    ISOLATION_MISSING = 7
    NOT_READY = 8  # no server, or no model ready in it


MEANING: Final[Mapping[ExitCode, str]] = {
    ExitCode.OK: "it worked",
    ExitCode.INTERNAL: "a bug in Hermetic, or a process that broke a border",
    ExitCode.USAGE: "wrong arguments, a wrong setting, or a missing package",
    ExitCode.SEALED_FILE_REFUSED: "the sealed file is damaged, forged or not trusted, or its model is refused",
    ExitCode.NOT_GENUINE: "evidence or a log does not verify",
    ExitCode.POLICY_REFUSED: "a policy or an access rule says no",
    ExitCode.BROKER_REFUSED: "the key broker refused, or did not answer",
    ExitCode.ISOLATION_MISSING: "this host lacks an isolation property that is not waived",
    ExitCode.NOT_READY: "the server or the model is not ready",
}

# The nearest ancestor in the tree decides, so a new leaf has a code on the day that it is written.
_BY_ERROR: Final[Mapping[type[errors.HermeticError], ExitCode]] = {
    errors.HermeticError: ExitCode.INTERNAL,
    errors.CallerError: ExitCode.USAGE,
    errors.UnauthenticatedError: ExitCode.POLICY_REFUSED,
    errors.AccessDeniedError: ExitCode.POLICY_REFUSED,
    errors.OverloadedError: ExitCode.NOT_READY,
    errors.NotReadyError: ExitCode.NOT_READY,
    errors.DeadlineError: ExitCode.NOT_READY,
    errors.OperatorError: ExitCode.USAGE,
    errors.IsolationError: ExitCode.ISOLATION_MISSING,
    errors.BrokerRefusedError: ExitCode.BROKER_REFUSED,
    errors.BrokerUnreachableError: ExitCode.BROKER_REFUSED,
    errors.SharedStateError: ExitCode.NOT_READY,
    errors.LogError: ExitCode.NOT_GENUINE,
    errors.WorkerLostError: ExitCode.NOT_READY,
    errors.MeasurementError: ExitCode.NOT_READY,
    errors.PublisherError: ExitCode.SEALED_FILE_REFUSED,
    errors.VerificationError: ExitCode.NOT_GENUINE,
    errors.AppraisalError: ExitCode.POLICY_REFUSED,
    errors.EvidenceError: ExitCode.NOT_GENUINE,
    errors.BorderError: ExitCode.INTERNAL,
}

EXTRA_OF: Final[Mapping[str, str]] = {
    "ml_dtypes": "server",
    "onnx": "server",
    "onnxruntime": "server",
    "prometheus_client": "server",
    "safetensors": "server",
    "structlog": "server",
    "torch": "torch",
    "tpm2_pytss": "tpm",
    "psycopg": "broker-postgres",
    "httptools": "broker",
    "uvloop": "broker",
    "magika": "bench",
    "psutil": "bench",
    "sklearn": "bench",
    "tritonclient": "bench",
}


def exit_code(error: errors.HermeticError) -> ExitCode:
    """The code of `error`: that of its nearest class in the tree."""
    return next(_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)


def missing_extra(error: ModuleNotFoundError) -> errors.ConfigurationError | None:
    """The error that names the extra which carries the missing module; None where no extra of ours does."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    return errors.ConfigurationError(
        f"this command needs the package {package}, which is not installed; "
        f"it comes with the extra [{extra}]: pip install 'hermetic[{extra}]'"
    )
