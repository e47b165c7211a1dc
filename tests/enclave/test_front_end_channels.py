"""What a worker still does for its front ends when it ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hermetic.enclave import front_end_channels as module
from hermetic.enclave.channel import Channel
from hermetic.enclave.front_end_channels import FrontEndChannels, _FrontEnd

BATCHES = 3


class Seams:
    """Runner, pulse and buffers in one: what is run is counted."""

    ran = 0

    def run(self, _batch: bytes, _buffers: Any) -> bytes:
        self.ran += 1
        return b"answer"

    def begin(self) -> None:
        pass

    end = close = begin


class Scene:
    """One front end that has asked three times."""

    def __init__(self, stack: ExitStack) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(supervisor)
        control = Channel.of_descriptor(worker.detach())
        stack.callback(control.close)
        self.theirs = stack.enter_context(theirs)
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, self.ended)
        self.seams = Seams()
        seams: Any = self.seams
        description: Any = None
        end = Channel.of_descriptor(ours.detach())
        stack.callback(end.close)
        self.channels = FrontEndChannels(seams, description, control, {}, seams, self.ended)
        self.channels._front_ends[end.fileno()] = _FrontEnd(0, 1, end, seams)
        self.channels._poll.register(end.fileno())
        for _ in range(BATCHES):
            self.theirs.send(b"batch")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(module, "decode_batch", bytes)
    with ExitStack() as stack:
        yield Scene(stack)


def test_what_waits_at_an_unload_is_answered(scene: Scene) -> None:
    scene.channels.finish()
    assert scene.seams.ran == BATCHES


def test_nothing_is_computed_once_the_lease_is_over(scene: Scene) -> None:
    """The sockets are shut by then; but what is computed would lie in memory that a front end sees."""
    scene.channels.shut()
    os.eventfd_write(scene.ended, 1)
    scene.channels.serve(lambda: True)
    scene.channels.finish()
    assert scene.seams.ran == 0
