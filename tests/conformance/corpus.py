"""Reading the corpus, as tests/vectors/conformance/README.md explains it: what any other implementation has to write."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "conformance"
ENCODINGS: dict[str, Callable[[bytes], Any]] = {
    "base64": lambda data: base64.b64encode(data).decode(),
    "base64url": lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode(),
    "hex": bytes.hex,
    "numbers": list,
    "text": bytes.decode,
}


@cache
def index() -> dict[str, Any]:
    """The index of all files."""
    found: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())
    return found


@cache
def page(name: str) -> list[dict[str, Any]]:
    """The cases of one page of the specification."""
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    return found


@cache
def trusts() -> dict[str, Any]:
    """What verifiers are given, by name."""
    found: dict[str, Any] = json.loads((FOLDER / "trust.json").read_text())["trusts"]
    return found


@cache
def _file(path: str) -> bytes:
    return (FOLDER / path).read_bytes()


def data(source: Any) -> bytes:
    """The bytes of a source: the path of a file, or {"file" or "hex" or "made", "decode", "edits"}."""
    if isinstance(source, str):
        return _file(source)
    found = bytes.fromhex(source["hex"]) if "hex" in source else _file(source["file"])
    for step in source.get("decode", ()):
        found = _decoded(found, step)
    return spliced(found, source.get("edits", ()))


def _decoded(found: bytes, step: str) -> bytes:
    if step == "hex":
        return bytes.fromhex(found.decode())
    if step == "base64":
        return base64.b64decode(found)
    if step == "base64url":
        return base64.urlsafe_b64decode(found + b"=" * (-len(found) % 4))
    if step == "numbers":
        return bytes(json.loads(found))
    value = at(json.loads(found), step)
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def spliced(found: bytes, edits: Sequence[Mapping[str, Any]]) -> bytes:
    """`found` after `edits`, one after the other: at an offset, so many bytes are removed and others inserted."""
    for edit in edits:
        start = edit["at"]
        found = found[:start] + bytes.fromhex(edit.get("insert", "")) + found[start + edit.get("remove", 0) :]
    return found


def value(template: Any) -> Any:
    """The JSON value of a template: {"$bytes", "as"}, {"$json", "edits"} and {"$repeat", "times"} stand for values."""
    if isinstance(template, list):
        return [value(one) for one in template]
    if not isinstance(template, dict):
        return template
    if "$bytes" in template:
        return ENCODINGS[template["as"]](data(template["$bytes"]))
    if "$json" in template:
        return edited(json.loads(data(template["$json"])), template.get("edits", ()))
    if "$repeat" in template:
        return [value(template["$repeat"])] * template["times"]
    return {name: value(one) for name, one in template.items()}


def edited(found: Any, edits: Sequence[Mapping[str, Any]]) -> Any:
    """`found` after `edits`: members set, or removed where nothing is to be set."""
    for edit in edits:
        above, _, last = edit["pointer"].rpartition("/")
        if not edit["pointer"]:
            found = value(edit["set"])
            continue
        place = at(found, above)
        key: Any = int(last) if isinstance(place, list) else last.replace("~1", "/").replace("~0", "~")
        if "set" in edit:
            place[key] = value(edit["set"])
        elif "insert" in edit:
            place.insert(key, value(edit["insert"]))
        else:
            del place[key]
    return found


def at(found: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) points to."""
    for step in pointer.split("/")[1:]:
        found = found[int(step)] if isinstance(found, list) else found[step.replace("~1", "/").replace("~0", "~")]
    return found
