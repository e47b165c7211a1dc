"""Writes model.pt2: softmax(Linear(tanh(Linear(x)))) of 6, 16 and 3, compiled by AOTInductor of torch 2.13 on x86-64.

Its weights are not in it (`package_constants_in_so`): `a.weight`, `a.bias` and `b.weight` come beside it. It is
compiled for every x86-64, its symbols are stripped and its files deflated, so that it is small enough to be kept. Needs
g++ and strip, and a minute: python tests/vectors/aot-inductor/compile_model.py
"""

import subprocess
import tempfile
import zipfile
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package

HERE = Path(__file__).parent
PORTABLE = {"aot_inductor.package_constants_in_so": False, "cpp.march": "x86-64", "cpp.simdlen": 0}


class Network(torch.nn.Module):
    """What `tests/enclave/runtimes/test_aot_inductor.py` computes too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(6, 16)
        self.b = torch.nn.Linear(16, 3, bias=False)  # torch writes so small a bias into the program

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, 3] for [rows, 6]."""
        return torch.softmax(self.b(torch.tanh(self.a(x))), -1)


def main() -> None:
    """Compile, strip and pack again."""
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]  # a locked worker has none: it makes code while it runs
    rows = torch.export.Dim("rows", min=1, max=64)
    with torch.no_grad(), tempfile.TemporaryDirectory() as name:
        program = torch.export.export(Network().eval(), (torch.zeros(2, 6),), dynamic_shapes=({0: rows},))
        made = aoti_compile_and_package(program, package_path=f"{name}/made.pt2", inductor_configs=PORTABLE)
        with zipfile.ZipFile(made) as archive, zipfile.ZipFile(HERE / "model.pt2", "w", zipfile.ZIP_DEFLATED) as kept:
            for entry in archive.infolist():
                content = archive.read(entry)
                if entry.filename.endswith(".so"):
                    whole = Path(name) / "whole.so"
                    whole.write_bytes(content)
                    subprocess.run(["strip", str(whole)], check=True)
                    content = whole.read_bytes()
                kept.writestr(zipfile.ZipInfo(entry.filename), content, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
