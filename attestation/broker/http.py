"""What both listeners' handlers need of HTTP: callers, bounded bodies, blocking work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from hermetic.attestation.broker.broker import Caller
from hermetic.attestation.broker.counts import Counts
from hermetic.attestation.broker.identity import client_identity
from hermetic.attestation.broker.rates import Rates
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.request import Request
from hermetic.attestation.broker.workers import Workers

_P = ParamSpec("_P")
_T = TypeVar("_T")

BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Door:
    """What stands before every request of a listener; `work` bounds what is done in threads at once."""

    rates: Rates
    work: Workers
    certificate_required: bool
    demo: bool
    counts: Counts

    def caller(self, request: Request) -> Caller:
        """Who sent `request`, once within its rate; raises `Refusal`."""
        der, address = request.peer.certificate, request.peer.address
        if der is None and self.certificate_required:
            raise Refusal(Variant.ATTESTATION, "client certificate: expected one, got none")
        identity = None if der is None else client_identity(der, demo=self.demo)
        caller = Caller(identity, address)
        self.rates.spend(caller.key)
        return caller

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run blocking work in a thread."""
        return await self.work.run(lambda: function(*args, **kwargs))


async def body(request: Request, limit: int) -> bytearray:
    """The request's body, at most `limit` bytes, in a buffer that can be wiped; raises `Refusal`."""
    declared = request.headers.get("content-length", "0")
    data = await request.body.read(limit) if declared.isdecimal() and int(declared) <= limit else None
    if data is None:
        raise Refusal(Variant.PAYLOAD_TOO_LARGE, f"body: expected at most {limit} bytes, got more")
    return data


def bearer(request: Request) -> str | None:
    """The token of `Authorization: Bearer ...`, None without one."""
    value = request.headers.get("authorization", "")
    return value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else None
