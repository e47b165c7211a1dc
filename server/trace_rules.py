"""Which requests leave a trace, and what is printed: the settings, as the operator and callers may change them. Pure.

As in Triton a setting of a model that was not given is the server's, and one of the server that was not given is that
of server.toml. To change a setting to "not given" is to clear it. What a trace holds is tracing.py, who may change
settings settings_rpc.py.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from hermetic.server.observing import Logging, Trace
from hermetic.server.section import Section

INVALID: Final = "Attempting to set invalid trace setting :"
MODELS_LIMIT: Final = 512  # models with settings of their own

Level = Literal["OFF", "TIMESTAMPS"]
Unsigned = Annotated[int, Field(ge=0, lt=1 << 32)]


class TraceChange(Section):
    """Settings of one scope that were given; None: not given. One in every `rate` requests is traced, `count` in all.

    `count` -1 is no bound. With `log_frequency` n, each n traces are a file of their own.
    """

    level: Level | None = None
    rate: Unsigned | None = None
    count: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    log_frequency: Unsigned | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was given."""
        return self == TraceChange()

    def followed_by(self, change: "TraceChange", cleared: frozenset[str]) -> "TraceChange":
        """Return what is given after a change; `cleared` names what is given no more."""
        given = {name: value for name, value in change.model_dump().items() if value is not None}
        return TraceChange(**{**self.model_dump(), **given, **dict.fromkeys(cleared)})


class TraceSetting(Section):
    """The settings that hold for one scope."""

    level: Level = "OFF"
    rate: Unsigned = 1000
    count: int = -1
    log_frequency: Unsigned = 0

    def followed_by(self, change: TraceChange) -> "TraceSetting":
        """Return the settings where `change` was given."""
        return TraceSetting(**{**self.model_dump(), **change.model_dump(exclude_none=True)})


class TraceRules(Section):
    """All settings. `file` is the operator's trace file as callers are shown it: empty where there is none."""

    file: str = ""
    default: TraceSetting = TraceSetting()
    server: TraceChange = TraceChange()
    models: dict[str, TraceChange] = Field(default={}, max_length=MODELS_LIMIT)

    @classmethod
    def of_file(cls, trace: Trace) -> "TraceRules":
        """Return the rules that server.toml gives."""
        default = TraceSetting(level=trace.level, rate=trace.rate, count=trace.count, log_frequency=trace.log_frequency)
        return cls(file=trace.file.name if trace.file else "", default=default)

    def setting(self, model: str) -> TraceSetting:
        """Return what holds for a model; "" for the server."""
        server = self.default.followed_by(self.server)
        return server.followed_by(self.models[model]) if model in self.models else server

    def changed(self, model: str, change: TraceChange, cleared: frozenset[str]) -> "TraceRules":
        """Return the rules after a change of a model's settings; "" for the server's."""
        if not model:
            return self.model_copy(update={"server": self.server.followed_by(change, cleared)})
        own = self.models.get(model, TraceChange()).followed_by(change, cleared)
        others = {name: other for name, other in self.models.items() if name != model}
        return self.model_copy(update={"models": others if own.is_empty else {**others, model: own}})

    @property
    def fault(self) -> str:
        """Why these rules cannot hold, in Triton's words; "" where they can."""
        for setting in (self.setting(""), *(self.setting(model) for model in self.models)):
            if setting.level == "OFF":
                continue
            if setting.rate == 0:
                return INVALID + "sample rate must be non-zero"
            if not self.file:
                return INVALID + "trace file name is not given"
        return ""


class LogRules(Section):
    """What front ends print: Triton's log settings. `verbose_level` from 1 on prints a line for each request."""

    verbose_level: Unsigned = 0
    info: bool = True
    warning: bool = True
    error: bool = True
    format: Literal["default", "ISO8601"] = "default"

    @classmethod
    def of_file(cls, logging: Logging) -> "LogRules":
        """Return the rules that server.toml gives."""
        return cls(**logging.model_dump())
