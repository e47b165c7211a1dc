"""How fast is a server under NVIDIA's own load generator? Drives the `perf_analyzer` binary, and reads its CSV.

It is a C++ client that needs less CPU per call than any Python one, so more of a shared machine is left for the server,
and it is the tool that others publish numbers of. It does not look at answers; therefore the Python client asks every
question once before and once after each point, and checks. The binary is not ours to ship: fetch_perf_analyzer.py.
"""

import csv
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from hermetic.bench.load import Job, PythonLoad
from hermetic.bench.point import Point
from hermetic.bench.target import Target, tls_files
from hermetic.bench.traffic import Question
from hermetic.errors import ConfigurationError, MeasurementError
from hermetic.protos.inference import grpc_service_pb2

WINDOWS: Final = 3  # perf_analyzer measures at least three, and reports them together
# It reports nothing when its windows differ by more than this. On a shared machine they do; we take medians of turns.
STABILITY_PERCENT: Final = 999
TIMEOUT_S: Final = 120
_DTYPES: Final = {"FP32": "<f4", "INT64": "<i8"}
LIBRARIES: Final = "lib"  # folder beside the binary with the CUDA runtime that it is linked to


class PerfAnalyzer:
    """The load client as the bench sees it."""

    speaks_to_any_server = False  # it asks for ModelConfig first

    def __init__(self, binary: Path) -> None:
        """Use this binary; `ConfigurationError` where it is no file."""
        if not binary.is_file():
            raise ConfigurationError(f"perf_analyzer: wanted an executable file, got {binary}")
        self.name = "perf_analyzer"  # not where it lies: reports are published
        self._binary = binary

    def measure(self, target: Target, questions: Sequence[Question], job: Job) -> Point:
        """Return the point; `MeasurementError` where the tool fails. Wrong answers before or after are in `errors`."""
        before = self._check(target, questions, job)
        if before.errors:
            return before
        with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
            point = self._run(target, questions, job, Path(folder))
        return replace(point, errors=self._check(target, questions, job).errors)

    def _check(self, target: Target, questions: Sequence[Question], job: Job) -> Point:
        calls = max(len(questions), job.concurrency)
        return PythonLoad().measure(target, questions, Job(job.concurrency, job.seconds, calls))

    def _run(self, target: Target, questions: Sequence[Question], job: Job, folder: Path) -> Point:
        model = _write_inputs(questions, folder / "inputs.json")
        arguments = [
            *("-m", model, "-u", target.address, "-i", "grpc", "--async", "--input-data", str(folder / "inputs.json")),
            *("--concurrency-range", str(job.concurrency), "-f", str(folder / "result.csv")),
            *("-p", str(int(1000 * job.seconds / WINDOWS)), "-r", str(WINDOWS), "-s", str(STABILITY_PERCENT)),
            *_tls(target),
        ]
        environment = {"LD_LIBRARY_PATH": str(self._binary.parent / LIBRARIES)}
        try:
            ended = subprocess.run(
                [str(self._binary), *arguments],
                env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MeasurementError(f"perf_analyzer did not run: {error}") from None
        if ended.returncode != 0 or not (folder / "result.csv").is_file():
            said = " / ".join((ended.stderr.strip() or ended.stdout.strip()).splitlines()[-3:])
            raise MeasurementError(f"perf_analyzer ended with status {ended.returncode}: {said}")
        return read_csv((folder / "result.csv").read_text(), ended.stdout)


def read_csv(table: str, printed: str) -> Point:
    """Return the point in perf_analyzer's one-line CSV; the number of calls stands only in what it prints."""
    rows = list(csv.DictReader(table.splitlines()))
    if len(rows) != 1:
        raise MeasurementError(f"perf_analyzer's CSV: wanted one row, got {len(rows)}")
    row = rows[0]
    counts = [line.rpartition(":")[2] for line in printed.splitlines() if line.strip().startswith("Request count:")]
    try:
        p50_ms, p99_ms = (float(row[f"{p} latency"]) / 1000 for p in ("p50", "p99"))
        return Point(int(counts[0]), float(row["Inferences/Second"]), p50_ms, p99_ms)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise MeasurementError(f"perf_analyzer's result: wanted counts and latencies, got {error!r}") from None


def _tls(target: Target) -> list[str]:
    files = tls_files(target)
    if files is None:
        return []
    ca, certificate, key = map(str, files)
    return [
        *("--ssl-grpc-use-ssl", "--ssl-grpc-root-certifications-file", ca),
        *("--ssl-grpc-private-key-file", key, "--ssl-grpc-certificate-chain-file", certificate),
    ]


def _write_inputs(questions: Sequence[Question], path: Path) -> str:
    """Write the questions in perf_analyzer's input format; returns the model's name."""
    steps = []
    for question in questions:
        request = grpc_service_pb2.ModelInferRequest.FromString(question.request)
        tensor = request.inputs[0]
        content = np.frombuffer(request.raw_input_contents[0], _DTYPES[tensor.datatype]).tolist()
        steps.append({tensor.name: {"content": content, "shape": list(tensor.shape[1:])}})
    path.write_text(json.dumps({"data": steps}))
    return str(request.model_name)
