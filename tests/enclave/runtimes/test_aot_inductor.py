"""Native code in a real locked worker: whose is opened, what it may do before the second filter, and what after."""

import ctypes
import io
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._aoti import AOTIModelContainerRunnerCpu

from hermetic.enclave.answering import answer
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes import torch_cuda
from hermetic.enclave.runtimes.aot_inductor import Program, hand_over, without_executable_stack
from hermetic.enclave.runtimes.archive import content_of
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceInput, DeviceOutput
from hermetic.enclave.runtimes.torch_archives import check_aot_inductor, check_torch_export
from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice
from hermetic.errors import ConfigurationError, ModelFormatError, SealedModelError, WorkerLostError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.runtimes.test_torch import safetensors
from tests.enclave.sealed_models import open_in, publishers, sealed, serving, settings, spec, started, tensor

MODEL = Path("tests/vectors/aot-inductor/model.pt2").resolve()
SPECS = [spec("x", "FP32", 6)], [spec("y", "FP32", 3)]
ROWS = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
NATIVE: dict[str, Any] = {"profile": "torch-native", "draft": True, "publishers": publishers(native_code=True)}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    shapes = {"a.weight": (16, 6), "a.bias": (16,), "b.weight": (3, 16)}
    return {name: torch.empty(shape).uniform_(-1, 1) for name, shape in shapes.items()}


def files(**changes: torch.Tensor) -> dict[str, bytes]:
    return {"model.pt2": MODEL.read_bytes(), "model.safetensors": safetensors(weights() | changes)}


