"""A real front end and a worker that sends garbage: the link is made anew, and callers are served again."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from hermetic.enclave.control_frames import Frame
from hermetic.enclave.supervisor import Worker
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.cpu_plan import Place
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import SealedFile
from hermetic.server.loading import Loaded
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer
from tests.server.far_side import FarSide, Pki, settings
from tests.server.keeping import Keeping, LoaderDouble, Told, WorkerDouble
from tests.server.test_repository import sealed


class StandInWorker(WorkerDouble):
    """A worker that serves each link with a stand-in's process."""

    def __init__(self, file: SealedFile) -> None:
        super().__init__(file)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.orders: list[socket.socket] = []

    def attach(
        self, channel: int, memory: int, *, front_end: int, buffers: int, variable_tensor_bytes: int, timeout_s: float
    ) -> None:
        ours, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = {
            "description": self.description.model_dump(mode="json"),
            "buffers": buffers,
            "variable_tensor_bytes": variable_tensor_bytes,
            "report": False,
        }
        descriptors = (channel, memory, orders.fileno())
        script = str(Path(__file__).with_name("standin_worker.py"))
        command = [sys.executable, script, *map(str, descriptors), json.dumps(options)]
        self.processes.append(subprocess.Popen(command, pass_fds=descriptors))
        orders.close()
        self.orders.append(ours)
        self.attached += 1

    def order(self, text: str) -> None:
        """Give an order to the process of the newest link."""
        self.orders[-1].send(text.encode())


class StandInLoader(LoaderDouble):
    def load(self, file: SealedFile, place: Place) -> Loaded:
        loaded = super().load(file, place)
        worker = StandInWorker(file)
        os.close(self.workers.pop().pidfd)
        self.workers.append(worker)
        return Loaded(cast(Worker, worker), loaded.opened, loaded.release)


class Bridge:
    """A front end's process, as a model keeper sees it."""

    def __init__(self, side: FarSide) -> None:
        self.pid = side.process.pid
        self._side = side

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> None:
        self._side.channel.send(frame.encode(), tuple(descriptors))

    def end(self) -> None:
        self._side.process.kill()


@pytest.fixture
def side(pki: Pki) -> Iterator[FarSide]:
    side = FarSide(pki, settings(pki))
    yield side
    side.close()


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    keeping = Keeping(loader=StandInLoader())
    yield keeping
    for worker in cast(list[StandInWorker], keeping.loader.workers):
        for process, orders in zip(worker.processes, worker.orders, strict=True):
            process.kill()
            process.wait()
            orders.close()
    keeping.loop.close()


def request() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="iris")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(floats(1, 2, 3, 4))
    return message


def test_a_link_that_a_front_end_gives_up_is_made_anew(side: FarSide, keeping: Keeping) -> None:
    front_end = cast(FrontEnd, Bridge(side))
    cast(dict[int, FrontEnd], keeping.front_ends)[front_end.pid] = front_end
    file, told = sealed(), Told()
    keeping.keeper.load(keeping.repository.put(file), file, file.manifest.configuration, told)
    keeping.turn_until(lambda: told.outcomes == [None])
    (worker,) = cast(list[StandInWorker], keeping.loader.workers)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "iris")
        assert infer(channel, request()).raw_output_contents[0] == floats(1, 2, 3, 4)
        worker.order("garbage")
        keeping.keeper.link_lost(front_end, side.await_link_lost())
        keeping.turn_until(lambda: worker.attached == 2)
        keeping.settle()
        await_ready(channel, "iris")
        assert infer(channel, request()).raw_output_contents[0] == floats(1, 2, 3, 4)
    assert worker.processes[0].wait(TIMEOUT_S) == 0, "its channel was closed by the front end"
    assert [fields["instance"] for fields in keeping.recorded("link.lost")] == [0]
