"""How is a process of the bench started, told its job, heard, and surely ended? One way for all of them.

Each runs as `python -m hermetic.bench.<name>` in a clean environment, reads one JSON job from stdin and writes JSON
lines to stdout. It ends when its stdin closes, so none outlives the bench, however that ends.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from hermetic.errors import MeasurementError

ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "GRPC_VERBOSITY": "ERROR",
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs have the numbers of nvidia-smi
}
EXIT_TIMEOUT_S: Final = 10


class Child:
    """One running process; a context manager that ends it."""

    def __init__(self, module: str, job: Mapping[str, Any]) -> None:
        """Start `hermetic.bench.<module>` and hand it the job."""
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"hermetic.bench.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
        try:
            self.tell(job)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """Return the next JSON line; `MeasurementError` with the end of its stderr where the process has ended."""
        if self._process.stdout is None or not (line := self._process.stdout.readline()):
            raise MeasurementError(f"the bench's {self._module} process ended without a result: {self._last_words()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its stdin, and kill it where that is not enough."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(0.0 if kind is not None else EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def tell(self, job: Mapping[str, Any]) -> None:
        """Hand it one JSON line: the job, or, to a process that takes several, the next."""
        if self._process.stdin is None:
            raise MeasurementError(f"the bench's {self._module} process has no stdin")
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise MeasurementError(f"the bench's {self._module} process did not start: {self._last_words()}") from None

    def _last_words(self) -> str:
        self._process.wait(EXIT_TIMEOUT_S)
        said = self._process.stderr.read().strip() if self._process.stderr is not None else ""
        return said.splitlines()[-1] if said else f"exit status {self._process.returncode}"


def jobs_from_stdin() -> Iterator[dict[str, Any]]:
    """Give each job that is told, in the child, until the parent closes its stdin or is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def job_from_stdin() -> dict[str, Any]:
    """Return the job, in the child."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    return job


def say(document: Mapping[str, Any]) -> None:
    """Write one JSON line, in the child."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def wait_for_the_end() -> None:
    """Return when the parent closes this child's stdin, or is gone."""
    sys.stdin.read()
