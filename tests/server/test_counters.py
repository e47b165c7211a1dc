"""Counters that front ends share: what a hostile one cannot do to another's row, and limits over the sum of all."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from hermetic.errors import BorderError, OverloadedError
from hermetic.server.config import Limits
from hermetic.server.counters import (
    CELL,
    CELL_BYTES,
    F_SEAL_FUTURE_WRITE,
    REQUESTS,
    ROW_BYTES,
    SharedAccounts,
    close_to_writers,
    make_row,
    map_own_row,
    map_row_of_another,
)
from hermetic.server.identity import Identity
from hermetic.server.limits import Cancels
from hermetic.server.shared_messages import (
    CountersGone,
    CountersOf,
)
from tests.server.calls import TIMEOUT_S, await_ready, infer, infer_request, method
from tests.server.far_side import FarSide, description

ALICE, BOB = Identity("ca", "alice"), Identity("ca", "bob")
PLACES = {ALICE: 1, BOB: 7}
LIMITS = Limits(message_bytes=50, bytes_in_flight=100, bytes_in_flight_per_client=60)


@pytest.fixture
def rows() -> Iterator[list[int]]:
    """Two rows, each mapped by its owner and then closed to writers."""
    rows = [make_row(), make_row()]
    yield rows
    for row in rows:
        os.close(row)


def front_ends(rows: list[int], limits: Limits = LIMITS) -> list[SharedAccounts]:
    """An accounts for each row, which counts all others."""
    accounts = [SharedAccounts(limits, map_own_row(row), PLACES) for row in rows]
    for row in rows:
        close_to_writers(row)
    for at, account in enumerate(accounts):
        for number, row in enumerate(rows):
            if number != at:
                account.add_row(number, map_row_of_another(row))
    return accounts


def mprotect_to_write(row: int) -> None:
    """Map for reading, as is allowed, and then ask for more."""
    mapped = mmap.mmap(row, ROW_BYTES, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    address = libc.mmap(None, ROW_BYTES, mmap.PROT_READ, mmap.MAP_SHARED, row, 0)
    refused = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(ROW_BYTES), mmap.PROT_READ | mmap.PROT_WRITE)
    code = ctypes.get_errno()
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(ROW_BYTES))
    mapped.close()
    if refused:
        raise PermissionError(code, "mprotect")


ATTACKS: dict[str, Callable[[int], object]] = {
    "map for writing": lambda row: mmap.mmap(row, ROW_BYTES),
    "mprotect": mprotect_to_write,
    "write": lambda row: os.pwrite(row, b"\xff" * 8, CELL_BYTES),
    "shrink": lambda row: os.ftruncate(row, 0),
    "grow": lambda row: os.ftruncate(row, 2 * ROW_BYTES),
    "open again": lambda row: os.write(os.open(f"/proc/self/fd/{row}", os.O_RDWR), b"\xff"),
    "seal against its owner": lambda row: fcntl.fcntl(row, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_front_end_cannot_change_another_ones_row(rows: list[int], attack: str) -> None:
    """It has the very descriptor that it is given; as root, which no front end is."""
    owner, _ = front_ends(rows)
    owner.take(owner.usage(ALICE), 5)
    with pytest.raises(OSError, match=r".") as caught:
        ATTACKS[attack](rows[0])
    assert caught.value.errno in (errno.EPERM, errno.EACCES)
    owner.take(owner.usage(ALICE), 1)  # its owner still counts
    assert map_row_of_another(rows[0])[CELL] == 6


@pytest.mark.parametrize("attack", ["shrink", "grow"])
def test_an_owner_cannot_resize_its_row(rows: list[int], attack: str) -> None:
    """It would make those who read it die of SIGBUS."""
    with pytest.raises(PermissionError):
        ATTACKS[attack](rows[0])


def test_what_is_no_row_is_refused(rows: list[int]) -> None:
    small = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    with pytest.raises(BorderError, match="wanted 262144 bytes that cannot be resized, got 0"):
        map_own_row(small)
    os.ftruncate(small, ROW_BYTES)
    with pytest.raises(BorderError, match="seals 0x0"):
        map_row_of_another(small)
    os.close(small)
    read, write = os.pipe()
    with pytest.raises(BorderError, match="wanted a memfd"):
        map_row_of_another(read)
    os.close(read)
    os.close(write)
    close_to_writers(rows[0])
    assert fcntl.fcntl(rows[0], fcntl.F_GET_SEALS) & F_SEAL_FUTURE_WRITE


def test_limits_hold_for_the_sum(rows: list[int]) -> None:
    one, other = front_ends(rows)
    one.take(one.usage(ALICE), 40)
    with pytest.raises(OverloadedError, match="of this client: wanted at most 60, got 61"):
        other.take(other.usage(ALICE), 21)
    other.take(other.usage(BOB), 50)
    with pytest.raises(OverloadedError, match="of all clients: wanted at most 100, got 101"):
        one.take(one.usage(ALICE), 11)
    assert (one.bytes_in_flight, other.bytes_in_flight) == (40, 50)  # what was refused is not counted
    other.give_back(other.usage(BOB), 50)
    one.take(one.usage(ALICE), 20)


def test_a_front_end_that_has_ended_counts_no_more(rows: list[int]) -> None:
    one, other = front_ends(rows)
    one.take(one.usage(ALICE), 60)
    other.remove_row(0)
    other.take(other.usage(ALICE), 60)


def test_cancels_are_counted_over_all(rows: list[int]) -> None:
    """Who resets streams at one front end is refused at the other."""
    one, other = front_ends(rows)
    here, there = one.usage(ALICE), other.usage(ALICE)
    cancels = Cancels(Limits(cancels_per_client=20, cancels_window_s=10))
    for at in range(21):
        cancels.count(here if at % 2 else there, 20.0)
    assert there.cancels == 21
    for usage in (here, there):
        with pytest.raises(OverloadedError, match="at most 20 in 10 s, got 21"):
            cancels.check(usage, 21.0)
        cancels.check(usage, 30.0)
    cancels.check(one.usage(BOB), 21.0)


def test_room_is_reserved_over_all(rows: list[int]) -> None:
    """Before a message is asked for, as much as it may have."""
    one, other = front_ends(rows)
    assert one.reserve(one.usage(ALICE), 40)
    assert not other.reserve(other.usage(ALICE), 21)
    assert not other.has_room(other.usage(ALICE), 21)
    assert other.has_room(other.usage(ALICE), 101)  # it never will have: no use in waiting
    assert other.reserve(other.usage(ALICE), 20)
    assert other.bytes_in_flight == 20


def test_requests_and_their_sum(rows: list[int]) -> None:
    one, _ = front_ends(rows)
    one.usage(ALICE).requests += 2
    one.usage(BOB).requests += 1
    one.usage(ALICE).requests -= 1
    row = map_row_of_another(rows[0])
    assert (row[REQUESTS], row[CELL + REQUESTS], row[7 * CELL + REQUESTS]) == (2, 1, 1)


def test_an_identity_keeps_its_cell_over_epochs(rows: list[int]) -> None:
    one, _ = front_ends(rows)
    held = one.usage(BOB)
    one.take(held, 10)
    one.place({BOB: 7})
    assert one.usage(BOB) is held
    one.place({ALICE: 1})  # BOB is gone, and what he holds is still given back to his cell
    one.give_back(held, 10)
    assert one.bytes_in_flight == 0
    one.place(PLACES)
    assert one.usage(BOB).bytes_in_flight == 0


def test_two_front_ends_hold_one_client_to_one_limit(start: object, rows: list[int]) -> None:
    """Two processes: what a client holds at one is missing at the other, until it is given back, or that one ends."""
    limits = Limits(message_bytes=70_000, bytes_in_flight_per_client=130_000, message_wait_s=3)
    sides: list[FarSide] = [start(row=row, limits=limits) for row in rows]  # type: ignore[operator]
    for row in rows:
        close_to_writers(row)
    for at, side in enumerate(sides):
        side.channel.send(CountersOf(pid=2 - at).encode(), (rows[1 - at],))
    one, other = sides
    big = description("big", inputs=(("INPUT0", "FP32", (15_500,)),))
    request = infer_request("big", [0.0] * 15_500)
    workers = [side.serve(big) for side in sides]
    with one.channel_as(one.pki.infer) as here, other.channel_as(other.pki.infer) as there:
        await_ready(here, "big")
        await_ready(there, "big")
        workers[0].order("hold")
        held = method(here, "ModelInfer").future(request, timeout=TIMEOUT_S)
        workers[0].batch()
        with pytest.raises(grpc.RpcError) as caught:
            infer(there, request)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "room for a message" in caught.value.details()
        with other.channel_as(other.pki.other) as third:
            infer(third, request)  # another client is not held to it
        waiting = method(there, "ModelInfer").future(request, timeout=TIMEOUT_S)
        workers[0].order("go")
        held.result(TIMEOUT_S)
        waiting.result(TIMEOUT_S)
        workers[0].order("hold")
        held = method(here, "ModelInfer").future(request, timeout=TIMEOUT_S)
        workers[0].batch()
        one.process.kill()
        other.channel.send(CountersGone(pid=1).encode())
        infer(there, request)
        held.cancel()


VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "shared-counters"


@pytest.mark.parametrize("vector", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_the_vectors_of_the_specification(vector: Path) -> None:
    """What a row's bytes are after these steps, on a little-endian machine."""
    told = json.loads(vector.read_text())
    row = make_row()
    accounts = SharedAccounts(
        Limits(), map_own_row(row), {Identity("ca", name): place for name, place in told["places"].items()}
    )
    cancels = Cancels(Limits())
    for step, name, *value in told["steps"]:
        usage = accounts.usage(Identity("ca", name))
        if step == "request":
            usage.requests += 1
        elif step == "cancel":
            cancels.count(usage, *value)
        else:
            getattr(accounts, step)(usage, *value)
    wanted = bytearray(ROW_BYTES)
    for cell, integers in told["cells"].items():
        struct.pack_into("<4Q", wanted, int(cell) * CELL_BYTES, *integers)
    assert os.pread(row, ROW_BYTES, 0) == wanted
    os.close(row)