def wanted(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    own = weights()
    hidden = torch.tanh(torch.from_numpy(rows.copy()) @ own["a.weight"].T + own["a.bias"])
    return torch.softmax(hidden @ own["b.weight"].T, -1).numpy()


def packed(program: bytes, **more: bytes) -> bytes:
    """An archive as AOTInductor packs it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in {"version": b"3", "data/aotinductor/model/a.so": program, **more}.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), part)
    return content.getvalue()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Programs that try what they may not, compiled: as they are loaded and with each batch."""
    folder = tmp_path_factory.mktemp("hostile")
    source = Path(__file__).with_name("hostile_program.c")
    libraries = Path(torch.__file__).parent / "lib"
    made = {}
    for name, flags in {"trying": [], "executing": ["-DEXECUTE"]}.items():
        command = ["gcc", "-shared", "-fPIC", "-O1", *flags, "-o", str(folder / name), str(source)]
        subprocess.run([*command, f"-L{libraries}", "-l:libtorch_cpu.so"], check=True)
        made[name] = (folder / name).read_bytes()
    return made


def test_a_marked_publishers_program_is_served_on_weights_that_stay_where_they_are() -> None:
    with sealed(files(), *SPECS, format="aot-inductor", max_batch_size=8) as model, serving(model, **NATIVE) as worker:
        assert {"write-xor-execute", "seccomp", "empty-root"} <= set(worker.report.layers)
        for rows in (ROWS, ROWS[:1], ROWS):
            (got,) = answer(worker, (tensor("x", "FP32", rows),))
            np.testing.assert_allclose(np.frombuffer(got.raw, np.float32).reshape(-1, 3), wanted(rows), rtol=1e-5)
        assert worker.unload()


@pytest.mark.parametrize(
    ("marks", "refusal"), [({"code": False}, "publisher-not-for-code"), ({}, "publisher-not-for-native-code")]
)
def test_another_publishers_is_refused(marks: dict[str, bool], refusal: str) -> None:
    unmarked = settings(**NATIVE | {"publishers": publishers(**marks)})
    refused = pytest.raises(SealedModelError, match=rf"{refusal}: .*expected a publisher with .* = true")
    with sealed(files(), *SPECS, format="aot-inductor") as model, started(unmarked) as worker, refused:
        open_in(worker, model)


ATTEMPTS = ("anonymous", "written", "changed", "own file", "opened", "outside", "to write", "socket", "executed")


def test_what_its_program_can_do_before_the_second_filter_it_cannot_do_after(hostile: Mapping[str, bytes]) -> None:
    """Loading takes a file that is mapped executable; nothing else that a worker may not do works even then."""
    ends = [spec("x", "FP32", 2 * len(ATTEMPTS))], [spec("y", "FP32", 2 * len(ATTEMPTS))]
    attack = {"model.pt2": packed(hostile["trying"])}
    with sealed(attack, *ends, format="aot-inductor") as model, serving(model, **NATIVE) as worker:
        asked = np.full(2 * len(ATTEMPTS), 5, np.float32)
        (got,) = answer(worker, (tensor("x", "FP32", asked),))
    early, late = np.frombuffer(got.raw, np.float32).reshape(2, -1)
    assert {name for name, worked in zip(ATTEMPTS, early, strict=True) if worked > 0} == {"own file", "opened"}
    assert {name for name, worked in zip(ATTEMPTS, late, strict=True) if worked > 0} == set()
    assert set(late[:-1]) == {-1}


def test_a_program_that_executes_another_ends_its_worker(hostile: Mapping[str, bytes]) -> None:
    attack = {"model.pt2": packed(hostile["executing"])}
    killed = pytest.raises(WorkerLostError, match=r"SIGSYS.*a system call that its filter forbids")
    with sealed(attack, *SPECS, format="aot-inductor") as model, started(settings(**NATIVE)) as worker, killed:
        open_in(worker, model)


def test_what_is_no_program_is_refused_with_the_loaders_words() -> None:
    no_program = {"model.pt2": packed(b"no ELF")}
    refused = pytest.raises(ModelFormatError, match=r"wanted a program that torch can load, got .*/fd/\d+: ")
    with sealed(no_program, *SPECS, format="aot-inductor") as model, started(settings(**NATIVE)) as worker, refused:
        open_in(worker, model)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the vector in a file of its own."""
    path = tmp_path_factory.mktemp("linked") / "model.so"
    content = memoryview(MODEL.read_bytes())
    path.write_bytes(without_executable_stack(content_of(content, check_aot_inductor(content), 1 << 22)))
    return path


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"a.bias": None, "b.weight": None}, r"as safetensors, got none for \['a.bias', 'b.weight'\]"),
        ({"a.bias": torch.zeros(16).double()}, "weight 'a.bias': wanted torch.float32, got torch.float64"),
    ],
)
def test_weights_that_are_not_the_programs(linked: Path, changed: dict[str, Any], reason: str) -> None:
    given = {name: value for name, value in (weights() | changed).items() if value is not None}
    runner = AOTIModelContainerRunnerCpu(str(linked), 1)
    with pytest.raises(ModelFormatError, match=reason):
        hand_over(runner, given)
    hand_over(runner, weights() | {"small": torch.zeros(1)})  # torch may have written it into the program


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (packed(b"", **{"data/aotinductor/model/k.cubin": b""}), "archive-names: .*its kernels in it, got .*k.cubin"),
        (packed(b"", **{"data/weights/weight_0": b""}), "archive-names: .*got 'data/weights/weight_0'"),
        (packed(b"", **{"data/aotinductor/model/b.so": b""}), "archive-names: .pt2: wanted one shared object, got 2"),
        (packed(b"", **{"data/aotinductor/other/b.so": b""}), "archive-names"),
        (b"\x80\x04.", "archive: AOTInductor: wanted a ZIP archive"),
    ],
)
def test_archives_that_hold_native_code_in_another_way(archive: bytes, reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        check_aot_inductor(memoryview(archive))


def test_a_program_for_another_device_is_refused() -> None:
    check_aot_inductor(memoryview(MODEL.read_bytes()), "cpu")
    with pytest.raises(ModelFormatError, match="native-code: wanted a program for 'cuda', got one for 'cpu'"):
        check_aot_inductor(memoryview(MODEL.read_bytes()), "cuda")
    for told in (b"[]", b"{"):
        with pytest.raises(ModelFormatError, match=r"archive: .* wanted an object in JSON"):
            check_aot_inductor(memoryview(packed(b"", **{"data/aotinductor/model/a_metadata.json": told})), "cpu")


def test_on_a_gpu_it_has_the_types_that_it_was_compiled_with() -> None:
    orders = GpuOrders(gpu=Gpu(number=0, uuid="GPU-aa", minor=0), memory_limit_bytes=1, precision="fp16")
    model = ModelToLoad("aot-inductor", None, {}, (spec("x", "FP32", 6),), (spec("y", "FP32", 3),), 8, 1)
    with pytest.raises(ConfigurationError, match="wanted fp32 or tf32 for a program in native code"):
        torch_cuda.load(model, DeviceMemory(DeviceDouble()), orders)


def test_its_batches_on_a_device_are_computed_where_they_lie(linked: Path) -> None:
    """The path of a GPU, on the CPU: the program in the place of a module."""
    runner = AOTIModelContainerRunnerCpu(str(linked), 1)
    hand_over(runner, weights())
    model = ModelToLoad("aot-inductor", None, {}, (spec("x", "FP32", 6),), (spec("y", "FP32", 3),), 8, 1)
    device = DeviceDouble()
    memory = DeviceMemory(device)
    runtime = TorchOnDevice(Program(runner, model), TorchCache(TorchCudaDouble(device)), "cpu")
    for rows in (ROWS, ROWS[:1]):
        x, y = (device.allocate(4 * len(rows) * columns) for columns in (6, 3))
        ctypes.memmove(x, rows.tobytes(), rows.nbytes)
        shape = (len(rows), 3)
        runtime.launch(
            [DeviceInput(model.inputs[0], rows.shape, rows.nbytes, x)],
            [DeviceOutput(model.outputs[0], shape, 12 * len(rows), y)],
            0,
        )
        got = np.frombuffer(device.read(y, 12 * len(rows)), np.float32).reshape(shape)
        np.testing.assert_allclose(got, wanted(rows), rtol=1e-5)
    runtime.close()
    memory.unload()


def test_no_other_format_may_hold_native_code() -> None:
    with pytest.raises(ModelFormatError, match="native-code: wanted no native code in a format other than aot"):
        check_torch_export(memoryview(MODEL.read_bytes()))


def test_a_program_gets_no_executable_stack_whatever_it_asks_for() -> None:
    program = MODEL.read_bytes()
    content = memoryview(program)
    linked = content_of(content, check_aot_inductor(content), 1 << 22)
    changed = without_executable_stack(linked)
    (at,) = [at for at, (one, other) in enumerate(zip(linked, changed, strict=True)) if one != other]
    assert (linked[at], changed[at]) == (7, 6)  # read, write, execute
    for damaged in (b"", b"\x7fELF\x02\x01", linked[:100], linked[:64]):
        assert bytes(without_executable_stack(damaged)) == damaged
