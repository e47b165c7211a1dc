"""Memory that changes at every read: what is judged is what is used, and nobody sees two versions of one thing."""

import hashlib
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from random import Random
from types import FrameType
from typing import Any

import pytest

from hermetic.enclave.batch_frames import Batch, Tensor, encode_done
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, map_shared_memory, shared_memory
from hermetic.enclave.configuration import ModelConfiguration, OutputOptions, SequenceBatching, State
from hermetic.enclave.model_description import FrontEndFile, ModelDescription, TensorSpec
from hermetic.errors import BorderError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.arrival import arrive
from hermetic.server.foreign import Foreign, ForeignMemory
from hermetic.server.messages import ModelReady
from hermetic.server.worker_link import check_again
from tests.server.calls import infer_request
from tests.server.conversation import is_final
from tests.server.far_side import Pki, description
from tests.server.hostile_front import Front, Worker
from tests.server.sequence_models import countdown
from tests.server.sequence_models import request as sequence_request

MIB = 1 << 20


@pytest.fixture
def front(pki: Pki) -> Iterator[Front]:
    front = Front(pki)
    yield front
    front.close()


@contextmanager
def changing_at_every_step(change: Callable[[], None], least: int = 100) -> Iterator[None]:
    """Call `change` before every byte code of a front end's: no two reads of memory see the same."""
    steps = count()

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_globals.get("__name__", "").startswith("hermetic.server"):
            return None
        frame.f_trace_opcodes = True
        next(steps)
        change()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
    assert next(steps) > least, "it was not looked at"


def turn_while_changing(front: Front, worker: Worker, tensors: list[Tensor], *versions: list[bytes]) -> Batch:
    """Answer the batch that a worker has, and have the outputs be one version, then the other, at every step."""
    worker.read()
    batch = worker.batches.pop()
    views = [
        worker.view(batch, region.offset, tensor.nbytes)
        for region, tensor in zip(worker.place.outputs, tensors, strict=True)
    ]

    chance = Random(batch.sequence)  # not in turn: two reads might always be as many steps apart

    def change() -> None:
        for view, content in zip(views, chance.choice(versions), strict=True):
            view[:] = content

    change()
    worker.send(encode_done(batch.buffer, batch.sequence, tensors, 1, 1, 1))
    with changing_at_every_step(change):
        front.turn()
    for view in views:
        view.release()
    return batch


def test_strings_are_what_was_walked(front: Front) -> None:
    """Two versions of the same length, both good: an answer is one of them, and not the lengths of one in the other."""
    about = description("m", inputs=(("INPUT0", "BYTES", (2,)),))
    worker = front.serve(about)
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"b"])
    versions = [[strings(b"", b"1234")], [strings(b"1234", b"")], [strings(b"12", b"34")]]
    seen = set()
    for _ in range(6):
        caller = front.ask("red", message)
        front.turn()
        turn_while_changing(front, worker, [Tensor(12, (1, 2))], *versions)
        (reply,) = caller.outcomes
        assert isinstance(reply, pb.ModelInferResponse)
        assert [reply.raw_output_contents[0]] in versions
        seen.add(reply.raw_output_contents[0])


def test_rows_of_strings_are_cut_where_they_were_walked(front: Front) -> None:
    worker = front.serve(description("m", inputs=(("INPUT0", "BYTES", (1,)),)))
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"a")
    callers = [front.ask("red", message) for _ in range(2)]
    front.turn()
    versions = [[strings(b"", b"1234")], [strings(b"1234", b"")]]
    turn_while_changing(front, worker, [Tensor(12, (2, 1))], *versions)
    for caller in callers:
        (reply,) = caller.outcomes
        assert isinstance(reply, pb.ModelInferResponse)
        raw = reply.raw_output_contents[0]
        assert int.from_bytes(raw[:4], "little") == len(raw) - 4


def test_strings_that_turn_bad_are_good_or_a_lie(front: Front) -> None:
    about = description("m", inputs=(("INPUT0", "BYTES", (1,)),))
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"a")
    good, bad = strings(b"1234"), b"\xff\xff\xff\xff" * 2
    worker = front.serve(about)
    for _ in range(8):
        worker = worker if front.links_of("m") else front.serve(about)
        caller = front.ask("red", message)
        front.turn()
        turn_while_changing(front, worker, [Tensor(8, (1, 1))], [good], [bad])
        (outcome,) = caller.outcomes
        if isinstance(outcome, pb.ModelInferResponse):
            assert outcome.raw_output_contents[0] == good
        else:
            assert "wanted 1 BYTES elements" in str(outcome)


