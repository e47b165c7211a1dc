"""`openbao://HOST:PORT/MOUNT/KEY?ca-file=/abs&token-source=...[&certificate-file=/abs&key-file=/abs]`."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from hermetic.errors import ConfigurationError

DEFAULT_PORT: Final = 8200
_QUERY: Final = ("ca-file", "token-source", "certificate-file", "key-file")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class BaoUri:
    """Which key, where, and how to be let in."""

    host: str
    port: int
    mount: str
    key: str
    ca_file: Path
    token_source: str
    certificate_file: Path | None
    key_file: Path | None

    @classmethod
    def parse(cls, text: str) -> "BaoUri":
        """Read a URI; raises `ConfigurationError` for what is missing, unknown or named twice."""
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORT
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
        except ValueError as error:
            raise ConfigurationError(f"kek: expected openbao://HOST:PORT/MOUNT/KEY?..., got {error}") from error
        if parts.scheme != "openbao" or not parts.hostname or parts.username or parts.fragment:
            raise ConfigurationError(f"kek: expected openbao://HOST:PORT/MOUNT/KEY?..., got {_shown(parts)}")
        mount, key = _mount_and_key(parts.path)
        how = dict(pairs)
        if len(how) != len(pairs) or not how.keys() <= set(_QUERY):
            raise ConfigurationError(
                f"kek: expected each of {', '.join(_QUERY)} at most once in the openbao: URI, got {sorted(how)}"
            )
        if not {"ca-file", "token-source"} <= how.keys() or ("certificate-file" in how) != ("key-file" in how):
            raise ConfigurationError(
                "kek: expected ca-file, token-source, and certificate-file with key-file or neither, "
                f"got {', '.join(sorted(how))}"
            )
        files = {name: _absolute(name, value) for name, value in how.items() if name.endswith("-file")}
        certificate, private = files.get("certificate-file"), files.get("key-file")
        return cls(parts.hostname, port, mount, key, files["ca-file"], how["token-source"], certificate, private)

    @property
    def authority(self) -> str:
        """Host and port as HTTP writes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 towards a server that `ca_file`, and nobody else, has certified under this host name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"kek: cannot use {self.ca_file} or the client certificate: {error}") from error
        return context


def _mount_and_key(path: str) -> tuple[str, str]:
    segments = path.removeprefix("/").split("/")
    if len(segments) < 2 or not all(_SEGMENT.fullmatch(segment) for segment in segments):  # noqa: PLR2004 - the two
        raise ConfigurationError(f"kek: expected /MOUNT/KEY of [A-Za-z0-9._-] in the openbao: URI, got {path[:200]!r}")
    return "/".join(segments[:-1]), segments[-1]


def _absolute(name: str, value: str) -> Path:
    if not value.startswith("/"):
        raise ConfigurationError(f"kek: expected an absolute {name}, got {value!r}")
    return Path(value)


def _shown(parts: SplitResult) -> str:
    """Without what may be a password."""
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
