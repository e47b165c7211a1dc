"""Start a locked worker, and print its report: for a kernel of its own (test_own_kernel.py)."""

import sys

from hermetic.enclave.supervisor import Worker
from tests.enclave.sealed_models import MEMORY, settings

if __name__ == "__main__":
    worker = Worker.start(settings(memory_limit_bytes=MEMORY))
    try:
        sys.stdout.write(worker.report.model_dump_json() + "\n")
    finally:
        worker.kill()
