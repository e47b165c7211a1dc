"""Trace and log settings over the network: who may, what is refused, and that a change is everyone's.

What Triton answers to the same calls is compared in test_like_triton.py.
"""

from collections.abc import Iterator, Sequence

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.trace_rules import LogRules, TraceChange, TraceRules
from tests.server.calls import TIMEOUT_S, await_ready, method
from tests.server.certificates import Pair
from tests.server.far_side import FarSide, Pki, description
from tests.server.far_side import settings as settings_of

FILE = TraceRules(file="traces.json")


def trace(channel: grpc.Channel, model: str = "", /, **settings: Sequence[str]) -> dict[str, str]:
    """Ask for trace settings, or change some; returns all."""
    value = pb.TraceSettingRequest.SettingValue
    asked = pb.TraceSettingRequest(model_name=model, settings={name: value(value=v) for name, v in settings.items()})
    answer = method(channel, "TraceSetting")(asked, timeout=TIMEOUT_S)
    return {name: value.value[0] for name, value in answer.settings.items()}


def logs(channel: grpc.Channel, **settings: bool | int | str) -> dict[str, bool | int | str]:
    asked = pb.LogSettingsRequest()
    for name, value in settings.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(asked.settings[name], kind, value)
    answer = method(channel, "LogSettings")(asked, timeout=TIMEOUT_S)
    return {name: getattr(value, str(value.WhichOneof("parameter_choice"))) for name, value in answer.settings.items()}


def status(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[str, str]:
    return error.value.code().name, error.value.details()


@pytest.fixture(scope="module")
def tracing(pki: Pki) -> Iterator[FarSide]:
    """A front end that traces into a file, for those who change nothing of it."""
    far_side = FarSide(pki, settings_of(pki, trace=FILE))
    yield far_side
    far_side.close()


def test_who_may_watch_sees_them_and_who_operates_changes_them(start: object) -> None:
    side: FarSide = start(trace=FILE)  # type: ignore[operator]
    with side.channel_as(side.pki.observe) as observer, side.channel_as(side.pki.operate) as operator:
        assert trace(observer)["trace_level"] == "OFF"
        assert logs(observer)["log_info"] is True
        for change in (lambda: trace(observer, trace_rate=["3"]), lambda: logs(observer, log_info=False)):
            with pytest.raises(grpc.RpcError) as caught:
                change()
            assert status(caught)[0] == "PERMISSION_DENIED"
        assert trace(operator, trace_rate=["3"])["trace_rate"] == "3"
        assert trace(observer)["trace_rate"] == "3"
        assert logs(operator, log_info=False)["log_info"] is False


@pytest.mark.parametrize("who", ["infer", "unlisted"])
def test_others_see_nothing(side: FarSide, who: str) -> None:
    client: Pair = getattr(side.pki, who)
    with side.channel_as(client) as channel:
        for ask in (trace, logs):
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel)
            assert status(caught)[0] == "PERMISSION_DENIED"


def test_a_models_settings_fall_back_to_the_servers(start: object) -> None:
    """As in Triton: what was not given for a model follows the server's, and can be cleared again."""
    side: FarSide = start(trace=FILE)  # type: ignore[operator]
    side.serve(description("echo"))
    with side.channel_as(side.pki.operate) as channel:
        await_ready(channel, "echo")
        trace(channel, "echo", trace_count=["7"])
        trace(channel, trace_rate=["2"], trace_level=["TIMESTAMPS"])
        shown = trace(channel, "echo")
        assert (shown["trace_count"], shown["trace_rate"], shown["trace_level"]) == ("7", "2", "TIMESTAMPS")
        assert trace(channel)["trace_count"] == "-1"
        assert trace(channel, "echo", trace_count=[])["trace_count"] == "-1"
        assert side.epoch.trace.models == {}
        with pytest.raises(grpc.RpcError) as caught:
            trace(channel, "other")
        assert status(caught) == ("INVALID_ARGUMENT", "Request for unknown model : other")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"trace_level": ["TENSORS"]},
            ("UNIMPLEMENTED", "trace level TENSORS is not offered: it would write callers' data to a disk"),
        ),
        (
            {"trace_level": ["TIMESTAMPS", "TENSORS"]},
            ("UNIMPLEMENTED", "trace level TENSORS is not offered: it would write callers' data to a disk"),
        ),
        (
            {"trace_file": ["/etc/passwd"]},
            ("UNIMPLEMENTED", "trace file location can not be updated through network protocol"),
        ),
        (
            {"trace_rate": ["0"], "trace_level": ["TIMESTAMPS"]},
            ("INVALID_ARGUMENT", "Attempting to set invalid trace setting :sample rate must be non-zero"),
        ),
        (
            {"trace_level": ["OFF", "TIMESTAMPS"]},
            ("INVALID_ARGUMENT", "Expect only one trace level 'OFF' is specified"),
        ),
        (
            {"trace_count": ["99999999999"]},
            (
                "INVALID_ARGUMENT",
                "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 99999999999",
            ),
        ),
        (
            {"trace_rate": ["4294967296"]},
            (
                "INVALID_ARGUMENT",
                "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 4294967296",
            ),
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    tracing: FarSide, settings: dict[str, list[str]], wanted: tuple[str, str]
) -> None:
    side = tracing
    with side.channel_as(side.pki.operate) as channel:
        before = trace(channel)
        with pytest.raises(grpc.RpcError) as caught:
            trace(channel, **settings)
        assert status(caught) == wanted
        assert trace(channel) == before
        assert side.epoch.number == 1


