"""A model that AOTInductor compiles on this machine, as a publisher of native code would: the program, its weights."""

from pathlib import Path
from typing import Any, Final

import torch

from tests.enclave.runtimes.test_torch import safetensors

COLUMNS: Final = 32
LARGEST: Final = 8


class Network(torch.nn.Module):
    """Two layers; what AOTInductor makes kernels of, and what it calls cuBLAS for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.a = torch.nn.Linear(COLUMNS, 4 * COLUMNS)
        self.b = torch.nn.Linear(4 * COLUMNS, COLUMNS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.b(torch.tanh(self.a(x))), -1)


def wanted(rows: Any) -> Any:
    """Return what the network answers on the CPU."""
    with torch.inference_mode():
        return Network()(torch.from_numpy(rows)).numpy()


def compiled(folder: Path, device: str) -> dict[str, bytes]:
    """Return the files of the model, compiled for "cuda" or "cpu". Raises what torch raises: it takes compilers."""
    from torch._inductor import aoti_compile_and_package

    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]  # a locked worker has none
    rows = torch.export.Dim("rows", min=1, max=LARGEST)
    own: dict[str, Any] = {"cpp.march": "x86-64"} if device == "cpu" else {"aot_inductor.embed_kernel_binary": True}
    told = {"aot_inductor.package_constants_in_so": False, **own}
    module = Network().eval().to(device)
    path = str(folder / "model.pt2")
    with torch.no_grad():
        sample = (torch.zeros(2, COLUMNS, device=device),)
        program = torch.export.export(module, sample, dynamic_shapes=({0: rows},))
        made = aoti_compile_and_package(program, package_path=path, inductor_configs=told)
    weights = {name: weight.cpu() for name, weight in module.state_dict().items()}
    return {"model.pt2": Path(made).read_bytes(), "model.safetensors": safetensors(weights)}
