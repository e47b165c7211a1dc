"""A hostile worker process, a real front end process, and the supervisor's own parts between them.

Whatever it does, the front end stays the same process, the model is out of service for a reason that is named and on
record, and another model's callers get the right bytes all the time, and soon.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import grpc
import pytest

from hermetic.enclave.channel import Channel
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.memory_scan import scan
from hermetic.enclave.messages import Opened
from hermetic.enclave.pulse import Wrist
from hermetic.enclave.supervisor import Worker
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.attesting import Release
from hermetic.server.cpu_plan import Place
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import SealedFile
from hermetic.server.loading import Loaded
from tests.flows.hostile_worker import BEHAVIOURS
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method
from tests.server.far_side import FarSide, Pki, description, settings
from tests.server.keeping import Keeping, LoaderDouble, Told
from tests.server.test_link_renewal import Bridge
from tests.server.test_repository import sealed

SCRIPT = Path(__file__).with_name("hostile_worker.py")
HARMLESS = ("scribbles", "truncates")
"""What a worker may do to its own answers, and to nobody else's."""
CANARY = b"CANARY<of another tenant, at another model>" * 8


@dataclass
class HostileLoader(LoaderDouble):
    """Loads workers that are processes of hostile_worker.py, without a key or a model."""

    behaviour: str = ""
    started: list[Worker] = field(default_factory=list)

    def load(self, file: SealedFile, place: Place) -> Loaded:
        about = file.manifest.description()
        ours, theirs = Channel.pair()
        with theirs:
            arguments = [sys.executable, str(SCRIPT), str(theirs.fileno()), about.model_dump_json(), self.behaviour]
            process = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL)
        worker = Worker(process, ours, OwnUid(61184), Wrist(), None)
        worker._report = LockdownReport(properties={}, waived=(), warnings=(), zeroing="enforced")
        worker._opened = Opened(description=about, unseal_ms=0, load_ms=0, known_answer_ms=0)
        self.started.append(worker)
        return Loaded(worker, worker._opened, Release(b"", "", None))


class Neighbour:
    """A caller of another model who never stops asking, and looks at every byte that comes."""

    def __init__(self, side: FarSide) -> None:
        self.answers = 0
        self.wrong: list[object] = []
        self._over = threading.Event()
        self._side = side
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        with self._side.channel_as(self._side.pki.other) as channel:
            while not self._over.is_set():
                row = (float(self.answers), 1.5, -2.0, 3e30)
                try:
                    raw = infer(channel, infer_request("neighbour", row)).raw_output_contents[0]
                    if raw != floats(*row):
                        self.wrong.append(raw)
                except grpc.RpcError as error:
                    self.wrong.append(error)
                self.answers += 1

    def check(self) -> None:
        assert self.wrong == []


class Stage:
    """Everything."""

    def __init__(self, side: FarSide, keeping: Keeping, behaviour: str) -> None:
        self.side = side
        self.keeping = keeping
        self.loader = cast(HostileLoader, keeping.loader)
        self.loader.behaviour = behaviour
        self.front_end = cast(FrontEnd, Bridge(side))
        cast(dict[int, FrontEnd], keeping.front_ends)[self.front_end.pid] = self.front_end
        file, told = sealed(), Told()
        self.slot = keeping.repository.put(file)
        keeping.keeper.load(self.slot, file, file.manifest.configuration, told)
        self.turn_until(lambda: bool(told.outcomes))

    def turn_until(self, what: Callable[[], bool]) -> None:
        """Run the supervisor's loop, with what the front end says of its links, until something holds."""

        def heard() -> bool:
            while not self.side.lost_links.empty():
                self.keeping.keeper.link_lost(self.front_end, self.side.await_link_lost())
            return what()

        self.keeping.turn_until(heard)

    def reasons(self) -> list[str]:
        return [str(fields["reason"]) for fields in self.keeping.recorded("link.lost")]


