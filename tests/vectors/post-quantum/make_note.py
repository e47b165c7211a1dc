"""Write note.json: a note signed by two keys, by hand: nothing of the code under test is imported.

Run from the root of the repository. The keys are published: seeds of 32 zeros, and of the bytes 00 to 1f.
"""

import base64
import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

NAME, TEXT = "log.example/test", "a text\nof two lines\n"
SEEDS = {b"\x01": bytes(32), b"\xffhermetic-ml-dsa-65/1\x00": bytes(range(32))}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    (one, first), (two, second) = SEEDS.items()
    ed, ml = Ed25519PrivateKey.from_private_bytes(first), MLDSA65PrivateKey.from_seed_bytes(second)
    public, private, lines = [], [], []
    signatures = (ed.sign(TEXT.encode()), ml.sign(TEXT.encode(), b"hermetic signed note"))
    for kind, seed, key, signature in ((one, first, ed, signatures[0]), (two, second, ml, signatures[1])):
        raw = key.public_key().public_bytes_raw()
        key_id = hashlib.sha256(NAME.encode() + b"\n" + kind + raw).digest()[:4]
        public.append(f"{NAME}+{key_id.hex()}+{b64(kind + raw)}")
        private.append(f"PRIVATE+KEY+{NAME}+{key_id.hex()}+{b64(kind + seed)}")
        lines.append(f"\N{EM DASH} {NAME} {b64(key_id + signature)}\n")
    document = {
        "key": "\n".join(public),
        "signing_key": "\n".join(private),
        "text": TEXT,
        "note": TEXT + "\n" + "".join(lines),
    }
    Path("tests/vectors/post-quantum/note.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
