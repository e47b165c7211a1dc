"""Collateral stapled to evidence for callers: the bundle that `hermetic collateral import` has put into a folder.

It is carried, not judged: whoever is given it verifies each item. Read anew for each quote, so that an import counts at
once.
"""

import base64
from pathlib import Path
from typing import Final

from hermetic.errors import ConfigurationError

BUNDLE: Final = "bundle"  # the file in the folder (docs/spec/collateral-bundle.md)
BUNDLE_LIMIT: Final = 1024 * 1024  # bytes: it goes out with every reply


def stapled(folder: Path | None) -> tuple[str, ...]:
    """Return the folder's bundle in base64, nothing without a folder; `ConfigurationError` where it cannot be had."""
    if folder is None:
        return ()
    path = folder / BUNDLE
    try:
        with path.open("rb") as file:
            data = file.read(BUNDLE_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"attestation.collateral: {path}: {error.strerror}") from None
    if len(data) > BUNDLE_LIMIT:
        raise ConfigurationError(f"attestation.collateral: {path}: wanted at most {BUNDLE_LIMIT} bytes, got more")
    return (base64.b64encode(data).decode(),)
