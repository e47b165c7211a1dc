"""How an operator reaches a broker's admin listener: one TOML file, used by `hermetic broker ...` and `hermetic seal`.

url = "https://localhost:8444"
authority = "services-ca.pem"      # who signed the broker's certificate
certificate = "operator.pem"       # ours, for TLS
key = "operator.key"
token_key = "admin-token.key"      # signs admin tokens
issuer = "operator"                # as the broker's [[admin.issuers]] names that key
audience = "example.org/broker"    # and for whom its tokens are, where that says so
role = "operator"                  # of its [[admin.acl]]
"""

import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermetic.attestation.admin_client import DEFAULT_TOKEN_LIFE_S, AdminClient, AdminSigner
from hermetic.attestation.bounded_file import read_bounded
from hermetic.errors import ConfigurationError

__all__ = ["OperatorSettings", "client_context"]

MAX_FILE_BYTES: Final = 1024 * 1024


class OperatorSettings(BaseModel):
    """The whole file; unknown keys are refused. Relative paths are taken from the file's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(pattern="^https://")]
    authority: Path
    certificate: Path
    key: Path
    token_key: Path
    issuer: str
    role: str
    audience: str | None = None
    token_life_s: Annotated[int, Field(ge=1, le=3600)] = DEFAULT_TOKEN_LIFE_S
    timeout_s: Annotated[int, Field(ge=1)] = 20

    @classmethod
    def load(cls, path: Path) -> Self:
        """The settings in `path`; raises `ConfigurationError` naming every key at fault."""
        try:
            members = tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode("utf-8"))
            settings = cls.model_validate(members)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise ConfigurationError(f"{path}: {faults}") from error
        folder = path.resolve().parent
        paths = {name: folder / getattr(settings, name) for name in ("authority", "certificate", "key", "token_key")}
        return settings.model_copy(update=paths)

    def signer(self, role: str | None = None) -> AdminSigner:
        """What mints this operator's tokens, in another role where one is given."""
        return AdminSigner(
            read_bounded(self.token_key, MAX_FILE_BYTES),
            issuer=self.issuer,
            role=role or self.role,
            audience=self.audience,
            life_s=self.token_life_s,
        )

    def connect(self, role: str | None = None) -> AdminClient:
        """A client of the broker's admin listener; use it in a `with`."""
        context = client_context(self.authority, self.certificate, self.key)
        return AdminClient(self.url, context, self.signer(role), float(self.timeout_s))


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 towards a broker of `authority` alone, with our certificate; raises `ConfigurationError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: cannot load {authority}, {certificate} or {key}: {error}") from error
    return context
