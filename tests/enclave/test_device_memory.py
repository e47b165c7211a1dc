"""The GPU's memory against a double: nothing that held a tenant's bytes is freed or used for another unwiped."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.enclave.device_memory import Block, DeviceBatch, DeviceMemory
from hermetic.enclave.runtime_caches import Arena, TorchCache
from hermetic.errors import DeviceError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble

LIMIT = 64 << 10  # bytes of the arena
WEIGHT = 0x77  # every byte of a weight
TENANTS = {0xA1: b"alpha", 0xB2: b"beta", 0xC3: None, 0xD4: None}
"""What each tenant's every byte is -> what the worker is told of it."""


class RuntimeFailureError(Exception):
    """What a runtime raises in the middle of a batch."""


@dataclass
class Plan:
    """One batch. `overlaps`: it is forgotten only after the next one in the other slot has begun, or was refused."""

    slot: int
    tag: int
    nbytes: int
    ahead: int  # works that the device has done before anyone waits
    fails: bool
    overlaps: bool
    again: bool  # the input is taken a second time, larger


PLANS = st.lists(
    st.builds(
        Plan,
        slot=st.integers(0, 1),
        tag=st.sampled_from(sorted(TENANTS)),
        nbytes=st.integers(1, 3000),
        ahead=st.integers(0, 6),
        fails=st.booleans(),
        overlaps=st.booleans(),
        again=st.booleans(),
    ),
    max_size=8,
)


@dataclass
class Machine:
    """A double, the memory under test, and something like a runtime with weights on it."""

    device: DeviceDouble
    memory: DeviceMemory = field(init=False)
    batches: list[DeviceBatch] = field(init=False)

    def __post_init__(self) -> None:
        self.memory = DeviceMemory(self.device)
        self.torch = TorchCudaDouble(self.device)
        self.memory.add_cache(TorchCache(self.torch))
        self.arena = Arena(self.memory, limit_bytes=LIMIT)
        self.batches = [self.memory.batch(1) for _ in range(2)]
        self.stream = self.device.stream()  # the runtime's own
        self.weight = self.arena.allocate(512)
        self.device.later(self.stream, lambda: ctypes.memset(self.weight, WEIGHT, 512), (self.weight, 512))
        self.device.wait(self.stream)

    def run(self, plan: Plan) -> None:
        """What happens between `begin` and `forget`."""
        batch = self.batches[plan.slot]
        source = ctypes.create_string_buffer(bytes([plan.tag]) * 2 * plan.nbytes)
        nbytes = plan.nbytes
        batch.take(0, ctypes.addressof(source), nbytes, 1)
        given = batch.upload(0)
        if plan.again:
            nbytes *= 2
            batch.take(0, ctypes.addressof(source), nbytes, 1)
            given = batch.upload(0)
        self.device.run_ahead(batch.stream, plan.ahead)
        batch.settle()
        of_torch, of_arena = self.torch.allocate(nbytes), self.arena.allocate(nbytes)
        answer = batch.output(0, nbytes)
        self.kernel(of_torch, given, nbytes)
        self.kernel(of_arena, of_torch, nbytes)
        self.torch.free(of_torch, "active_pending_free" if plan.ahead % 2 else "inactive")
        self.device.run_ahead(self.stream, plan.ahead)
        self.kernel(answer, of_arena, nbytes)
        self.arena.free(of_arena)
        if plan.fails:
            raise RuntimeFailureError
        self.device.wait(self.stream)
        view = batch.download(0, answer, nbytes)
        batch.settle()
        assert bytes(view) == bytes([plan.tag]) * nbytes

    def kernel(self, target: int, source: int, nbytes: int) -> None:
        """Compute later: what is written is as secret as what is read."""
        self.device.later(
            self.stream, lambda: ctypes.memmove(target, source, nbytes), (target, nbytes), (source, nbytes)
        )

    def tags(self) -> set[int]:
        """Return whose bytes lie anywhere on the device or in staging."""
        return set((self.device.device_bytes() + self.device.host_bytes()).translate(None, b"\0"))

    def close_model(self) -> None:
        """What a runtime does at unload: its weights are freed, not wiped."""
        self.arena.free(self.weight)


