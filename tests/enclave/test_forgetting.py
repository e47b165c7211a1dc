"""What a worker and its supervisor hold in memory: weights only while loaded, keys only until the model is open."""

import base64
import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper

from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.memory_scan import forms, regions, scan
from hermetic.enclave.zero_on_free import environment, interpreter
from tests.enclave.front_end_double import FrontEnd
from tests.enclave.sealed_models import (
    Sealed,
    known_answers_of,
    linear,
    onnx_model,
    sealed,
    serving,
    settings,
    spec,
    tensor,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a locked worker")

ROOT = Path(__file__).parents[2]


class Supervisor:
    """The process of lone_supervisor.py."""

    def __init__(self, model: Sealed, folder: Path) -> None:
        path = folder / "model.sealed"
        path.write_bytes(Path(f"/proc/self/fd/{model.fd}").read_bytes())
        arguments = json.dumps(dataclasses.asdict(settings()))
        command = [*interpreter(), "-m", "tests.enclave.lone_supervisor", str(path), arguments]
        paths = {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | paths, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._hear()

    def say(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        facts: dict[str, Any] = json.loads(self.process.stdout.readline())
        return facts

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Sealed, bytes]]:
    """A sealed model with known answers, and 64 bytes from the middle of its weights."""
    graph, weight = linear(size=512)
    rows = np.ones((2, 512), np.float32)
    ends: dict[str, Any] = {
        "inputs": [spec("x", "FP32", 512)],
        "outputs": [spec("y", "FP32", 512)],
        "max_batch_size": 8,
    }
    files = {"model.onnx": graph.SerializeToString()}
    with sealed(files, **ends) as draft:
        cases = known_answers_of(draft, [(tensor("x", "FP32", rows),)])
    with sealed(files, cases=cases, **ends) as final:
        yield final, weight.tobytes()[4096:4160]


@pytest.fixture
def supervisor(model: tuple[Sealed, bytes], tmp_path: Path) -> Iterator[Supervisor]:
    process = Supervisor(model[0], tmp_path)
    yield process
    process.close()


def private_key_in_memory(pid: int, jwk: dict[str, str]) -> bytes | None:
    """The private half of `jwk` as OpenSSL keeps it (32 bytes, lowest first), where a heap block of `pid` holds it."""
    wanted = int.from_bytes(base64.urlsafe_b64decode(jwk["x"] + "="), "big")
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in regions(pid):
            if "w" in region.permissions and not region.name.startswith(("/memfd", "/secretmem")):
                memory.seek(region.start)
                for candidate in _random_looking(memory.read(region.end - region.start)):
                    if _public_x(candidate) == wanted:
                        return candidate
    return None


def _random_looking(content: bytes) -> Iterator[bytes]:
    """Every 32 bytes that could be a random number at the start of a heap block, which its small size precedes."""
    words = np.frombuffer(content[: len(content) // 8 * 8], np.uint8).reshape(-1, 8)
    if len(words) < 5:
        return
    windows = np.lib.stride_tricks.sliding_window_view
    headers = words.view("<u8").ravel() < 256
    few_zeros = windows((words == 0).sum(axis=1), 4).sum(axis=1) <= 2
    high_bits = windows((words >= 0x80).sum(axis=1), 4).sum(axis=1) >= 4
    for index in np.flatnonzero(headers[:-4] & few_zeros[1:] & high_bits[1:]) + 1:
        yield content[8 * index : 8 * index + 32]


def _public_x(candidate: bytes) -> int:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    number = int.from_bytes(candidate, "little")
    if not 0 < number < order:
        return 0
    return ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers().x


def test_weights_are_in_the_worker_while_loaded_and_nowhere_after(
    model: tuple[Sealed, bytes], supervisor: Supervisor
) -> None:
    final, canary = model
    assert supervisor.facts["zeroing"] == "enforced"
    worker = supervisor.facts["worker"]
    supervisor.say(wrap_to(supervisor.facts["public_key"], bytearray(final.key)).decode())
    # The control: the same search, in the same kind of process and memory, finds it where it must be.
    assert scan(worker, {"weight": canary}).count("weight") >= 1
    assert scan(supervisor.process.pid, forms("weight", canary)).hits == ()
    assert supervisor.say("unload") == {"wiped": True}
    assert not Path(f"/proc/{worker}").exists()
    assert scan(supervisor.process.pid, forms("weight", canary)).hits == ()


def test_no_key_is_in_the_worker_neither_before_nor_after_the_model_is_open(
    model: tuple[Sealed, bytes], supervisor: Supervisor
) -> None:
    final, _ = model
    worker, jwk = supervisor.facts["worker"], supervisor.facts["public_key"]
    secret = supervisor.facts["key_memory"] == "secret"  # else it lies where the search below finds it
    if secret:
        assert private_key_in_memory(worker, jwk) is None
        assert has_secret_memory(worker)
    supervisor.say(wrap_to(jwk, bytearray(final.key)).decode())
    assert not has_secret_memory(worker), "it is given back once it has been looked at and is zero"
    assert private_key_in_memory(worker, jwk) is None
    assert scan(worker, forms("model key", final.key)).hits == ()
    assert scan(supervisor.process.pid, forms("model key", final.key)).hits == ()


def has_secret_memory(pid: int) -> bool:
    return any(region.name.startswith("/secretmem") for region in regions(pid))


KEEPER = """
import json, sys
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
numbers = key.private_numbers()
print(json.dumps({"x": numbers.public_numbers.x, "private": numbers.private_value}), flush=True)
sys.stdin.read()
"""


def test_the_search_finds_a_private_key_that_is_kept_in_ordinary_memory() -> None:
    """The control of the test above, with a key as OpenSSL keeps it, in a process that holds little else."""
    command = [*interpreter(), "-c", KEEPER]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        key = json.loads(keeper.stdout.readline())
        jwk = {"x": base64.urlsafe_b64encode(key["x"].to_bytes(32, "big")).decode().rstrip("=")}
        assert private_key_in_memory(keeper.pid, jwk) == key["private"].to_bytes(32, "little")


def test_neither_input_nor_output_is_left_in_the_worker_once_the_front_end_has_wiped(
    model: tuple[Sealed, bytes],
) -> None:
    final, _ = model
    random = np.random.default_rng(5)
    rows = random.standard_normal((3, 512)).astype(np.float32)
    with serving(final) as worker:
        end = FrontEnd(worker)
        (answer,) = end.ask([rows])
        canaries = {"input": rows.tobytes()[512:576], "output": answer[512:576]}
        # The control: both lie in the memory that the worker shares with the front end.
        assert {hit.canary for hit in scan(worker.pid, canaries).hits} == {"input", "output"}
        for region in (*end.layout.inputs, *end.layout.outputs):
            view, _ = end.buffers.region(0, region)
            view[:] = bytes(len(view))
        assert scan(worker.pid, canaries).hits == ()
        end.close()


@pytest.mark.parametrize("rows", [1, 64])
def test_nothing_that_the_model_computed_on_the_way_is_left_after_a_batch(rows: int) -> None:
    """Small blocks and large ones; the second batch of a shape runs in memory that was planned in the first."""
    size = 2048
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Sin", ["square"], ["sine"]),
        helper.make_node("MatMul", ["sine", "weight"], ["y"]),
    ]
    ends: dict[str, Any] = {"inputs": [spec("x", "FP32", size)], "outputs": [spec("y", "FP32", size)]}
    graph = onnx_model(
        nodes,
        {"x": (TensorProto.FLOAT, ["rows", size])},
        {"y": (TensorProto.FLOAT, ["rows", size])},
        {"weight": np.full((size, size), 1e-3, np.float32)},
    )
    files = {"model.onnx": graph.SerializeToString()}
    given = np.random.default_rng(6).standard_normal((rows, size)).astype(np.float32)
    with sealed(files, max_batch_size=rows, **ends) as draft:
        cases = known_answers_of(draft, [(tensor("x", "FP32", given[:1] * 0),)])
    with sealed(files, cases=cases, max_batch_size=rows, **ends) as final, serving(final) as worker:
        end = FrontEnd(worker)
        for _ in range(3):
            end.ask([given])
        square = given[0] * given[0]
        canaries = {"square": square[1024:1040].tobytes(), "sine": np.sin(square)[1024:1036].tobytes()}
        assert scan(worker.pid, canaries).hits == ()
        assert scan(worker.pid, {"input": given[0, 1024:1040].tobytes()}).hits != ()  # the control: not wiped yet
        end.close()
