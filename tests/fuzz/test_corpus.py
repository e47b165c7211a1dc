"""What fuzzers found or reached is read again in every run: nothing of it may crash, or mean something else."""

from pathlib import Path

import pytest

from hermetic.attestation.verifiers import VERIFIERS
from tests.fuzz.evidence import PARSERS, WRITERS, known_evidence
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
CORPUS_LIMIT = 2 << 20  # bytes of all: minimise it (python -m tests.fuzz.run --minimise)


@pytest.mark.parametrize(("name", "target"), TARGETS.items(), ids=TARGETS)
def test_the_corpus(name: str, target: Target) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        target(path.read_bytes())


@pytest.mark.parametrize(("name", "target"), TARGETS.items(), ids=TARGETS)
def test_every_cut_of_a_seed(name: str, target: Target) -> None:
    for seed in list(SEEDS[name]())[:4]:
        for end in range(0, len(seed), max(1, len(seed) // 64)):
            target(seed[:end])


def test_every_parser_of_evidence_has_a_target() -> None:
    modules = {path.stem for path in (CORPUS.parents[1] / "attestation" / "abi").glob("*.py")} - {"__init__"}
    assert modules == set(PARSERS) | WRITERS
    assert set(PARSERS.values()) <= set(TARGETS)
    kinds = {case["judge"] for case, _ in known_evidence()}
    assert kinds == set(VERIFIERS), "evidence in JSON, of every kind"


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < CORPUS_LIMIT
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(TARGETS)
