"""TraceSetting and LogSettings: what holds is told to whoever may watch, what changes changes in every front end.

A change goes to the supervisor, which makes an epoch of it: the caller is answered when all front ends have applied it.
Statuses and texts are Triton's (tests/vectors/triton/settings.json), also where it takes what is odd: an unknown level
counts as none, an unknown setting as not there. Where a file lies is not changed over the network, as in Triton, and
TENSORS is refused: it would write callers' data to a disk.
"""

import re
from collections.abc import Callable
from itertools import count
from typing import Final, Literal

from hermetic.errors import BorderError, InvalidRequestError, NotReadyError, OverloadedError, UnsupportedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import OPERATE, check_access
from hermetic.server.commands import error_named
from hermetic.server.gate import Request
from hermetic.server.models import Models
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import ChangeSettings, SettingsChanged
from hermetic.server.trace_rules import INVALID, Level, LogRules, TraceChange, TraceRules

CHANGES_LIMIT: Final = 64  # changes without an answer
IDENTITY_LIMIT: Final = 512  # characters, as in ChangeSettings

_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]+")
_WORD: Final = 1 << 32

TraceName = Literal["level", "rate", "count", "log_frequency"]
LogName = Literal["verbose_level", "info", "warning", "error", "format"]

_TRACE: Final[dict[str, TraceName]] = {
    "trace_level": "level",
    "trace_rate": "rate",
    "trace_count": "count",
    "log_frequency": "log_frequency",
}
_BOOLEANS: Final[dict[str, LogName]] = {"log_info": "info", "log_warning": "warning", "log_error": "error"}


class SettingsRpcs:
    """Both methods. Owner's thread only."""

    def __init__(self, models: Models, epoch: Callable[[], Epoch], say: Callable[[bytes], None]) -> None:
        """`epoch` gives the one that holds; `say` sends the supervisor a frame that must not be lost."""
        self._models = models
        self._epoch = epoch
        self._say = say
        self._ids = count(1)
        self._waiting: dict[int, tuple[Request, Callable[[], bytes]]] = {}

    def trace(self, request: Request, asked: pb.TraceSettingRequest) -> None:
        """Answer with the trace settings of a model or the server, after the change that is asked for."""
        name = asked.model_name
        if name and not any(entry.name == name for entry in self._models.index()):
            raise InvalidRequestError(f"Request for unknown model : {name[:256]}")
        change, cleared = trace_change(asked, self._epoch().trace)

        def answer() -> bytes:
            return trace_response(self._epoch().trace, name).SerializeToString()

        if change.is_empty and not cleared:
            request.reply(answer())
            return
        _check_may_change(request)
        wanted = self._epoch().trace.changed(name, change, frozenset(cleared))
        if wanted.fault:
            raise InvalidRequestError(wanted.fault)
        self._ask(request, answer, model=name, trace=change, cleared=cleared)

    def logging(self, request: Request, asked: pb.LogSettingsRequest) -> None:
        """Answer with the log settings, after the change that is asked for."""
        wanted, given = log_change(asked, self._epoch().logging)

        def answer() -> bytes:
            return log_response(self._epoch().logging).SerializeToString()

        if not given:
            request.reply(answer())
            return
        _check_may_change(request)
        self._ask(request, answer, logging=wanted, given=given)

    def answered(self, answer: SettingsChanged) -> None:
        """Take the supervisor's answer to one change."""
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None:
            raise BorderError(f"settings: wanted the id of a change, got {answer.id}")
        request, reply = waiting
        if answer.error:
            request.fail(error_named(answer.error, answer.text))
        else:
            request.reply(reply())

    def fail_all(self, why: str) -> None:
        """Answer every change that still waits: nobody will."""
        for request, _ in self._waiting.values():
            request.fail(NotReadyError(why))
        self._waiting.clear()

    def _ask(
        self,
        request: Request,
        answer: Callable[[], bytes],
        *,
        model: str = "",
        trace: TraceChange | None = None,
        cleared: tuple[TraceName, ...] = (),
        logging: LogRules | None = None,
        given: tuple[LogName, ...] = (),
    ) -> None:
        if len(self._waiting) >= CHANGES_LIMIT:
            raise OverloadedError(f"changes waiting: wanted at most {CHANGES_LIMIT}, got {len(self._waiting) + 1}")
        identity = request.caller.principal.identity if request.caller else None
        name = f"{identity.authority}:{identity.name}"[:IDENTITY_LIMIT] if identity else ""
        number = next(self._ids)
        self._waiting[number] = (request, answer)
        change = ChangeSettings(
            id=number, identity=name, model=model, trace=trace, cleared=cleared, logging=logging, given=given
        )
        self._say(change.encode())


