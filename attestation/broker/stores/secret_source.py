"""Where a PIN, a token or a local KEK is read from: `file:/abs`, `credential:NAME`, and for KEKs `fd:N`.

A file is a regular one, no link, its owner's alone, and that owner is this process or root. Contents stand in a buffer
that the caller wipes. Never the environment, never an argument: others can read those.
"""

import os
import stat
from pathlib import Path
from typing import Final

from hermetic.errors import ConfigurationError

MAX_SOURCE_BYTES: Final = 4096
"""Longest PIN or token, in bytes, its line end included."""

_WHITESPACE: Final = b" \t\r\n"


def read_secret(source: str, credentials: Path | None, what: str) -> bytearray:
    """The PIN or token in `source`, without white space around it; raises `ConfigurationError` naming `what`."""
    kind, _, where = source.partition(":")
    if kind == "credential" and where:
        raw = read_credential(where, credentials, MAX_SOURCE_BYTES, what)
    elif kind == "file" and where.startswith("/"):
        raw = read_owned_file(Path(where), MAX_SOURCE_BYTES, what)
    else:
        raise ConfigurationError(f"{what}: expected file:/absolute/path or credential:NAME, got {source!r}")
    while raw and raw[-1] in _WHITESPACE:
        raw.pop()
    if not raw:
        raise ConfigurationError(f"{what}: expected a secret in {source}, got nothing")
    return raw


def read_credential(name: str, credentials: Path | None, limit: int, what: str) -> bytearray:
    """The systemd credential `name`."""
    if credentials is None:
        raise ConfigurationError(
            f"{what}: expected systemd to pass the credential {name!r}, got no CREDENTIALS_DIRECTORY"
        )
    if "/" in name or name.startswith("."):
        raise ConfigurationError(f"{what}: expected a credential's name, got {name!r}")
    return _opened(credentials / name, limit, what, owned=False)


def read_owned_file(path: Path, limit: int, what: str) -> bytearray:
    """The file `path`, which nobody but its owner may read."""
    return _opened(path, limit, what, owned=True)


def read_descriptor(descriptor: int, limit: int, what: str) -> bytearray:
    """All that comes out of `descriptor`, which is closed."""
    raw = bytearray(limit + 1)
    length = 0
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as source:
            while count := source.readinto(memoryview(raw)[length:]):
                length += count
        if length > limit:
            raise ConfigurationError(f"{what}: expected at most {limit} bytes, got more")
        return raw[:length]
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot read: {error.strerror}") from error
    finally:
        raw[:] = bytes(len(raw))


def _opened(path: Path, limit: int, what: str, *, owned: bool) -> bytearray:
    try:
        # Not blocking: a FIFO in its place would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot read {path}: {error.strerror}") from error
    try:
        _check(os.fstat(descriptor), path, what, owned=owned)
    except BaseException:
        os.close(descriptor)
        raise
    return read_descriptor(descriptor, limit, what)


def _check(found: os.stat_result, path: Path, what: str, *, owned: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{what}: expected {path} to be a regular file, got something else")
    if not owned:  # systemd's folder is this service's alone
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigurationError(f"{what}: expected {path} to be its owner's alone, got mode {mode:04o}")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"{what}: expected {path} to be this user's or root's, got uid {found.st_uid}'s")
