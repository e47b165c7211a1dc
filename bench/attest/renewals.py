"""What does the renewal of a lease cost those who ask meanwhile? p99 of turns with a renewal, and of turns without.

One server, one client with one connection, one closed loop. The model's leases are short, so that a renewal falls into
about every third turn; which ones, the server's own log says. A turn with a renewal is compared with the last one
before it that had none, and the ratio has an interval (paired.py). A turn is `TURN_S` long: a renewal is a far larger
part of it than of an hour, the default length of a lease. Broker and TPM share the machine with the server here, which
they do nowhere else, so this is the worst case.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from hermetic.attestation.log import LogReader, NoteVerifier
from hermetic.bench.load import Job
from hermetic.bench.models import MAX_BATCH_SIZE, mlp
from hermetic.bench.paired import Ratio, ratio
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import mlp_questions
from hermetic.bench.turns import Turns
from hermetic.demo.stage import Sealable, Serving, install
from hermetic.errors import MeasurementError

__all__ = ["GOAL", "Found", "measure", "verdict"]

TURN_S: Final = 2.0
LEASE_S: Final = 13.0  # renewed between 0.4 and 0.5 of it: every 5.2 to 6.5 s
RENEWAL_S: Final = 0.5  # before the record of a renewal: what belongs to it
MODEL: Final = "mlp"
SERVER: Final = "hermetic"
GOAL: Final = 1.10  # of p99
_RENEWED: Final = "lease.renewed"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, and how many renewals touched it."""

    point: Point
    renewals: int


@dataclass(frozen=True, slots=True)
class Found:
    """Every turn in order, and p99 (p50) with a renewal over that without."""

    concurrency: int
    turns: Sequence[Turn]
    p99: Ratio
    p50: Ratio

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "turn-s": TURN_S,
            "lease-s": LEASE_S,
            "concurrency": self.concurrency,
            "p99-ratio": asdict(self.p99),
            "p50-ratio": asdict(self.p50),
            "verdict": verdict(self.p99),
            "turns": [{"renewals": one.renewals, **asdict(one.point)} for one in self.turns],
        }


def verdict(found: Ratio) -> str:
    """Return "reached" or "not reached" where the whole interval says so, else "open"."""
    if found.high < GOAL:
        return "reached"
    return "not reached" if found.low >= GOAL else "open"


def measure(turns: int, concurrency: int, on_turn: Callable[[], None] = lambda: None) -> Found:
    """Measure so many turns; `MeasurementError` where a call fails, or too few turns had a renewal, or had none."""
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        plain = mlp().write(Path(folder) / "plain")
        model = Sealable(
            plain, MODEL, options=("--max-batch-size", str(MAX_BATCH_SIZE)), server_settings={"threads": 1}
        )
        with install(Path(folder) / "installation", prepare=_short_leases) as installation:
            installation.seal(model)
            with Serving(installation) as served, Turns({SERVER: (served, mlp_questions(MODEL))}) as client:
                job = Job(concurrency, TURN_S)
                client.turn(SERVER, job)  # cold
                timed = [_timed(client, job, on_turn) for _ in range(turns)]
            return _judged(concurrency, timed, _renewals(installation.folder))


def _short_leases(folder: Path) -> None:
    configuration = folder / "broker" / "broker.toml"
    text = configuration.read_text()
    changed, places = re.subn(r"(?m)^lease_s = .*$", f"lease_s = {LEASE_S}", text)
    if not places:
        raise MeasurementError(f"{configuration}: wanted lease_s of a policy in it, got none")
    configuration.write_text(changed)


def _timed(client: Turns, job: Job, on_turn: Callable[[], None]) -> tuple[float, Point, float]:
    begun = datetime.now(UTC).timestamp()
    point = check_clean(client.turn(SERVER, job), "a turn")
    on_turn()
    return begun, point, datetime.now(UTC).timestamp()


def _renewals(folder: Path) -> list[float]:
    """When each lease was renewed, POSIX seconds."""
    key = NoteVerifier.parse((folder / "server" / "log.pub").read_text())
    records = LogReader(folder / "server" / "log", key).records()
    return [datetime.fromisoformat(one.time).timestamp() for one in records if one.kind == _RENEWED]


def _judged(concurrency: int, timed: Sequence[tuple[float, Point, float]], renewals: Sequence[float]) -> Found:
    turns = [
        Turn(point, sum(begun <= moment and moment - RENEWAL_S <= ended for moment in renewals))
        for begun, point, ended in timed
    ]
    pairs: list[tuple[Point, Point]] = []
    without: Point | None = None
    for turn in turns:
        if not turn.renewals:
            without = turn.point
        elif without is not None:
            pairs.append((turn.point, without))
    if not pairs:
        raise MeasurementError(
            f"wanted turns with a renewal after turns without, got {[one.renewals for one in turns]}"
        )
    p99, p50 = (
        ratio([[getattr(one, name) for one, _ in pairs]], [[getattr(one, name) for _, one in pairs]])
        for name in ("p99_ms", "p50_ms")
    )
    return Found(concurrency, turns, p99, p50)


def medians(found: Found) -> dict[str, float]:
    """Return the median p99 of the turns with and without, milliseconds."""
    return {
        name: median([one.point.p99_ms for one in found.turns if bool(one.renewals) is (name == "with")] or [0.0])
        for name in ("with", "without")
    }
