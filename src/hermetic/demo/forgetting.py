"""Look for the models' weights in the memory of every process of the installation: loaded, then unloaded.

What is found while a model is loaded is the positive control: a scanner that finds nothing then would prove nothing
afterwards. Needs the right to read the processes (root).
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

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


def canaries_of(model_file: Path) -> list[bytes]:
    """Return one stretch of each weight in an ONNX file or a .pt2 archive that does not look like anything else.

    One weight alone would not do: a runtime packs some of them into an order of its own. Raises `ConfigurationError`
    where there is none.
    """
    stretches = (_stretch(weight) for weight in _weights(model_file))
    found = [stretch for stretch in stretches if stretch is not None]
    if not found:
        raise ConfigurationError(f"{model_file}: wanted {CANARY_BYTES} bytes that look like weights, got none")
    return found


def _weights(model_file: Path) -> Iterator[bytes]:
    if model_file.suffix == ".onnx":
        for tensor in onnx.load(model_file).graph.initializer:
            yield tensor.raw_data
        return
    with zipfile.ZipFile(model_file) as archive:
        for entry in archive.namelist():
            if "/data/weights/" in entry:
                yield archive.read(entry)


def _stretch(weight: bytes) -> bytes | None:
    """Return the first stretch with enough different bytes."""
    for at in range(0, len(weight) - CANARY_BYTES + 1, 4):
        stretch = weight[at : at + CANARY_BYTES]
        if len(set(stretch)) >= DISTINCT_BYTES:
            return stretch
    return None


def look(pids: Sequence[int], canaries: Mapping[str, Sequence[bytes]]) -> Sighting:
    """Scan the memory of the processes for each model's canaries.

    One that has ended meanwhile has no memory. Raises `ConfigurationError` where this process may not read theirs.
    """
    counts = dict.fromkeys(canaries, 0)
    named = {f"{model}/{index}": one for model, several in canaries.items() for index, one in enumerate(several)}
    scanned = 0
    for pid in pids:
        try:
            result = scan(pid, named)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            raise ConfigurationError(
                "memory: wanted to read that of our own processes, got no: only root may"
            ) from None
        scanned += result.scanned_bytes
        for hit in result.hits:
            counts[hit.canary.rpartition("/")[0]] += 1
    return Sighting(counts, scanned, len(pids))
