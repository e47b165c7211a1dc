"""Numbers into a page: between the marks, nowhere else; the picture is XML with every curve."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from hermetic.bench.plot import Panel, svg
from hermetic.bench.publish import growth_picture, publish
from hermetic.errors import ConfigurationError

MACHINE = {"cores": 2, "processor": "a processor", "load_average": [0.1, 0.1, 0.1]}
CONTEXT = {"machine": MACHINE, "versions": {"python": "3.11"}, "git_revision": "0123456789abcdef", "time": "now"}
PAGE = "before\n<!-- growth: begin -->\nold\n<!-- growth: end -->\nafter\n"


def grown(**more: Any) -> dict[str, Any]:
    row = {"server": "hermetic", "axis": "callers", "size": 1, "throughput": 10.0, "p50_ms": 1.0, "p99_ms": 2.0}
    return row | {"memory_mib": 3.0, "cpu_us": 4.0} | more


def growth_document() -> dict[str, Any]:
    rows = [grown(size=size, server=server) for server in ("hermetic", "triton") for size in (1, 16, 256)]
    return {"results": [*rows, grown(axis="models", size=2)], "context": {**CONTEXT, "kind": "growth"}}


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert publish(page, growth_document()) == "growth"
    text = page.read_text()
    assert text.startswith("before\n<!-- growth: begin -->\n")
    assert text.endswith("\n<!-- growth: end -->\nafter\n")
    assert "old" not in text
    assert "| triton | 256 | 10 | 1.00 | 2.00 | 3 | 4 |" in text
    assert "2 cores of a processor" in text
    publish(page, growth_document())
    assert page.read_text() == text  # the same again
    assert (tmp_path / "growth.svg").read_text() == growth_picture(growth_document())


@pytest.mark.parametrize("text", ["no marks", PAGE + PAGE, "<!-- growth: end --> <!-- growth: begin -->"])
def test_a_page_without_its_place_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigurationError, match="wanted <!-- growth: begin -->"):
        publish(page, growth_document())
    assert page.read_text() == text


def test_a_document_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="wanted a kind of peers, costs, growth, got None"):
        publish(tmp_path / "page.md", {"results": [], "context": CONTEXT})


def test_a_picture_has_every_curve_and_escapes_names() -> None:
    panels = [Panel("a < b", "callers", {"one & two": [(1, 0.0), (256, 97.0)], "three": [(1, 5.0)]})]
    root = ET.fromstring(svg(panels))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "one & two", "three", "callers", "256", "100"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3
