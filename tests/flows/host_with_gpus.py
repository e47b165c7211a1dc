"""`hermetic` on a host whose NVIDIA driver is a double: `python -m tests.flows.host_with_gpus FOLDER serve ...`.

FOLDER has each GPU's chain (`*.pem`) and key, and may have `state.json`: environment, confidential computing, DEVTOOLS,
as NVML numbers them. Only the supervisor has the double; what it starts is the product's, and sees nothing of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from hermetic.enclave import zero_on_free


def install(folder: Path) -> None:
    """Put the double where the package would be."""
    from tests.attestation.machines import Gpu, SigningNvml

    nvml = SigningNvml([Gpu.load(path) for path in sorted(folder.glob("*.pem"))])
    state = folder / "state.json"
    if state.exists():
        nvml.system.environment, nvml.system.ccFeature, nvml.system.devToolsMode = json.loads(state.read_text())
    modules: dict[str, Any] = sys.modules  # an object, not a module, as tests have it
    modules["pynvml"] = nvml


if __name__ == "__main__":
    zero_on_free.ensure()
    install(Path(sys.argv.pop(1)))
    from hermetic.cli import main

    main()
