"""The demo's acts, in order: train, seal, attest and open, prove, answer, look into memory, forget, read the log.

Each act says what it does through `Say`; nothing here prints. The result is `Report`, which the command shows.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hermetic.client import Proof
from hermetic.demo import models
from hermetic.demo.answers import Asked, compare_files, compare_rows
from hermetic.demo.forgetting import Sighting, canaries_of, look
from hermetic.demo.processes import Command
from hermetic.demo.stage import Installation, Sealable, Served, Serving, install
from hermetic.errors import ConfigurationError, KnownAnswerError
from hermetic.provision.demo import DEMO_PUBLISHERS

FILES_ASKED: Final = 60  # files of this repository whose type is detected
LOG_TIMEOUT_S: Final = 60
_MS_IN_MINUTE: Final = 60_000

Say = Callable[[str], None]

CLASSIFIER: Final = "breast-cancer"
CLASSIFIER_TORCH: Final = "breast-cancer-torch"
DETECTOR: Final = "magika"

_DESCRIPTION: Final = f"""max_batch_size = {models.MAX_BATCH_SIZE}
[[inputs]]
name = "features"
datatype = "FP32"
shape = [30]
[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [2]
[known_answer.ranges]
features = [0.0, 100.0]
"""
_DETECTOR_DESCRIPTION: Final = f"""max_batch_size = {models.MAX_BATCH_SIZE}
[known_answer.ranges]
bytes = [0, 256]
"""


@dataclass(slots=True)
class ModelReport:
    """What came of one model. Times in milliseconds."""

    name: str
    format: str
    verdict: str = "not asked"
    lease: str = "none"
    load_ms: float = 0.0
    answers: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    found_loaded: int | None = None  # None: not looked for
    found_unloaded: int | None = None


@dataclass(frozen=True, slots=True)
class Proved:
    """What the server has proved to the caller before anything was sent to it."""

    evidence: str
    models: int
    serving_key: str  # SHA-256 of its SubjectPublicKeyInfo, hex
    checks: int
    accepted_knowingly: tuple[str, ...]
    milliseconds: float  # handshake, question, quote, judgement


@dataclass(slots=True)
class Report:
    """The whole demo: per model, what is weaker here than it should be, and how much memory was looked at."""

    models: list[ModelReport]
    tee: str
    accuracy: float
    weaker: list[str] = field(default_factory=list)
    scanned: tuple[Sighting, ...] = ()
    proved: Proved | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def play(folder: Path, repository: Path, say: Say, *, tee: Literal["tpm", "sample"] | None = None) -> Report:
    """Run the demo in the new folder `folder`; `repository` holds the files whose type is detected.

    Raises `KnownAnswerError` where a served answer is not the plain model's, or where weights survive an unload.
    """
    began = time.monotonic()
    say("training a classifier on the Wisconsin breast-cancer data; taking the detector out of the package magika")
    trained = models.train()
    sources = _sources(folder / "models", trained)
    canaries = {model.name: canaries_of(_file_of(model)) for model in sources}
    say("making private CAs, a TPM, a broker")
    with install(folder / "installation", tee=tee) as installation:
        reports = [ModelReport(model.name, _file_of(model).suffix[1:]) for model in sources]
        report = Report(reports, installation.tee, trained.accuracy, list(installation.weaker))
        for model in sources:
            say(f"sealing {model.name} as {model.publisher}, its key to the broker")
            installation.seal(model)
        say("starting the server: attest, get the keys, open the models in locked-down processes")
        with Serving(installation, say) as served:
            for entry in report.models:
                entry.load_ms = served.load_ms[entry.name]
            _ask(served, trained, repository, report, say)
            try:
                report.scanned = _forget(served, installation, canaries, report, say)
            except ConfigurationError as error:
                report.weaker.append(f"Nothing is known of what memory kept: {error}.")
    say("reading what the broker wrote down")
    _read_verdicts(folder / "installation", report)
    report.seconds = {"all": round(time.monotonic() - began, 1)}
    return report


def _sources(folder: Path, trained: models.Trained) -> list[Sealable]:
    classifier = models.export_onnx(trained.network, folder / CLASSIFIER)
    program = models.export_torch(trained.network, folder / CLASSIFIER_TORCH)
    detector = models.copy_magika(folder / DETECTOR)
    for place, text in ((classifier, _DESCRIPTION), (program, _DESCRIPTION), (detector, _DETECTOR_DESCRIPTION)):
        (place / "model.toml").write_text(text)
    return [
        Sealable(classifier, CLASSIFIER),
        Sealable(detector, DETECTOR, publisher=DEMO_PUBLISHERS[1]),
        Sealable(program, CLASSIFIER_TORCH),
    ]


def _file_of(model: Sealable) -> Path:
    return next(path for path in sorted(model.source.iterdir()) if path.suffix in (".onnx", ".pt2"))


def _ask(served: Served, trained: models.Trained, repository: Path, report: Report, say: Say) -> None:
    """Compare every model's answers with the plain model's: asked once the server has proved what it is."""
    began = time.monotonic()
    client = served.verified_client()
    report.proved = _proved(client.proof, 1000 * (time.monotonic() - began))
    say(f"the server has proved itself to the caller: {report.proved.checks} checks, {report.proved.evidence}")
    files = sorted(path for path in repository.rglob("*") if path.is_file() and not _hidden(path, repository))
    for entry in report.models:
        ask = Asked(client, entry.name, "INT32" if entry.name == DETECTOR else "FP32")
        if entry.name == DETECTOR:
            entry.answers = compare_files(ask, files[:: max(1, len(files) // FILES_ASKED)])
        else:
            entry.answers = compare_rows(ask, trained.features, trained.probabilities)
        entry.p50_ms, entry.p99_ms = _percentile(ask.milliseconds, 50), _percentile(ask.milliseconds, 99)
        say(f"{entry.name}: {entry.answers} answers equal to the plain model's")
    client.close()


def _proved(proof: Proof, milliseconds: float) -> Proved:
    return Proved(
        evidence=", ".join(kind.kind for kind in proof.claims.kinds),
        models=len(proof.statement.manifests),
        serving_key=proof.statement.spki_sha256,
        checks=len(proof.checks),
        accepted_knowingly=proof.warnings,
        milliseconds=round(milliseconds, 1),
    )


def _forget(
    served: Served, installation: Installation, canaries: Mapping[str, list[bytes]], report: Report, say: Say
) -> tuple[Sighting, Sighting]:
    """Look for weights in every process, unload all models, and look again."""
    loaded = look([*served.pids, installation.broker.pid], canaries)
    operator = served.client(operator=True)
    for entry in report.models:
        operator.unload_model(entry.name)
    operator.close()
    unloaded = look([*served.pids, installation.broker.pid], canaries)
    for entry in report.models:
        entry.found_loaded, entry.found_unloaded = loaded.counts[entry.name], unloaded.counts[entry.name]
        say(f"{entry.name}: weights found {entry.found_loaded} times while loaded, {entry.found_unloaded} after")
        if not entry.found_loaded:
            raise KnownAnswerError(
                f"{entry.name}: wanted the scanner to find loaded weights, got none: it proves nothing"
            )
        if entry.found_unloaded:
            raise KnownAnswerError(f"{entry.name}: wanted no weights after the unload, got {entry.found_unloaded}")
    return loaded, unloaded


def _read_verdicts(installation: Path, report: Report) -> None:
    """Take each model's verdict from the broker's own log, after it has been verified."""
    broker = installation / "broker"
    key = ("--key", str(broker / "log.pub"))
    for arguments in (
        ["audit", "verify", str(broker / "log"), *key],
        ["audit", "show", str(broker / "log"), *key, "--json", "--limit", "1000"],
    ):
        with Command(arguments) as command:
            command.succeed(LOG_TIMEOUT_S)
            shown = command.output
    for record in json.loads(shown)["records"]:
        if record["kind"] == "broker.release":
            for entry in report.models:
                if f"models/{entry.name}/" in json.dumps(record["fields"]):
                    entry.verdict = f"{report.tee}: {record['fields']['outcome']}"
                    entry.lease = _shown(record["fields"]["lease"])


def _shown(lease: Mapping[str, Any] | None) -> str:
    """A lease of the broker's log in words: how long, and how much longer where the broker is away."""
    if lease is None:
        return "none"
    length_min, grace_min = (lease[name] / _MS_IN_MINUTE for name in ("length_ms", "grace_ms"))
    return f"{length_min:g} min + {grace_min:g}"


def _hidden(path: Path, repository: Path) -> bool:
    """Whether git, tools or this demo made it."""
    parts = path.relative_to(repository).parts
    return any(part.startswith(".") or part in ("__pycache__", "demo", "dist", "site") for part in parts)


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
