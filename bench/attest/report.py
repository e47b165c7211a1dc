"""What came out, as a table for people, beside what was aimed at."""

from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

AIMS: Final[Mapping[str, tuple[str, float]]] = {
    "handshake": ("at most", 60.0),
    "rate": ("at least", 200.0),
    "callers": ("at most", 2000.0),
    "revocation": ("at most", 5000.0),
}
"""Milliseconds; handshakes a second for the rate."""


def table(found: Mapping[str, Any]) -> Table:
    """The numbers, a row each."""
    made = Table(box=SIMPLE_HEAD, title="attestation")
    for column in ("what", "measured", "aim", "more"):
        made.add_column(column)
    handshake, callers, revocation = (found[name] for name in ("handshake", "callers", "revocation"))
    made.add_row(
        "handshake with a software TPM, connection to opened key",
        f"{handshake['median_ms']} ms",
        _aim("handshake", "ms"),
        f"{handshake['quote_ms']} ms of it the TPM's; p99 {handshake['p99_ms']} ms",
    )
    for what, rate in (("", found["rate"]), (", its threads on one core", found["rate_one_core"])):
        made.add_row(
            f"handshakes of one broker process{what}",
            f"{rate['per_second']}/s",
            _aim("rate", "/s"),
            f"{rate['broker_cpu_ms']} ms of CPU each, {rate['broker_cores']} cores",
        )
    made.add_row(
        f"{callers['callers']} callers for evidence, the last",
        f"{callers['last_ms']} ms",
        _aim("callers", "ms"),
        f"{callers['quotes']} quotes",
    )
    made.add_row(
        "from revocation to wiped, worker gone",
        f"{revocation['median_ms']} ms",
        _aim("revocation", "ms"),
        f"most {revocation['most_ms']} ms",
    )
    return made


def _aim(name: str, unit: str) -> str:
    word, value = AIMS[name]
    return f"{word} {value:g} {unit}"
