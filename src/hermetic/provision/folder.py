"""Folders that hold keys: 0700, files 0600, each written once. An existing file is an error, never overwritten."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from hermetic.errors import ConfigurationError

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of one role. Every method raises `ConfigurationError` where it cannot write, or would overwrite."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "Folder":
        """The folder at `path`, made when missing; an existing one must be ours alone to read."""
        try:
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            path.chmod(FOLDER_MODE)
        except OSError as error:
            raise ConfigurationError(f"{path}: expected a folder to write to, got {error.strerror}") from error
        return cls(path)

    def folder(self, name: str) -> "Folder":
        """The folder `name` in this one."""
        return Folder.create(self.path / name)

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a new file, readable by its owner only, durable before this returns."""
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError as error:
            raise ConfigurationError(f"{path}: expected no such file yet, and nothing is overwritten") from error
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        return path

    def write_key(self, name: str, key: CertificateIssuerPrivateKeyTypes) -> Path:
        """Write a private key as unencrypted PKCS #8 PEM; the folder's mode is what protects it."""
        return self.write(
            name, key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def write_certificates(self, name: str, *certificates: x509.Certificate) -> Path:
        """Write certificates as PEM, in the order given: leaf first, or a bundle of CAs."""
        return self.write(name, b"".join(certificate.public_bytes(_PEM) for certificate in certificates))
