"""A supervisor process with one worker, that knows no plaintext: what its memory holds is what a supervisor's holds.

    lone_supervisor.py SEALED-FILE SETTINGS-JSON
Each line on its standard input is one step: a JWE to open with, or the word unload. It answers each with a JSON line.
"""

import json
import os
import sys

from hermetic.enclave import sealing
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.supervisor import Worker, WorkerSettings


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    sealed = os.open(sys.argv[1], os.O_RDONLY)
    settings = WorkerSettings(**json.loads(sys.argv[2]))
    manifest = sealing.verify_manifest(sealing.read_header(sealed), TrustedPublishers.loads(settings.publishers))
    worker = Worker.start(settings)
    tell(
        worker=worker.pid,
        public_key=worker.public_key,
        zeroing=worker.report.zeroing,
        key_memory=worker.report.key_memory,
    )
    for line in sys.stdin:
        if line.strip() == "unload":
            tell(wiped=worker.unload())
        else:
            worker.open(sealed, line.encode(), manifest.digest())
            tell(opened=True)


if __name__ == "__main__":
    main()