def go(machine: Machine, plans: list[Plan]) -> None:
    """Run batches as a worker does. Raises `DeviceError` where a worker would end."""
    waiting: list[int] = []
    for plan in plans:
        batch = machine.batches[plan.slot]
        if plan.slot in waiting:
            batch.forget(failed=True)
            waiting.remove(plan.slot)
        failed = True
        try:
            batch.begin(TENANTS[plan.tag])
            assert machine.tags() <= {WEIGHT, plan.tag}
            machine.run(plan)
            failed = False
        except (RuntimeFailureError, DeviceError):
            pass
        finally:
            if plan.overlaps and batch.in_flight:
                waiting.append(plan.slot)
            else:
                batch.forget(failed=failed)
    for slot in waiting:
        machine.batches[slot].forget(failed=True)


@given(PLANS)
def test_nothing_of_one_tenant_is_there_for_another_and_nothing_of_anyone_after_unload(plans: list[Plan]) -> None:
    machine = Machine(DeviceDouble())
    go(machine, plans)
    assert not any(machine.device.host_bytes())
    assert machine.device.read(machine.weight, 512) == bytes([WEIGHT]) * 512
    machine.close_model()
    machine.memory.unload()
    assert machine.tags() == set()
    assert machine.device.violations == []


@given(PLANS, st.integers(0, 150), st.booleans())
@settings(max_examples=500)
def test_whatever_fails_nothing_is_freed_or_used_again_unwiped(plans: list[Plan], fail_at: int, sticky: bool) -> None:
    device = DeviceDouble(fail_at=fail_at, sticky=sticky)
    try:
        machine = Machine(device)
    except DeviceError:
        return
    with suppress(DeviceError):
        go(machine, plans)
    machine.close_model()
    told = False
    try:
        machine.memory.unload()
    except DeviceError:
        told = True
    assert device.violations == []
    # Staging is wiped even where the device does not answer.
    assert not any(device.host_bytes())
    assert told or machine.tags() == set()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(DeviceDouble())
    yield machine
    assert machine.device.violations == []


def plan(tag: int, slot: int = 0, nbytes: int = 1000, fails: bool = False) -> Plan:
    return Plan(slot, tag, nbytes, ahead=0, fails=fails, overlaps=False, again=False)


def test_one_batch_in_order(machine: Machine) -> None:
    machine.device.events.clear()
    go(machine, [plan(0xA1)])
    wanted = ["allocate_host", "allocate", "copy_in", "wait", "allocate", "allocate", "allocate", "wait"]
    wanted += ["allocate_host", "copy_out", "wait", "wait", "wipe_host", "wipe_host", "fill", "fill", "wait"]
    assert machine.device.names() == wanted


def test_after_a_failure_every_stream_is_waited_for_before_staging_is_wiped(machine: Machine) -> None:
    machine.device.events.clear()
    go(machine, [plan(0xA1, fails=True)])
    names = machine.device.names()
    everything = [e.name == "wait" and e.stream is None for e in machine.device.events].index(True)
    assert everything < names.index("wipe_host") < names.index("fill")


def test_a_tenants_own_next_batch_costs_no_wipe_of_what_is_free(machine: Machine) -> None:
    go(machine, [plan(0xA1)])
    machine.device.events.clear()
    machine.batches[0].begin(b"alpha")
    assert machine.device.events == []
    machine.batches[0].forget(failed=False)
    machine.batches[0].begin(b"beta")
    assert "fill" in machine.device.names()
    machine.batches[0].forget(failed=False)


def test_a_tenant_that_is_not_known_is_another_each_time(machine: Machine) -> None:
    go(machine, [plan(0xC3), plan(0xC3)])
    machine.device.events.clear()
    machine.batches[0].begin(None)
    assert "fill" in machine.device.names()
    machine.batches[0].forget(failed=False)


@pytest.mark.parametrize(("first", "second"), [(b"a", b"b"), (None, None), (b"a", None), (None, b"a")])
def test_two_batches_in_flight_are_of_one_tenant(machine: Machine, first: bytes | None, second: bytes | None) -> None:
    machine.batches[0].begin(first)
    with pytest.raises(DeviceError, match="another's"):
        machine.batches[1].begin(second)
    machine.batches[1].forget(failed=True)  # as its owner must, whatever happened
    machine.batches[0].forget(failed=False)
    machine.batches[1].begin(second)
    machine.batches[1].forget(failed=False)


