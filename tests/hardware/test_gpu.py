"""`make gpu` where there is no GPU: everything is told as not run, in one file, and nothing but numpy is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.bench import gpu as bench
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.errors import DeviceError
from tests.hardware import gpu, gpu_memory

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_everything_is_not_run_and_says_why(tmp_path: Path) -> None:
    try:
        CudaDevice()
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    path = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(path)]) == gpu_memory.NOT_RUN
    found = json.loads(path.read_text())
    results = [*found["memory"]["results"], *found["bench"]["parts"]]
    assert {result["status"] for result in results} == {"not run"}
    assert all(result.get("why") or result.get("detail") for result in results)
    assert found["bench"]["machine"]["gpu"] == "none"


def test_the_worst_decides() -> None:
    passed = gpu_memory.Report({}, [gpu_memory.Result("a", "passed", "")])
    assert gpu.exit_status(passed, [bench.Part("mlp", "ran")]) == 0
    assert gpu.exit_status(passed, [bench.Part("mlp", "not run")]) == gpu_memory.NOT_RUN
    assert gpu.exit_status(passed, [bench.Part("mlp", "failed"), bench.Part("bert-base", "not run")]) == 1


def test_it_needs_nothing_but_numpy_to_begin() -> None:
    show = "import sys; import tests.hardware.gpu; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", show],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    others = set(ran.stdout.split()) - sys.stdlib_module_names - set(plain.stdout.split())
    assert {name for name in others if not name.startswith("_")} <= {
        "hermetic",
        "numpy",
        "cython_runtime",  # numpy.random's
        "tests",
    }
