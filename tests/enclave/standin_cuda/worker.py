"""The worker on a GPU, where there is none: `python -m tests.enclave.standin_cuda.worker` as supervisors start it.

Everything is the product's but for three things. NVIDIA's driver is driver.c; its nodes are some that every machine
has; and the product's load of ONNX Runtime is given sessions that compute on the CPU, in the driver's memory
(tests/enclave/onnx_on_double.py). A model whose input is called `attempts` makes
attempts instead: for each number of a batch one of `ATTEMPTS`, in a thread of the driver, or in the worker's own where
the number is negative. The answer is 0 where it succeeded, else the errno.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hermetic.enclave import runtimes, worker, worker_process, zero_on_free
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.isolation import seccomp
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import (
    DeviceAnswer,
    DeviceInput,
    DeviceOutput,
    DeviceRuntime,
    Launched,
)

HERE = Path(__file__).parent
FOLDER = "HERMETIC_TEST_STANDIN"
ALONE = "HERMETIC_TEST_FILTER_ONE_THREAD"
DEVICES = ("/dev/null", "/dev/zero")
NODE = "/dev/full"
COMPILER = "libnvstandin-compiler.so"

# From 1 on: which kind (driver.c), on what, whether it is to succeed.
ATTEMPTS: tuple[tuple[str, str, bool], ...] = (
    ("r", "/etc/passwd", False),
    ("r", "/etc/ld.so.cache", True),
    ("r", "/proc/self/mem", False),
    ("r", "/proc/self/maps", True),
    ("r", "/proc/cpuinfo", True),
    ("w", "/proc/self/maps", False),
    ("r", "/proc/1/maps", False),
    ("w", "/dev/null", True),
    ("r", "/dev/urandom", False),
    ("n", "/dev/zero", True),
    ("s", "", False),
    ("f", "", False),
    ("i", "0xc020462a", True),  # NV_ESC_RM_CONTROL
    ("i", "0xc038464d", False),  # NV_ESC_RM_ACCESS_REGISTRY
    ("i", "62", False),  # UVM_TOOLS_READ_PROCESS_MEMORY
    ("l", COMPILER, True),
    ("l", "libcrypt.so.1", False),
)


def build(folder: Path) -> Path:
    """Compile the driver and what it loads."""
    for source, library in (("driver.c", "libcuda.so.1"), ("compiler.c", COMPILER)):
        command = ["cc", "-O1", "-shared", "-fPIC", "-pthread", "-o", str(folder / library), str(HERE / source)]
        subprocess.run([*command, "-ldl"], check=True)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def has_compiler() -> bool:
    """Whether the driver can be made here."""
    return shutil.which("cc") is not None


@contextmanager
def on(folder: Path, *, outside: bool = False, alone: bool = False) -> Iterator[None]:
    """Supervisors of this process start such workers meanwhile.

    `outside`: the driver has a thread under a filter of its own. `alone`: the last stage is for one thread only.
    """
    module: Any = worker_process
    before = module.program, module.environment
    told = {
        "PYTHONPATH": str(HERE.parents[2]),
        "LD_LIBRARY_PATH": str(folder),
        FOLDER: f"{'outside:' if outside else ''}{folder}",
        **({ALONE: "1"} if alone else {}),
    }
    module.program = lambda _: [*zero_on_free.interpreter(), "-m", "tests.enclave.standin_cuda.worker"]
    module.environment = lambda: {**before[1](), **told}
    try:
        yield
    finally:
        module.program, module.environment = before


def open_driver(folder: Path) -> None:
    """Open the GPU in this process: its threads are there from now on."""
    os.environ[FOLDER] = str(folder)
    driver = ctypes.CDLL(str(folder / "libcuda.so.1"))
    for error in (driver.cuInit(0), driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 70)):
        if error:
            raise OSError(f"stand-in driver: wanted it to open, got error {error}")


class Attempting:
    """`DeviceRuntime` whose answers are what attempts came to."""

    holds_views = False
    synchronous = True

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")

    def prepare(self, stream: int) -> None:
        """Nothing."""

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Make the attempts of the batch."""
        (given,), (wanted,) = inputs, outputs
        numbers = np.frombuffer(ctypes.string_at(given.address, given.nbytes), np.float32)
        errors = np.array([self._attempt(int(number)) for number in numbers], np.float32)
        ctypes.memmove(wanted.address, errors.ctypes.data, errors.nbytes)
        return Launched((DeviceAnswer(wanted.address, errors.nbytes, given.shape),), None)

    def close(self) -> None:
        """Nothing."""

    def _attempt(self, number: int) -> int:
        kind, what, _ = ATTEMPTS[abs(number) - 1]
        make = self._driver.standin_try if number > 0 else self._driver.standin_try_here
        return int(make(ord(kind), what.encode()))


def _install() -> None:
    from hermetic.enclave.runtimes import onnx_cuda

    PROFILES["onnx-cuda"] = replace(PROFILES["onnx-cuda"], devices=DEVICES)
    gpu: Any = Gpu
    gpu.nodes = (NODE,)
    from tests.enclave.onnx_on_double import Told, library

    real = onnx_cuda.load

    def load(model: ModelToLoad, memory: DeviceMemory, orders: GpuOrders) -> DeviceRuntime:
        return Attempting() if model.inputs[0].name == "attempts" else real(model, memory, orders, library(Told()))

    module: Any = onnx_cuda
    module.open_gpu = lambda: None  # the driver's threads are there since its context was made
    module.load = load
    if ALONE in os.environ:
        filters: Any = seccomp
        filters._FILTER_FLAG_TSYNC = 0


if __name__ == "__main__":
    assert runtimes.MODULE_ON_GPU["onnx"].endswith("onnx_cuda")
    _install()
    os._exit(worker.main(sys.argv[1:]))
