"""In whose words there is no room on a GPU, and what is something else."""

import pytest

from hermetic.enclave.runtimes.device_full import full, says_full

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_call.cc ; line=110 ; expr=cudaMalloc(&p, size);",
    "Failed to allocate memory for requested buffer of size 4294967296",
    "Error Code 2: OutOfMemory (Requested size was 21474836480 bytes.)",
    "cudaErrorMemoryAllocation: no room",
    "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory.",
)
OTHER = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "mat1 and mat2 shapes cannot be multiplied (3x8 and 7x8)",
    "",
)


@pytest.mark.parametrize("text", FULL)
def test_no_room_is_understood_in_everybodys_words(text: str) -> None:
    assert says_full(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER)
def test_what_is_something_else_stays_so(text: str) -> None:
    assert not says_full(RuntimeError(text))


def test_errors_that_were_replaced_are_asked_too() -> None:
    def replaced(times: int) -> ValueError:
        error: Exception = RuntimeError(FULL[0])
        for _ in range(times):
            try:
                try:
                    raise error
                except (RuntimeError, ValueError):
                    raise ValueError("the recording failed") from None
            except ValueError as seen:
                error = seen
        assert isinstance(error, ValueError)
        return error

    assert says_full(replaced(1))
    assert says_full(replaced(3))
    assert not says_full(replaced(99)), "an end to it"


def test_a_caller_is_not_told_the_librarys_words() -> None:
    assert str(full("this batch")) == "GPU memory: wanted room for this batch in the model's budget, got none"
