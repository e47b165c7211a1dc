"""What a worker claims to have written, without a process: every claim that cannot be is refused."""

import pytest

from hermetic.enclave.batch_frames import STRINGS_LIMIT, Tensor
from hermetic.enclave.buffers import Region
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import BorderError
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Claims, Output, cut_rows

FIXED = Region(TensorSpec(name="fixed", datatype="FP32", shape=(2,)), 0, 32)
FREE = Region(TensorSpec(name="free", datatype="INT8", shape=(-1,)), 0, 32)
WORDS = Region(TensorSpec(name="words", datatype="BYTES", shape=(1,)), 0, 32)


def check(region: Region, memory: bytes, nbytes: int, *shape: int, rows: int = 2) -> Output:
    return Claims([region], batched=True).outputs([Foreign(memoryview(memory))], (Tensor(nbytes, shape),), rows)[0]


def test_rows_of_equal_size() -> None:
    output = check(FIXED, bytes(range(32)), 16, 2, 2)
    assert cut_rows(output, 0, 1, 2) == ((1, 2), memoryview(bytes(range(8))))
    assert cut_rows(output, 1, 1, 2) == ((1, 2), memoryview(bytes(range(8, 16))))
    assert cut_rows(output, 0, 2, 2)[0] == (2, 2)


def test_rows_of_strings() -> None:
    memory = b"\1\0\0\0a\0\0\0\0\2\0\0\0bc".ljust(32, b"?")
    output = check(WORDS, memory, 15, 3, 1, rows=3)
    assert [bytes(cut_rows(output, row, 1, 3)[1]) for row in range(3)] == [b"\1\0\0\0a", b"\0\0\0\0", b"\2\0\0\0bc"]
    assert bytes(cut_rows(output, 1, 2, 3)[1]) == memory[5:15]


@pytest.mark.parametrize(
    ("region", "nbytes", "shape"),
    [
        (FIXED, 16, (3, 2)),
        (FIXED, 16, (2, 3)),
        (FIXED, 16, (2,)),
        (FIXED, 12, (2, 2)),
        (FIXED, 20, (2, 2)),
        (FREE, 34, (2, 17)),  # more than the region holds
        (FREE, 2**62, (2, 2**61)),
        (FREE, 0, (2, -1)),
        (WORDS, 33, (2, 1)),
        (WORDS, 8, (2, 2)),
    ],
)
def test_claims_that_cannot_be(region: Region, nbytes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(BorderError):
        check(region, bytes(32), nbytes, *shape)


@pytest.mark.parametrize("memory", [b"\xff\xff\xff\xff" + bytes(28), b"\x05\0\0\0ab\0\0" + bytes(24), bytes(32)])
def test_strings_that_do_not_end_where_they_should(memory: bytes) -> None:
    with pytest.raises(BorderError):
        check(WORDS, memory, 9, 2, 1)


def test_strings_are_so_many_and_no_more() -> None:
    """A front end has one thread, and walks them one by one."""
    many = STRINGS_LIMIT // 2
    free = Region(TensorSpec(name="words", datatype="BYTES", shape=(-1,)), 0, 8 * many)
    claims = Claims([free, free], batched=False)
    memory = [Foreign(memoryview(bytearray(8 * many)))] * 2
    assert len(claims.outputs(memory, (Tensor(4 * many, (many,)),) * 2, 1)) == 2
    with pytest.raises(BorderError, match=f"wanted at most {STRINGS_LIMIT} elements of BYTES, got {STRINGS_LIMIT + 1}"):
        claims.outputs(memory, (Tensor(4 * many, (many,)), Tensor(4 * many + 4, (many + 1,))), 1)


def test_the_number_of_outputs() -> None:
    with pytest.raises(BorderError, match="wanted 2 outputs, got 1"):
        Claims([FIXED, FREE], batched=True).outputs([Foreign(memoryview(bytes(32)))] * 2, (Tensor(16, (2, 2)),), 2)


def test_strings_are_copied_before_they_are_walked() -> None:
    memory = bytearray(b"\1\0\0\0a\1\0\0\0b".ljust(32, b"\0"))
    output = Claims([WORDS], batched=True).outputs([Foreign(memoryview(memory))], (Tensor(10, (2, 1)),), 2)[0]
    memory[:] = b"\xff" * 32  # the worker writes again
    assert bytes(cut_rows(output, 1, 1, 2)[1]) == b"\1\0\0\0b"


def test_a_claim_that_was_good_is_good_for_as_many_rows_only() -> None:
    claims = Claims([FIXED], batched=True)
    memory = [Foreign(memoryview(bytearray(64)))]
    for _ in range(2):
        assert claims.outputs(memory, (Tensor(16, (2, 2)),), 2)[0].shape == (2, 2)
    with pytest.raises(BorderError, match="wanted shape"):
        claims.outputs(memory, (Tensor(16, (2, 2)),), 3)
    with pytest.raises(BorderError, match="wanted the bytes"):
        claims.outputs(memory, (Tensor(15, (2, 2)),), 2)
