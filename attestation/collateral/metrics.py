"""What a broker or server shows of its collateral, as Prometheus text. Pure.

Few series, however many chips a site has: of each kind the first end and the counts, not a series for each certificate.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from hermetic.attestation.collateral.folder import Loaded, WatchedFolder
from hermetic.attestation.collateral.windows import STATES

EXPIRES: Final = "hermetic_collateral_expires_seconds"
ITEMS: Final = "hermetic_collateral_items"
NUMBER: Final = "hermetic_collateral_bundle_number"
CREATED: Final = "hermetic_collateral_bundle_created_seconds"
FAILURES: Final = "hermetic_collateral_reload_failures_total"


def lines(watched: WatchedFolder, time: datetime) -> list[str]:
    """The lines of a folder that is watched: those of what is loaded, and how often loading it again has failed."""
    return [
        *loaded_lines(watched.loaded, time),
        *_series(FAILURES, "counter", "Changes of the folder that could not be loaded", [("", watched.failures)]),
    ]


def loaded_lines(loaded: Loaded, time: datetime) -> list[str]:
    """The lines of one bundle at `time`: seconds until the first item of each kind ends, counts by kind and state."""
    states = loaded.states(time)
    kinds = sorted({item.kind for item, _ in states})
    first = {kind: min((item.end - time).total_seconds() for item, _ in states if item.kind == kind) for kind in kinds}
    counts = {(kind, state): 0 for kind in kinds for state in STATES}
    for item, state in states:
        counts[item.kind, state] += 1
    labelled = [(f'{{kind="{kind}",state="{state}"}}', count) for (kind, state), count in counts.items()]
    bundle = loaded.bundle
    return [
        *_series(
            EXPIRES,
            "gauge",
            "Seconds until the first item of the kind ends by its own word, grace not counted; negative after that",
            [(f'{{kind="{kind}"}}', int(left)) for kind, left in first.items()],
        ),
        *_series(ITEMS, "gauge", "Items of collateral by kind and state", labelled),
        *_series(NUMBER, "gauge", "Number of the bundle in use", [("", bundle.number)]),
        *_series(
            CREATED, "gauge", "When the bundle in use was packed, Unix time", [("", int(bundle.created.timestamp()))]
        ),
    ]


def _series(name: str, kind: str, text: str, samples: Sequence[tuple[str, int]]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in samples)]
