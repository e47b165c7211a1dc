"""Look for the models' weights in the memory of every process of the installation: loaded, then unloaded.

What is found while a model is loaded is the positive control: a scanner that finds nothing then would prove nothing
afterwards. Needs the right to read the processes (root).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.enclave.memory_scan import scan
from hermetic.errors import ConfigurationError

CANARY_BYTES: Final = 48
STRETCHES: Final = 16  # canaries of one model
LOOKED_THROUGH: Final = 1 << 16  # bytes searched for one canary
DISTINCT_BYTES: Final = 24  # in a canary, so that no other memory looks like it by chance


@dataclass(frozen=True, slots=True)
class Sighting:
    """How often each model's canary was found, over all processes, and how many bytes were looked at."""

    counts: Mapping[str, int]
    scanned_bytes: int
    processes: int


def canaries_of(model_file: Path) -> list[bytes]:
    """Return stretches of the model file that look like weights, from all over it.

    A runtime packs some weights into an order of its own, so one stretch alone might be found nowhere. Raises
    `ConfigurationError` where there is none.
    """
    content = model_file.read_bytes()
    found = []
    for part in range(STRETCHES):
        begin = len(content) * part // STRETCHES
        for at in range(begin - begin % 4, min(begin + LOOKED_THROUGH, len(content) - CANARY_BYTES), 4):
            stretch = content[at : at + CANARY_BYTES]
            if len(set(stretch)) >= DISTINCT_BYTES:
                found.append(stretch)
                break
    if not found:
        raise ConfigurationError(f"{model_file}: wanted {CANARY_BYTES} bytes that look like weights, got none")
    return found


def look(pids: Sequence[int], canaries: Mapping[str, Sequence[bytes]]) -> Sighting:
    """Scan the memory of the processes for each model's canaries."""
    counts = dict.fromkeys(canaries, 0)
    named = {f"{model}/{index}": one for model, several in canaries.items() for index, one in enumerate(several)}
    scanned = 0
    for pid in pids:
        result = scan(pid, named)
        scanned += result.scanned_bytes
        for hit in result.hits:
            counts[hit.canary.rpartition("/")[0]] += 1
    return Sighting(counts, scanned, len(pids))
