"""What a revocation names on the command line: one model, one server or one chip."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

__all__ = ["ChipOption", "ModelOption", "ServerOption", "VersionOption", "named"]

ModelOption = Annotated[str | None, typer.Option("--model", help="A model's name.")]
VersionOption = Annotated[int, typer.Option("--version", min=0, help="Its version; 0: every version.")]
ServerOption = Annotated[str | None, typer.Option("--server", help="A server: the name in its client certificate.")]
ChipOption = Annotated[str | None, typer.Option("--chip", help="A chip, as `lease list` shows it.")]


def named(model: str | None, version: int, server: str | None, chip: str | None) -> dict[str, Any]:
    """Return `{"model", "version"?}`, `{"server"}` or `{"chip"}`; raises `InvalidRequestError` for none, or two."""
    from hermetic.errors import InvalidRequestError

    options: Mapping[str, str | None] = {"model": model, "server": server, "chip": chip}
    given = {kind: name for kind, name in options.items() if name is not None}
    if len(given) != 1 or (version and model is None):
        raise InvalidRequestError(f"expected one of --model [--version], --server and --chip, got {sorted(given)}")
    return {**given, **({"version": version} if version else {})}
