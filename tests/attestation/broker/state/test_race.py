"""Real processes that race for the same nonces at the same moments: each nonce is one's, and the log is one chain."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from hermetic.attestation.broker.protocol import AuthRequest
from hermetic.attestation.broker.state.cells import Cell, Room
from hermetic.attestation.broker.state.opening import open_database
from hermetic.attestation.broker.state.sql_cells import SqlCells
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.log import NoteSigner
from tests.attestation.broker.state.conftest import Settings
from tests.attestation.broker.state.racer import CLIENT, sessions

ROUNDS = 100
APART_S = 0.01
RACERS = ("first", "second")


def test_of_two_who_have_read_the_same_cell_one_changes_it(settings: Settings, signer: NoteSigner) -> None:
    """What the race below shows by chance, in the one order that matters: both have read before either writes."""
    databases = [open_database(settings) for _ in range(2)]
    one, other = (SqlCells(database, signer) for database in databases)
    one.add(Cell("kind", "name", "owner", 2.0, {"state": "before"}), Room(1, 1), 1.0)
    read = [cells.read("name", 1.0) for cells in (one, other)]
    mine, theirs = (cell.changed({"state": "after"}) for cell in read if cell is not None)
    assert [one.put(mine), other.put(theirs)] == [True, False]
    assert [other.remove(theirs.changed({})), one.remove(mine), other.remove(mine)] == [False, True, False]
    for database in databases:
        database.close()


def test_a_nonce_is_one_processes_however_many_ask_at_once(
    settings: Settings, signer: NoteSigner, tmp_path: Path
) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"state": settings.model_dump(mode="json"), "signer": signer.encode_private_key()}))
    database = open_database(settings)
    table = sessions(database, signer)
    names = [table.begin(AuthRequest("0.4.0", "sample", True), CLIENT).id for _ in range(ROUNDS)]
    command = [sys.executable, "-m", "tests.attestation.broker.state.racer", str(facts)]
    racers = [
        subprocess.Popen([*command, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in RACERS
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        begin = time.time() + 0.5
        rounds = json.dumps([(begin + at * APART_S, name) for at, name in enumerate(names)])
        won = [json.loads(racer.communicate(rounds + "\n", timeout=60)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert Counter(session for mine in won for session in mine) == Counter(names)
    # Every win is recorded, by whom it was, in one chain that verifies from its first row.
    records = SqlLedger(database, signer.name, signer).news()
    recorded = {who: [r.fields["session"] for r in records if r.fields["who"] == who] for who in RACERS}
    assert recorded == dict(zip(RACERS, won, strict=True))
    database.close()
