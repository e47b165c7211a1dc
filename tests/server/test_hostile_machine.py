"""Random hostile workers against a real front end's application: it lives, others are served, nobody's bytes are seen.

`make test` runs a short form; `make fuzz` runs it for minutes (tests/fuzz/hostile_worker.py).
"""

import logging
import os
from math import prod
from typing import Any

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hermetic.enclave.batch_frames import (
    DATA_FRAME_LIMIT,
    STATUS_FAILED,
    STATUS_FULL,
    STATUS_REFUSED,
    Batch,
    Tensor,
    encode_batch,
    encode_done,
    encode_not_done,
)
from hermetic.enclave.configuration import DynamicBatching, ModelConfiguration
from hermetic.errors import HermeticError, InvalidRequestError, NotReadyError, OverloadedError, WorkerLostError
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.descriptors import are_given_back, settled_descriptors
from tests.server.far_side import Pki, description
from tests.server.hostile_front import NEIGHBOUR, TENSORS, Caller, Front, Worker, canary, request

EXAMPLES = 60
STEPS = 40
TENANTS = ("red", "blue")
PKI = Pki()
MODELS = {
    "batched": ModelConfiguration(dynamic_batching=DynamicBatching()),
    "in-order": ModelConfiguration(dynamic_batching=DynamicBatching(preserve_ordering=True)),
}
MAX_ROWS = 4
WIDTHS = st.sampled_from([0, 4, 16, 64])
SIZES = st.one_of(st.integers(0, 80), st.sampled_from([255, 256, 257, 2**31, 2**32, 2**63, 2**64 - 1]))
EXTENTS = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**62, -(2**63), 2**63 - 1]))
TENSOR = st.builds(Tensor, SIZES, st.lists(EXTENTS, max_size=4).map(tuple))


