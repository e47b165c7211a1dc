"""The vectors of docs/spec/log.md, made by code that shares nothing with ours but hashlib, an Ed25519 and json.

    python tests/vectors/log/generate.py      writes *.json beside itself

merkle.json and the first note of note.json come from elsewhere, byte for byte:
- leaves, roots and proofs: github.com/transparency-dev/merkle, proof/verify_test.go (Apache-2.0)
- PeterNeumann's key and note: golang.org/x/mod/sumdb/note (BSD-3-Clause); remora's key: transparency-dev/formats
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "vectors.example/log"
SEED = bytes(range(32))
WITNESS = "witness.example/w1"
WITNESS_SEED = bytes(range(32, 64))
WITNESS_TIME = 1_679_315_147


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mth(entries: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not entries:
        return sha(b"")
    if len(entries) == 1:
        return sha(b"\x00" + entries[0])
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return sha(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def path(m: int, entries: list[bytes]) -> list[bytes]:
    if len(entries) == 1:
        return []
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def key_id(name: str, kind: int, key: bytes) -> bytes:
    return sha(name.encode() + b"\n" + bytes([kind]) + key)[:4]


def vkey(name: str, kind: int, key: bytes) -> str:
    return f"{name}+{key_id(name, kind, key).hex()}+{b64(bytes([kind]) + key)}"


def signing_key(name: str, seed: bytes) -> str:
    return f"PRIVATE+KEY+{name}+{key_id(name, 1, public(seed)).hex()}+{b64(bytes([1]) + seed)}"


def line(name: str, kind: int, seed: bytes, message: bytes, before: bytes = b"") -> str:
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(message)
    return f"— {name} {b64(key_id(name, kind, public(seed)) + before + signature)}\n"


def signed(text: str, name: str = ORIGIN, seed: bytes = SEED) -> str:
    return text + "\n" + line(name, 1, seed, text.encode())


def checkpoint(entries: list[bytes]) -> str:
    return f"{ORIGIN}\n{len(entries)}\n{b64(mth(entries))}\n"


def entry(i: int) -> bytes:
    time = f"2026-01-02T03:{i // 60 % 60:02}:{i % 60:02}.000000Z"
    return f'{{"fields":{{"i":{i},"name":"m\u00e9"}},"kind":"test.vector","time":"{time}"}}'.encode()


def bundle(entries: list[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(2, "big") + item for item in entries)


def frame(entries: list[bytes], note: str) -> bytes:
    body = len(entries).to_bytes(2, "big") + bundle(entries) + note.encode()
    return b"HLJF" + len(body).to_bytes(4, "big") + body + sha(body)


def journal(first: int, *frames: bytes) -> bytes:
    return b"hermetic-log-journal/1\n" + first.to_bytes(8, "big") + b"".join(frames)


def merkle() -> dict[str, Any]:
    a, b = (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    )
    c, d = (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    )
    e, f = (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    )
    g, h = (
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    )
    i, j = (
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    )
    return {
        "leaves": ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"],
        "roots": [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            a,
            j,
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            g,
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ],
        "inclusion": [
            {"index": 0, "size": 1, "proof": []},
            {"index": 0, "size": 8, "proof": [c, b, d]},
            {"index": 5, "size": 8, "proof": [e, f, g]},
            {"index": 2, "size": 3, "proof": [j]},
            {"index": 1, "size": 5, "proof": [a, b, e]},
        ],
        "consistency": [
            {"old": 1, "new": 1, "proof": []},
            {"old": 1, "new": 8, "proof": [c, b, d]},
            {"old": 6, "new": 8, "proof": [h, f, g]},
            {"old": 2, "new": 5, "proof": [b, e]},
            {"old": 6, "new": 7, "proof": [h, i, g]},
        ],
    }


def note() -> dict[str, Any]:
    good = signed("some text\n\nmore\n")
    name = f"— {ORIGIN} "
    body, _, value = good.partition(name)
    return {
        "keys": [
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
            vkey(ORIGIN, 1, public(SEED)),
        ],
        "refused_keys": [
            {"key": "a+00000000", "error": "<name>+<id>+<key>"},
            {"key": vkey(ORIGIN, 1, public(SEED)).replace("+", "+0", 1), "error": "key id"},
            {"key": vkey(ORIGIN, 2, public(SEED)), "error": "type"},
            {"key": vkey("a b", 1, public(SEED)), "error": "name"},
            {"key": vkey(ORIGIN, 1, public(SEED)[:31]), "error": "33 bytes"},
            {"key": f"{ORIGIN}+00000000+?", "error": "base64"},
        ],
        "notes": [
            {
                "key": "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                "signing_key": "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz",
                "text": "If you think cryptography is the answer to your problem,\n"
                "then you don't know what your problem is.\n",
                "note": "If you think cryptography is the answer to your problem,\n"
                "then you don't know what your problem is.\n\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAc"
                "ElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n",
            },
            {
                "key": vkey(ORIGIN, 1, public(SEED)),
                "signing_key": signing_key(ORIGIN, SEED),
                "text": "some text\n\nmore\n",
                "note": good,
            },
        ],
        "key": vkey(ORIGIN, 1, public(SEED)),
        "refused": [
            {"what": "changed text", "note": good.replace("some", "same"), "error": "does not verify"},
            {"what": "no blank line", "note": good.replace("\n\n", "\n"), "error": "expected a note"},
            {"what": "no last newline", "note": good.removesuffix("\n"), "error": "expected a note"},
            {"what": "no signature", "note": "some text\n\n", "error": "signature line"},
            {"what": "a hyphen for the dash", "note": good.replace("— ", "- "), "error": "signature line"},
            {"what": "not base64", "note": body + name + "?" + value, "error": "not base64"},
            {"what": "only a key id", "note": body + name + b64(b"1234") + "\n", "error": "more than 4 bytes"},
            {"what": "control character", "note": good.replace("more", "mo\tre"), "error": "control character"},
            {
                "what": "another key of that name",
                "note": signed("some text\n", seed=WITNESS_SEED),
                "error": "expected a signature",
            },
            {
                "what": "that key under another name",
                "note": signed("some text\n", name="other"),
                "error": "expected a signature",
            },
            {
                "what": "one good and one false line of the key",
                "note": good + line(ORIGIN, 1, SEED, b"other"),
                "error": "does not verify",
            },
            {"what": "65 lines", "note": good + line("x", 1, SEED, b"") * 64, "error": "at most 64 signatures"},
        ],
    }


def checkpoints() -> dict[str, Any]:
    root = b64(bytes(32))
    return {
        "accepted": [
            {"text": f"{ORIGIN}\n0\n{b64(sha(b''))}\n", "origin": ORIGIN, "size": 0, "root": sha(b"").hex()},
            {
                "text": f"Log with spaces\n9223372036854775807\n{root}\n",
                "origin": "Log with spaces",
                "size": 2**63 - 1,
                "root": bytes(32).hex(),
            },
        ],
        "refused": [
            {"text": f"a\n1\n{root}\nextension\n", "error": "3 lines"},
            {"text": "a\n1\n", "error": "3 lines"},
            {"text": f"\n1\n{root}\n", "error": "origin and size"},
            {"text": f"a\n-1\n{root}\n", "error": "origin and size"},
            {"text": f"a\n01\n{root}\n", "error": "canonical"},
            {"text": f"a\n\u0661\n{root}\n", "error": "origin and size"},
            {"text": f"a\n9223372036854775808\n{root}\n", "error": "origin and size"},
            {"text": f"a\n{'0' * 20}{'1' * 5000}\n{root}\n", "error": "origin and size"},
            {"text": f"a\n1\n{root}=\n", "error": "base64"},
            {"text": f"a\n1\n{b64(bytes(31))}\n", "error": "32 bytes"},
            {"text": f"a\n1\n{root[:-2]}B=\n", "error": "canonical"},
            {"text": f"a\n1\n{root}", "error": "canonical"},
        ],
    }


def record() -> dict[str, Any]:
    time = "2026-01-02T03:04:05.000006Z"
    return {
        "now": time,
        "accepted": [
            {"record": {"kind": "a", "fields": {}}, "entry": f'{{"fields":{{}},"kind":"a","time":"{time}"}}'},
            {
                "record": {
                    "kind": "key.released",
                    "time": "2025-12-31T23:59:59Z",
                    "fields": {"\u20ac": 1.0, "b": [True, None, 1e21], "a": '\u0000"\u00e9'},
                },
                "entry": '{"fields":{"a":"\\u0000\\"é","b":[true,null,1e+21],"€":1},"kind":"key.released",'
                '"time":"2025-12-31T23:59:59Z"}',
            },
        ],
        "refused": [
            {"record": {"kind": "a"}, "error": "['fields', 'kind', 'time']"},
            {"record": {"kind": "a", "fields": {}, "more": 1}, "error": "['fields', 'kind', 'time']"},
            {"record": {"kind": "A b", "fields": {}}, "error": "kind"},
            {"record": {"kind": "a" * 65, "fields": {}}, "error": "kind"},
            {"record": {"kind": "a", "fields": []}, "error": "JSON object"},
            {"record": {"kind": "a", "fields": {}, "time": "yesterday"}, "error": "RFC 3339"},
            {"record": {"kind": "a", "fields": {}, "time": "2025-12-31T23:59:59+01:00"}, "error": "RFC 3339"},
            {"record": {"kind": "a", "fields": {"n": 2**53}}, "error": "canonical JSON"},
        ],
        "refused_entries": [
            {"entry": '{"kind":"a","fields":{},"time":"2025-12-31T23:59:59Z"}', "error": "canonical"},
            {"entry": '{"fields":{},"kind":"a","time":"2025-12-31T23:59:59Z"} ', "error": "canonical"},
            {"entry": "[1]", "error": "canonical"},
            {"entry": "{", "error": "not JSON"},
        ],
    }


def journals() -> dict[str, Any]:
    entries = [entry(i) for i in range(3)]
    first, second = frame(entries[:1], signed(checkpoint(entries[:1]))), frame(entries[1:], signed(checkpoint(entries)))
    bad = first.replace(b"test", b"tset")
    return {
        "entries": [item.decode() for item in entries],
        "empty": journal(7).hex(),
        "whole": journal(0, first, second).hex(),
        "torn": [  # (what, journal, frames that count, bytes after them)
            ["half a frame", journal(0, first, second[:100]).hex(), 1, 100],
            ["half a frame header", journal(0, first, second[:6]).hex(), 1, 6],
            ["zeros", journal(0, first, bytes(64)).hex(), 1, 64],
        ],
        "refused": [  # (what, journal, index, error)
            ["no header", journal(0)[1:].hex(), None, "header"],
            ["cut header", journal(0)[:-1].hex(), None, "header"],
            ["damage before a whole frame", journal(0, bad, second).hex(), 0, "damaged at entry 0"],
            ["a cut frame before a whole one", journal(4, first[:100], first).hex(), 4, "damaged at entry 4"],
            [
                "a wrong length before a whole frame",
                journal(0, first[:4] + b"\x7f" + first[5:], second).hex(),
                0,
                "damaged at entry 0",
            ],
        ],
    }


def folder() -> dict[str, Any]:
    size = 600
    entries = [entry(i) for i in range(size)]
    leaves = [sha(b"\x00" + item) for item in entries]
    files = {
        "checkpoint": signed(checkpoint(entries)).encode(),
        "journal": journal(size),
        "tile/entries/000": bundle(entries[:256]),
        "tile/entries/001": bundle(entries[256:512]),
        "tile/entries/002.p/88": bundle(entries[512:]),
        "tile/0/000": b"".join(leaves[:256]),
        "tile/0/001": b"".join(leaves[256:512]),
        "tile/0/002.p/88": b"".join(leaves[512:]),
        "tile/1/000.p/2": mth(entries[:256]) + mth(entries[256:512]),
    }
    sizes = (0, 1, 2, 255, 256, 257, 512, 600)
    return {
        "origin": ORIGIN,
        "signing_key": signing_key(ORIGIN, SEED),
        "size": size,
        "checkpoints": {str(n): signed(checkpoint(entries[:n])) for n in sizes},
        "files_sha256": {name: sha(data).hex() for name, data in files.items()},
        "paths": [  # (level, index, width, tile, entries)
            [0, 0, 256, "tile/0/000", "tile/entries/000"],
            [1, 999, 1, "tile/1/999.p/1", "tile/entries/999.p/1"],
            [7, 1000, 255, "tile/7/x001/000.p/255", "tile/entries/x001/000.p/255"],
            [2, 1234067, 256, "tile/2/x001/x234/067", "tile/entries/x001/x234/067"],
        ],
    }


def cosignature() -> dict[str, Any]:
    text = checkpoint([entry(0)])
    message = f"cosignature/v1\ntime {WITNESS_TIME}\n{text}".encode()
    stamp = WITNESS_TIME.to_bytes(8, "big")
    cosigned = signed(text) + line(WITNESS, 4, WITNESS_SEED, message, stamp)
    bare = line(WITNESS, 4, WITNESS_SEED, text.encode(), stamp)
    future = line(WITNESS, 4, WITNESS_SEED, message, (2**63).to_bytes(8, "big"))
    return {
        "checkpoint": signed(text),
        "signing_key": signing_key(WITNESS, WITNESS_SEED),
        "key": vkey(WITNESS, 4, public(WITNESS_SEED)),
        "time": WITNESS_TIME,
        "cosigned": cosigned,
        "refused": [
            {
                "what": "another time",
                "note": cosigned.replace(
                    line(WITNESS, 4, WITNESS_SEED, message, stamp),
                    line(WITNESS, 4, WITNESS_SEED, message, (WITNESS_TIME + 1).to_bytes(8, "big")),
                ),
                "error": "does not verify",
            },
            {"what": "over the text alone", "note": signed(text) + bare, "error": "does not verify"},
            {
                "what": "without a time",
                "note": signed(text) + line(WITNESS, 4, WITNESS_SEED, message),
                "error": "72 bytes",
            },
            {"what": "an impossible time", "note": signed(text) + future, "error": "impossible time"},
            {"what": "none", "note": signed(text), "error": "1 witnesses"},
            {
                "what": "as a log's signature",
                "note": signed(text) + line(WITNESS, 1, WITNESS_SEED, text.encode()),
                "error": "1 witnesses",
            },
        ],
    }


def proof() -> dict[str, Any]:
    entries = [entry(i) for i in range(7)]
    hashes = "".join(b64(item) + "\n" for item in path(4, entries))
    good = f"c2sp.org/tlog-proof@v1\nindex 4\n{hashes}\n{signed(checkpoint(entries))}"
    first = hashes.split("\n")[0]
    return {
        "key": vkey(ORIGIN, 1, public(SEED)),
        "entry": entries[4].decode(),
        "proof": good,
        "refused": [
            {"what": "another index", "proof": good.replace("index 4", "index 5"), "error": "another root"},
            {"what": "an index outside", "proof": good.replace("index 4", "index 7"), "error": "below the tree size 7"},
            {"what": "index with a zero", "proof": good.replace("index 4", "index 04"), "error": "canonical"},
            {"what": "no index", "proof": good.replace("index 4\n", ""), "error": "an index"},
            {"what": "another version", "proof": good.replace("@v1", "@v2"), "error": "tlog-proof@v1"},
            {"what": "extra data", "proof": good.replace("index", "extra AA==\nindex"), "error": "an index"},
            {"what": "a hash less", "proof": good.replace(first + "\n", ""), "error": "below the root"},
            {"what": "a hash twice", "proof": good.replace(first + "\n", f"{first}\n{first}\n"), "error": "longer"},
            {"what": "not base64", "proof": good.replace(first, "?"), "error": "base64"},
            {"what": "a short hash", "proof": good.replace(first, b64(b"short")), "error": "hashes of 32 bytes"},
            {"what": "another size", "proof": good.replace("\n7\n", "\n8\n"), "error": "does not verify"},
            {"what": "no checkpoint", "proof": good.partition("\n\n")[0] + "\n", "error": "canonical"},
        ],
    }


def vectors() -> dict[str, Any]:
    return {
        "merkle": merkle(),
        "note": note(),
        "checkpoint": checkpoints(),
        "record": record(),
        "journal": journals(),
        "folder": folder(),
        "cosignature": cosignature(),
        "proof": proof(),
    }


def encode(vector: Any) -> str:
    return json.dumps(vector, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    for name, vector in vectors().items():
        Path(__file__).with_name(f"{name}.json").write_text(encode(vector))
