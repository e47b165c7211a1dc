"""Several pieces of stored evidence as one machine's: the report of its processor, and those of its GPUs.

Each piece is judged for itself, with what lay beside that is of use to its kind. That they are one machine's shows only
where they answer one challenge, which nobody knows of stored evidence: it is recorded as not evaluated.
"""

from collections.abc import Sequence
from datetime import datetime

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.stored.beside import Beside
from hermetic.attestation.stored.forms import Stored
from hermetic.attestation.stored.judging import judge, recognise, strange


def recognise_all(
    evidence: Sequence[bytes], endorsements: Sequence[bytes] = (), collateral: Sequence[bytes] = ()
) -> tuple[Stored, ...]:
    """As `recognise`, of several pieces: a file beside them goes to each piece that it can be of use to.

    One that is of use to none goes to the first, where it is a failure by name.
    """
    kinds = [recognise(data, endorsements, collateral).kind for data in evidence]
    useful = {file: _served(file, kinds) or kinds[:1] for file in (*endorsements, *collateral)}
    return tuple(
        recognise(
            data,
            [file for file in endorsements if kind in useful[file]],
            [file for file in collateral if kind in useful[file]],
        )
        for data, kind in zip(evidence, kinds, strict=True)
    )


def judge_all(checks: Checks, pieces: Sequence[Stored], trust: TrustRoots, time: datetime) -> Claims | None:
    """Record every check of every piece at `time` (aware); the claims of all, None where a piece has none."""
    found = [judge(checks, piece, trust, time) for piece in pieces]
    if len(pieces) > 1:
        checks.skip("evidence.binding", "nobody knows the challenge that would show that these are one machine's")
    whole = [claims for claims in found if claims is not None]
    if not whole or len(whole) != len(found) or checks.failed:
        return None
    joined = whole[0]
    for claims in whole[1:]:
        joined = joined.joined(claims)
    return joined


def _served(file: bytes, kinds: Sequence[str]) -> list[str]:
    beside = Beside.of(file=[file])
    return [kind for kind in kinds if not strange(beside, kind)]
