"""`make gpu` where there is no GPU, and on a bare machine: what did not run is told, nothing but numpy is needed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.errors import DeviceError
from tests.hardware import gpu, gpu_tests
from tests.hardware.gpu_memory import FAILED, NOT_RUN, Result

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_everything_is_not_run_and_says_why(tmp_path: Path) -> None:
    try:
        CudaDevice()
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    path = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(path)]) == NOT_RUN
    found = json.loads(path.read_text())
    results = [*found["checks"], *found["parts"]]
    assert {result["status"] for result in results} == {"not run"}
    assert all(result.get("why") or result.get("detail") for result in results)
    assert {
        "copies_arrive_and_are_wiped",
        "worker torch: nothing_is_left_after_unload",
        "worker onnxruntime-graphs: nothing_is_left_for_the_next_tenant",
        "test_nvgpu_evidence.test_their_evidence_is_for_one_nonce",
        "test_onnx_on_gpu.test_batches_are_near_those_of_the_cpu[tensorrt]",
        "test_onnx_on_gpu.test_batches_are_near_those_of_the_cpu[cuda, graphs]",
        "test_gpu_worker_models.test_an_onnx_model_is_served[tensorrt, graphs]",
        "test_gpu_worker_models.test_native_code_that_was_compiled_for_this_card_is_served_behind_two_filters",
    } <= {result["name"] for result in results}
    assert (found["status"], found["context"]["gpus"]) == (NOT_RUN, [])
    assert list(found["stages"]) == ["memory", "tests", "benchmark"]


def test_the_worst_decides() -> None:
    passed, skipped, failed = (Result(status, status, "") for status in ("passed", "not run", "failed"))
    whole = {"status": "ran", "left_out": []}
    for checks, parts, status in (
        ([passed], [whole], 0),
        ([passed, skipped], [whole], NOT_RUN),
        ([passed], [{"status": "not run", "left_out": []}], NOT_RUN),
        ([passed], [{"status": "ran", "left_out": ["8 rows"]}], NOT_RUN),
        ([skipped, failed], [whole], FAILED),
        ([passed], [{"status": "failed", "left_out": []}, {"status": "not run", "left_out": []}], FAILED),
        ([], [], NOT_RUN),
    ):
        assert gpu.exit_status(checks, parts) == status
    assert gpu.exit_status([passed], [whole], rehearsed=True) == NOT_RUN
    assert gpu.exit_status([failed], [whole], rehearsed=True) == FAILED


TESTS = """
import pytest

pytestmark = pytest.mark.hardware

