"""How is the large model sealed for the measurement? As a publisher would, with a throwaway publisher key.

The known answer is numpy's, given as a publisher gives one of his own. The model key, which a broker would keep, stays
with the caller of this: what is measured is the opening, not the broker.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hermetic.bench.models import LARGE_NAME, LARGE_WIDTH, MAX_BATCH_SIZE, Large
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer, NamedTensor, Tolerance, encode
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME, Manifest
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import MemoryFile, ModelFacts, SealedKey, seal

PUBLISHER: Final = "bench"
KEY_ID: Final = "kbs:///bench/model-key/large"
TOLERANCE: Final = Tolerance(rtol=1e-3, atol=1e-3)  # sixteen layers of 2048 float32 products, in any order
SEALING_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed file, what it says of itself, its key, and who must be trusted to open it."""

    path: Path
    manifest: Manifest
    key: bytes
    publishers: TrustedPublishers


def seal_large(model: Large, target: Path) -> Sealed:
    """Seal the large model into a new file at `target`."""
    publisher = PublisherKey.generate(PUBLISHER)
    kept: list[bytes] = []
    facts = ModelFacts(
        name=LARGE_NAME,
        version=1,
        format="onnx",
        architecture=None,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(LARGE_WIDTH,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(LARGE_WIDTH,)),),
        max_batch_size=MAX_BATCH_SIZE,
        key_id=KEY_ID,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    files = [MemoryFile(path.name, path.read_bytes()) for path in model.files]
    files.append(MemoryFile(KNOWN_ANSWER_NAME, _known_answer(model)))

    def keep(sealed: SealedKey) -> None:
        kept.append(bytes(sealed.key))

    manifest = seal(target, facts, files, publisher, deliver=keep, threads=SEALING_THREADS)
    return Sealed(target, manifest, kept[0], TrustedPublishers(publishers=(publisher.publisher(),)))


def _known_answer(model: Large) -> bytearray:
    given = NamedTensor("x", "FP32", model.row.shape, model.row.tobytes())
    expected = NamedTensor("y", "FP32", model.answer.shape, model.answer.tobytes())
    return encode([KnownAnswer((given,), (ExpectedOutput(expected, TOLERANCE),))])
