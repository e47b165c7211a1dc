"""Large aligned blocks that were freed are kept, as zeros, and within a bound (ADR 0148)."""

import subprocess
from pathlib import Path

import pytest

from tests.enclave.test_zero_on_free_library import compiled
from tests.enclave.zero_on_free_builds import built, needs_compiler

pytestmark = needs_compiler
FREED_TWICE = "freed-twice"
TAKEN_OUT = {
    "comes-again-as-zeros": ("wipe(block, size);\n    atomic_fetch_sub", "atomic_fetch_sub"),
    "a-much-larger-one-stays": ("has - size <= has / WASTE", "1"),
    "the-smallest-that-fits": ("has < least", "(best < 0 || has > least)"),
    "bounded-by-what-was-in-use": ("while (too_much(size) && give_one_back())", "while (too_much(size) && 0)"),
    "glibcs-own-are-not-counted": ("OURS = MAPPED | 4", "OURS = MAPPED"),
    "no-more-than-places": ("KEPT_BLOCKS = 64", "KEPT_BLOCKS = 96"),
    "resized": ("size < had ? size : had", "size < had ? size / 2 : had / 2"),
    "no-more-memory": ("while (block == NULL && give_one_back());", "while (0);"),
    "given-back": ("    while (give_one_back()) {\n    }\n    atomic_store", "    atomic_store"),
    FREED_TWICE: ("abort(); /*", "/*"),
}
"""Case -> what makes it go wrong where it is replaced."""
ABORTED = -6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("program") / "kept_blocks")


@pytest.mark.parametrize("case", TAKEN_OUT)
def test_what_becomes_of_blocks_that_are_freed(program: Path, library: Path, tmp_path: Path, case: str) -> None:
    def ended(library: Path) -> tuple[int, str]:
        command, environment = [str(program), case], {"LD_PRELOAD": str(library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    wanted = (ABORTED, "") if case == FREED_TWICE else (0, "")
    assert ended(library) == wanted
    assert ended(built(tmp_path, TAKEN_OUT[case])) != wanted
