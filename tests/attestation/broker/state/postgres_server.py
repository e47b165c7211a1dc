"""A real PostgreSQL for the tests: Debian's programs, a private folder, a free port of loopback and a Unix socket.

It refuses to run as root, so then it runs as an account without rights. TLS by a throw-away CA; over the network SCRAM,
over the socket `peer`.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.provision.authority import Authority, Leaf, Names, new_key

ROLE = "hermetic"
DATABASE = "broker"
PASSWORD = "a password of the tests"
PORTS_FROM, PORTS_TRIED = 10_000, 100
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60

HBA = """
local all all peer map=tests
hostssl all all 127.0.0.1/32 scram-sha-256
"""


def programs() -> Path:
    """Where the server's programs lie; raises where they are not installed: `make setup` installs them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: postgresql); `make setup` installs it as root")
    return found[-1].parent


def free_port() -> int:
    """A port that is free, and stays so while the server is down: the kernel gives it to nobody who wants any."""
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.Random(os.urandom(8)).sample(range(PORTS_FROM, given_from), PORTS_TRIED):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("wanted a free port of loopback, got none")


class PostgresServer:
    """One server with one role and one database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        self.root_certificate = folder / "ca.pem"
        self.password_file = folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._make()

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        command = [programs() / "postgres", "-D", self._data, "-c", f"port={self._port}"]
        self._process = self._popen(command)
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._owner().close()
                return
            except psycopg.OperationalError:
                alive = self._process.poll() is None and time.monotonic() < until
                assert alive, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a machine that goes: what is durable is recovered from its log at the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def database(self) -> str:
        """The database, with nothing in it: a new one for each test would cost the disk more than all tests."""
        tables = self.run(DATABASE, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables:
            self.run(DATABASE, f"DROP TABLE {table}")
        return DATABASE

    def run(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Do something to a database as its owner's owner: a stranger to the brokers."""
        with self._owner(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _owner(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), port=self._port, user="owner", dbname=database, autocommit=True)

    def _popen(self, command: list[object]) -> "subprocess.Popen[bytes]":
        account = self.account if os.getuid() == 0 else None
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )

    def _make(self) -> None:
        self.folder.chmod(0o755)
        if os.getuid() == 0:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        initdb = [programs() / "initdb", "-D", self._data, "-U", "owner", "--no-sync", "--auth-local=peer",
                  "--auth-host=scram-sha-256", "-E", "UTF8", "--no-instructions"]  # fmt: skip
        assert self._popen(initdb).wait(STOP_TIMEOUT_S * 2) == 0, (self.folder / "log").read_text()
        self._configure()
        self._port = free_port()
        self.start()
        with self._owner() as connection:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'".encode())
            connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}".encode())

    def _configure(self) -> None:
        authority = Authority.create(Names("Example"), "database CA")
        key = new_key()
        leaf = authority.issue(
            Leaf("db", ExtendedKeyUsageOID.SERVER_AUTH, [x509.DNSName("localhost")]), key.public_key()
        )
        pem = serialization.Encoding.PEM
        self.root_certificate.write_bytes(authority.certificate.public_bytes(pem))
        plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        me = pwd.getpwuid(os.getuid()).pw_name
        files = {
            "server.crt": leaf.public_bytes(pem),
            "server.key": plain,
            "pg_hba.conf": HBA.encode(),
            "pg_ident.conf": f"tests {me} owner\ntests {me} {ROLE}\n".encode(),
            "postgresql.conf": (
                f"unix_socket_directories = '{self.folder}'\nlisten_addresses = '127.0.0.1'\nssl = on\n"
                "password_encryption = 'scram-sha-256'\nmax_connections = 40\n"
                "shared_buffers = 16MB\n"
            ).encode(),
        }
        for name, content in files.items():
            path = self._data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if os.getuid() == 0:
                os.chown(path, self.account.pw_uid, self.account.pw_gid)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="hermetic-pg-"))
    server = None
    try:
        server = PostgresServer(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)