def test_a_final_flag_is_acted_upon_as_it_is_told(front: Front) -> None:
    worker = front.serve(countdown("m"))
    truths = set()
    for _ in range(8):
        stream = front.stream("red", sequence_request("m", 5))
        front.turn()
        tensors = [Tensor(4, (1, 1)), Tensor(1, (1, 1)), Tensor(4, (1, 1))]
        turn_while_changing(front, worker, tensors, [bytes(4), b"\0", bytes(4)], [bytes(4), b"\1", bytes(4)])
        front.settle()
        worker.read()
        told = bool(stream.answers[0].infer_response.raw_output_contents[1][0])
        assert is_final(stream.answers[0]) == told
        assert bool(worker.batches) != told, "it runs again where it was not the last"
        truths.add(told)
        while worker.batches:
            front_finishes(front, worker)


def front_finishes(front: Front, worker: Worker) -> None:
    """Answer what still runs: it was the last."""
    batch = worker.batches.pop()
    tensors = [Tensor(4, (1, 1)), Tensor(1, (1, 1)), Tensor(4, (1, 1))]
    worker.view(batch, worker.place.outputs[1].offset, 1)[:] = b"\1"
    worker.send(encode_done(batch.buffer, batch.sequence, tensors, 1, 1, 1))
    front.settle()
    worker.read()


def visible_state() -> ModelDescription:
    """A model of sequences whose state is an output that callers see."""
    state = State(input_name="STATE_IN", output_name="OUTPUT0", datatype="FP32", shape=(4,))
    sequence = SequenceBatching(strategy="oldest", max_candidate_sequences=4, states=(state,), max_idle_us=60_000_000)
    plain = description("m", inputs=(("INPUT0", "FP32", (1,)),), outputs=(("OUTPUT0", "FP32", (4,)),))
    return plain.model_copy(update={"configuration": ModelConfiguration(sequence_batching=sequence)})


def test_files_that_change_while_they_are_read_are_the_publishers_or_none(front: Front) -> None:
    """Labels, and the states that sequences start with: what has the right digest is what is kept."""
    good, bad = b"cat\ndog\n", b"cat\ncow\n"
    file = FrontEndFile(name="labels.txt", size=len(good), sha256=hashlib.sha256(good).hexdigest())
    configuration = ModelConfiguration(outputs=(OutputOptions(name="OUTPUT0", labels="labels.txt"),))
    about = description("m", configuration=configuration).model_copy(update={"front_end_files": (file,)})
    ready = ModelReady(
        description=about, instance=0, buffers=1, batches_in_flight=1, variable_tensor_bytes=64, requests_waiting=1
    )
    place = layout(about, 1, 64)
    outcomes = set()
    for seed in range(12):
        descriptor = shared_memory(place.size)
        other = mmap.mmap(descriptor, place.size)
        chance, at = Random(seed), place.files[0].offset

        def change(memory: mmap.mmap = other, chance: Random = chance, at: int = at) -> None:
            memory[at : at + len(good)] = chance.choice((good, bad))

        ours, theirs = data_channel()
        with changing_at_every_step(change, least=20):
            try:
                arrival = arrive(ready, ours, descriptor)
            except BorderError:
                outcomes.add(b"")
            else:
                outcomes.add(arrival.files["labels.txt"])
                arrival.close()
        other.close()
        os.close(theirs)
    assert outcomes == {b"", good}


def test_a_state_that_is_kept_is_the_one_that_was_told(front: Front) -> None:
    worker = front.serve(visible_state())
    versions = [[struct.pack("<4f", *[at] * 4)] for at in (1.0, 2.0, 3.0)]
    for sequence in range(1, 9):
        caller = front.ask("red", sequence_request("m", 1, sequence, start=True))
        front.turn()
        turn_while_changing(front, worker, [Tensor(16, (1, 4))], *versions)
        (reply,) = caller.outcomes
        assert isinstance(reply, pb.ModelInferResponse)
        front.ask("red", sequence_request("m", 1, sequence, end=True))
        front.settle()
        worker.read()
        (batch,) = worker.batches
        kept = bytes(worker.view(batch, worker.place.inputs[1].offset, 16))
        assert kept == reply.raw_output_contents[0]
        worker.batches.clear()
        worker.view(batch, worker.place.outputs[0].offset, 16)[:] = bytes(16)
        worker.send(encode_done(batch.buffer, batch.sequence, [Tensor(16, (1, 4))], 1, 1, 1))
        front.settle()


def test_numbers_are_read_once(front: Front) -> None:
    """They may be of any version, and each output of one answer is of one."""
    worker = front.serve(description("m", inputs=(("INPUT0", "FP32", (64,)),)))
    versions = [[struct.pack("<64f", *[at] * 64)] for at in (1.0, 2.0, 3.0)]
    for _ in range(4):
        caller = front.ask("red", infer_request("m", [0.0] * 64))
        front.turn()
        turn_while_changing(front, worker, [Tensor(256, (1, 64))], *versions)
        (reply,) = caller.outcomes
        assert isinstance(reply, pb.ModelInferResponse)
        assert [reply.raw_output_contents[0]] in versions