def test_what_the_supervisor_refuses_is_told(start: object) -> None:
    """Two callers may have asked for what does not go together: the supervisor looks again."""
    side: FarSide = start(trace=FILE)  # type: ignore[operator]
    with side.channel_as(side.pki.operate) as channel:
        trace(channel, trace_rate=["5"])
        given = TraceChange(level="TIMESTAMPS", rate=0)
        side.epoch = side.epoch.model_copy(update={"trace": FILE.model_copy(update={"server": given})})
        with pytest.raises(grpc.RpcError) as caught:
            trace(channel, trace_count=["5"])
        assert status(caught)[0] == "INVALID_ARGUMENT"
        assert trace(channel)["trace_count"] == "-1"


def test_stock_clients(start: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    side: FarSide = start(trace=FILE)  # type: ignore[operator]
    folder = tmp_path_factory.mktemp("client")
    files = {"ca": side.pki.server_authority.pem, "key": side.pki.operate.key, "chain": side.pki.operate.certificate}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    client = InferenceServerClient(
        f"localhost:{side.port}",
        ssl=True,
        root_certificates=str(folder / "ca"),
        private_key=str(folder / "key"),
        certificate_chain=str(folder / "chain"),
    )
    with client:
        client.update_trace_settings(settings={"trace_level": "TIMESTAMPS", "trace_rate": "9"})
        assert client.get_trace_settings(as_json=True)["settings"]["trace_rate"]["value"] == ["9"]
        client.update_log_settings({"log_verbose_level": 2, "log_format": "ISO8601"})
        assert client.get_log_settings(as_json=True)["settings"]["log_format"]["string_param"] == "ISO8601"
    assert side.epoch.trace.setting("").level == "TIMESTAMPS"
    assert side.epoch.logging == LogRules(verbose_level=2, format="ISO8601")


def test_log_settings_really_change_what_is_printed(start: object, capfd: pytest.CaptureFixture[str]) -> None:
    side: FarSide = start()  # type: ignore[operator]

    def printed(channel: grpc.Channel) -> str:
        """What comes of a frame that no supervisor may send (an error), a lost worker (a warning), and a call."""
        name = f"lost-{side.epoch.number}"
        worker = side.serve(description(name))
        await_ready(channel, name)
        capfd.readouterr()
        worker.kill()
        side.lost_links.get(timeout=TIMEOUT_S)
        side.channel.send(b"\x00" * 9)
        for _ in range(2):
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        before = len(side.records)
        while len(side.records) < before + 2:  # the tick that hands records over prints them first
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        return capfd.readouterr().err

    with side.channel_as(side.pki.everything) as channel:
        text = printed(channel)
        assert "lost a worker" in text
        assert "supervisor's frame" in text
        assert "ServerLive" not in text
        logs(channel, log_warning=False)
        text = printed(channel)
        assert "lost a worker" not in text
        assert "supervisor's frame" in text
        logs(channel, log_error=False)
        assert printed(channel) == ""
        logs(channel, log_error=True, log_warning=True, log_verbose_level=1, log_format="ISO8601")
        text = printed(channel)
        assert "ServerLive" in text
        assert all(line[:2] == "20" and "Z front end" in line for line in text.splitlines() if "lost a worker" in line)
