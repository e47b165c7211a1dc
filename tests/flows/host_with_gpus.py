"""`hermetic` on a host whose NVIDIA driver is a double: `python -m tests.flows.host_with_gpus FOLDER serve ...`.

FOLDER/gpus has each GPU's chain (`*.pem`) and key, and FOLDER may have `state.json`: environment, confidential
computing, DEVTOOLS, as NVML numbers them. Both are read each time that the driver is asked; a test changes all GPUs at
once where `gpus` is a link. With `lib` in FOLDER (tests/enclave/standin_cuda) the GPUs compute too. Only the supervisor
has the double of NVML; what it starts is the product's, and sees nothing of it.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hermetic.enclave import zero_on_free

_standing = ExitStack()  # until the process ends


def install(folder: Path) -> None:
    """Put the doubles where the package and the driver would be."""
    from hermetic.enclave.gpus import Gpu as GpuHere
    from hermetic.server import gpu_facts
    from tests.attestation.machines import Gpu, SigningNvml, device_name_of
    from tests.enclave.standin_cuda import worker as standin

    def gpus() -> list[Gpu]:
        return [Gpu.load(path) for path in sorted((folder / "gpus").resolve().glob("*.pem"))]

    class Driver(SigningNvml):
        """Looks at the folder again whenever it is opened."""

        def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
            self.hold(gpus())
            self.uuids = [device_name_of(gpu) for gpu in self.chips]
            state = folder / "state.json"
            if state.exists():
                said = json.loads(state.read_text())
                self.system.environment, self.system.ccFeature, self.system.devToolsMode = said
            super().nvmlInit()

    modules: dict[str, Any] = sys.modules  # an object, not a module, as tests have it
    modules["pynvml"] = Driver(gpus())
    if (library := folder / "lib").is_dir():
        here = tuple(
            GpuHere(number=number, uuid=device_name_of(gpu), minor=number) for number, gpu in enumerate(gpus())
        )
        module: Any = gpu_facts
        module.gpus_here = lambda _root: here
        _standing.enter_context(standin.on(library))


if __name__ == "__main__":
    zero_on_free.ensure()
    install(Path(sys.argv.pop(1)))
    from hermetic.cli import main

    main()
