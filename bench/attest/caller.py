"""A guest, one process: `python -m hermetic.bench.attest.caller FACTS.json`; says how many handshakes it has made.

It begins when a line comes on its standard input, and ends after the seconds in its facts.
"""

import json
import sys
import time
from pathlib import Path

from hermetic.attestation.operator_settings import client_context
from hermetic.bench.attest.guest import Guest, QuickQuotes


def main() -> None:
    """Make one handshake after the other for `seconds`."""
    facts = json.loads(Path(sys.argv[1]).read_text())
    tls = client_context(*(Path(facts[name]) for name in ("ca", "certificate", "tls_key")))
    guest = Guest(facts["port"], tls, QuickQuotes.of(facts["quotes"]), facts["hermetic"], facts["path"])
    guest.handshake()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    made, end = 0, time.monotonic() + facts["seconds"]
    while time.monotonic() < end:
        guest.handshake()
        made += 1
    sys.stdout.write(f"{made}\n")


if __name__ == "__main__":
    main()
