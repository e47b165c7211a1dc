"""A process that is suspended for hours, as its clocks tell it: CLOCK_BOOTTIME jumps, CLOCK_MONOTONIC does not.

    python -m tests.server.suspended SECONDS     prints what became of leases that it held before

A time namespace is entered by children only: the process that holds the leases forks. What it prints is JSON.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from hermetic.enclave.lease_timer import boottime
from hermetic.enclave.worker_lease import moments
from hermetic.errors import BrokerUnreachableError, LeaseRefusedError
from tests.enclave.test_lease import HOUR_MS, TestOnAClockOfItsOwn
from tests.server.test_leases import House, Leasing

CLONE_NEWTIME = 0x80  # sched.h
PR_SET_PDEATHSIG = 1  # sys/prctl.h
HOUR_S = 3600.0


def suspend(seconds: int) -> None:
    """Go on in a child, so much later by CLOCK_BOOTTIME alone; raises `OSError` where that is not allowed."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWTIME) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/timens_offsets").write_text(f"boottime {seconds} 0\n")
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a parent that is ended for its time takes it along


def main(seconds: int) -> None:
    house = House(Leasing(offered=False, length_s=HOUR_S))
    house.loader.refusals += [BrokerUnreachableError("away")] * 1000
    slot, _ = house.load()
    machine, made = TestOnAClockOfItsOwn(), moments()
    before = boottime(), time.monotonic()
    suspend(seconds)
    worker = machine.worker()  # its timer is the kernel's, and stays with the process that made it
    worker.expect(machine.KEY, made)
    jumped = [boottime() - before[0], time.monotonic() - before[1]]
    try:
        worker.begin(machine.MODEL, machine.lease(HOUR_MS), None)
        taken = "taken"
    except LeaseRefusedError as error:
        taken = str(error).partition(":")[0]
    state = house.leases.facts().workers[0].left_s
    if state == 0:
        house.until_over(slot)
    sys.stdout.write(json.dumps({"jumped": jumped, "worker": taken, "left_s": state, "state": slot.state}))
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except Exception:  # noqa: BLE001 - whatever it is, the parent says it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # what it shares with its parent is the parent's
