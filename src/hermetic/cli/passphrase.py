"""Where a passphrase or a PIN comes from: a prompt, a descriptor, a file, a credential. Never an argument.

Arguments and the environment can be read by others on the machine; so can neither of these.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from hermetic.attestation.broker.stores.secret_source import MAX_SOURCE_BYTES, read_descriptor, read_secret
from hermetic.errors import ConfigurationError

__all__ = ["PROMPT", "PassphraseOption", "SignAsOption", "asking", "new_passphrase"]

PROMPT: Final = "prompt"
LEAST_CHARACTERS: Final = 8
"""Shortest passphrase of a new key."""

PassphraseOption = Annotated[
    str,
    typer.Option(
        "--passphrase-from",
        help="Where the passphrase or PIN comes from, if one is needed: prompt, fd:N, file:/ABSOLUTE, credential:NAME.",
    ),
]

SignAsOption = Annotated[
    str | None,
    typer.Option(
        help="NAME=KEYFILE, or NAME=pkcs11:... of a token: sign for it at once, where one operator's word is enough."
    ),
]


def asking(source: str, what: str) -> Callable[[], bytearray]:
    """What reads the secret from `source` when it is needed; raises `ConfigurationError` then."""

    def ask() -> bytearray:
        if source == PROMPT:
            return _typed(what, twice=False)
        if source.startswith("fd:"):
            return _from_descriptor(source)
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        return read_secret(source, None if credentials is None else Path(credentials), "--passphrase-from")

    return ask


def new_passphrase(source: str) -> bytearray:
    """A passphrase for a new key, typed twice where it is typed; raises `ConfigurationError` for a short one."""
    found = _typed("new passphrase", twice=True) if source == PROMPT else asking(source, "new passphrase")()
    if len(found) < LEAST_CHARACTERS:
        raise ConfigurationError(f"passphrase: expected at least {LEAST_CHARACTERS} characters, got {len(found)}")
    return found


def _typed(what: str, *, twice: bool) -> bytearray:
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"--passphrase-from: expected a terminal to ask for the {what}, or fd:N, file:/ABSOLUTE"
        )
    return bytearray(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True).encode())


def _from_descriptor(source: str) -> bytearray:
    number = source.removeprefix("fd:")
    if not number.isdecimal() or len(number) > len("65535"):
        raise ConfigurationError(f"--passphrase-from: expected fd:N with a number, got {source[:40]!r}")
    found = read_descriptor(int(number), MAX_SOURCE_BYTES, "--passphrase-from")
    while found and found[-1] in b"\r\n":
        found.pop()
    return found