@pytest.fixture(scope="module")
def side() -> Iterator[FarSide]:
    pki = Pki()
    side = FarSide(pki, settings(pki))
    side.serve(description("neighbour"), report=False)
    side.serve(description("secrets", inputs=(("INPUT0", "BYTES", (1,)),)), report=False)
    with side.channel_as(pki.other) as channel:
        await_ready(channel, "neighbour")
        await_ready(channel, "secrets")
    yield side
    side.close()


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    keeping = Keeping(loader=HostileLoader())
    yield keeping
    for worker in cast(HostileLoader, keeping.loader).started:
        worker.kill()
    keeping.loop.close()


def request(*values: float) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="iris")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(floats(*values))
    return message


def ask_until_it_is_out(stage: Stage, channel: grpc.Channel) -> None:
    """Ask the hostile model until a link to it is lost; what it answers before that is its own."""

    def asked() -> bool:
        with suppress(grpc.RpcError):
            infer(channel, request(1, 2, 3, 4))
        return bool(stage.reasons()) or bool(stage.keeping.recorded("worker.lost"))

    stage.turn_until(asked)


def tell_a_secret(side: FarSide) -> None:
    """Another tenant asks another model."""
    message = pb.ModelInferRequest(model_name="secrets")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(len(CANARY).to_bytes(4, "little") + CANARY)
    with side.channel_as(side.pki.other) as channel:
        assert infer(channel, message).raw_output_contents[0].endswith(CANARY)


@pytest.mark.parametrize("behaviour", [name for name in BEHAVIOURS if name not in HARMLESS])
def test_it_is_put_out_and_nobody_else_notices(side: FarSide, keeping: Keeping, behaviour: str) -> None:
    tell_a_secret(side)
    with Neighbour(side) as neighbour, side.channel_as(side.pki.infer) as channel:
        stage = Stage(side, keeping, behaviour)
        if behaviour == "speaks unasked":  # it is found out when it is asked for the next thing
            (worker,) = stage.loader.started
            stage.turn_until(worker._control.has_frame)
            assert not worker.unload(TIMEOUT_S)
        else:
            ask_until_it_is_out(stage, channel)
            assert all(stage.reasons())
            tell_a_secret(side)
            for worker in stage.loader.started:
                if os.geteuid() == 0 and worker.pid:
                    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended, by now
                        assert scan(worker.pid, {"c": CANARY[:40]}).count("c") == 0
        seen = neighbour.answers
        stage.turn_until(lambda: neighbour.answers > seen + 20)
    neighbour.check()
    assert side.process.poll() is None
    assert keeping.recorded("front-end.replaced") == []


@pytest.mark.parametrize("behaviour", HARMLESS)
def test_what_it_does_to_its_memory_harms_its_own_answers_alone(
    side: FarSide, keeping: Keeping, behaviour: str
) -> None:
    with Neighbour(side) as neighbour, side.channel_as(side.pki.infer) as channel:
        stage = Stage(side, keeping, behaviour)
        await_ready(channel, "iris")
        for at in range(100):
            raw = infer(channel, request(at, 2, 3, 4)).raw_output_contents[0]
            assert behaviour == "scribbles" or raw == floats(at, 2, 3, 4)
        stage.turn_until(lambda: neighbour.answers > 20)
    neighbour.check()
    assert side.process.poll() is None


def test_it_is_named_as_what_it_is_and_replaced_again_and_again(
    side: FarSide, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermetic.server.link_ledger.RENEWAL_DELAYS_S", (0.0,))
    with Neighbour(side) as neighbour, side.channel_as(side.pki.infer) as channel:
        stage = Stage(side, keeping, "lies")

        def replaced() -> bool:
            ask_until_it_is_out(stage, channel)
            return len(keeping.recorded("worker.replaced")) >= 2

        stage.turn_until(replaced)
        with side.channel_as(side.pki.observe) as observer:
            index = method(observer, "RepositoryIndex")(pb.RepositoryIndexRequest(), timeout=TIMEOUT_S)
        (reason,) = [model.reason for model in index.models if model.name == "iris"]
        assert reason in ("no worker: the last one broke the protocol", "")
        assert all("wanted the answer to a running batch" in reason for reason in stage.reasons())
        assert any("links to front ends broke" in str(each["reason"]) for each in keeping.recorded("worker.lost"))
    neighbour.check()
    assert keeping.recorded("front-end.replaced") == []
