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
DISTINCT_BYTES: Final = 24  # in a canary, so that no other memory looks like it by chance


@dataclass(frozen=True, slots=True)
class Sighting:
    """How often each model's canary was found, over all processes, and how many bytes were looked at."""

    counts: Mapping[str, int]
    scanned_bytes: int
    processes: int


def canary_of(model_file: Path) -> bytes:
    """Return a stretch of the model file that looks like weights: many different bytes, from its middle on.

    Raises `ConfigurationError` where there is none.
    """
    content = model_file.read_bytes()
    middle = len(content) // 2
    for at in range(middle - middle % 4, len(content) - CANARY_BYTES, 4):
        stretch = content[at : at + CANARY_BYTES]
        if len(set(stretch)) >= DISTINCT_BYTES:
            return stretch
    raise ConfigurationError(f"{model_file}: wanted {CANARY_BYTES} bytes that look like weights, got none")


def look(pids: Sequence[int], canaries: Mapping[str, bytes]) -> Sighting:
    """Scan the memory of the processes for each model's canary."""
    counts = dict.fromkeys(canaries, 0)
    scanned = 0
    for pid in pids:
        result = scan(pid, canaries)
        scanned += result.scanned_bytes
        for name in canaries:
            counts[name] += result.count(name)
    return Sighting(counts, scanned, len(pids))
