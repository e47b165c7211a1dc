"""Databases that fail, or are not the one that was meant: a named error, nothing half done, no password told."""

import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.attestation.broker.config import PostgresState, SqliteState
from hermetic.attestation.broker.state import sqlite
from hermetic.attestation.broker.state.opening import open_database
from hermetic.attestation.broker.state.sql_cells import SqlCells
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.broker.state.sqlite import Sqlite
from hermetic.attestation.log import NoteSigner
from hermetic.errors import ConfigurationError, LogError, SharedStateError
from hermetic.provision.authority import Authority, Names
from tests.attestation.broker.state.conftest import Opener, of_postgres
from tests.attestation.broker.state.postgres_server import PASSWORD, ROLE, PostgresServer
from tests.attestation.broker.state.test_sql_ledger import append
from tests.attestation.broker.world import PEM

FULL = """
import os, sys
from pathlib import Path
from hermetic.attestation.broker.state.sqlite import Sqlite
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.log import NoteSigner
from hermetic.errors import SharedStateError
from tests.attestation.broker.state.test_sql_ledger import append
signer = NoteSigner.parse(os.environ["SIGNER"])
folder = Path(sys.argv[1])
ledger = SqlLedger(Sqlite(folder / "state.sqlite"), signer.name, signer)
filler = folder / "filler"
filler.write_bytes(bytes(500_000))
done = 0
try:
    while True:
        append(ledger, *range(100))
        done += 100
except SharedStateError as error:
    assert "full" in str(error), error
filler.unlink()
ledger.rewind()
assert len(ledger.news()) == done, done
append(ledger, 1)
print(done)
"""


KILLED = """
append(ledger, 0, 1)
insert = ledger._insert
def killed(*arguments):
    insert(*arguments)
    os.kill(os.getpid(), 9)
ledger._insert = killed
append(ledger, 2)
"""


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, signer: NoteSigner) -> None:
    """On a tmpfs of 1 MiB, in a mount namespace of its own; it goes on once there is room."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {shlex.quote(str(small))}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this host lets nobody mount a tmpfs in a namespace")
    script = f"{mount} && exec {shlex.join([sys.executable, '-c', FULL, str(small)])}"
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 0


def test_a_file_that_somebody_has_locked(tmp_path: Path, signer: NoteSigner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.1)
    ledger = SqlLedger(Sqlite(tmp_path / "s"), signer.name, signer)
    stranger = sqlite3.connect(tmp_path / "s", isolation_level=None)
    stranger.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SharedStateError, match="locked"):
        append(ledger, 0)
    stranger.close()
    assert append(ledger, 0) == []
    ledger.close()


def test_a_read_only_database(tmp_path: Path, signer: NoteSigner) -> None:
    database = Sqlite(tmp_path / "s")
    ledger = SqlLedger(database, signer.name, signer)
    append(ledger, 0)
    connection = database._durable._connection
    connection.execute("PRAGMA query_only = ON")  # as root no file is read-only
    with pytest.raises(SharedStateError, match="readonly"):
        append(ledger, 1)
    connection.execute("PRAGMA query_only = OFF")
    ledger.rewind()
    assert append(ledger, 1) == [0]
    ledger.close()


@pytest.mark.parametrize("content", [b"no database at all" * 400, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises((ConfigurationError, SharedStateError), match="s: "):
        Sqlite(tmp_path / "s")


def test_a_strangers_cells_are_none_of_ours(another: Opener, signer: NoteSigner) -> None:
    from hermetic.attestation.broker.state.cells import Cell, Room

    database = another()
    cells = SqlCells(database, signer)
    for name in ("a", "b"):
        cells.add(Cell("session", name, "client", 100.0, {"state": name}), Room(10, 10), now=1.0)
    with database.short() as rows:
        rows.ask(
            "UPDATE hermetic_cells SET value = (SELECT value FROM hermetic_cells WHERE name = 'b') WHERE name = 'a'"
        )
        rows.ask("UPDATE hermetic_cells SET expires = 1000 WHERE name = 'b'")
    assert cells.read("a", 2.0) is None  # another's value
    assert cells.read("b", 200.0) is None  # a longer life
    assert SqlCells(database, NoteSigner.generate("another")).read("b", 2.0) is None


def networked(server: PostgresServer, **change: object) -> PostgresState:
    members = of_postgres(server).model_dump() | {
        "host": "localhost", "password_file": server.password_file, "root_certificate": server.root_certificate
    }  # fmt: skip
    return PostgresState(**(members | change))


def test_over_a_network_by_tls_and_scram(postgres: PostgresServer, signer: NoteSigner) -> None:
    database = open_database(networked(postgres))
    append(SqlLedger(database, signer.name, signer), 0)
    with database.turn() as rows:
        assert rows.ask("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True, "TLSv1.3")]
    database.close()


def test_an_impostors_certificate_is_refused_before_the_password(postgres: PostgresServer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.create(Names("Example"), "other").certificate.public_bytes(PEM))
    with pytest.raises(SharedStateError, match="certificate verify failed"):
        open_database(networked(postgres, root_certificate=other))
    with pytest.raises(SharedStateError, match="does not match host name"):
        open_database(networked(postgres, host="127.0.0.1"))


@pytest.mark.parametrize("method", ["trust", "password", "md5"])
def test_a_server_that_asks_for_less_than_scram_is_refused(
    postgres: PostgresServer, method: str, tmp_path: Path
) -> None:
    """`trust` asks for nothing, `password` for the password itself: a server that was taken over would."""
    hba = postgres.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    settings = networked(postgres)
    hba.write_text(before.replace("scram-sha-256", method))
    try:
        postgres.run("postgres", "SELECT pg_reload_conf()")
        if method == "md5":  # with a SCRAM verifier stored, md5 means SCRAM
            open_database(settings).close()
            return
        with pytest.raises(SharedStateError, match=r"authentication method requirement|channel binding"):
            open_database(settings).close()
    finally:
        hba.write_text(before)
        postgres.run("postgres", "SELECT pg_reload_conf()")


def test_a_wrong_password_is_not_told(postgres: PostgresServer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not it")
    with pytest.raises(SharedStateError, match="password authentication failed") as caught:
        open_database(networked(postgres, password_file=wrong))
    assert "not it" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_network_without_a_root_or_a_password_is_refused(postgres: PostgresServer) -> None:
    for missing in ("root_certificate", "password_file"):
        with pytest.raises(ConfigurationError, match="expected root_certificate and password_file"):
            open_database(networked(postgres, **{missing: None}))
    assert postgres.run("postgres", f"SELECT rolsuper FROM pg_roles WHERE rolname = '{ROLE}'") == [(False,)]


def test_a_killed_process_leaves_what_it_committed_and_no_more(tmp_path: Path, signer: NoteSigner) -> None:
    """Killed inside its turn, after the rows and before the commit, and right after a commit."""
    script = FULL.partition("filler = ")[0].replace("sys.argv[1]", repr(str(tmp_path))) + KILLED
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False, timeout=60
    )
    assert ended.returncode == -9, ended.stderr
    ledger = SqlLedger(open_database(SqliteState(kind="sqlite", file=tmp_path / "state.sqlite")), signer.name, signer)
    assert [record.fields["n"] for record in ledger.news()] == [0, 1]
    assert append(ledger, 2) == []
    with pytest.raises(LogError):
        SqlLedger(ledger._database, signer.name, NoteSigner.generate(signer.name)).news()
    ledger.close()
