"""One of several processes that race for the same things: `python -m ...racer SETTINGS.json NAME` with lines on stdin.

A line is a JSON array of moments (seconds on the machine's clock) and names of sessions; at each moment the session's
nonce is taken, and where that worked a record is written. Answers the sessions that it won.
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hermetic.attestation.broker.config import State
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.rates import Handshakes
from hermetic.attestation.broker.refusals import Refusal
from hermetic.attestation.broker.sessions import SessionLimits, SessionTable
from hermetic.attestation.broker.state.opening import open_database
from hermetic.attestation.broker.state.sql_cells import SqlCells
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.log import NoteSigner

CLIENT = "somebody"


def sessions(database: Any, signer: NoteSigner) -> SessionTable:
    limits = SessionLimits(10_000, 10_000, timedelta(minutes=5))
    return SessionTable(SqlCells(database, signer), limits, Handshakes(10_000, 10_000), lambda: datetime.now(UTC))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    database = open_database(TypeAdapter(State).validate_python(facts["state"]))
    signer = NoteSigner.parse(facts["signer"])
    table = sessions(database, signer)
    journal = Journal(SqlLedger(database, signer.name, signer), lambda: datetime.now(UTC))
    _say("ready")
    for line in sys.stdin:
        won = []
        for moment, session in json.loads(line):
            while time.time() < moment:
                pass
            try:
                table.take(session, CLIENT)
            except Refusal:
                continue
            journal.write("race.won", {"who": sys.argv[2], "session": session})
            won.append(session)
        _say(json.dumps(won))
    database.close()


if __name__ == "__main__":
    main()