# Rows that come back


def test_rows_that_come_back_are_judged_as_a_callers_are() -> None:
    flags = bytearray(b"\0\1\2\xff")
    check_again(TensorSpec(name="flags", datatype="BOOL", shape=(4,)), (1, 4), flags)
    assert flags == b"\0\1\1\1"
    words = TensorSpec(name="words", datatype="BYTES", shape=(2,))
    check_again(words, (1, 2), bytearray(strings(b"a", b"bc")))
    for spoilt in (strings(b"abcd"), strings(b"a", b"b") + b"?", b"\xff\xff\xff\xff" + bytes(7), b""):
        with pytest.raises(BorderError, match="wanted the 2 elements that came"):
            check_again(words, (1, 2), bytearray(spoilt))


def test_a_request_that_a_worker_has_spoilt_goes_to_no_other(front: Front) -> None:
    """It fails, and what waited beside it is served by another worker."""
    about = description("m", inputs=(("INPUT0", "BYTES", (1,)),), max_batch_size=4)
    first, second = (front.serve(about, instance=at, batches_in_flight=1) for at in range(2))
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"word")
    callers = [front.ask("red", message) for _ in range(16)]
    front.turn()
    first.read()
    running = sum(batch.inputs[0].shape[0] for batch in first.batches)
    assert running
    for buffer in range(first.place.buffers):  # one runs, one is forming
        at = buffer * first.place.stride + first.place.inputs[0].offset
        assert first.memory[at : at + 8] == strings(b"word")
        first.memory[at] = 200
    first.close()
    while not all(caller.outcomes for caller in callers):
        front.settle()
        second.read()
        for batch in list(second.batches):
            second.answer(batch)
    answers = [caller.outcomes[0] for caller in callers]
    replies = [answer for answer in answers if isinstance(answer, pb.ModelInferResponse)]
    assert {reply.raw_output_contents[0] for reply in replies} == {strings(b"word")}
    assert len(replies) == len(callers) - running - 1
    assert sum("changed the request" in str(answer) for answer in answers) == 1
    assert front.links_of("m") == 1


# How much of it


def test_only_what_was_touched_is_wiped() -> None:
    size = 256 * MIB
    descriptor = shared_memory(size)
    memory = ForeignMemory(map_shared_memory(descriptor, size), descriptor)
    other = mmap.mmap(descriptor, size)
    for at in (0, 100 * MIB + 5, size - 3):
        other[at : at + 3] = b"abc"
    before = os.fstat(descriptor).st_blocks
    assert memory.wipe_touched(0, size) == size
    assert os.fstat(descriptor).st_blocks == before, "no page was made"
    assert all(other[at : at + 3] == bytes(3) for at in (0, 100 * MIB + 5, size - 3))
    other.close()
    memory.close()


def test_wiping_goes_on_where_it_stopped() -> None:
    descriptor = shared_memory(4 * MIB)
    memory = ForeignMemory(map_shared_memory(descriptor, 4 * MIB), descriptor)
    other = mmap.mmap(descriptor, 4 * MIB)
    other[:] = b"x" * (4 * MIB)
    at, turns = 0, 0
    while at < len(memory):
        at = memory.wipe_touched(at, len(memory), MIB)
        assert not any(other[:at])
        turns += 1
    assert turns == 4
    other.close()
    memory.close()


def test_a_gap_is_closed_and_what_it_leaves_is_wiped() -> None:
    content = bytearray(b"aabbcc..")
    Foreign(memoryview(content)).close_gap(2, 2, 6)
    assert content == b"aacc\0\0.."


SHRUNK = """
import mmap, os, sys
sys.path.insert(0, "")
from hermetic.enclave.channel import shared_memory
sealed = sys.argv[1] == "sealed"
memory = shared_memory(8192) if sealed else os.memfd_create("plain")
if not sealed:
    os.ftruncate(memory, 8192)
mapped = mmap.mmap(memory, 8192)
try:
    os.ftruncate(memory, 0)
except PermissionError:
    pass
mapped[4096]
"""


@pytest.mark.parametrize(("kind", "end"), [("plain", -signal.SIGBUS), ("sealed", 0)])
def test_memory_that_is_cut_off_under_a_reader_kills_it_unless_it_is_sealed(kind: str, end: int) -> None:
    assert subprocess.run([sys.executable, "-c", SHRUNK, kind], check=False).returncode == end


def strings(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