def test_holds(): pass
def test_fails(): raise ValueError("no room")
def test_needs_more(): pytest.skip("one GPU")
"""


def test_what_a_test_says_is_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_some_gpu.py").write_text(TESTS)
    (tmp_path / "test_tpm.py").write_text(TESTS)
    found = {result.name: (result.status, result.detail) for result in gpu.hardware_tests(60, tmp_path)}
    assert found == {
        "test_some_gpu.test_holds": ("passed", ""),
        "test_some_gpu.test_fails": ("failed", "ValueError: no room"),
        "test_some_gpu.test_needs_more": ("not run", "one GPU"),
    }
    assert [(result.status, result.detail) for result in gpu.hardware_tests(0, tmp_path)] == [
        ("not run", "no time was left")
    ]


def test_a_test_that_takes_the_process_with_it_fails_alone(tmp_path: Path) -> None:
    tests = f"import os\n{TESTS}\ndef test_takes_all(): os._exit(7)\n\ndef test_behind(): pass\n"
    (tmp_path / "test_some_gpu.py").write_text(tests)
    found = {result.name: (result.status, result.detail) for result in gpu.hardware_tests(100, tmp_path)}
    assert found["test_some_gpu.test_holds"] == ("passed", "")
    assert found["test_some_gpu.test_takes_all"] == ("failed", "its process ended with status 7")
    assert found["test_some_gpu.test_behind"] == ("not run", "it had not begun: its process ended with status 7")


def test_what_had_ended_stands_when_there_is_no_time_left() -> None:
    events = [
        ["a.test_1", "not run", "", 0],
        ["a.test_2", "not run", "", 0],
        ["a.test_3", "not run", "", 0],
    ]
    events += [["a.test_1", "started", "", 0], ["a.test_1", "passed", "", 0.5]]
    events += [["a.test_2", "started", "", 0]]
    found = list(gpu_tests.results(events, "wanted an end within 9 s, got none"))
    assert [(result.name, result.status, result.detail) for result in found] == [
        ("a.test_1", "passed", ""),
        ("a.test_2", "failed", "wanted an end within 9 s, got none"),
        ("a.test_3", "not run", "it had not begun: wanted an end within 9 s, got none"),
    ]
    cleaned_up_badly = [["a.test_1", "passed", "", 0.5], ["a.test_1", "failed", "left open", 0.1]]
    assert [result.status for result in gpu_tests.results(cleaned_up_badly, "")] == ["failed"]


def test_checks_that_do_not_end_have_failed() -> None:
    (result,) = gpu.memory_checks(1, 0)
    assert (result.status, result.detail) == ("failed", "wanted an end within 0 s, got none")


@pytest.mark.parametrize("script", ["gpu", "gpu_memory"])
def test_the_scripts_need_nothing_but_numpy_to_begin(script: str) -> None:
    """A machine with a GPU may lack everything else; what needs more says so."""
    show = f"import sys; import tests.hardware.{script}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", show],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    # What site and editable installs bring into every process is no need of the script.
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


@pytest.fixture
def maker() -> ModuleType:
    """requirements/gpu_environment.py."""
    spec = importlib.util.spec_from_file_location("gpu_environment", ROOT / "requirements" / "gpu_environment.py")
    if spec is None or spec.loader is None:
        raise ImportError("gpu_environment")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, content: str = "WHERE = 'carried'\n") -> Path:
    path = folder / "carried-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carried_for_a_gpu/__init__.py", content)
    return path


def test_the_environment_has_what_was_carried_and_what_was_there(maker: ModuleType, tmp_path: Path) -> None:
    carried = wheel(tmp_path)
    digests = frozenset({sha256(carried.read_bytes()).hexdigest()})
    python = maker.make([carried], digests, tmp_path / "environment")
    show = "import carried_for_a_gpu as c, numpy, importlib.metadata as m; print(c.WHERE, m.version('hermetic'))"
    plain = {"PATH": os.defpath}  # as workers are started: no PYTHONPATH
    ran = subprocess.run([python, "-c", show], env=plain, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == f"carried {version('hermetic')}\n"
    made = python.stat().st_ino
    assert maker.make([carried], digests, tmp_path / "environment").stat().st_ino == made, "made once"


def test_a_wheel_that_is_not_pinned_is_refused_before_anything_is_made(maker: ModuleType, tmp_path: Path) -> None:
    carried = wheel(tmp_path)
    digests = maker.allowed(f"carried==1 --hash=sha256:{sha256(carried.read_bytes()).hexdigest()}\n")
    assert len(digests) == 1
    wheel(tmp_path, "WHERE = 'elsewhere'\n")
    with pytest.raises(ValueError, match=r"carried-1-py3-none-any\.whl: wanted a wheel of requirements/gpu\.txt"):
        maker.make([carried], digests, tmp_path / "environment")
    assert not (tmp_path / "environment").exists()


def test_every_package_that_is_carried_is_pinned_by_hash(maker: ModuleType) -> None:
    text = (ROOT / "requirements" / "gpu.txt").read_text()
    assert len(maker.allowed(text)) > text.count("==") > 40
    assert not {"torch==", "numpy==", "onnxruntime=="} & {line.split("==")[0] + "==" for line in text.splitlines()}


def test_what_is_carried_has_the_versions_that_are_tested() -> None:
    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        pairs = (line.split(" ")[0].split("==") for line in lines if re.match(r"[a-z0-9-]+(\[[a-z]+\])?==", line))
        return {package.partition("[")[0]: version for package, version in pairs}

    tested, carried = versions("dev.txt"), versions("gpu.txt")
    assert {name: version for name, version in carried.items() if tested.get(name, version) != version} == {}
    assert carried.keys() - tested.keys() <= {"nvidia-ml-py"}