class Machine(RuleBasedStateMachine):
    """What callers and a worker under an attacker's control may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = settled_descriptors()
        self.front = Front(PKI)
        self.neighbour = self.front.serve(NEIGHBOUR, hostile=False)
        self.models = [
            description(name, inputs=TENSORS, max_batch_size=MAX_ROWS, configuration=configuration)
            for name, configuration in MODELS.items()
        ]
        self.workers = [self.front.serve(one) for one in self.models]
        self.callers: list[Caller] = []
        self.serial = 0
        self.kept = b""  # the last frame that a worker sent
        self.liars: list[Worker] = []  # since the last look

    def hostile(self, data: st.DataObject) -> Worker:
        return data.draw(st.sampled_from(self.workers))

    def batch(self, data: st.DataObject) -> tuple[Worker, Batch]:
        """Return a worker with one of its batches; there is one, whatever came before."""
        at = data.draw(st.integers(0, len(self.workers) - 1))
        self.workers[at].read()
        if not self.workers[at].batches:
            self.come_back()
            self.ask(data.draw(st.sampled_from(TENANTS)), self.models[at].name, now=True)
            self.workers[at].read()
        return self.workers[at], data.draw(st.sampled_from(self.workers[at].batches))

    # Callers

    @rule(tenant=st.sampled_from(TENANTS), model=st.sampled_from(sorted(MODELS)), now=st.booleans())
    def ask(self, tenant: str, model: str, now: bool) -> None:
        if now:
            self.come_back()
        self.serial += 1
        content = canary(tenant, self.serial)
        self.callers.append(self.front.ask(tenant, request(model, content), content))
        if now:
            self.front.turn()

    @rule(data=st.data())
    def goes_away(self, data: st.DataObject) -> None:
        waiting = [caller for caller in self.callers if not caller.ended and caller.on_cancel]
        if waiting:
            caller = data.draw(st.sampled_from(waiting))
            cancel, caller.on_cancel = caller.on_cancel, None
            caller.outcomes.append(NotReadyError("gone"))
            assert cancel is not None
            cancel()

    @rule()
    def turn(self) -> None:
        self.front.turn()

    # The worker

    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        worker, batch = self.batch(data)
        worker.answer(batch)

    @rule(data=st.data(), writes=st.booleans(), width=st.integers(0, 260))
    def answers_lazily(self, data: st.DataObject, writes: bool, width: int) -> None:
        self.lazy(*self.batch(data), width, writes=writes)

    @rule(turns=st.lists(st.tuples(st.sampled_from(TENANTS), st.booleans(), WIDTHS), max_size=4))
    def tenants_take_turns(self, turns: list[tuple[str, bool, int]]) -> None:
        """One buffer after the other goes from tenant to tenant, and the worker is as lazy as it can be."""
        for tenant, writes, width in turns:
            self.ask(tenant, "batched", now=True)
            worker = self.workers[list(MODELS).index("batched")]
            worker.read()
            for batch in list(worker.batches):
                self.lazy(worker, batch, width, writes=writes)
            self.front.turn()

    def lazy(self, worker: Worker, batch: Batch, width: int, *, writes: bool) -> None:
        """Write an answer and say that it is shorter; or write none, and pass on what has lain there."""
        tensors = worker.echo(batch, write=writes)
        rows = tensors[0].shape[0]
        tensors[0] = Tensor(rows * width, (rows, width))
        if not writes:
            tensors[1] = Tensor(4 * rows, (rows, 1))
            worker.view(batch, worker.place.outputs[1].offset, 4 * rows)[:] = bytes(4 * rows)
        self.answer(worker, batch, tensors)

    @rule(data=st.data(), at=st.integers(0, 2), tensor=TENSOR)
    def lies_about_an_output(self, data: st.DataObject, at: int, tensor: Tensor) -> None:
        worker, batch = self.batch(data)
        tensors = worker.echo(batch)
        honest = tensors[at]
        tensors[at] = data.draw(
            st.sampled_from(
                [
                    tensor,
                    honest._replace(nbytes=tensor.nbytes),
                    honest._replace(shape=tensor.shape),
                    honest._replace(nbytes=honest.nbytes + 1),
                    honest._replace(shape=(honest.shape[0] + 1, *honest.shape[1:])),
                    claim(at, (honest.shape[0] + 1, *honest.shape[1:])),
                    claim(at, (*honest.shape, 1)),
                    claim(at, (honest.shape[0], honest.shape[1] + data.draw(st.integers(1, 300)))),
                ]
            )
        )
        self.answer(worker, batch, tensors)

    @rule(data=st.data(), count=st.sampled_from([0, 1, 2, 4, 256, 300]))
    def lies_about_their_number(self, data: st.DataObject, count: int) -> None:
        worker, batch = self.batch(data)
        self.answer(worker, batch, (100 * worker.echo(batch))[:count])

    @rule(data=st.data(), sequence=st.sampled_from([1, -1, 2, -2, 1000]), buffer=st.sampled_from([0, 0, 1, 2**32 - 1]))
    def lies_about_the_batch(self, data: st.DataObject, sequence: int, buffer: int) -> None:
        worker, batch = self.batch(data)
        number = (batch.sequence + sequence) % 2**64
        running = {(each.buffer, each.sequence) for each in worker.batches}
        at = (batch.buffer + buffer) % 2**32
        if (at, number) not in running:
            self.lies(worker, encode_done(at, number, worker.echo(batch), 1, 1, 1))

    def answer(self, worker: Worker, batch: Batch, tensors: list[Tensor]) -> None:
        """Answer with this claim, and take note whether it is one that must not be believed."""
        frame = encode_done(batch.buffer, batch.sequence, tensors, 2**64 - 1, 0, 1)
        worker.taken(batch)
        if believable(worker, batch, tensors):
            self.send(worker, frame)
        else:
            self.lies(worker, frame)

    def lies(self, worker: Worker, frame: bytes) -> None:
        if not worker.closed:
            self.liars.append(worker)
            self.send(worker, frame)

    @rule(
        data=st.data(),
        status=st.sampled_from([STATUS_REFUSED, STATUS_FAILED, STATUS_FULL, 4, 255]),
        text=st.text(max_size=20),
    )
    def refuses(self, data: st.DataObject, status: int, text: str) -> None:
        worker, batch = self.batch(data)
        worker.taken(batch)
        say = self.send if status in (STATUS_REFUSED, STATUS_FAILED, STATUS_FULL) else self.lies
        say(worker, encode_not_done(batch.buffer, batch.sequence, status, text))

    @rule(data=st.data())
    def answers_again(self, data: st.DataObject) -> None:
        worker = self.hostile(data)
        if worker.answered:
            batch = data.draw(st.sampled_from(worker.answered))
            self.lies(worker, encode_done(batch.buffer, batch.sequence, batch.inputs, 1, 1, 1))

    @rule(data=st.data(), frame=st.binary(max_size=80), longer=st.sampled_from([0, 0, DATA_FRAME_LIMIT]))
    def says(self, data: st.DataObject, frame: bytes, longer: int) -> None:
        """Say anything, or what was said before, or a batch of its own."""
        chosen = data.draw(st.sampled_from([frame + bytes(longer), self.kept, encode_batch(0, 1, [])]))
        self.lies(self.hostile(data), chosen)

    @rule(data=st.data(), many=st.integers(1, 8))
    def sends_descriptors(self, data: st.DataObject, many: int) -> None:
        """Beside a good answer."""
        worker, batch = self.batch(data)
        self.liars.append(worker)
        frame = encode_done(batch.buffer, batch.sequence, worker.echo(batch), 1, 1, 1)
        worker.taken(batch)
        worker.send(frame, [worker.descriptor, worker.channel.fileno()] * many)

    @rule(data=st.data())
    def floods(self, data: st.DataObject) -> None:
        worker = self.hostile(data)
        for _ in range(300):
            self.lies(worker, self.kept or b"x")

    @rule(data=st.data(), content=st.binary(min_size=1, max_size=64))
    def scribbles(self, data: st.DataObject, content: bytes) -> None:
        """Write where one likes: over inputs, over answers that are not read yet, over what is wiped."""
        worker = self.hostile(data)
        if not worker.closed:
            at = data.draw(st.integers(0, worker.place.size - len(content)))
            worker.memory[at : at + len(content)] = content

    @rule(data=st.data())
    def spoils_strings(self, data: st.DataObject) -> None:
        """Answer well, and change the lengths before the answer is read."""
        worker, batch = self.batch(data)
        worker.answer(batch)
        length = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
        worker.view(batch, worker.place.outputs[1].offset, 4)[:] = length

    @rule(data=st.data(), size=st.sampled_from([0, 4096]))
    def truncates(self, data: st.DataObject, size: int) -> None:
        worker = self.hostile(data)
        if not worker.closed:
            with pytest.raises(PermissionError):
                os.ftruncate(worker.descriptor, size)

    @precondition(lambda self: not self.workers[0].closed)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        worker = self.hostile(data)
        worker.close()

    @rule()
    def come_back(self) -> None:
        """Lost workers have successors, as hostile as they were."""
        self.front.turn()
        for at, model in enumerate(self.models):
            if not self.front.links_of(model.name):
                self.workers[at].close()
                self.workers[at] = self.front.serve(model)

    def send(self, worker: Worker, frame: bytes) -> None:
        if not worker.closed:
            self.kept = frame
            worker.send(frame)

    # What must hold

    @invariant()
    def neighbours_are_served(self) -> None:
        assert self.front.serves(self.neighbour)

    @invariant()
    def inputs_are_wiped(self) -> None:
        """Where nothing runs, no row is left of what came: nobody but us has written there (or has scribbled noise)."""
        if not all(model.dispatcher.idle for model in self.front.front._models.held()):  # type: ignore[attr-defined]
            return
        for worker in self.workers:
            if not worker.closed:
                first, last = worker.place.inputs[0].offset, worker.place.outputs[0].offset
                for buffer in range(worker.place.buffers):
                    start = buffer * worker.place.stride
                    content = worker.memory[start + first : start + last]
                    assert not any(caller.canary in content for caller in self.callers)

    @invariant()
    def who_lies_is_put_out(self) -> None:
        for worker in self.liars:
            assert self.front.links_of(worker.ready.description.name) == 0
        self.liars.clear()

    @invariant()
    def each_is_answered_once_and_sees_nobody_elses(self) -> None:
        for caller in self.callers:
            assert len(caller.outcomes) <= 1
            for outcome in caller.outcomes:
                if isinstance(outcome, HermeticError):
                    kinds = (WorkerLostError, NotReadyError, OverloadedError, InvalidRequestError)
                    assert isinstance(outcome, kinds) or str(outcome) == "the model failed on this batch", outcome
                else:
                    self.check_reply(caller, outcome)

    def check_reply(self, caller: Caller, reply: pb.ModelInferResponse) -> None:
        """Shapes and bytes fit each other, and no other tenant's bytes are among them."""
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
            assert output.shape[0] == 1
            if output.datatype == "BYTES":
                assert int.from_bytes(raw[:4], "little") == len(raw) - 4
        everything = reply.SerializeToString()
        for other in self.callers:
            if other.tenant != caller.tenant:
                assert other.canary[:8] not in everything
                assert other.canary[8:] not in everything

    @invariant()
    def who_lies_is_out_of_service_for_a_named_reason(self) -> None:
        for model in self.models:
            if not self.front.links_of(model.name):
                state, reason = self.front.entry(model.name)
                assert (state, reason.partition(":")[0]) == ("UNAVAILABLE", "no worker")
        for lost in self.front.lost_links():
            assert lost.name in MODELS
            assert lost.reason

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.front.settle()
        for caller in self.callers:
            assert caller.outcomes, "nobody waits for ever"
        self.front.close()
        assert are_given_back(self.descriptors)