def test_two_batches_of_one_tenant_may_be_in_flight(machine: Machine) -> None:
    for batch in machine.batches:
        batch.begin(b"a")
    with pytest.raises(DeviceError, match="forgotten"):
        machine.batches[0].begin(b"a")
    for batch in machine.batches:
        batch.forget(failed=False)


def test_a_wipe_that_failed_is_the_end(machine: Machine) -> None:
    batch = machine.batches[0]
    batch.begin(b"a")
    batch.output(0, 100)
    machine.device._fail_at = machine.device._calls + 1  # the wait succeeds, the fill does not
    with pytest.raises(DeviceError, match="fill fails"):
        batch.forget(failed=False)
    calls: list[Callable[[], None]] = [
        lambda: batch.begin(b"a"),
        lambda: machine.batches[1].begin(b"a"),
        machine.memory.unload,
    ]
    for call in calls:
        with pytest.raises(DeviceError):
            call()
    assert "free" not in machine.device.names()


def test_work_that_a_runtime_left_behind_is_waited_for_before_its_memory_is_wiped(machine: Machine) -> None:
    batch = machine.batches[0]
    batch.begin(b"alpha")
    address = machine.torch.allocate(512)
    machine.device.later(machine.stream, lambda: ctypes.memset(address, 0xA1, 512), (address, 512))
    machine.torch.free(address)
    batch.forget(failed=False)
    batch.begin(b"beta")
    machine.device.wait(None)
    assert machine.tags() == {WEIGHT}
    batch.forget(failed=False)


def test_a_buffer_that_has_to_grow_is_freed_when_nobody_writes_to_it_any_more(machine: Machine) -> None:
    batch = machine.batches[0]
    batch.begin(b"alpha")
    address = batch.output(0, 512)
    machine.device.later(machine.stream, lambda: ctypes.memset(address, 0xA1, 512), (address, 512))
    batch.output(0, 1024)
    batch.forget(failed=False)
    assert machine.tags() == {WEIGHT}


def test_what_a_runtime_still_holds_at_unload_is_wiped_too(machine: Machine) -> None:
    machine.memory.unload()
    assert machine.tags() == set()


def test_nothing_is_given_out_between_batches(machine: Machine) -> None:
    batch = machine.batches[0]
    for call in (lambda: batch.output(0, 1), lambda: batch.take(0, 0, 0, 1), lambda: batch.upload(0)):
        with pytest.raises(DeviceError, match="begun"):
            call()
    batch.begin(None)
    with pytest.raises(DeviceError, match="taken before"):
        batch.upload(0)
    batch.forget(failed=True)


def test_no_room_is_an_error_of_this_batch_only(machine: Machine) -> None:
    batch = machine.batches[0]
    batch.begin(b"a")
    with pytest.raises(DeviceError, match="none free"):
        batch.output(0, 1 << 30)
    batch.forget(failed=True)
    go(machine, [plan(0xA1)])


def test_what_libraries_free_behind_our_back_is_overwritten_at_unload() -> None:
    """As cuBLAS does: memory from the driver, written, and given back with what is in it."""
    machine = Machine(DeviceDouble(8 << 20))
    machine.memory.wipe_free_blocks()
    address = machine.device.allocate(4 << 20)
    machine.memory._least_free = machine.device.free_bytes()
    ctypes.memset(address, 0xA1, 4 << 20)
    machine.device.free(address)
    assert machine.tags() == {WEIGHT, 0xA1}
    machine.close_model()
    machine.memory.unload()
    assert machine.tags() == set()


def test_what_torch_gives_back_when_it_runs_short_is_overwritten_before_the_next_tenant() -> None:
    machine = Machine(DeviceDouble(8 << 20))
    machine.batches[0].begin(b"alpha")
    address = machine.torch.allocate(4 << 20)
    ctypes.memset(address, 0xA1, 4 << 20)
    machine.torch.free(address)
    second = machine.torch.allocate(6 << 20)  # fits only once the first is given back
    machine.torch.free(second)
    machine.torch.empty_cache()
    machine.batches[0].forget(failed=False)
    machine.device.violations.clear()  # torch's doing, not ours
    assert machine.tags() == {WEIGHT, 0xA1}
    machine.batches[0].begin(b"beta")
    assert machine.tags() == {WEIGHT}


