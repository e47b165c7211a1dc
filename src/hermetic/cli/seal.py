"""`hermetic seal`: a model in, one sealed file out, its key handed to the broker in the same step.

Not here: what sealing means (enclave/sealed/publish.py), how an operator reaches a broker (attestation/).
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hermetic.cli import output, passphrase
from hermetic.cli.private_memory import keep_memory_private
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.governance.operator_key import Secret
    from hermetic.attestation.operator_settings import OperatorSettings
    from hermetic.enclave.known_answer_file import NamedTensor
    from hermetic.enclave.manifest import Manifest
    from hermetic.enclave.publishers import TrustedPublishers
    from hermetic.enclave.sealed.publish import Answers, Draft
    from hermetic.enclave.sealed.writer import SealedKey

NOBODY: Final = 65534  # gid of the worker that computes answers, where we are root
# Its uid: limits on processes count all of a uid, so two seals at once, or a server beside, must not share one.
FIRST_UID: Final = 30_000
UIDS: Final = 25_000
WORKER_MEMORY_FACTOR: Final = 6  # times the model: decrypted, torch's copy of it, room to work
WORKER_MEMORY_SPARE: Final = 4 << 30  # bytes beside


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(seal)


def seal(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="The model: a folder, or one file.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[int, typer.Option(min=1, help="The model's version.")],
    publisher_key: Annotated[Path, typer.Option(help="The publisher's private keys; mode 0600.")],
    key: Annotated[
        str | None,
        typer.Option(help="Where the broker keeps its key: kbs:///repository/type/tag. An ensemble needs none."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="The sealed file; NAME-VERSION.sealed by default.")
    ] = None,
    *,
    operator: Annotated[
        Path | None, typer.Option(help="The operator's TOML file: upload the key to its broker in this step.")
    ] = None,
    key_out: Annotated[
        Path | None, typer.Option(help="Write the key to a new file, mode 0600, to upload it elsewhere.")
    ] = None,
    golden: Annotated[Path | None, typer.Option(help="Known answers (.npz or .json) instead of computed ones.")] = None,
    publishers: Annotated[
        Path | None, typer.Option(help="Refuse to seal what those who trust this list could not open.")
    ] = None,
    description: Annotated[
        Path | None, typer.Option(help="The model's description; model.toml beside it by default.")
    ] = None,
    model_format: Annotated[
        str | None,
        typer.Option("--format", help="onnx, torchscript, torch-export, aot-inductor, safetensors; else by suffix."),
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="Registered architecture, for safetensors.")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=0, help="Rows of the largest batch; 0: the model is not batched.")
    ] = None,
    shared: Annotated[
        bool | None, typer.Option("--shared", help="Let one worker serve several tenants with this program.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Threads; as many as processors.")] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(help="Isolation property that this host may lack while answers are computed; repeatable."),
    ] = None,
    sign_as: passphrase.SignAsOption = None,
    passphrase_from: passphrase.PassphraseOption = passphrase.PROMPT,
    as_json: output.JsonOption = False,
) -> None:
    """Encrypt and sign a model into one file, with known answers inside; hand its key to the broker."""
    from hermetic.enclave import zero_on_free

    zero_on_free.ensure()
    from hermetic.enclave.sealed.collect import description_beside, is_ensemble
    from hermetic.enclave.sealed.description import Description
    from hermetic.enclave.sealed.publish import Label, Publication, publish
    from hermetic.enclave.sealed.publisher_key import PublisherKey

    if not source.exists():
        raise ConfigurationError(f"{source}: expected a model's folder or file, got none")
    if is_ensemble(source):
        key, operator, key_out = f"kbs:///ensembles/{name}/{version}", None, None  # nobody needs it
    elif operator is None and key_out is None:
        raise ConfigurationError("the key must go somewhere: expected --operator, --key-out or both, got neither")
    if key is None:
        raise ConfigurationError("--key: expected kbs:///repository/type/tag, got none")
    overrides = {
        "format": model_format,
        "architecture": architecture,
        "max_batch_size": max_batch_size,
        "shared": shared,
    }
    zeroing = zero_on_free.status()
    if zeroing.state != "enforced":
        output.warn(f"freed memory is overwritten: {zeroing.state}: {zeroing.why}")
    keep_memory_private()
    count = threads or os.cpu_count() or 1
    publication = Publication(
        source=source,
        target=target or Path(f"{name}-{version}.sealed"),
        label=Label(name, version, key, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
        description=Description.load(description or description_beside(source), overrides),
        signer=PublisherKey.load(publisher_key),
        golden=golden,
        trusted=None if publishers is None else read_publishers(publishers),
        note=output.note,
    )
    signer = None if sign_as is None else (sign_as, passphrase.asking(passphrase_from, "passphrase or PIN"))
    with _progress() as started, _delivery(operator, key_out, signer) as deliver:
        manifest = publish(
            publication, answers=_locked_worker(count, waive or ()), deliver=deliver, threads=count, started=started
        )
    _report(publication.target, manifest, operator, key_out, as_json=as_json)


def read_publishers(path: Path) -> "TrustedPublishers":
    """Return the list of trusted publishers in the file at `path`; `ConfigurationError` where it is none."""
    from hermetic.enclave.publishers import TrustedPublishers

    try:
        return TrustedPublishers.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _locked_worker(threads: int, waived: Sequence[str]) -> "Answers":
    """Return what computes answers in the same locked room as serving does."""

    def compute(draft: "Draft", cases: "Sequence[tuple[NamedTensor, ...]]") -> "Sequence[tuple[NamedTensor, ...]]":
        from hermetic.enclave.answering import answers_of_draft
        from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT
        from hermetic.enclave.supervisor import WorkerSettings

        manifest = draft.manifest
        settings = WorkerSettings(
            profile=PROFILE_OF_FORMAT[manifest.format],
            publishers=draft.publishers.text,
            threads=threads,
            memory_limit_bytes=WORKER_MEMORY_FACTOR * manifest.payload.plaintext_size + WORKER_MEMORY_SPARE,
            waived=tuple(waived),
            uid=FIRST_UID + os.getpid() % UIDS,
            gid=NOBODY,
            draft=True,
        )
        return answers_of_draft(draft.fd, manifest.digest(), draft.key, settings, cases)

    return compute


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    with output.progress(of_bytes=True) as bar:

        def started(step: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(step, total=total)
            return lambda done: bar.advance(task, done)

        yield started


@contextlib.contextmanager
def _delivery(
    operator: Path | None, key_out: Path | None, signer: "tuple[str, Secret] | None"
) -> "Iterator[Callable[[SealedKey], None]]":
    """Give what takes the key: to a file, to the broker, or both. The file is gone again where anything fails."""
    from hermetic.attestation.operator_settings import OperatorSettings

    settings = None if operator is None else OperatorSettings.load(operator)
    written = False

    def deliver(sealed: "SealedKey") -> None:
        nonlocal written
        if key_out is not None:
            _write_key(key_out, sealed.key)
            written = True
        if settings is not None:
            _upload(settings, sealed, signer)

    try:
        yield deliver
    except BaseException:
        if key_out is not None and written:
            key_out.unlink(missing_ok=True)
        raise


def _write_key(path: Path, key: bytearray) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(key)
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"--key-out {path}: {error.strerror}") from error


def _upload(operator: "OperatorSettings", sealed: "SealedKey", signer: "tuple[str, Secret] | None") -> None:
    from hermetic.attestation.admin_client import ModelKeyFacts
    from hermetic.attestation.governance.alone import demand_one_signature, sign_key

    manifest = sealed.manifest
    facts = ModelKeyFacts(manifest.name, manifest.version, manifest.digest(), manifest.publisher)
    with operator.connect() as client:
        if signer is not None:
            demand_one_signature(client)
        state = client.upload(manifest.key_id, sealed.key, facts)
        if signer is not None:
            sign_key(client, manifest.key_id, *signer)
        elif state == "pending":
            output.note(f"{manifest.key_id} is pending: it is released once operators have signed for it")


def _report(target: Path, manifest: "Manifest", operator: Path | None, key_out: Path | None, *, as_json: bool) -> None:
    document: dict[str, Any] = {
        "file": str(target),
        "bytes": target.stat().st_size,
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "publisher": manifest.publisher,
        "manifest_digest": manifest.digest().hex(),
        "key_id": manifest.key_id,
        "key_uploaded": operator is not None,
        "key_file": None if key_out is None else str(key_out),
    }
    output.show(document, as_json=as_json, human=lambda: output.facts("sealed", document))
    if manifest.max_batch_size == 0 and manifest.inputs and all(spec.shape[:1] == (-1,) for spec in manifest.inputs):
        output.note("Every input's first dimension is free: --max-batch-size N would let requests share a batch.")
    if operator is None and key_out is not None:
        upload = ["hermetic", "broker", "upload", manifest.key_id, "--secret", str(key_out), "--name", manifest.name]
        upload += ["--version", str(manifest.version), "--manifest-digest", manifest.digest().hex()]
        upload += ["--publisher", manifest.publisher, "--operator", "OPERATOR.toml"]
        output.note("The key is not at a broker yet. Where the operator's file is, run:")
        typer.echo(shlex.join(upload), err=True)  # on one line, to be copied
