"""torch modules in half the bits, on the CPU: what is stored, what is answered, and that it is compared with FP32."""

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.gpus import ACCURACY, Accuracy, Gpu, GpuOrders, Precision
from hermetic.enclave.known_answer import verify_known_answers
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer, encode
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice
from hermetic.errors import KnownAnswerError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.sealed_models import Sealed, sealed, spec, tensor

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROWS = np.linspace(-2, 2, 4 * 24, dtype=np.float32).reshape(4, 24)


class Network(torch.nn.Module):
    """With what makes trouble: a norm, a type that is asked for by name, a sum over many, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.last = torch.nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.norm(self.first(x)))
        return torch.softmax(self.last(hidden.to(torch.float32)) + hidden.mean(-1, keepdim=True), -1)


def module() -> Network:
    torch.manual_seed(3)
    return Network().eval()


def exported() -> Any:
    rows = torch.export.Dim("rows", min=1, max=64)
    return torch.export.export(module(), (torch.zeros(2, 24),), dynamic_shapes={"x": {0: rows}}).module()


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = io.BytesIO()
        torch.jit.save(torch.jit.script(module()), content)
        content.seek(0)
        return torch.jit.load(content)  # type: ignore[no-untyped-call]


def on_device(made: Any, precision: Precision, device: DeviceDouble) -> TorchOnDevice:
    return TorchOnDevice(made, TorchCache(TorchCudaDouble(device)), "cpu", precision)


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Sealed, bytes]]:
    """A sealed model with the answers of the module in FP32."""
    with torch.inference_mode():
        answers = module()(torch.from_numpy(ROWS)).numpy()
    case = KnownAnswer((tensor("x", "FP32", ROWS),), (ExpectedOutput.of(tensor("y", "FP32", answers)),))
    ends = [spec("x", "FP32", 24)], [spec("y", "FP32", 5)]
    with sealed({"m.pt2": b"program"}, *ends, [case], format="torch-export", max_batch_size=8) as made:
        yield made, bytes(encode([case]))


def check(model: tuple[Sealed, bytes], made: Any, precision: Precision, accuracy: Accuracy | None) -> int:
    """Load the module at a precision, and give the known answers on the path that serves."""
    device = DeviceDouble()
    memory = DeviceMemory(device)
    manifest = model[0].manifest
    description = manifest.description()
    runner = DeviceRunner(on_device(made, precision, device), description, memory)
    return verify_known_answers(runner, description, manifest, memoryview(model[1]), accuracy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("load", [module, exported, scripted])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_model_computes_in_half_the_bits_and_is_near_enough(
    model: tuple[Sealed, bytes], load: Callable[[], Any], precision: Precision
) -> None:
    made = load()
    assert check(model, made, precision, ACCURACY[precision]) == 1
    stored = {name: value.dtype for name, value in made.named_parameters()}
    matrices = {name for name, dtype in stored.items() if dtype == DTYPES[precision]}
    assert {name.replace("_", ".") for name in matrices} == {"first.weight", "last.weight"}
    assert set(stored.values()) == {torch.float32, DTYPES[precision]}


def test_what_is_too_far_from_fp32_is_refused_with_expected_and_got(model: tuple[Sealed, bytes]) -> None:
    too_far = (
        r"accuracy of bf16 against fp32: known answer: output 'y': expected within rtol 0.0001 and atol 1e-05, "
        r"\d+ of 20 elements are off, at most [\d.e+]+ times that, first \d"
    )
    with pytest.raises(KnownAnswerError, match=too_far):
        check(model, module(), "bf16", Accuracy("bf16", 0, 0))  # the publisher's own tolerance is what is left
    with pytest.raises(KnownAnswerError, match=r"^known answer: output 'y'"):
        check(model, module(), "bf16", None)
    assert check(model, module(), "fp32", None) == 1


def in_tf32() -> Network:
    """The module with its matrices rounded to ten bits of fraction, as TF32 takes them."""
    made = module()
    with torch.no_grad():
        for weight in (made.first.weight, made.last.weight):
            weight.copy_(((weight.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))
    return made


def test_tf32_is_no_fp32_for_the_known_answers_and_is_held_to_what_is_allowed_for_it(
    model: tuple[Sealed, bytes],
) -> None:
    assert check(model, in_tf32(), "tf32", ACCURACY["tf32"]) == 1
    with pytest.raises(KnownAnswerError, match=r"^known answer: output 'y'"):
        check(model, in_tf32(), "fp32", None)
    other = in_tf32()
    with torch.no_grad():
        other.last.weight[0] *= -4
    with pytest.raises(KnownAnswerError, match="accuracy of tf32 against fp32"):
        check(model, other, "tf32", ACCURACY["tf32"])


def test_another_model_is_refused_at_any_precision_that_can_be_asked_for(model: tuple[Sealed, bytes]) -> None:
    other = module()
    with torch.no_grad():
        other.last.weight[0] *= -4
    with pytest.raises(KnownAnswerError, match="accuracy of fp16 against fp32"):
        check(model, other, "fp16", ACCURACY["fp16"])


def test_what_an_operator_says_goes_before_the_defaults_and_has_a_bound() -> None:
    def orders(**more: Any) -> GpuOrders:
        return GpuOrders(gpu=Gpu(number=0, uuid="GPU-aa", minor=0), memory_limit_bytes=1, **more)

    assert orders().accuracy is None
    assert orders(precision="bf16").accuracy == ACCURACY["bf16"]
    assert orders(precision="tf32").accuracy == ACCURACY["tf32"]
    assert orders(precision="bf16", max_absolute_error=0.05).accuracy == ("bf16", 2e-2, 0.05)
    assert orders(precision="fp16", max_relative_error=0).accuracy == ("fp16", 0, 5e-3)
    for wrong in ({"max_absolute_error": 0.2}, {"max_relative_error": -1.0}, {"precision": "int8"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            orders(**wrong)