def test_the_arena_makes_room_only_by_wiping(machine: Machine) -> None:
    addresses = [machine.arena.allocate(LIMIT // 8) for _ in range(7)]
    for address in addresses:
        ctypes.memset(address, 0xA1, LIMIT // 8)
        machine.arena.free(address)
    machine.arena.allocate(LIMIT // 2)
    assert machine.tags() == {WEIGHT}
    with pytest.raises(DeviceError, match=f"at most {LIMIT}"):
        machine.arena.allocate(LIMIT)


def test_the_arena_frees_nothing_that_is_not_wiped(machine: Machine) -> None:
    machine.arena.free(machine.arena.allocate(10))
    with pytest.raises(DeviceError, match="wiped before"):
        machine.arena.release()


def test_blocks_come_again_by_size_and_addresses_that_are_not_ours_are_refused(machine: Machine) -> None:
    first = machine.arena.allocate(1000)
    machine.arena.free(first)
    assert machine.arena.allocate(900) == first
    assert machine.arena.allocate(2000) != first
    with pytest.raises(DeviceError, match="of this arena"):
        machine.arena.free(12345)


@given(st.integers(0, 1 << 40))
def test_sizes_are_rounded_up_by_an_eighth_at_most(nbytes: int) -> None:
    from hermetic.enclave.runtime_caches import _rounded

    size = _rounded(nbytes)
    assert nbytes <= size <= max(512, nbytes + max(512, nbytes // 8))
    assert size % 512 == 0
    assert _rounded(size) == size


def test_onnxruntimes_calls_reach_the_arena_and_never_raise(machine: Machine) -> None:
    options = machine.arena.provider_options()
    alloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(int(options["gpu_external_alloc"]))
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(options["gpu_external_free"]))
    ctypes.CFUNCTYPE(None)(int(options["gpu_external_empty_cache"]))()
    address = alloc(700)
    assert Block(address, 1024) in machine.arena.all_blocks()
    free(address)
    assert machine.arena.free_blocks() == [Block(address, 1024)]
    assert alloc(1 << 40) is None
    free(None)
    free(4096)
    with pytest.raises(DeviceError, match="of this arena"):
        machine.memory.wipe_free_blocks()


@pytest.mark.parametrize("keeps", [False, True])
def test_what_recorded_graphs_write_to_is_wiped_whenever_the_rest_is(machine: Machine, keeps: bool) -> None:
    """A graph that is replayed calls no allocator: what it wrote lies in blocks that were wiped before."""
    arena = Arena(machine.memory, 1 << 20, keeps=keeps)
    options = arena.provider_options()
    address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(int(options["gpu_external_alloc"]))(700)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(options["gpu_external_free"]))(address)
    arena.wiped()
    assert arena.free_blocks() == ([Block(address, 1024)] if keeps else [])


def test_workspaces_of_libraries_are_wiped_with_what_is_free(machine: Machine) -> None:
    cache, taken = TorchCache(machine.torch), []
    cache.add_scratch(lambda: taken.append(machine.torch.allocate(1024)))
    (workspace,) = taken
    kept = machine.torch.allocate(512)
    addresses = [block.address for block in cache.free_blocks()]
    assert workspace in addresses
    assert kept not in addresses


def test_the_double_of_torch_is_asked_as_torch_is() -> None:
    """Signatures and words of the torch that is installed: its CUDA module is there without a GPU."""
    import inspect

    import torch

    for name in ("memory_snapshot", "memory_stats", "empty_cache"):
        wanted = inspect.signature(getattr(torch.cuda, name)).parameters
        assert list(inspect.signature(getattr(TorchCudaDouble, name)).parameters)[1:] == list(wanted)
    told = inspect.getsource(torch.cuda.memory._snapshot)
    assert all(word in told for word in ('"active_allocated"', "address: int", "size: int", "blocks: List[Block]"))
    assert "num_alloc_retries" in (torch.cuda.memory_stats.__doc__ or "")
    TorchCache(torch.cuda)  # without a GPU its counters are empty
