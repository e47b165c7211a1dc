"""Writing the corpus: cases, what they share, and the files that no recorded vector has (`generate.py` says when)."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.conformance import corpus

GAP = 6  # bytes that may be alike within one edit
SMALL = 64  # bytes: what is shorter stands in its case


@dataclass
class Book:
    """Everything that is being written."""

    pages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    trusts: dict[str, Any] = field(default_factory=dict)
    made: dict[str, bytes] = field(default_factory=dict)

    def case(
        self, page: str, name: str, statements: str, judge: str, refusals: Sequence[str] | None = None, **what: Any
    ) -> None:
        """One case: `statements` separated by blanks; `refusals` None where the verdict is "pass"."""
        cases = self.pages.setdefault(page, [])
        assert name not in {one["id"] for one in cases}, name
        cases.append(
            {
                "id": name,
                "statements": statements.split(),
                "judge": judge,
                **{key: _plain(value) for key, value in what.items()},
                "verdict": "pass" if refusals is None else "fail",
                **({} if refusals is None else {"refusals": sorted(refusals)}),
            }
        )

    def trust(self, name: str, **what: Any) -> str:
        """A name for what verifiers are given."""
        assert self.trusts.setdefault(name, what) == what, name
        return name

    def file(self, name: str, data: bytes) -> str:
        """The path of a file that is made."""
        assert self.made.setdefault(name, data) == data, name
        return f"made/{name}"

    def write(self, folder: Path) -> None:
        """Write all of it into `folder`."""
        made = folder / "made"
        made.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            path.unlink()
        for name, data in self.made.items():
            (made / name).write_bytes(data)
        for page, cases in self.pages.items():
            _write(folder / f"{page}.json", {"format": FORMAT, "page": f"docs/spec/{page}.md", "cases": cases})
        _write(folder / "trust.json", {"format": FORMAT, "trusts": self.trusts})
        counts = {page: len(cases) for page, cases in self.pages.items()}
        _write(folder / "index.json", {"format": FORMAT, "schema": "schema.json", "trust": "trust.json", "files": [
            {"page": f"docs/spec/{page}.md", "cases": f"{page}.json", "count": count} for page, count in counts.items()
        ]})  # fmt: skip


FORMAT = "hermetic-conformance/1"


def _write(path: Path, value: Any) -> None:
    """Readable, and one line for everything that is short."""
    path.write_text(_lines(value, 0) + "\n")


def _lines(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + depth <= 150 or not isinstance(value, dict | list) or not value:
        return flat
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        inner = [f"{pad}{json.dumps(key)}: {_lines(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _lines(one, depth + 1) for one in value) + f"\n{end}]"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def source(base: Any, wanted: bytes) -> Any:
    """`wanted` as edits of the source `base`."""
    edits = splices(corpus_bytes(base), wanted)
    if not edits:
        return base
    whole = dict(base) if isinstance(base, dict) else {"file": base}
    assert "edits" not in whole
    return {**whole, "edits": edits}


_made: dict[str, bytes] = {}


def corpus_bytes(base: Any) -> bytes:
    """The bytes of a source, also of one whose file is not written yet."""
    path = base if isinstance(base, str) else base.get("file", "")
    name = path.removeprefix("made/")
    if path.startswith("made/"):
        return _made[name]
    return corpus.data(base)


def remember(book: Book, name: str, data: bytes) -> str:
    """As `book.file`, and known to `source`."""
    _made[name] = data
    return book.file(name, data)


def splices(old: bytes, new: bytes) -> list[dict[str, Any]]:
    """The edits that make `new` of `old`."""
    if len(old) != len(new):
        return _one_splice(old, new)
    differing = [at for at in range(len(old)) if old[at] != new[at]]
    runs: list[list[int]] = []
    for at in differing:
        if runs and at - runs[-1][1] <= GAP:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    return [{"at": a, "remove": b - a + 1, "insert": new[a : b + 1].hex()} for a, b in runs]


def _one_splice(old: bytes, new: bytes) -> list[dict[str, Any]]:
    start = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    rest = min(len(old), len(new)) - start
    end = next((at for at in range(rest) if old[-1 - at] != new[-1 - at]), rest)
    removed, inserted = len(old) - start - end, new[start : len(new) - end]
    return [
        {"at": start, **({"remove": removed} if removed else {}), **({"insert": inserted.hex()} if inserted else {})}
    ]


def b64(base: Any) -> dict[str, Any]:
    """A source as base64 in JSON."""
    return {"$bytes": base, "as": "base64"}


def short(data: bytes) -> dict[str, str]:
    """A source that stands in its case."""
    return {"hex": data.hex()}


def label(text: str) -> str:
    """A name for files, from anything."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") + "-" + hashlib.sha256(text.encode()).hexdigest()[:4]


def json_edits(old: Any, new: Any, at: str = "") -> list[dict[str, Any]]:
    """The edits that make the JSON value `new` of `old`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [{"pointer": f"{at}/{key}", "remove": True} for key in old if key not in new]
        for key, value in new.items():
            if key not in old:
                found.append({"pointer": f"{at}/{key}", "set": value})
            else:
                found += json_edits(old[key], value, f"{at}/{key}")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            edit
            for index, (a, b) in enumerate(zip(old, new, strict=True))
            for edit in json_edits(a, b, f"{at}/{index}")
        ]
    return [] if old == new else [{"pointer": at, "set": new}]
