"""Does the memory of a GPU forget? Each check puts canaries where tenants' bytes go, and searches the device for them.

A check that cannot find its canary while it must still be there shows nothing, and fails as well: its control. Numbers
are small integers, so every library computes the same bits in whatever precision it likes. What a check returns is for
people to read; what it raises says what was wanted and what was found. They run on a double too (test_gpu_memory.py).
"""

import ctypes
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from hermetic.enclave.device_batch import DeviceBatch, Wanted, Way, rounded
from hermetic.enclave.device_memory import Block, DeviceMemory
from hermetic.errors import DeviceError
from tests.hardware.engines import Engine, Matrix, put
from tests.hardware.gpu_search import (
    CANARY_BYTES,
    Bench,
    NotForgottenError,
    dirty,
    find,
    read,
    want,
    want_clean,
    want_found,
    want_gone,
)


class Case:
    """Numbers of one batch, and the answer that everyone must give."""

    def __init__(self, bench: Bench, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.x: Matrix = random.integers(-8, 9, (bench.rows, bench.columns)).astype(np.float32)
        self.w: Matrix = np.random.default_rng(1).integers(-8, 9, (bench.columns, bench.columns)).astype(np.float32)
        between = self.x @ self.w
        self.y: Matrix = np.maximum(between, 0)
        self.of_batch = {"input": _middle(self.x), "between": _middle(between), "output": _middle(self.y)}
        self.of_model = {"weight": _middle(self.w)}


# Without a runtime.


def copies_arrive_and_are_wiped(bench: Bench) -> str:
    """In, on the device, and out again; then none of the three places holds anything."""
    memory = DeviceMemory(bench.device)
    batch, case = memory.batch(1), Case(bench, 2)
    content = case.x.tobytes()
    batch.begin(b"alpha")
    staged = batch.take(0, case.x.ctypes.data, len(content), len(content))
    address = batch.upload(0)
    returned = batch.download(0, address, len(content))
    batch.settle()
    want("what came back", bytes(returned) == content)
    want_found(bench.device, [Block(address, len(content))], {"input": case.of_batch["input"]})
    batch.forget(failed=False)
    want("staging of the input all zeros", not any(bytes(staged.view)))
    want("staging of the output all zeros", not any(bytes(returned)))
    want("the request buffer all zeros", not any(read(bench.device, address, len(content))))
    memory.unload()
    return f"{len(content)} bytes"


def a_batch_that_failed_is_wiped(bench: Bench) -> str:
    """The runtime raises after the upload; another batch follows."""
    memory = DeviceMemory(bench.device)
    batch, case = memory.batch(1), Case(bench, 3)
    batch.begin(None)
    staged = batch.take(0, case.x.ctypes.data, case.x.nbytes, case.x.nbytes)
    address = batch.upload(0)
    batch.forget(failed=True)
    want("staging all zeros", not any(bytes(staged.view)))
    want("the request buffer all zeros", not any(read(bench.device, address, case.x.nbytes)))
    batch.begin(None)
    batch.forget(failed=False)
    memory.unload()
    return ""


def no_room_is_an_error_and_not_the_end(bench: Bench) -> str:
    """More than any GPU has; then a batch as usual."""
    memory = DeviceMemory(bench.device)
    batch = memory.batch(1)
    batch.begin(None)
    try:
        batch.output(0, 1 << 50)
    except DeviceError as error:
        told = str(error)
    else:
        raise NotForgottenError("wanted an error for 2**50 bytes, got an address")
    batch.forget(failed=True)
    memory.unload()
    copies_arrive_and_are_wiped(bench)
    return told


def freed_memory_comes_back_dirty(bench: Bench) -> str:
    """No check but a control of the others: whether a dirty allocation can find what nobody wiped. Never fails."""
    case = Case(bench, 4)
    content = case.x.tobytes() * 8
    address = bench.device.allocate(len(content))
    put(bench.device, address, content)
    bench.device.free(address)
    found = dirty(bench, {"input": case.of_batch["input"]})
    if any(found.values()):
        return f"found {found['input']} times: a dirty allocation that finds nothing shows something"
    return "found nothing: this driver gives out clean memory, and dirty allocations show less than they could"


def numbers_travel_straight_from_shared_memory(bench: Bench) -> str:
    """A memfd as front ends share it, page-locked where that is possible: copied, wiped, unlocked, and unmapped."""
    memory = DeviceMemory(bench.device)
    batch, case = memory.batch(1), Case(bench, 5)
    content = case.x.tobytes()
    descriptor = os.memfd_create("gpu-checks")
    os.ftruncate(descriptor, -(-2 * len(content) // mmap.PAGESIZE) * mmap.PAGESIZE)
    with mmap.mmap(descriptor, 0) as shared:
        os.close(descriptor)
        shared[: len(content)] = content
        start = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        locked = memory.lock(start, len(shared))
        batch.prepare(b"alpha", Way(frozenset({0}), direct_outputs=True, locked=locked))
        batch.take(0, start, len(content), len(content))
        address = batch.upload(0)
        batch.fetch([Wanted(address, len(content), start + len(content))])
        batch.settle()
        batch.deliver()
        want("what came back", shared[len(content) : 2 * len(content)] == content)
        told = batch.unlocked_bytes
        want("a word of every byte that was not page-locked", told == 0 if locked else told >= 2 * len(content))
        batch.forget(failed=False)
        want("the request buffer all zeros", not any(read(bench.device, address, len(content))))
        if locked:
            memory.unlock(start)
    memory.unload()
    return f"{len(content)} bytes, " + ("page-locked" if locked else "which cannot be page-locked here")


def joined_tensors_are_one_transfer_each_way(bench: Bench) -> str:
    """Three tensors through one block; then neither block holds anything."""
    memory = DeviceMemory(bench.device)
    batch, cases = memory.batch(3), [Case(bench, seed) for seed in (6, 7, 8)]
    size = rounded(cases[0].x.nbytes)
    batch.prepare(None, Way(joined_bytes=3 * size, joined_capacity=3 * size))
    staged = [batch.take(at, case.x.ctypes.data, case.x.nbytes, case.x.nbytes) for at, case in enumerate(cases)]
    addresses = [batch.upload(at) for at in range(3)]
    back = [np.empty_like(case.x) for case in cases]
    places = batch.outputs([case.x.nbytes for case in cases])
    for source, target, case in zip(addresses, places, cases, strict=True):
        batch.settle()
        put(bench.device, target, read(bench.device, source, case.x.nbytes))
    batch.fetch([Wanted(place, one.nbytes, one.ctypes.data) for place, one in zip(places, back, strict=True)])
    batch.settle()
    batch.deliver()
    want("what came back", all(np.array_equal(one, case.x) for one, case in zip(back, cases, strict=True)))
    batch.forget(failed=False)
    want("staging all zeros", not any(any(bytes(one.view)) for one in staged))
    left = [read(bench.device, address, case.x.nbytes) for address, case in zip(addresses, cases, strict=True)]
    want("the request buffer all zeros", not any(map(any, left)))
    memory.unload()
    return f"3 times {cases[0].x.nbytes} bytes"


# With torch or onnxruntime.


def answers_are_right_before_and_after_wipes(bench: Bench) -> str:
    """Three tenants in turn: no wipe has hit a weight."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    engine.load(Case(bench, 0).w)
    batch = memory.batch(1)
    for seed, tenant in enumerate((b"alpha", b"beta", None), start=10):
        case = Case(bench, seed)
        _ask(batch, engine, case, tenant)
    engine.close()
    memory.unload()
    return "3 batches"


def nothing_is_left_for_the_next_tenant(bench: Bench) -> str:
    """What the runtime has freed holds the batch until another tenant's begins, and nothing of it then."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    case = Case(bench, 20)
    batch = memory.batch(1)
    kept, control = _kept_of_a_batch(bench, engine, batch, case)
    started = time.perf_counter()
    batch.begin(b"beta")
    took = 1e3 * (time.perf_counter() - started)
    want_gone(bench.device, [*kept, *engine.cache.free_blocks()], case.of_batch)
    want_clean(bench, case.of_batch, "before another tenant's batch")
    batch.forget(failed=False)
    engine.close()
    memory.unload()
    size = sum(block.nbytes for block in kept)
    return f"before: {control}; wiping {len(kept)} blocks of {size} bytes took {took:.2f} ms"


def nothing_is_left_when_nobody_asks(bench: Bench) -> str:
    """The wipe that a worker makes when no batch comes: no tenant's, and the next batch is right."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    case = Case(bench, 25)
    batch = memory.batch(1)
    kept, control = _kept_of_a_batch(bench, engine, batch, case)
    memory.wipe_free_blocks()
    want("a memory that says it is clean", memory.is_clean)
    want_gone(bench.device, [*kept, *engine.cache.free_blocks()], case.of_batch)
    want_clean(bench, case.of_batch, "when nobody asks")
    _ask(batch, engine, Case(bench, 26), b"alpha")
    engine.close()
    memory.unload()
    return f"before: {control}"


def nothing_is_left_after_unload(bench: Bench) -> str:
    """Weights, inputs, outputs and what was between: not in what the runtime kept, not in what the driver gives out."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    case = Case(bench, 30)
    canaries = {**case.of_batch, **case.of_model}
    engine.load(case.w)
    batch = memory.batch(1)
    _ask(batch, engine, case, b"alpha")
    control = find(bench.device, engine.cache.all_blocks(), canaries)
    if not control["weight"]:
        raise NotForgottenError(f"control: wanted the weight found while the model is loaded, got {control}")
    engine.close()
    started = time.perf_counter()
    memory.unload()
    took = 1e3 * (time.perf_counter() - started)
    want_gone(bench.device, engine.cache.all_blocks(), canaries)
    want_clean(bench, canaries, "after unload")
    return f"loaded: {control}; unload took {took:.1f} ms"


def a_batch_in_which_the_runtime_failed_is_wiped(bench: Bench) -> str:
    """The runtime computes, and an exception follows before the answer is fetched."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    case = Case(bench, 40)
    engine.load(case.w)
    batch = memory.batch(1)
    batch.begin(b"alpha")
    staged = batch.take(0, case.x.ctypes.data, case.x.nbytes, case.x.nbytes)
    x, y = batch.upload(0), batch.output(0, case.y.nbytes)
    batch.settle()
    engine.run(x, y, bench.rows)
    want_found(bench.device, [Block(y, case.y.nbytes)], {"output": case.of_batch["output"]})
    batch.forget(failed=True)
    want("staging all zeros", not any(bytes(staged.view)))
    want_gone(bench.device, [Block(x, case.x.nbytes), Block(y, case.y.nbytes)], case.of_batch)
    _ask(batch, engine, Case(bench, 41), b"beta")
    engine.close()
    memory.unload()
    return ""


def wiping_costs(bench: Bench) -> str:
    """Not a check: milliseconds of a batch and of its wipe, the best of ten."""
    memory = DeviceMemory(bench.device)
    engine = bench.engine(memory)
    case = Case(bench, 50)
    engine.load(case.w)
    batch = memory.batch(1)
    runs, wipes = [], []
    for _ in range(10):
        started = time.perf_counter()
        failed = True
        batch.begin(b"alpha")
        try:
            _compute(batch, engine, case)
            failed = False
            ran = time.perf_counter()
        finally:
            batch.forget(failed=failed)
        runs.append(ran - started)
        wipes.append(time.perf_counter() - ran)
    engine.close()
    memory.unload()
    return f"batch {1e3 * min(runs):.3f} ms, wipe {1e3 * min(wipes):.3f} ms of {2 * case.x.nbytes} bytes"


WITHOUT_RUNTIME: Final = (
    copies_arrive_and_are_wiped,
    a_batch_that_failed_is_wiped,
    no_room_is_an_error_and_not_the_end,
    numbers_travel_straight_from_shared_memory,
    joined_tensors_are_one_transfer_each_way,
    freed_memory_comes_back_dirty,
)
WITH_RUNTIME: Final = (
    answers_are_right_before_and_after_wipes,
    nothing_is_left_for_the_next_tenant,
    nothing_is_left_when_nobody_asks,
    a_batch_in_which_the_runtime_failed_is_wiped,
    nothing_is_left_after_unload,
    wiping_costs,
)


def _kept_of_a_batch(
    bench: Bench, engine: Engine, batch: DeviceBatch, case: Case
) -> tuple[Sequence[Block], Mapping[str, int]]:
    """One batch of tenant alpha; the blocks that the runtime keeps, and what of the batch is found there: something."""
    engine.load(case.w)
    _ask(batch, engine, case, b"alpha")
    kept = engine.cache.free_blocks()
    control = find(bench.device, kept, case.of_batch)
    if not any(control.values()):
        raise NotForgottenError(f"control: wanted a canary in {len(kept)} free blocks before the wipe, got {control}")
    return kept, control


def _ask(batch: DeviceBatch, engine: Engine, case: Case, tenant: bytes | None) -> None:
    """One batch from beginning to end; the answer must be right to the bit."""
    failed = True
    batch.begin(tenant)
    try:
        answer = _compute(batch, engine, case)
        want("the answer that numpy gives", answer == case.y.tobytes())
        failed = False
    finally:
        batch.forget(failed=failed)


def _compute(batch: DeviceBatch, engine: Engine, case: Case) -> bytes:
    batch.take(0, case.x.ctypes.data, case.x.nbytes, case.x.nbytes)
    x, y = batch.upload(0), batch.output(0, case.y.nbytes)
    batch.settle()  # neither library computes on our stream here
    engine.run(x, y, len(case.x))
    view = batch.download(0, y, case.y.nbytes)
    batch.settle()
    return bytes(view)


def _middle(array: Matrix) -> bytes:
    """Return bytes from the middle of a row in the middle."""
    row = array[len(array) // 2]
    content: bytes = row[len(row) // 2 :].tobytes()[:CANARY_BYTES]
    if len(content) != CANARY_BYTES or len(set(content)) < 4:  # else it could be anybody's
        raise NotForgottenError(f"canary: wanted {CANARY_BYTES} bytes with some variety, got {content.hex()}")
    return content
