"""Every call of the driver, with the arguments that its manual wants; and what becomes of its errors."""

import mmap
from types import SimpleNamespace

import pytest

from hermetic.enclave.cuda_driver import _CALLS, CudaDevice
from hermetic.enclave.device_batch import LockedPages
from hermetic.enclave.host_memory import address_of
from hermetic.errors import DeviceError, DeviceFullError
from tests.enclave.cuda_driver_double import ROOM, SIGNATURES, CudaDriverDouble


def test_bytes_go_there_and_back_and_are_wiped() -> None:
    driver = CudaDriverDouble()
    device = CudaDevice(driver=driver)
    assert device.name == "double"
    stream = device.stream()
    host, address = device.allocate_host(5000), device.allocate(5000)
    assert device.free_bytes() == ROOM - 5000
    host.view[:5] = b"hello"
    device.copy_in(address, host.address, 5000, stream)
    device.wipe_host(host, 5)
    assert not any(host.view)
    device.copy_out(host.address, address, 5000, stream)
    device.wait(stream)
    assert bytes(host.view[:5]) == b"hello"
    device.fill(address, 5000, stream)
    device.wait(None)
    assert not any(driver.memory[address].raw)
    device.free(address)
    device.free_host(host)
    device.end_stream(stream)
    assert (driver.memory, driver.locked) == ({}, {})
    assert set(driver.calls) == set(_CALLS) == set(SIGNATURES)


def test_errors_say_which_call_and_which_code() -> None:
    device = CudaDevice(driver=CudaDriverDouble())
    with pytest.raises(DeviceError, match="memory for cuMemAlloc_v2, got none free"):
        device.allocate(1 << 50)
    with pytest.raises(DeviceError, match="cuMemFree_v2 to succeed, got CUDA error 1"):
        device.free(4096)


@pytest.mark.parametrize(("gpus", "index"), [(0, 0), (1, 1), (1, -1)])
def test_a_gpu_that_is_not_there(gpus: int, index: int) -> None:
    with pytest.raises(DeviceError, match=f"wanted number {index}, got {gpus} in all"):
        CudaDevice(index, CudaDriverDouble(gpus))


def test_a_driver_that_is_too_old() -> None:
    with pytest.raises(DeviceError, match="wanted a driver with cuInit"):
        CudaDevice(driver=SimpleNamespace())


def test_memory_of_others_is_locked_where_it_lies_and_unlocked_again() -> None:
    driver = CudaDriverDouble()
    device = CudaDevice(driver=driver)
    view = memoryview(mmap.mmap(-1, 2 * mmap.PAGESIZE))
    device.lock_host(address_of(view), len(view))
    assert driver.locked == {address_of(view): len(view)}
    device.unlock_host(address_of(view))
    assert driver.locked == {}


def test_where_no_more_can_be_locked_memory_is_ordinary_and_says_so() -> None:
    driver = CudaDriverDouble()
    device = CudaDevice(driver=driver)
    pages = LockedPages(device)
    locked = pages.allocate(100)
    driver.no_more_locks = True
    with pytest.raises(DeviceFullError):
        device.allocate_host(100)
    ordinary = pages.allocate(100)
    assert (pages.is_locked(locked.address), pages.is_locked(ordinary.address)) == (True, False)
    assert not any(ordinary.view)
    pages.free(ordinary)
    pages.free(locked)
    assert driver.locked == {}
