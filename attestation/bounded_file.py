"""Files that somebody names are read up to a limit: whoever names the wrong one hears of it before memory is full."""

from pathlib import Path

from hermetic.errors import ConfigurationError


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Return what the file holds, at most `limit_bytes` bytes; raises `ConfigurationError` naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a readable file, got {error.strerror}") from error
    if len(data) > limit_bytes:
        raise ConfigurationError(f"{path}: expected at most {limit_bytes} bytes, got more")
    return data
