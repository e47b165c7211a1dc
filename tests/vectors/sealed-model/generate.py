"""Writes the vectors of docs/spec/sealed-model.md. Run it as it is: python tests/vectors/sealed-model/generate.py.

    files/NAME.sealed           a sealed file; beside it
    files/NAME.json             the trusted publishers, the key, and what a reader must say
    payloads/BYTES.json         a plaintext by rule (`counting`), its payload by SHA-256: too large to store
    known-answers/NAME.json     a known-answer file, accepted or refused

ML-DSA signatures differ at each run, nothing else does.
"""

import hashlib
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import rfc8785

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from tests.enclave.sealed_by_hand import (  # noqa: E402 - after the path
    HEADER,
    KEY,
    OTHER_SEEDS,
    SEEDS,
    b64,
    forge,
    hkdf,
    manifest_of,
    plaintext_of,
    publishers,
    segments_of,
    sign,
)

HERE = Path(__file__).parent
FILES = [
    ("model.onnx", b"the graph"),
    ("weights/w.bin", bytes(range(256)) * 20),
    (".hermetic/known-answer", b"answers"),
]


def counting(size: int) -> bytes:
    """The plaintext rule of payloads/: SHA-256 of a counter (8 bytes, big-endian), one after the other."""
    blocks = (hashlib.sha256(struct.pack(">Q", at)).digest() for at in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def write(
    name: str, sealed: bytes, result: str, *, trusted: str | None = None, key: bytes = KEY, comment: str = ""
) -> None:
    document = {
        "comment": comment,
        "key": key.hex(),
        "publishers": json.loads(trusted or publishers()),
        "result": result,
        "files": {n: hashlib.sha256(c).hexdigest() for n, c in FILES} if result == "opened" else {},
    }
    (HERE / "files" / f"{name}.sealed").write_bytes(sealed)
    (HERE / "files" / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def write_opened() -> None:
    good = forge(FILES)
    write("opened", good.pack(), "opened", comment="both algorithms")
    ed_only = {"ed25519": SEEDS["ed25519"]}
    write("opened-ed25519", forge(FILES, seeds=ed_only).pack(), "opened", trusted=publishers(seeds=ed_only))
    pq_only = {"ml-dsa-65": SEEDS["ml-dsa-65"]}
    write("opened-ml-dsa-65", forge(FILES, seeds=pq_only).pack(), "opened", trusted=publishers(seeds=pq_only))
    code = forge(FILES, format="torchscript")
    write("opened-code", code.pack(), "opened", trusted=publishers(code=True), comment="a publisher of code")


def write_refused() -> None:
    good = forge(FILES)
    data = good.pack()
    head = 16 + len(good.manifest) + len(good.signature_block())
    digest = hashlib.sha256(good.manifest).digest()
    ed_only = {"ed25519": SEEDS["ed25519"]}
    write("not-a-sealed-model", flip(data, 1), "not-a-sealed-model")
    write("framing", flip(data, 11), "framing", comment="the manifest's length")
    write("framing-cut", data[: head - 10], "framing", comment="cut inside the signatures")
    spaced = replace(good, extra_signature_members={"rsa": "AA=="})
    write("signatures-malformed", spaced.pack(), "signatures-malformed", comment="an algorithm that does not exist")
    write("manifest-changed", data.replace(b'"iris"', b'"Iris"', 1), "manifest-changed")
    loose = json.dumps(manifest_of(FILES)).encode()
    write(
        "manifest-malformed", forge(FILES, manifest=loose).pack(), "manifest-malformed", comment="signed, not canonical"
    )
    unknown = rfc8785.dumps(manifest_of(FILES) | {"note": "x"})
    write(
        "manifest-malformed-member",
        forge(FILES, manifest=unknown).pack(),
        "manifest-malformed",
        comment="unknown member",
    )
    path = forge([("../model.onnx", b"x")])
    write("manifest-malformed-path", path.pack(), "manifest-malformed", comment="a file's name leaves the model")
    write("publisher-unknown", data, "publisher-unknown", trusted=publishers(name="other"))
    write("signature-missing", forge(FILES, seeds=ed_only).pack(), "signature-missing", comment="ML-DSA-65 stripped")
    write("signature-unlisted", data, "signature-unlisted", trusted=publishers(seeds=ed_only))
    write("signature-wrong", data, "signature-wrong", trusted=publishers(seeds=OTHER_SEEDS))
    half = {**sign(digest, OTHER_SEEDS), "ed25519": sign(digest)["ed25519"]}
    forged_half = replace(good, signatures={name: b64(raw) for name, raw in half.items()})
    write(
        "signature-wrong-ml-dsa-65", forged_half.pack(), "signature-wrong", comment="Ed25519 right, ML-DSA-65 another's"
    )
    write("publisher-not-for-code", forge(FILES, format="torchscript").pack(), "publisher-not-for-code")
    native = forge(FILES, format="aot-inductor").pack()
    write("publisher-not-for-native-code", native, "publisher-not-for-native-code", trusted=publishers(code=True))
    write("payload-truncated", data[:-1], "payload-truncated")
    write("payload-extended", data + b"\x00", "payload-extended")
    write("payload-header-changed", flip(data, head + 39), "payload-header-changed")
    write("wrong-key", data, "wrong-key", key=bytes(32))
    write("segment-changed", flip(data, head + 40), "segment-changed")
    other = forge(FILES, version=4)
    write(
        "segment-changed-swapped",
        replace(good, segments=other.segments).pack(),
        "segment-changed",
        comment="another version's payload, same key and header",
    )
    plaintext, _ = plaintext_of(FILES)
    write("padding-changed", forge(FILES, plaintext=flip(plaintext, 4095)).pack(), "padding-changed")
    write(
        "file-changed",
        forge(FILES, plaintext=flip(plaintext, 4096)).pack(),
        "file-changed",
        comment="right key, other content",
    )


def write_payloads() -> None:
    for size in (1, 1_048_519, 1_048_520, 1_048_521, 2_097_080, 2_097_081, 3_000_000):
        digest = hashlib.sha256(str(size).encode()).digest()
        segments = segments_of(counting(size), digest)
        document = {
            "key": KEY.hex(),
            "header": HEADER.hex(),
            "manifest_digest": digest.hex(),
            "plaintext_size": size,
            "segments": len(segments),
            "payload_size": 40 + sum(map(len, segments)),
            "payload_sha256": hashlib.sha256(HEADER + b"".join(segments)).hexdigest(),
            "key_check": hkdf(KEY, HEADER[1:33], b"hermetic-sealed-model/1 key check").hex(),
        }
        (HERE / "payloads" / f"{size}.json").write_text(json.dumps(document, indent=2) + "\n")


def known_answer(head: dict[str, Any], body: bytes) -> bytes:
    raw = rfc8785.dumps(head)
    return b"HKNOW1\r\n" + struct.pack(">I", len(raw)) + raw + body


def write_known_answers() -> None:
    tensor = {"datatype": "FP32", "name": "x", "shape": [1, 2], "size": 8}
    output = {"atol": 1e-5, "datatype": "FP32", "name": "y", "rtol": 1e-4, "shape": [1], "size": 4}
    labels = {"atol": None, "datatype": "BYTES", "name": "label", "rtol": None, "shape": [1], "size": 7}
    body = struct.pack("<fff", 1.5, -2.0, 0.25) + struct.pack("<I", 3) + b"cat"
    salt = "ab" * 32
    good = {"cases": [{"inputs": [tensor], "outputs": [output, labels]}], "salt": salt}
    loose = {"cases": [{"inputs": [tensor], "outputs": [output | {"rtol": 0.5}, labels]}], "salt": salt}
    salted = {"cases": good["cases"], "salt": "ab" * 8}
    vectors = {
        "accepted": (known_answer(good, body), "accepted"),
        "short": (known_answer(good, body[:-1]), "refused"),
        "long": (known_answer(good, body + b"x"), "refused"),
        "loose": (known_answer(loose, body), "refused"),
        "unsalted": (known_answer(salted, body), "refused"),
        "string": (known_answer(good, body[:-7] + struct.pack("<I", 4) + b"cat"), "refused"),
    }
    for name, (content, result) in vectors.items():
        document = {"content": content.hex(), "result": result}
        (HERE / "known-answers" / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    for folder in ("files", "payloads", "known-answers"):
        (HERE / folder).mkdir(exist_ok=True)
    write_opened()
    write_refused()
    write_payloads()
    write_known_answers()
