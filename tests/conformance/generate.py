"""Write tests/vectors/conformance/ anew: python -m tests.conformance.generate. The same bytes in each run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance import (
    bundles,
    callers,
    claims,
    composite,
    corpus,
    enrolment,
    evidence,
    fixed,
    logs,
    nvgpu,
    nvgpu_made,
    policy,
    snp,
    tdx,
    tdx_made,
    windows,
)
from tests.conformance.build import Book

PAGES = (
    evidence,
    snp,
    tdx,
    tdx_made,
    nvgpu,
    nvgpu_made,
    composite,
    callers,
    bundles,
    windows,
    logs,
    enrolment,
    claims,
    policy,
)


def made(pages: Sequence[Any] = PAGES) -> Book:
    """The whole corpus."""
    book = Book()
    for page in pages:
        with fixed.randomness():
            page.cases(book)
    return book


def main(arguments: list[str]) -> None:
    """Write it where the argument says, or where it belongs."""
    made().write(Path(arguments[0]) if arguments else corpus.FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
