"""Our verifiers give every verdict of the corpus, and the corpus speaks of every numbered statement."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import corpus, runner

ROOT = Path(__file__).resolve().parents[2]
STATEMENT = re.compile(r"\[([A-Z]+-\d+)\]")
FILES = corpus.index()["files"]
# Numbered too, and held by vectors and tests of their own.
NOT_OF_EVIDENCE = {"docs/spec/governance.md", "docs/spec/post-quantum.md"}
SIZE_LIMIT = 3 * 1024 * 1024  # bytes of the corpus, the vectors that it shares not counted


def cases() -> list[dict[str, Any]]:
    return [case for file in FILES for case in corpus.page(file["cases"].removesuffix(".json"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file["cases"]))
def test_every_case_ends_as_it_says(file: dict[str, Any]) -> None:
    wrong = {
        case["id"]: found
        for case in corpus.page(file["cases"].removesuffix(".json"))
        if (found := runner.differences(case))
    }
    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file["cases"]))
def test_every_statement_of_a_page_has_a_case_and_every_case_a_statement(file: dict[str, Any]) -> None:
    numbered = STATEMENT.findall((ROOT / file["page"]).read_text())
    assert [name for name, count in Counter(numbered).items() if count > 1] == []
    spoken = {name for case in corpus.page(file["cases"].removesuffix(".json")) for name in case["statements"]}
    assert (sorted(set(numbered) - spoken), sorted(spoken - set(numbered))) == ([], [])


def test_every_page_with_numbers_has_cases() -> None:
    numbered = {
        f"docs/spec/{path.name}" for path in (ROOT / "docs/spec").glob("*.md") if STATEMENT.search(path.read_text())
    }
    assert numbered - NOT_OF_EVIDENCE == {file["page"] for file in FILES}


def test_the_index_tells_what_is_there() -> None:
    for file in FILES:
        names = [case["id"] for case in corpus.page(file["cases"].removesuffix(".json"))]
        assert len(names) == len(set(names)) == file["count"], file
    known = {"index.json", "trust.json", "schema.json", "README.md", "made", *(file["cases"] for file in FILES)}
    assert {path.name for path in corpus.FOLDER.iterdir()} == known
    assert sum(path.stat().st_size for path in corpus.FOLDER.rglob("*") if path.is_file()) < SIZE_LIMIT


def test_every_file_is_used_and_every_used_file_is_there() -> None:
    used: set[str] = set()
    _collect([cases(), corpus.trusts()], used)
    made = {f"made/{path.name}" for path in (corpus.FOLDER / "made").iterdir()}
    assert {path for path in used if path.startswith("made/")} == made
    assert [path for path in used if not (corpus.FOLDER / path).is_file()] == []


def _collect(value: Any, used: set[str]) -> None:
    if isinstance(value, dict):
        for one in value.values():
            _collect(one, used)
    elif isinstance(value, list):
        for one in value:
            _collect(one, used)
    elif isinstance(value, str) and value.startswith(("made/", "../")):
        used.add(value)


def test_the_cases_have_the_members_of_the_schema() -> None:
    schema = json.loads((corpus.FOLDER / "schema.json").read_text())["$defs"]["case"]
    for case in cases():
        assert set(schema["required"]) <= set(case) <= set(schema["properties"]), case["id"]
        assert (case["verdict"] == "fail") == bool(case.get("refusals")), case["id"]
        assert case.get("refusals", []) == sorted(set(case.get("refusals", []))), case["id"]
        assert case.get("trust", "none") in corpus.trusts(), case["id"]
    assert set(schema["properties"]["judge"]["enum"]) == set(runner.JUDGES)
