"""The tables of server.toml about watching a server: metrics, traces, and what is printed."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hermetic.server.section import LOOPBACK, MIB, Port, PositiveInt, Section


class Metrics(Section):
    """Where counts are offered as Prometheus text. Without `tls` anyone on this machine can read them."""

    host: str = "127.0.0.1"
    port: Port = 8002
    tls: bool = True

    @model_validator(mode="after")
    def _plain_is_local(self) -> Self:
        if not self.tls and self.host not in LOOPBACK:
            raise ValueError(f"tls = false: wanted a loopback host, got {self.host}")
        return self


class Trace(Section):
    """Timestamps of requests, written to `file`; without it nothing can be traced. No tensor is ever written.

    One in every `rate` requests is traced, `count` in all (-1: no bound). With `log_frequency` n, each n traces are a
    file of their own: `file`.0, `file`.1, ... No more than `file_bytes` are written in all.
    """

    file: Path | None = None
    level: Literal["OFF", "TIMESTAMPS"] = "OFF"
    rate: Annotated[int, Field(ge=1, lt=1 << 32)] = 1000
    count: Annotated[int, Field(ge=-1, lt=1 << 31)] = -1
    log_frequency: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    file_bytes: PositiveInt = 256 * MIB

    @model_validator(mode="after")
    def _there_is_a_file(self) -> Self:
        if self.level != "OFF" and self.file is None:
            raise ValueError('level = "TIMESTAMPS": wanted a file, got none')
        return self


class Logging(Section):
    """What front ends print (Triton's log settings). `verbose_level` from 1 on prints a line for each request."""

    verbose_level: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    info: bool = True
    warning: bool = True
    error: bool = True
    format: Literal["default", "ISO8601"] = "default"
