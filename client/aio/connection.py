"""`connect` for asyncio."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from hermetic.client.aio.bridge import LoopChannel
from hermetic.client.connection import REVERIFY_S, TIMEOUT_S, check_times, endpoints_of, missing
from hermetic.client.guard import Guard
from hermetic.client.handshake import Tls
from hermetic.client.policy import CallerPolicy
from hermetic.client.verified import Prover

if TYPE_CHECKING:
    from hermetic.client.aio.triton import VerifiedClient

__all__ = ["connect"]


async def connect(
    target: str | Sequence[str],
    tls: Tls,
    policy: CallerPolicy,
    *,
    reverify_s: float = REVERIFY_S,
    timeout_s: float = TIMEOUT_S,
) -> "VerifiedClient":
    """Return a `tritonclient.grpc.aio.InferenceServerClient` of the first server of `target` that can be verified.

    As `hermetic.client.connect`, for the event loop that it is awaited in: the client belongs to that loop. Raises the
    same; `await close()` it, or use it in an `async with`.
    """
    try:
        from hermetic.client.aio.triton import VerifiedClient  # noqa: PLC0415 - the bare install verifies without it
    except ModuleNotFoundError as error:
        raise missing(error) from None
    check_times(reverify_s, timeout_s)
    pinned = partial(LoopChannel.pinned, asyncio.get_running_loop())
    prover = Prover(endpoints_of(target), tls, policy, timeout_s, pinned)
    making = asyncio.ensure_future(asyncio.to_thread(Guard, prover, reverify_s, timeout_s))
    try:
        return VerifiedClient(await asyncio.shield(making))
    except asyncio.CancelledError:  # nobody would close what the thread still makes
        making.add_done_callback(_close)
        raise


def _close(made: "asyncio.Future[Guard]") -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()
