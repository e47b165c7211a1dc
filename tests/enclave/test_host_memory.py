"""Private memory of a batch on the CPU: copied in, zeroed after, given back only zeroed."""

import ctypes
import mmap
from collections.abc import Sequence

import pytest

from hermetic.enclave.batch_frames import STATUS_FAILED, Batch, Tensor, decode_done
from hermetic.enclave.batch_runner import BatchRunner, SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.host_memory import HostBlock, HostMemory, PrivatePages, Staging, address_of, wipe_at
from hermetic.enclave.memory import open_memory
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.runtimes.interface import Input, Output
from hermetic.errors import ConfigurationError, DeviceError
from tests.enclave.sealed_models import spec

SECRET = b"somebody's bytes"


class RecordingPages(PrivatePages):
    """Real memory that is kept, so that what was given back can be looked at."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.blocks: list[HostBlock] = []

    def allocate(self, nbytes: int) -> HostBlock:
        self.events.append("allocate")
        self.blocks.append(super().allocate(nbytes))
        return self.blocks[-1]

    def wipe(self, block: HostBlock, nbytes: int) -> None:
        self.events.append("wipe")
        super().wipe(block, nbytes)

    def free(self, block: HostBlock) -> None:
        self.events.append("free")
        assert not any(block.view)


def address_of_bytes(content: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0


def test_an_input_is_copied_and_zeroed_after_the_batch() -> None:
    pages = RecordingPages()
    batch = HostMemory(pages).batch(2)
    batch.begin(b"a")
    block = batch.take(1, address_of_bytes(SECRET), len(SECRET), 4096)
    assert bytes(block.view) == SECRET
    assert address_of(block.view) == block.address
    batch.forget(failed=False)
    assert not any(block.view)
    assert pages.events == ["allocate", "wipe"]


def test_the_address_stays_until_it_has_to_grow_and_what_was_there_is_wiped() -> None:
    pages = RecordingPages()
    batch = HostMemory(pages).batch(1)
    first = batch.take(0, address_of_bytes(SECRET), 4, 8)
    assert batch.take(0, address_of_bytes(SECRET), 8, 8).address == first.address
    batch.take(0, address_of_bytes(SECRET), 9, 9)
    assert pages.events == ["allocate", "wipe", "free", "allocate"]
    assert not any(pages.blocks[0].view)


def test_unload_wipes_and_gives_back_what_a_failed_batch_left() -> None:
    pages = RecordingPages()
    memory = HostMemory(pages)
    memory.batch(1).take(0, address_of_bytes(SECRET), len(SECRET), 64)
    memory.unload()
    assert pages.events == ["allocate", "wipe", "free"]
    memory.unload()
    assert pages.events == ["allocate", "wipe", "free"]


def test_an_empty_input_has_an_address() -> None:
    block = HostMemory().batch(1).take(0, 0, 0, 0)
    assert block.view.nbytes == 0
    assert block.address


def test_only_what_was_written_is_wiped() -> None:
    pages = RecordingPages()
    staging = Staging(pages)
    block = staging.room(10, 1 << 20)
    block.view[-1] = 7  # nobody's: beyond what was asked for
    staging.wipe()
    assert block.view[-1] == 7
    staging.wipe()
    assert pages.events == ["allocate", "wipe"]
    block.view[-1] = 0
    staging.give_back()


@pytest.mark.parametrize("nbytes", [0, 1, 64 << 10, (64 << 10) + 1])
def test_wiping_is_exact(nbytes: int) -> None:
    memory = bytearray(b"\xff" * (nbytes + 2))
    wipe_at(address_of(memoryview(memory)) + 1, nbytes)
    assert memory == b"\xff" + bytes(nbytes) + b"\xff"


def test_a_profile_has_its_memory() -> None:
    assert isinstance(open_memory("onnx-cpu"), HostMemory)
    assert isinstance(open_memory("torch-cpu"), HostMemory)
    with pytest.raises(ConfigurationError, match="got 'tpu'"):
        open_memory("tpu")


def test_without_a_gpu_its_profile_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(DeviceError, match="driver"):
            open_memory("onnx-cuda")
    else:
        pytest.skip("not run: this host has NVIDIA's driver")


class FailingRuntime:
    """Looks at its input, and raises."""

    holds_views = False

    def __init__(self) -> None:
        self.seen: bytes | None = None
        self.places: list[memoryview] = []

    def run(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        self.places = [given.view for given in inputs]
        self.seen = bytes(inputs[0].view)
        raise RuntimeError(str(self.seen))

    def close(self) -> None:
        pass


def test_a_batch_that_a_runtime_fails_on_leaves_nothing() -> None:
    description = ModelDescription(
        name="m",
        version=1,
        format="onnx",
        publisher="p",
        manifest_digest="0" * 64,
        inputs=(spec("x", "UINT8", len(SECRET)),),
        outputs=(spec("y", "UINT8", 1),),
        max_batch_size=1,
        shared=False,
    )
    runtime = FailingRuntime()
    runner = BatchRunner(runtime, description, HostMemory())
    places = layout(description, 1, 1)
    buffers = SharedBuffers(mmap.mmap(-1, places.size), places)
    buffers.region(0, places.inputs[0])[0][:] = SECRET
    done = decode_done(runner.run(Batch(0, 0, (Tensor(len(SECRET), (1, len(SECRET))),)), buffers))
    assert done.status == STATUS_FAILED
    assert runtime.seen == SECRET
    assert [bytes(place) for place in runtime.places] == [bytes(len(SECRET))]