def claim(at: int, shape: tuple[int, ...]) -> Tensor:
    """Return a claim whose bytes fit its shape."""
    return Tensor((1, 4, 4)[at] * prod(shape), shape)


def believable(worker: Worker, batch: Batch, tensors: list[Tensor]) -> bool:
    """Whether a front end can take this for the outputs of a batch: reckoned anew, from the model's description."""
    rows = batch.inputs[0].shape[0]
    if [len(tensor.shape) for tensor in tensors] != [2, 2, 2]:
        return False
    (size, free), (text, words), (fixed, pair) = tensors
    raw = bytes(worker.view(batch, worker.place.outputs[1].offset, 256))[:text]
    return (
        (free[0], words, pair) == (rows, (rows, 1), (rows, 2))
        and size == free[0] * free[1] <= 256
        and fixed == 8 * rows
        and text <= 256
        and strings_in(raw) == rows
    )


def strings_in(raw: bytes) -> int:
    """Return how many elements of BYTES this is, -1 where it is no whole number of them."""
    count = 0
    while raw:
        length = int.from_bytes(raw[:4], "little")
        if len(raw) < 4 + length:
            return -1
        raw, count = raw[4 + length :], count + 1
    return count


def run(examples: int, steps: int, **options: Any) -> None:
    """Run the machine."""
    chosen = hypothesis_settings(max_examples=examples, stateful_step_count=steps, deadline=None, **options)
    logging.disable()
    try:
        run_state_machine_as_test(Machine, settings=chosen)
    finally:
        logging.disable(logging.NOTSET)


def test_hostile_workers_of_all_kinds() -> None:
    # A failure is told at once, in less than a test may take; the longer form makes it small.
    run(EXAMPLES, STEPS, derandomize=True, phases=[Phase.generate])
