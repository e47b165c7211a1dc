"""How often what was decided, as Prometheus text, for the admin listener. Since the start of this process.

Not here: the decisions themselves, which the log has; counts of collateral (attestation/collateral/metrics.py).
"""

import threading
from collections import Counter
from typing import Final

ATTESTATIONS: Final = "hermetic_broker_attestations_total"
RELEASES: Final = "hermetic_broker_releases_total"
LIMITED: Final = "hermetic_broker_limited_total"


class Counts:
    """Counters by label. Thread-safe."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._attestations: Counter[tuple[str, str]] = Counter()
        self._releases: Counter[str] = Counter()
        self._limited: Counter[str] = Counter()

    def attested(self, kinds: str, outcome: str) -> None:
        """Count one /attest; `kinds` is the primary's kind, and the devices' after a plus each."""
        with self._lock:
            self._attestations[kinds, outcome] += 1

    def released(self, outcome: str) -> None:
        """Count one decision about a resource."""
        with self._lock:
            self._releases[outcome] += 1

    def limited(self, answer: str) -> None:
        """Count one request that was told to come again, by the type of the answer."""
        with self._lock:
            self._limited[answer] += 1

    def lines(self) -> list[str]:
        """The text, by line."""
        with self._lock:
            attestations, releases = sorted(self._attestations.items()), sorted(self._releases.items())
            limited = sorted(self._limited.items())
        return [
            f"# HELP {ATTESTATIONS} Number of attestations, by kinds of evidence and outcome",
            f"# TYPE {ATTESTATIONS} counter",
            *(f'{ATTESTATIONS}{{kinds="{kinds}",outcome="{outcome}"}} {n}' for (kinds, outcome), n in attestations),
            f"# HELP {RELEASES} Number of decisions about resources, by outcome",
            f"# TYPE {RELEASES} counter",
            *(f'{RELEASES}{{outcome="{outcome}"}} {n}' for outcome, n in releases),
            f"# HELP {LIMITED} Number of requests that a limit or something away refused for now, by type of answer",
            f"# TYPE {LIMITED} counter",
            *(f'{LIMITED}{{answer="{answer}"}} {n}' for answer, n in limited),
        ]
