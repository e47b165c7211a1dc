"""Frames, descriptors and shared memory across a process border."""

import fcntl
import os
import socket
import threading

import pytest

from hermetic.enclave.batch_frames import DATA_FRAME_LIMIT
from hermetic.enclave.channel import (
    DESCRIPTORS_LIMIT,
    Channel,
    data_channel,
    map_shared_memory,
    shared_memory,
)
from hermetic.enclave.control_frames import CONTROL_FRAME_LIMIT
from hermetic.errors import BorderError
from tests.descriptors import are_given_back, settled_descriptors

TIMEOUT_S = 60


def test_a_frame_arrives_whole_with_its_descriptors() -> None:
    one, other = Channel.pair()
    with one, other:
        one.send(b"first", [0, 1])
        one.send(b"x" * CONTROL_FRAME_LIMIT)
        frame, descriptors = other.receive()
        assert (frame, len(descriptors)) == (b"first", 2)
        assert all(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for descriptor in descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        assert other.receive() == (b"x" * CONTROL_FRAME_LIMIT, [])


def test_too_long_a_frame_or_too_many_descriptors_are_refused_and_none_is_kept() -> None:
    one, other = Channel.pair()
    with one, other:
        before = settled_descriptors()
        one.send(b"x" * (CONTROL_FRAME_LIMIT + 1), [0, 0])
        one.send(b"y", [0] * (DESCRIPTORS_LIMIT + 1))
        for _ in range(2):
            with pytest.raises(BorderError, match="wanted a frame of at most"):
                other.receive()
        assert are_given_back(before)


def test_the_end_is_an_error_on_both_sides() -> None:
    one, other = Channel.pair()
    other.close()
    with one:
        for receive in (one.receive, one.receive_data):
            with pytest.raises(BorderError, match="the other side has closed"):
                receive()
        with pytest.raises(BorderError, match="it has closed"):
            one.send(b"x")


def test_data_frames_bring_no_descriptors_and_keep_excess_visible() -> None:
    front_end, worker = data_channel()
    with Channel.of_descriptor(front_end) as one, Channel.of_descriptor(worker) as other:
        before = settled_descriptors()
        for descriptors in ([0], [0] * 100, [worker, front_end]):
            one.send(b"frame", descriptors)
            with pytest.raises(BorderError, match="got one with descriptors"):
                other.receive_data()
            assert are_given_back(before)
        one.send(b"x" * (DATA_FRAME_LIMIT + 100))
        assert len(other.receive_data()) == DATA_FRAME_LIMIT + 1


def test_a_frame_that_waits_is_seen_and_an_end_is_none() -> None:
    one, other = Channel.pair()
    with one:
        assert not one.has_frame()
        other.send(b"unasked")
        assert one.has_frame()
        one.receive()
        other.close()
        assert not one.has_frame()


def test_who_receives_hears_of_the_end_although_the_other_end_is_held_by_someone() -> None:
    one, other = Channel.pair()
    ends: list[str] = []

    def receive() -> None:
        with pytest.raises(BorderError, match="the other side has closed"):
            one.receive()
        ends.append("heard")

    with one, other:
        thread = threading.Thread(target=receive)
        thread.start()
        one.shut()
        thread.join(TIMEOUT_S)
        one.shut()  # again does no harm
    assert ends == ["heard"]


def test_only_seqpacket_sockets_are_channels() -> None:
    stream, peer = socket.socketpair()
    nothing = os.open("/dev/null", os.O_RDONLY)
    with peer:
        for descriptor in (stream.detach(), nothing):
            with pytest.raises(BorderError, match="wanted a"):
                Channel.of_descriptor(descriptor)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


def test_a_timeout_is_one() -> None:
    one, other = Channel.pair()
    with one, other:
        one.settimeout(0.01)
        with pytest.raises(TimeoutError):
            one.receive()


def test_shared_memory_can_never_be_resized() -> None:
    memory = shared_memory(8192)
    mapped = map_shared_memory(memory, 8192)
    again = map_shared_memory(memory, 8192)
    mapped[:5] = b"hello"
    assert again[:5] == b"hello"
    for size in (4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(memory)


def test_memory_that_its_maker_could_resize_is_refused() -> None:
    plain = os.memfd_create("plain")
    resizable = os.memfd_create("resizable", os.MFD_ALLOW_SEALING)
    growing = os.memfd_create("growing", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(growing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    for memory in (plain, resizable, growing):
        os.ftruncate(memory, 0)
        with pytest.raises(BorderError, match="wanted seals"):
            map_shared_memory(memory, 0)
        os.close(memory)
    sealed = shared_memory(4096)
    with pytest.raises(BorderError, match="wanted 8192 bytes, got 4096"):
        map_shared_memory(sealed, 8192)
    os.close(sealed)
