"""A process of guests: `python -m hermetic.bench.attest.caller FACTS.json`; says how many handshakes it has made.

It begins when a line comes on its standard input, and ends after the seconds in its facts.
"""

import json
import sys
import threading
import time
from pathlib import Path

from hermetic.attestation.operator_settings import client_context
from hermetic.bench.attest.guest import Guest, QuickQuotes


def main() -> None:
    """Make handshakes with `threads` threads for `seconds`."""
    facts = json.loads(Path(sys.argv[1]).read_text())
    tls = client_context(*(Path(facts[name]) for name in ("ca", "certificate", "tls_key")))
    guest = Guest(facts["port"], tls, QuickQuotes.of(facts["quotes"]), facts["hermetic"], facts["path"])
    guest.handshake()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    made: list[int] = []
    end = time.monotonic() + facts["seconds"]

    def work() -> None:
        while time.monotonic() < end:
            guest.handshake()
            made.append(1)

    threads = [threading.Thread(target=work) for _ in range(facts["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"{len(made)}\n")


if __name__ == "__main__":
    main()
