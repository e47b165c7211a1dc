"""`hermetic inspect`: what a sealed file says of itself, who signed it, whether it is whole. Needs no key."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType

from hermetic.cli import output
from hermetic.errors import ConfigurationError, SealedModelError

if TYPE_CHECKING:
    from hermetic.enclave.manifest import Manifest
    from hermetic.enclave.sealing import SignedManifest


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    sealed: Annotated[Path, typer.Argument(metavar="FILE", help="The sealed file.")],
    publishers: Annotated[
        Path | None, typer.Option(help="The list of trusted publishers; without it no signature is checked.")
    ] = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Show the manifest, the state of its signatures, and the sizes of a sealed file."""
    from hermetic.cli.seal import read_publishers
    from hermetic.enclave import sealing

    try:
        fd = os.open(sealed, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{sealed}: {error.strerror}") from error
    try:
        signed = sealing.read_header(fd)
        manifest = sealing.parse_unverified_manifest(signed)
        refusals = []
        verified = False
        try:
            if publishers is not None:
                sealing.verify_manifest(signed, read_publishers(publishers))
                verified = True
        except SealedModelError as error:
            refusals.append(error)
        try:
            sealing.check_length(fd, manifest, signed.payload_offset)
        except SealedModelError as error:
            refusals.append(error)
        file_bytes = os.fstat(fd).st_size
    finally:
        os.close(fd)
    state = "verified" if verified else "not checked" if publishers is None else "refused"
    document = _document(signed, manifest, file_bytes, state, [str(error) for error in refusals])
    output.show(document, as_json=as_json, human=lambda: _tables(manifest, document))
    if publishers is None:
        output.warn("Nobody vouches for this manifest: pass --publishers to check its signatures.")
    if refusals:
        raise refusals[0]


def _document(
    signed: "SignedManifest", manifest: "Manifest", file_bytes: int, state: str, refusals: list[str]
) -> dict[str, Any]:
    return {
        "manifest": json.loads(manifest.encode()),
        "manifest_digest": signed.digest().hex(),
        "signatures": dict.fromkeys(sorted(signed.signatures), state),
        "sizes": {
            "file": file_bytes,
            "manifest": len(signed.raw),
            "payload": file_bytes - signed.payload_offset,
            "plaintext": manifest.payload.plaintext_size,
        },
        "refusals": refusals,
    }


def _tables(manifest: "Manifest", document: dict[str, Any]) -> RenderableType:
    rows = {
        "model": f"{manifest.name}, version {manifest.version}",
        "format": manifest.format + (f" ({manifest.architecture})" if manifest.architecture else ""),
        "publisher": manifest.publisher,
        "signatures": ", ".join(f"{name}: {state}" for name, state in document["signatures"].items()),
        "created": manifest.created,
        "key": manifest.key_id,
        "manifest digest": document["manifest_digest"],
        "batches of": manifest.max_batch_size or "one (not batched)",
        "known answers": _known_answers(manifest),
        "sizes": ", ".join(f"{name} {size}" for name, size in document["sizes"].items()) + " bytes",
    }
    tensors = [
        (kind, output.escape(spec.name), spec.datatype, output.escape(str(list(spec.shape))))
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    ]
    files = [(output.escape(entry.name), str(entry.size), entry.sha256) for entry in manifest.files]
    return Group(
        output.facts("sealed model", rows),
        output.table("tensors", ("", "name", "datatype", "shape"), tensors),
        output.table("configuration", ("", "value"), _configuration(manifest)),
        output.table("files", ("name", "bytes", "sha256"), files),
    )


def _known_answers(manifest: "Manifest") -> str:
    if manifest.is_ensemble:
        return "none: an ensemble, whose models have theirs"
    return "inside" if manifest.known_answer else "none: a draft, which no server opens"


def _configuration(manifest: "Manifest") -> list[tuple[str, str]]:
    """Return what the configuration says, each with its place: one row per value that is not a list of members."""
    rows: list[tuple[str, str]] = []
    waiting: list[tuple[str, Any]] = list(reversed(manifest.configuration.dump().items()))
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{place}.{name}", inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            waiting += [(f"{place}[{at}]", inner) for at, inner in reversed(list(enumerate(value)))]
        else:
            rows.append((output.escape(place), output.escape("on" if value == {} else str(value))))
    return rows or [("each request", "a batch of its own")]
