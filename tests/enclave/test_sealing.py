"""A sealed file is opened whole or refused by name: vectors, and every region of the file under attack."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.enclave import sealing
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.refusals import Refusal, refusal_of
from hermetic.errors import SealedModelError
from tests.enclave.opening import descriptor_of, open_all
from tests.enclave.sealed_by_hand import KEY, OTHER_SEEDS, SEEDS, Forge, b64, forge, publishers, sign

VECTORS = Path(__file__).parents[1] / "vectors" / "sealed-model"
SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "sealed-model.md"
SEALED = sorted((VECTORS / "files").glob("*.sealed"))
FILES = [
    ("model.onnx", b"the graph"),
    ("weights/w.bin", b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(70_000))),
    (".hermetic/known-answer", b"answers"),
]
GOOD = forge(FILES)  # three segments


def refusal(data: bytes | Forge, **how: Any) -> Refusal:
    with pytest.raises(SealedModelError) as caught:
        open_all(data.pack() if isinstance(data, Forge) else data, **how)
    return refusal_of(caught.value)


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


# -------------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("path", SEALED, ids=lambda path: path.stem)
def test_every_vector_says_what_it_must(path: Path) -> None:
    vector = json.loads(path.with_suffix(".json").read_text())
    how: dict[str, Any] = {"key": bytes.fromhex(vector["key"]), "trusted": json.dumps(vector["publishers"])}
    if vector["result"] == "opened":
        files = open_all(path.read_bytes(), **how)
        assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == vector["files"]
    else:
        assert refusal(path.read_bytes(), **how) == vector["result"]


def test_there_is_a_vector_for_every_refusal() -> None:
    results = {json.loads(path.with_suffix(".json").read_text())["result"] for path in SEALED}
    assert results == {"opened", *Refusal}


def test_the_specification_lists_every_refusal_in_the_order_of_the_checks() -> None:
    rows = re.findall(r"^\| \d+ \| .* \| (.*) \|$", SPECIFICATION.read_text(), flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row) if name in [*Refusal]]
    assert list(dict.fromkeys(named)) == list(Refusal)


# ----------------------------------------------------------------------------------------------------- region by region


def test_every_bit_of_magic_and_lengths() -> None:
    refusals = {(at, bit): refusal(flipped(GOOD.pack(), at, bit)) for at in range(16) for bit in range(8)}
    wanted = {at: Refusal.NOT_A_SEALED_MODEL if at < 8 else Refusal.FRAMING for at in range(16)}
    assert refusals == {(at, bit): wanted[at] for at in range(16) for bit in range(8)}


def test_every_byte_of_the_manifest() -> None:
    inner = range(17, 16 + len(GOOD.manifest) - 1)
    assert {refusal(flipped(GOOD.pack(), at)) for at in inner} == {Refusal.MANIFEST_CHANGED}


def test_every_byte_of_the_signatures() -> None:
    data = GOOD.pack()
    start = 16 + len(GOOD.manifest)
    inner = range(start + 1, start + len(GOOD.signature_block()) - 1, 7)
    allowed = {
        Refusal.SIGNATURES_MALFORMED,
        Refusal.SIGNATURE_WRONG,
        Refusal.MANIFEST_CHANGED,
        Refusal.SIGNATURE_MISSING,
    }
    assert {refusal(flipped(data, at)) for at in inner} <= allowed


@pytest.mark.parametrize("algorithm", SEEDS)
def test_every_bit_of_a_signature(algorithm: str) -> None:
    raw = sign(hashlib.sha256(GOOD.manifest).digest())[algorithm]
    for at in range(0, len(raw), max(1, len(raw) // 64)):
        changed = replace(GOOD, signatures={**GOOD.signatures, algorithm: b64(flipped(raw, at))})
        assert refusal(changed) == Refusal.SIGNATURE_WRONG


@pytest.mark.parametrize("algorithm", SEEDS)
@pytest.mark.parametrize("tail", ["=", "A", "\n", "", "!"])
def test_a_signature_has_one_encoding(algorithm: str, tail: str) -> None:
    text = GOOD.signatures[algorithm]
    other = text[:-3] if tail == "" else text + tail
    assert refusal(replace(GOOD, signatures={**GOOD.signatures, algorithm: other})) == Refusal.SIGNATURES_MALFORMED


def test_base64_with_loose_end_bits() -> None:
    text = GOOD.signatures["ed25519"]  # 64 bytes: the last letter before == carries 4 bits that must be zero
    loose = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert refusal(replace(GOOD, signatures={**GOOD.signatures, "ed25519": loose})) == Refusal.SIGNATURES_MALFORMED


def with_block(block: bytes) -> bytes:
    head = b"\x89HSM1\r\n\x1a" + struct.pack(">II", len(GOOD.manifest), len(block))
    return head + GOOD.manifest + block + GOOD.header + b"".join(GOOD.segments)


SIGNATURE_FORMS: dict[str, Callable[[dict[str, str]], bytes]] = {
    "spaces": lambda members: json.dumps(members, sort_keys=True).encode(),
    "order": lambda members: json.dumps(dict(sorted(members.items(), reverse=True)), separators=(",", ":")).encode(),
    "a member twice": lambda members: rfc8785.dumps(members)[:-1] + b',"ed25519":"AA=="}',
    "a number": lambda members: rfc8785.dumps(members | {"ed25519": 1}),
    "no digest": lambda members: rfc8785.dumps({"ed25519": members["ed25519"]}),
    "no signature": lambda members: rfc8785.dumps({"manifest-sha256": members["manifest-sha256"]}),
    "nothing": lambda members: b"{}",
    "an array": lambda members: b'{"a":[1}',
}


@pytest.mark.parametrize("form", SIGNATURE_FORMS)
def test_signatures_have_one_form(form: str) -> None:
    members = {"manifest-sha256": GOOD.stated_digest, **GOOD.signatures}
    assert refusal(with_block(SIGNATURE_FORMS[form](members))) == Refusal.SIGNATURES_MALFORMED


@pytest.mark.parametrize("bit", range(8))
def test_first_byte_of_the_payload(bit: int) -> None:
    assert refusal(replace(GOOD, header=flipped(GOOD.header, 0, bit))) == Refusal.FRAMING


@pytest.mark.parametrize("at", range(1, 40))
def test_payload_header(at: int) -> None:
    assert refusal(replace(GOOD, header=flipped(GOOD.header, at))) == Refusal.PAYLOAD_HEADER_CHANGED


@pytest.mark.parametrize("index", range(len(GOOD.segments)))
@pytest.mark.parametrize("at", [0, 1000, -17, -16, -1])
def test_segments(index: int, at: int) -> None:
    segments = list(GOOD.segments)
    segments[index] = flipped(segments[index], at % len(segments[index]))
    data = replace(GOOD, segments=segments).pack()
    with pytest.raises(SealedModelError, match=f"segment {index}") as caught:
        open_all(data)
    assert refusal_of(caught.value) == Refusal.SEGMENT_CHANGED


def test_the_first_changed_segment_is_the_one_named() -> None:
    segments = [flipped(segment, 5) for segment in GOOD.segments]
    with pytest.raises(SealedModelError, match="segment 0"):
        open_all(replace(GOOD, segments=segments).pack())


REARRANGED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], Refusal]] = {
    # Segment 0 is 40 bytes shorter than segment 1, so a swap moves the border; the last is shorter still.
    "swapped": (lambda s: [s[1], s[0], s[2]], Refusal.SEGMENT_CHANGED),
    "last first": (lambda s: [s[2], s[0], s[1]], Refusal.SEGMENT_CHANGED),
    "last left out": (lambda s: s[:2], Refusal.PAYLOAD_TRUNCATED),
    "middle left out": (lambda s: [s[0], s[2]], Refusal.PAYLOAD_TRUNCATED),
    "first left out": (lambda s: s[1:], Refusal.PAYLOAD_TRUNCATED),
    "middle twice": (lambda s: [s[0], s[1], s[1], s[2]], Refusal.PAYLOAD_EXTENDED),
    "last twice": (lambda s: [*s, s[2]], Refusal.PAYLOAD_EXTENDED),
    "middle instead of last": (lambda s: [s[0], s[1], s[1][: len(s[2])]], Refusal.SEGMENT_CHANGED),
    "none": (lambda s: [], Refusal.PAYLOAD_TRUNCATED),
}


@pytest.mark.parametrize("how", REARRANGED)
def test_order_and_number_of_segments(how: str) -> None:
    rearrange, expected = REARRANGED[how]
    assert refusal(replace(GOOD, segments=rearrange(list(GOOD.segments)))) == expected


def test_full_segments_of_equal_length_cannot_be_exchanged() -> None:
    four = forge([("model.onnx", bytes(4 << 20))])
    segments = list(four.segments)
    segments[1], segments[2] = segments[2], segments[1]
    assert refusal(replace(four, segments=segments)) == Refusal.SEGMENT_CHANGED


@pytest.mark.parametrize("cut", [1, 16, 17, 1 << 20, (2 << 20) + 5])
def test_truncated(cut: int) -> None:
    assert refusal(GOOD.pack()[:-cut]) == Refusal.PAYLOAD_TRUNCATED


@pytest.mark.parametrize("length", [0, 3, 7, 8, 9, 15, 16, 17, 100, 1200, 4000])
def test_cut_inside_the_head(length: int) -> None:
    expected = Refusal.NOT_A_SEALED_MODEL if length < 8 else Refusal.FRAMING
    assert refusal(GOOD.pack()[:length]) == expected


@pytest.mark.parametrize("more", [b"\x00", bytes(16), bytes(1 << 20)])
def test_extended(more: bytes) -> None:
    assert refusal(GOOD.pack() + more) == Refusal.PAYLOAD_EXTENDED


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    small = SMALL.pack()
    at = data.draw(st.integers(0, len(small) - 1))
    changed = data.draw(st.integers(0, 255).filter(lambda value: value != small[at]))
    refusal(small[:at] + bytes([changed]) + small[at + 1 :])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    refusal(rubbish)
    refusal(b"\x89HSM1\r\n\x1a" + rubbish)


# ----------------------------------------------------------------------------------------- the manifest, field by field

SMALL = forge([("model.onnx", b"graph"), ("w.bin", b"weights"), (".hermetic/known-answer", b"a")])
OTHER_VALUE: dict[str, Any] = {
    "format_id": "hermetic-sealed-model/2",
    "name": "iris2",
    "version": 4,
    "format": "torch-export",
    "architecture": "mlp",
    "files": [{"name": "model.onnx", "offset": 0, "size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [5]}],
    "outputs": [{"name": "z", "datatype": "FP32", "shape": [-1]}],
    "max_batch_size": 9,
    "key_id": "kbs:///models/iris/4",
    "publisher": "acme2",
    "created": "2026-11-22T12:00:01Z",
    "shared": True,
    "payload": SMALL.document["payload"] | {"plaintext_size": 4096},
    "configuration": {},
}


def test_every_member_of_the_manifest_is_attacked() -> None:
    assert OTHER_VALUE.keys() == Manifest.model_fields.keys() == SMALL.document.keys()


@pytest.mark.parametrize("member", OTHER_VALUE)
def test_a_changed_member(member: str) -> None:
    changed = rfc8785.dumps(SMALL.document | {member: OTHER_VALUE[member]})
    # A thief changes the manifest only; then also the digest beside it.
    assert refusal(replace(SMALL, manifest=changed)) == Refusal.MANIFEST_CHANGED
    forged = SMALL.with_manifest(changed)
    assert refusal(forged) == (Refusal.PUBLISHER_UNKNOWN if member == "publisher" else Refusal.SIGNATURE_WRONG)
    # Even the publisher's own signature does not bring another manifest together with this payload.
    trusted = publishers("acme2" if member == "publisher" else "acme", code=True)
    expected = {
        "format_id": Refusal.MANIFEST_MALFORMED,
        "architecture": Refusal.MANIFEST_MALFORMED,
        "files": Refusal.MANIFEST_MALFORMED,
        "payload": Refusal.MANIFEST_MALFORMED,
    }.get(member, Refusal.SEGMENT_CHANGED)
    assert refusal(forged.signed_again(), trusted=trusted) == expected


@pytest.mark.parametrize("member", OTHER_VALUE)
def test_a_missing_member(member: str) -> None:
    document = SMALL.document
    del document[member]
    forged = SMALL.with_manifest(rfc8785.dumps(document)).signed_again()
    assert refusal(forged) == Refusal.MANIFEST_MALFORMED


NOT_CANONICAL: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "spaces": lambda document: json.dumps(document, sort_keys=True).encode(),
    "order": lambda document: json.dumps(dict(reversed(document.items())), separators=(",", ":")).encode(),
    "a member twice": lambda document: rfc8785.dumps(document)[:-1] + b',"version":3}',
    "a float": lambda document: rfc8785.dumps(document).replace(b'"version":3', b'"version":3.0'),
    "an escape": lambda document: rfc8785.dumps(document).replace(b'"iris"', b'"\\u0069ris"'),
    "a number as text": lambda document: rfc8785.dumps(document).replace(b'"version":3', b'"version":"3"'),
    "a shape as text": lambda document: rfc8785.dumps(document).replace(b'"shape":[4]', b'"shape":["4"]'),
    "deep": lambda document: b"{" + b'"a":{' * 50_000 + b"}" * 50_001,
    "an array": lambda document: b'{"publisher":["acme"]}',
}


@pytest.mark.parametrize("form", NOT_CANONICAL)
def test_a_manifest_has_one_form(form: str) -> None:
    forged = SMALL.with_manifest(NOT_CANONICAL[form](SMALL.document)).signed_again()
    assert refusal(forged) == Refusal.MANIFEST_MALFORMED


# -------------------------------------------------------------------------------------------------- keys and publishers


def test_another_key() -> None:
    assert refusal(SMALL, key=bytes(32)) == Refusal.WRONG_KEY


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length(length: int) -> None:
    assert refusal(SMALL, key=KEY[:length] + bytes(max(0, length - 32))) == Refusal.WRONG_KEY


def test_right_key_other_content() -> None:
    lie = forge(
        FILES, plaintext=b"the GRAPH" + bytes(4096 - 9) + FILES[1][1] + bytes(-len(FILES[1][1]) % 4096) + b"answers"
    )
    with pytest.raises(SealedModelError, match=r"model\.onnx") as caught:
        open_all(lie.pack())
    assert refusal_of(caught.value) == Refusal.FILE_CHANGED


def test_the_payload_of_another_model_under_the_same_key() -> None:
    other = forge([("model.onnx", b"gRaph"), ("w.bin", b"weights"), (".hermetic/known-answer", b"a")], version=4)
    assert refusal(replace(SMALL, header=other.header, segments=other.segments)) == Refusal.SEGMENT_CHANGED


def test_wrong_publisher() -> None:
    assert refusal(SMALL, trusted=publishers(seeds=OTHER_SEEDS)) == Refusal.SIGNATURE_WRONG
    assert refusal(SMALL, trusted=publishers("someone")) == Refusal.PUBLISHER_UNKNOWN
    assert refusal(SMALL, trusted='{"publishers": []}') == Refusal.PUBLISHER_UNKNOWN


def test_another_trusted_publisher_cannot_sign_in_acmes_name() -> None:
    both = json.loads(publishers())["publishers"] + json.loads(publishers("rival", OTHER_SEEDS))["publishers"]
    forged = SMALL.signed_again(OTHER_SEEDS)
    assert refusal(forged, trusted=json.dumps({"publishers": both})) == Refusal.SIGNATURE_WRONG


@pytest.mark.parametrize("algorithm", SEEDS)
def test_one_of_two_signatures_missing(algorithm: str) -> None:
    kept = {name: text for name, text in SMALL.signatures.items() if name != algorithm}
    assert refusal(replace(SMALL, signatures=kept)) == Refusal.SIGNATURE_MISSING


@pytest.mark.parametrize("algorithm", SEEDS)
def test_one_of_two_signatures_by_another(algorithm: str) -> None:
    other = b64(sign(hashlib.sha256(SMALL.manifest).digest(), OTHER_SEEDS)[algorithm])
    assert refusal(replace(SMALL, signatures={**SMALL.signatures, algorithm: other})) == Refusal.SIGNATURE_WRONG


@pytest.mark.parametrize("algorithm", SEEDS)
def test_a_publishers_entry_that_was_downgraded_accepts_nothing_signed_with_more(algorithm: str) -> None:
    fewer = publishers(seeds={algorithm: SEEDS[algorithm]})
    assert refusal(SMALL, trusted=fewer) == Refusal.SIGNATURE_UNLISTED


def test_a_signature_over_the_bare_digest_is_not_one_over_the_manifest() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seeds = {"ed25519": SEEDS["ed25519"]}
    bare = Ed25519PrivateKey.from_private_bytes(seeds["ed25519"]).sign(hashlib.sha256(SMALL.manifest).digest())
    assert (
        refusal(replace(SMALL, signatures={"ed25519": b64(bare)}), trusted=publishers(seeds=seeds))
        == Refusal.SIGNATURE_WRONG
    )


@pytest.mark.parametrize("code_format", ["torchscript", "torch-export", "aot-inductor"])
def test_code_only_from_publishers_of_code(code_format: str) -> None:
    program = forge([("model.pt", b"code")], format=code_format)
    assert refusal(program) == Refusal.PUBLISHER_NOT_FOR_CODE
    if code_format == "aot-inductor":
        assert refusal(program, trusted=publishers(code=True)) == Refusal.PUBLISHER_NOT_FOR_NATIVE_CODE
    marks: dict[str, Any] = {"code": True, "native_code": code_format == "aot-inductor"}
    assert open_all(program.pack(), trusted=publishers(**marks)) == {"model.pt": b"code"}


# -------------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_opened_files_are_what_was_sealed(threads: int) -> None:
    assert open_all(GOOD.pack(), threads=threads) == dict(FILES)


def test_many_files_and_an_empty_one() -> None:
    files = [("model.onnx", b"g"), *((f"part-{at}", bytes([at]) * (at * 997)) for at in range(40))]
    assert open_all(forge(files).pack()) == dict(files)


@pytest.fixture
def small_fd() -> Any:
    with descriptor_of(SMALL.pack()) as fd:
        yield fd


def verified(fd: int) -> Manifest:
    return sealing.verify_manifest(sealing.read_header(fd), TrustedPublishers.loads(publishers()))


def test_views_are_page_aligned_read_only_and_zero_after_the_wipe(small_fd: int) -> None:
    import numpy as np

    opened = sealing.open_payload(small_fd, verified(small_fd), bytearray(KEY), 1)
    view = opened.view("w.bin")
    array = np.frombuffer(view, np.uint8)
    assert view.readonly
    assert array.ctypes.data % 4096 == 0
    assert not opened.view("w.bin", writable=True).readonly
    opened.wipe()
    assert not array.any()
    opened.wipe()
    with pytest.raises(ValueError, match="wiped"):
        opened.view("w.bin")


def test_a_name_outside_the_manifest_is_no_file(small_fd: int) -> None:
    with sealing.open_payload(small_fd, verified(small_fd), bytearray(KEY), 1) as opened, pytest.raises(KeyError):
        opened.view("/etc/passwd")


@pytest.mark.parametrize("key", [KEY, bytes(32)], ids=["right", "wrong"])
def test_the_key_is_consumed_whatever_happens(small_fd: int, key: bytes) -> None:
    buffer = bytearray(key)
    try:
        sealing.open_payload(small_fd, verified(small_fd), buffer, 1).wipe()
    except SealedModelError:
        assert key != KEY
    assert buffer == bytes(32)


def test_memory_made_by_the_caller_is_used_sealed_and_zero_after_a_refusal() -> None:
    bad = replace(SMALL, segments=[flipped(SMALL.segments[0], 3)]).pack()
    lie = forge([("model.onnx", b"graph")], plaintext=b"grapH").pack()
    for data in (bad, lie):
        memory = os.memfd_create("model", os.MFD_ALLOW_SEALING)
        with descriptor_of(data) as fd, pytest.raises(SealedModelError):
            sealing.open_payload(fd, verified(fd), bytearray(KEY), 1, memory_fd=memory)
        assert not any(os.pread(memory, 1 << 20, 0))
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 1)
        os.close(memory)


def test_a_file_exchanged_after_its_manifest_was_verified() -> None:
    other = forge([("model.onnx", b"other")], version=9)
    with descriptor_of(SMALL.pack()) as fd, descriptor_of(other.pack()) as exchanged:
        manifest = verified(fd)
        with pytest.raises(SealedModelError) as caught:
            sealing.open_payload(exchanged, manifest, bytearray(KEY), 1)
    assert refusal_of(caught.value) == Refusal.MANIFEST_CHANGED


def test_an_unverified_manifest_can_be_shown_but_says_so_in_its_name(small_fd: int) -> None:
    shown = sealing.parse_unverified_manifest(sealing.read_header(small_fd))
    assert (shown.name, shown.version) == ("iris", 3)


def test_a_reader_of_huge_lengths_reads_nothing() -> None:
    huge = b"\x89HSM1\r\n\x1a" + struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF) + b"{" * 100
    assert refusal(huge) == Refusal.FRAMING
