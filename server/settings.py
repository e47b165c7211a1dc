"""What front ends and the metrics port are told: certificates and rules as text, no path, no key.

The serving key travels in a memfd of its own. What the operator writes is config.py.
"""

from typing import Annotated, Final, Self

from pydantic import Field

from hermetic.server.config import (
    IDENTITIES_LIMIT,
    REVOKED_LIMIT,
    AccessRule,
    Limits,
    Revoked,
)
from hermetic.server.observing import Metrics
from hermetic.server.section import MIB, Port, Profile, Section
from hermetic.server.trace_rules import LogRules, TraceRules

FRONT_END_THREADS: Final = 1
METRICS_MEMORY_LIMIT: Final = 1024 * MIB  # what the process that offers metrics may have beyond what it has at start
METRICS_THREADS_LIMIT: Final = 8


class Epoch(Section):
    """What may change while the server runs; every front end has the same one, known by its number.

    `authorities`: key of the configuration -> PEM. `places` gives each row of `access` its place in the counters that
    front ends share (counters.py); an identity keeps its place as long as it is listed.
    """

    number: Annotated[int, Field(ge=1)] = 1
    authorities: dict[str, str]
    access: tuple[AccessRule, ...] = Field(max_length=IDENTITIES_LIMIT)
    places: tuple[Annotated[int, Field(ge=1, le=IDENTITIES_LIMIT)], ...] = ()
    revoked: tuple[Revoked, ...] = Field(default=(), max_length=REVOKED_LIMIT)
    limits: Limits
    trace: TraceRules = TraceRules()
    logging: LogRules = LogRules()


class FrontEndSettings(Section):
    """What one front end is told at its start: everything it needs, and no path, key or broker."""

    profile: Profile
    host: str
    port: Port
    reuse_port: bool
    certificate_chain: str
    epoch: Epoch
    waived: tuple[str, ...]
    uid: int
    gid: int
    spin_us: Annotated[int, Field(ge=0)] = 0


class MetricsSettings(Section):
    """What the process that offers metrics is told at its start."""

    host: str
    port: Port
    tls: bool
    certificate_chain: str
    epoch: Epoch
    waived: tuple[str, ...]
    uid: int
    gid: int

    @classmethod
    def of(cls, port: Metrics, front_end: FrontEndSettings, uid: int) -> Self:
        """Return settings with which it judges callers as front ends do; `uid` is what it is made from."""
        return cls(
            host=port.host,
            port=port.port,
            tls=port.tls,
            certificate_chain=front_end.certificate_chain,
            epoch=front_end.epoch,
            waived=front_end.waived,
            uid=uid,
            gid=front_end.gid,
        )
