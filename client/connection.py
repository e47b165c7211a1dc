"""`connect`: from an address to a working client of a server that has proved what it is. `verify`: the proof alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hermetic.client.guard import Guard
from hermetic.client.handshake import Endpoint, Tls
from hermetic.client.judgement import Proof
from hermetic.client.policy import CallerPolicy
from hermetic.client.verified import Prover
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.client.triton import VerifiedClient

__all__ = ["REVERIFY_S", "TIMEOUT_S", "connect", "verify"]

REVERIFY_S: Final = 300.0  # seconds between two proofs
TIMEOUT_S: Final = 20.0  # seconds for a server to prove it


def connect(
    target: str | Sequence[str],
    tls: Tls,
    policy: CallerPolicy,
    *,
    reverify_s: float = REVERIFY_S,
    timeout_s: float = TIMEOUT_S,
) -> "VerifiedClient":
    """Return a `tritonclient.grpc.InferenceServerClient` of the first server of `target` that can be verified.

    Before anything else is sent, the server's certificate is verified (who) and its evidence judged (what), over the
    channel that the client then uses, whose only trust anchor is that certificate. Both again every `reverify_s` and
    whenever the connection changes; where they fail the client closes. `close` it, or use it in a `with`.

    Raises `VerificationError` or `AppraisalError` with every failed check, `NotReadyError` where nobody answers,
    `UnauthenticatedError` where the server does not let us in, `ConfigurationError` for wrong settings.
    """
    try:
        from hermetic.client.triton import VerifiedClient  # noqa: PLC0415 - the bare install verifies without it
    except ModuleNotFoundError as error:
        raise missing(error) from None
    check_times(reverify_s, timeout_s)
    return VerifiedClient(Guard(Prover(endpoints_of(target), tls, policy, timeout_s), reverify_s, timeout_s))


def verify(target: str | Sequence[str], tls: Tls, policy: CallerPolicy, *, timeout_s: float = TIMEOUT_S) -> Proof:
    """Return what the first server of `target` that can be verified proves; raises as `connect` does."""
    found = Prover(endpoints_of(target), tls, policy, timeout_s).first()
    found.channel.close()
    return found.proof


def missing(error: ModuleNotFoundError) -> ConfigurationError:
    """Return what is raised where Triton's client is not installed."""
    return ConfigurationError(
        f"connect: expected the package tritonclient, got none ({error.name}): pip install 'hermetic[client]'"
    )


def check_times(reverify_s: float, timeout_s: float) -> None:
    """Raise `ConfigurationError` where one of them is no time."""
    if not reverify_s > 0 or not timeout_s > 0:
        raise ConfigurationError(f"connect: expected positive seconds, got {reverify_s} and {timeout_s}")


def endpoints_of(target: str | Sequence[str]) -> list[Endpoint]:
    """Return the servers that `target` names; raises `ConfigurationError`."""
    return [Endpoint.parse(one) for one in ([target] if isinstance(target, str) else target)]
