"""`make fuzz`: python -m tests.fuzz.hostile_worker --minutes N. The machine of test_hostile_machine.py, for longer.

Each round has other examples; what fails is made small and printed.
"""

import argparse
import sys
import time

from tests.server.test_hostile_machine import run

EXAMPLES = 200
STEPS = 60


def main(arguments: list[str]) -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.hostile_worker")
    parser.add_argument("--minutes", type=float, default=1.0)
    end = time.monotonic() + 60 * parser.parse_args(arguments).minutes
    rounds = 0
    while time.monotonic() < end:
        run(EXAMPLES, STEPS)
        rounds += 1
    sys.stdout.write(f"== hostile workers: {rounds} rounds of {EXAMPLES} lives, none of which harmed anyone else\n")


if __name__ == "__main__":
    main(sys.argv[1:])
