"""One attack, as a process: `python -m hermetic.bench.flood.attacker`, job on stdin, counts on stdout at its end.

It runs at the lowest priority: what is measured is what the server makes of an attack, not whose the cores are.
"""

import os
import resource
import time

from hermetic.bench.child import job_from_stdin, say
from hermetic.bench.flood.attacks import ATTACKS, Attack
from hermetic.bench.flood.wire import Door

LOWEST_PRIORITY = 19


def take_all_descriptors() -> None:
    """Raise the bound on descriptors as far as this process may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Attack from `start` until `end` (monotonic seconds)."""
    job = job_from_stdin()
    os.nice(LOWEST_PRIORITY)
    take_all_descriptors()
    kind = ATTACKS[job["attack"]]
    attack = Attack(Door(*job["door"]), job["method"], bytes.fromhex(job["request"]), job["strength"])
    time.sleep(max(0.0, job["start"] - time.monotonic()))
    steps = kind.run(attack)
    while time.monotonic() < job["end"]:
        next(steps)
    say(attack.counts)
    os._exit(0)  # thousands of sockets close quicker so


if __name__ == "__main__":
    main()