def trace_change(asked: pb.TraceSettingRequest, rules: TraceRules) -> tuple[TraceChange, tuple[TraceName, ...]]:
    """Return the settings that a request gives, and those that it clears; in Triton's order, with its errors."""
    settings = asked.settings
    if "trace_file" in settings:
        raise UnsupportedError("trace file location can not be updated through network protocol")
    cleared = tuple(ours for theirs, ours in _TRACE.items() if theirs in settings and not settings[theirs].value)
    given = {ours: settings[theirs].value for theirs, ours in _TRACE.items() if theirs in settings}
    change = TraceChange(
        level=_level(list(given["level"]), rules) if given.get("level") else None,
        rate=_unsigned("trace_rate", list(given["rate"])) if given.get("rate") else None,
        count=_count(list(given["count"])) if given.get("count") else None,
        log_frequency=_unsigned("log_frequency", list(given["log_frequency"])) if given.get("log_frequency") else None,
    )
    return change, cleared


def trace_response(rules: TraceRules, model: str) -> pb.TraceSettingResponse:
    """Return the settings that hold for a model, or for the server."""
    setting = rules.setting(model)
    values = {
        "trace_file": rules.file,
        "trace_level": setting.level,
        "trace_rate": str(setting.rate),
        "trace_count": str(setting.count),
        "log_frequency": str(setting.log_frequency),
        "trace_mode": "triton",
    }
    value = pb.TraceSettingResponse.SettingValue
    return pb.TraceSettingResponse(settings={name: value(value=[text]) for name, text in values.items()})


def log_change(asked: pb.LogSettingsRequest, now: LogRules) -> tuple[LogRules, tuple[LogName, ...]]:
    """Return the log settings after a request, and which of them it gives."""
    settings = asked.settings
    if "log_file" in settings:
        raise UnsupportedError("log file location can not be updated through network protocol")
    wanted: dict[LogName, object] = {}
    for theirs, ours in _BOOLEANS.items():
        if theirs in settings:
            if settings[theirs].WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequestError(f"expect boolean for '{theirs}'")
            wanted[ours] = settings[theirs].bool_param
    if "log_verbose_level" in settings:
        if settings["log_verbose_level"].WhichOneof("parameter_choice") != "uint32_param":
            raise InvalidRequestError("expect int32 for 'log_verbose_level'")
        wanted["verbose_level"] = settings["log_verbose_level"].uint32_param
    if "log_format" in settings:
        if settings["log_format"].WhichOneof("parameter_choice") != "string_param":
            raise InvalidRequestError("expect string for 'log_format'")
        text = settings["log_format"].string_param
        if text not in ("default", "ISO8601"):
            raise InvalidRequestError(f"invalid argument for log_format, got: {text[:64]}")
        wanted["format"] = text
    return LogRules.model_validate({**now.model_dump(), **wanted}), tuple(wanted)


def log_response(rules: LogRules) -> pb.LogSettingsResponse:
    """Return the log settings; there is no log file, what is printed goes to the supervisor's standard error."""
    value = pb.LogSettingsResponse.SettingValue
    return pb.LogSettingsResponse(
        settings={
            "log_file": value(string_param=""),
            "log_info": value(bool_param=rules.info),
            "log_warning": value(bool_param=rules.warning),
            "log_error": value(bool_param=rules.error),
            "log_verbose_level": value(uint32_param=rules.verbose_level),
            "log_format": value(string_param=rules.format),
        }
    )


def _check_may_change(request: Request) -> None:
    if request.caller is not None:
        check_access(request.caller.principal, OPERATE)


def _level(values: list[str], rules: TraceRules) -> Level:
    if "OFF" in values:
        if len(values) > 1:
            raise InvalidRequestError("Expect only one trace level 'OFF' is specified")
        return "OFF"
    if "TENSORS" in values:
        if not rules.file:
            raise InvalidRequestError(INVALID + "trace file name is not given")
        raise UnsupportedError("trace level TENSORS is not offered: it would write callers' data to a disk")
    return "TIMESTAMPS" if "TIMESTAMPS" in values else "OFF"


def _unsigned(name: str, values: list[str]) -> int:
    """Return a setting as C++'s stoul reads it: what follows the digits is left, what is negative wraps around."""
    number = _number(name, values)
    if abs(number) >= _WORD * _WORD or (number >= _WORD):
        raise InvalidRequestError(
            f"Unable to parse '{name}', value is out of range [ 0, {_WORD - 1} ], got: {values[0][:64]}"
        )
    return number % _WORD


def _count(values: list[str]) -> int:
    number = _number("trace_count", values)
    if number < -1:
        raise InvalidRequestError(f"Unable to parse 'trace_count'. Expecting value >= -1, got: {number}")
    if number >= _WORD // 2:
        raise InvalidRequestError(
            f"Unable to parse 'trace_count', value is out of range [ -1, {_WORD // 2 - 1} ], got: {values[0][:64]}"
        )
    return number


def _number(name: str, values: list[str]) -> int:
    if len(values) != 1:
        raise InvalidRequestError(f"expect only 1 value for '{name}'")
    match = _NUMBER.match(values[0][:64])
    if match is None:
        raise InvalidRequestError(f"Unable to parse '{name}', got: {values[0][:64]}")
    return int(match[0])
