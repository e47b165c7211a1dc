"""Run as a process of its own: seals a model again and again, each time killed (SIGKILL) one step later.

    python crash_while_sealing.py FOLDER

Steps are Python's audit events (open, link, remove), the progress and the delivery of the key. Says, as JSON, what
each run left in its folder: [{"step": "...", "files": [...]}, ...]; only the last run was not killed.
"""

import json
import os
import signal
import sys
from pathlib import Path

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import MemoryFile, ModelFacts, SealedKey, seal

STEPS = ("open", "os.link", "os.remove", "progress", "deliver")
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(1,))
FACTS = ModelFacts("m", 1, "onnx", None, (TENSOR,), (TENSOR,), 0, "kbs:///a/b/c", "2026-01-01T00:00:00Z")
FILES = [MemoryFile("model.onnx", b"graph"), MemoryFile("w.bin", bytes(range(256)) * 10_000)]


def seal_until(step: int, folder: Path, signer: PublisherKey) -> None:
    """In the child: seal, and die at step number `step`; its name is noted in the folder's `step` file before."""
    left = step

    def at(event: str, *_: object) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left == 0:
                os.write(names, event.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def deliver(sealed: SealedKey) -> None:
        at("deliver")
        fd = os.open(folder / "key", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, sealed.key)
        os.fsync(fd)
        os.close(fd)

    names = os.open(folder / "step", os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(at)
    seal(folder / "m-1.sealed", FACTS, FILES, signer, deliver=deliver, progress=lambda _: at("progress"))


def main(root: Path) -> None:
    signer = PublisherKey.generate("acme")
    (root / "publishers.json").write_text(json.dumps({"publishers": [signer.publisher().document()]}))
    runs, step, killed = [], 0, True
    while killed:
        step += 1
        folder = root / str(step)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            seal_until(step, folder, signer)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        runs.append({"step": (folder / "step").read_text(), "files": sorted(p.name for p in folder.iterdir())})
    sys.stdout.write(json.dumps(runs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
