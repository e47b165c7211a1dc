"""`pkcs11:token=T;object=O[;id=%01][;serial=S]?module-path=/abs.so&pin-source=file:/abs` (RFC 7512)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from hermetic.errors import ConfigurationError

SCHEME: Final = "pkcs11:"
_PATH: Final = ("token", "object", "id", "serial", "type")
_QUERY: Final = ("module-path", "pin-source")


@dataclass(frozen=True, slots=True)
class TokenUri:
    """Which key: token label and object label, CKA_ID and serial number where they are given.

    `pin_source` is "" where a person is asked for the PIN.
    """

    token: str
    object: str
    id: bytes | None
    serial: str | None
    module: Path
    pin_source: str

    @classmethod
    def parse(cls, text: str, kind: Literal["secret-key", "private"] = "secret-key") -> "TokenUri":
        """Read a URI of a KEK, or of a person's key, which needs no `pin-source`.

        Raises `ConfigurationError` for what is missing, unknown or named twice.
        """
        path, _, query = text.removeprefix(SCHEME).partition("?")
        where, how = _attributes(path, ";", _PATH), _attributes(query, "&", _QUERY)
        if where.get("type", kind.encode()) != kind.encode():
            raise ConfigurationError(f"pkcs11: URI: expected type={kind}, got {where['type']!r}")
        if kind == "private":
            how.setdefault("pin-source", b"")
        try:
            named = {name: value.decode() for name, value in (where | how).items() if name != "id"}
            module = Path(named["module-path"])
            uri = cls(
                named["token"], named["object"], where.get("id"), named.get("serial"), module, named["pin-source"]
            )
        except KeyError as error:
            raise ConfigurationError(f"pkcs11: URI: expected {error.args[0]}=, got none") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError("pkcs11: URI: expected UTF-8, got other bytes") from error
        if not module.is_absolute():
            raise ConfigurationError(f"pkcs11: URI: expected an absolute module-path, got {module}")
        return uri


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name not in known or not equals or name in found:  # without the value: it may be a PIN
            raise ConfigurationError(
                f"pkcs11: URI: expected each of {', '.join(known)} at most once, got {name[:40]!r}"
            )
        found[name] = unquote_to_bytes(value)
    return found
