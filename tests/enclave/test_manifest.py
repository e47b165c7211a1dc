"""A manifest that exists obeys section 2 of docs/spec/sealed-model.md."""

import hashlib
import json
from itertools import pairwise
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from hermetic.enclave.manifest import Manifest, check_file_name, lay_out
from hermetic.enclave.sealed.refusals import Refusal, refusal_of
from hermetic.errors import SealedModelError
from tests.enclave.sealed_by_hand import manifest_of

GOOD = manifest_of([("model.onnx", b"graph"), ("w.bin", b"x" * 5000), (".hermetic/known-answer", b"a")])
TENSOR = {"name": "x", "datatype": "FP32", "shape": [4]}


def refused(document: object) -> str:
    with pytest.raises(SealedModelError) as caught:
        Manifest.parse(rfc8785.dumps(document))  # type: ignore[arg-type]
    assert refusal_of(caught.value) == Refusal.MANIFEST_MALFORMED
    return str(caught.value)


def test_what_is_parsed_is_encoded_again_byte_for_byte() -> None:
    raw = rfc8785.dumps(GOOD)
    manifest = Manifest.parse(raw)
    assert manifest.encode() == raw
    assert manifest.digest() == hashlib.sha256(raw).digest()
    assert manifest.model_file.name == "model.onnx"
    assert manifest.known_answer == manifest.files[2]
    assert manifest.file("w.bin").offset == 4096
    assert not manifest.is_code


MEMBERS: dict[str, list[Any]] = {
    "format_id": ["hermetic-sealed-model/2", "", None],
    "name": ["", ".iris", "a/b", "a b", "x" * 257, "naïve", None, 1],
    "version": [0, -1, 2**31, "3", True, None],
    "format": ["pickle", "ONNX", None],
    "architecture": ["mlp", ""],
    "files": [[], {}, None],
    "inputs": [
        [],
        [TENSOR | {"datatype": "FP8"}],
        [TENSOR | {"shape": [-2]}],
        [TENSOR, TENSOR],
        [TENSOR] * 257,
        [TENSOR | {"extra": 1}],
    ],
    "outputs": [[], [TENSOR | {"shape": [1] * 17}], [TENSOR | {"name": ""}], [{"name": "x"}]],
    "max_batch_size": [-1, 2**31, 1.5, None],
    "key_id": [
        "",
        "kbs://host/a/b/c",
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a/b/",
        "kbs:///a/../c",
        "kbs:///a/b/c\n",
        "kbs:///a b/c/d",
    ],
    "publisher": ["", "a/b", None],
    "created": ["2026-11-22", "2026-11-22T12:00:00", "2026-11-22T12:00:00+00:00", "2026-11-22T12:00:00Z\n"],
    "shared": [0, "false", None],
    "payload": [{}, None],
    "configuration": [
        None,
        {"unknown": 1},
        {"instances": 0},
        {"dynamic_batching": {"preferred_batch_sizes": [9]}},
        {"ensemble": {"steps": []}},
        {"outputs": [{"name": "y", "labels": "not-there.txt"}]},
    ],
}


def test_every_member_has_values_that_are_refused() -> None:
    assert MEMBERS.keys() == Manifest.model_fields.keys()


@pytest.mark.parametrize(("member", "value"), [(m, v) for m, values in MEMBERS.items() for v in values], ids=str)
def test_members(member: str, value: Any) -> None:
    assert member in refused(GOOD | {member: value})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("aead", "AES128-GCM-HKDF-1MB"),
        ("segment_size", 4096),
        ("plaintext_size", 0),
        ("plaintext_size", GOOD["payload"]["plaintext_size"] + 1),
        ("header", "28"),
        ("header", "29" + "00" * 39),
        ("header", GOOD["payload"]["header"].upper()),
        ("key_check", "00"),
        ("extra", 1),
    ],
)
def test_payload_facts(member: str, value: Any) -> None:
    assert "payload" in refused(GOOD | {"payload": GOOD["payload"] | {member: value}})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"offset": 1}, "offset"),
        ({"offset": 8192}, "offset"),
        ({"size": 9000}, "offset"),
        ({"size": -1}, "size"),
        ({"sha256": "AB" * 32}, "sha256"),
        ({"sha256": "ab" * 31}, "sha256"),
        ({"name": "model.onnx"}, "twice"),
        ({"mode": 0o644}, "mode"),
    ],
    ids=str,
)
def test_file_entries(change: dict[str, Any], what: str) -> None:
    files = json.loads(json.dumps(GOOD["files"]))
    files[1] |= change
    assert what in refused(GOOD | {"files": files})


HOSTILE = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../x",
    "a/..",
    "./x",
    "a//b",
    "a/",
    "a\\b",
    "a\x00b",
    "a\nb",
    "\ud800",
    "x" * 513,
    ".hermetic/x",
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_file_names(name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        check_file_name(name)


@pytest.mark.parametrize(
    "name", ["model.onnx", "a/b/c", "...", "a..b", "ä/ö", ".hidden", ".hermetic/known-answer", "x" * 512]
)
def test_plain_file_names(name: str) -> None:
    check_file_name(name)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_files_are_page_aligned_and_do_not_overlap(sizes: list[int]) -> None:
    placed = lay_out([(str(at), size) for at, size in enumerate(sizes)])
    assert placed[0].offset == 0
    for one, after in pairwise(placed):
        assert after.offset % 4096 == 0
        assert 0 <= after.offset - (one.offset + one.size) < 4096
