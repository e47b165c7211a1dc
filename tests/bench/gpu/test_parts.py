"""The smaller parts: time, use of the GPU, goals, and what is said of it all."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.bench.gpu import process, run
from hermetic.bench.gpu.bare import cuda_providers
from hermetic.bench.gpu.budget import Budget, ended_after
from hermetic.bench.gpu.document import Machine, Part, Results, document, goals, lines
from hermetic.bench.gpu.networks import NETWORKS, BenchPrecision, Made, make_files
from hermetic.bench.gpu.run import precision_of, settings_for
from hermetic.bench.gpu.served import Asking, ServedPoint, _sealable, front_ends_for
from hermetic.bench.gpu.sides import Turn, check_equal
from hermetic.bench.gpu.sweep import Best, Point
from hermetic.bench.gpu.utilisation import Watch, watching
from hermetic.errors import ConfigurationError, DeviceError, MeasurementError
from tests.attestation.attesters.nvml_double import NvmlDouble

GPU = Machine("cuda", 16)


def point(rows: int, bare: float, ours: float, *, p50_ms: float = 3.0, wipe_share: float = 0.01) -> Point:
    return Point(rows, 1, Turn(bare, p50_ms, 9.0), Turn(ours, p50_ms, 9.0, 0.1, wipe_share), ours / bare, 0.0, 0.5)


def asked(rate: float, bare: float | None, network: str = "resnet50") -> ServedPoint:
    turn = Turn(rate, 4.0, 9.0, 0.1, 0.03)
    beside = None if bare is None else Turn(bare, 3.0, 9.0)
    return ServedPoint(network, "torch", 2, Asking(8, 16), turn, beside, 32.0, {"worker": 5.0})


def judged(results: Results, machine: Machine = GPU) -> dict[str, str]:
    return {goal.goal: goal.verdict for goal in goals(results, machine)}


RESULTS = Results(
    parts=[
        Part("resnet50, torch", points=[point(8, 100, 50).document()]),
        Part("server", "not run", "no time was left"),
        Part("broker", "failed", "lost:\nTraceback\nKeyError"),
    ],
    sweeps={("resnet50", "torch"): [point(8, 100, 50), point(32, 200, 192)]},
    large=[asked(150, 200), asked(180, 200)],
    small=[asked(49_000, None, "mlp"), asked(51_000, None, "mlp")],
)


def test_goals_are_judged_at_the_best_sizes() -> None:
    assert Best.of(RESULTS.sweeps["resnet50", "torch"]).ratio == 0.96
    assert judged(RESULTS) == {
        "worker / bare loop": "reached",
        "server / bare loop": "not reached",
        "wiping in the worker": "reached",
        "wiping in the server": "not reached",
        "small requests per second": "reached",
    }


def test_what_ran_elsewhere_or_not_at_all_is_not_judged() -> None:
    assert set(judged(RESULTS, Machine("cpu", 16)).values()) == {"not measured"}
    assert judged(RESULTS, Machine("cuda", 15))["small requests per second"] == "not measured"
    alone = replace(RESULTS, large=[], small=[])
    assert judged(alone)["server / bare loop"] == "not measured"
    assert judged(Results()) == {"small requests per second": "not measured"}


def test_a_small_network_need_not_keep_up_with_a_plain_loop() -> None:
    quick = replace(RESULTS, sweeps={("mlp", "torch"): [point(1, 100, 10, p50_ms=1.9)]})
    assert "worker / bare loop" not in judged(quick)


def test_the_document_is_json_and_its_text_names_what_did_not_run() -> None:
    found = json.loads(json.dumps(document(RESULTS, GPU)))
    assert found["format"] == "hermetic-gpu/1"
    assert found["parts"][1]["why"] == "no time was left"
    text = "\n".join(lines(found))
    assert "not run  server (0 s): no time was left" in text
    assert "failed   broker (0 s): lost: ... KeyError" in text
    assert "8 rows, 1 streams: 50 rows/s, 0.500 of the bare loop" in text
    assert "not reached  server / bare loop, resnet50, torch: wanted 0.95, got 0.9" in text


def test_time_is_shared_and_some_of_it_kept() -> None:
    clock = [0.0]
    budget = Budget(100, lambda: clock[0])
    assert budget.share(2, reserved_s=40).left_s == 30
    clock[0] = 90
    assert (budget.left_s, budget.share(2, reserved_s=40).over) == (10, True)
    clock[0] = 100
    assert budget.over


def test_a_part_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetic.bench.gpu.budget.GRACE_S", 0.0)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as hanging, ended_after(hanging.pid, Budget(0)):
        assert hanging.wait(60) == -9
    with subprocess.Popen(command, stdin=subprocess.PIPE) as ends, ended_after(ends.pid, Budget(600)):
        ends.communicate(b"\n")
        assert ends.returncode == 0


def test_writing_a_networks_files_is_held_to_the_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetic.bench.gpu.budget.GRACE_S", 0.0)
    with pytest.raises(MeasurementError, match="process ended without a result"):
        make_files("bert-base", ("torch",), tmp_path, Budget(0))


class Busy:
    """A GPU of some use, until it is lost."""

    def __init__(self, *percents: int) -> None:
        self._percents = iter(percents)

    def utilisation(self, index: int) -> int:
        assert index == 0
        try:
            return next(self._percents)
        except StopIteration:
            raise DeviceError("lost") from None


def test_use_is_the_mean_of_what_was_seen_during_the_turn() -> None:
    seen = threading.Event()

    def pause(over: threading.Event) -> bool:
        return over.is_set()

    watch = Watch(Busy(40, 60), pause)
    with watch.turn() as use:
        while len(use.samples) < 2:
            seen.wait(0.001)
    assert use.percent == 50
    with Watch(None).turn() as none:
        pass
    assert none.percent is None


def test_use_is_asked_of_nvml_and_unknown_without_it() -> None:
    double = NvmlDouble([(9, b"", b"")])
    double.busy = 73
    with watching(NvmlLibrary(double)) as watch, watch.turn() as use:
        pass
    assert set(use.samples) == {73}
    double.failing = ("nvmlInit",)
    with watching(NvmlLibrary(double)) as watch, watch.turn() as use:
        pass
    assert use.percent is None


def test_front_ends_are_tried_as_far_as_cores_go() -> None:
    assert [front_ends_for(cores) for cores in (2, 16, 32)] == [(1,), (1, 2, 4, 6), (1, 2, 4, 6, 8)]


def test_without_a_gpu_every_part_says_that_it_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "why_not", lambda _: "no driver")
    heard: list[Part] = []
    results = run.run(run.settings_for("cuda", 1), heard.append)
    assert results.parts == heard
    assert {(part.status, part.why) for part in heard} == {("not run", "no driver")}
    assert len(heard) == 2 * len(NETWORKS) + 1


def test_both_sides_multiply_in_the_same_precision_which_is_fp32_unless_said() -> None:
    assert dict(cuda_providers("fp32"))["CUDAExecutionProvider"]["use_tf32"] == "0"  # its own default is 1
    assert dict(cuda_providers("tf32"))["CUDAExecutionProvider"]["use_tf32"] == "1"
    assert settings_for("cuda", 1).precision == "fp32"
    assert settings_for("cuda", 1, precision="tf32").precision == "tf32"
    assert precision_of("tf32") == "tf32"
    with pytest.raises(ConfigurationError, match="precision: wanted one of fp32, tf32, got fp16"):
        precision_of("fp16")
    with pytest.raises(ConfigurationError, match="precision: wanted fp32 on the CPU, got tf32"):
        settings_for("cpu", 1, precision="tf32")


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", "0"), ("tf32", None)])
def test_a_process_with_both_sides_tells_cudas_libraries_as_a_worker_is_told(
    precision: BenchPrecision, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell that it was started from says; cuBLAS, cuDNN and TensorRT read it when they are loaded."""
    seen: list[tuple[str | None, object]] = []

    def opened(*what: object) -> None:
        seen.append((os.environ.get("NVIDIA_TF32_OVERRIDE"), what[-1]))
        raise DeviceError("no GPU here")

    job = {"network": "mlp", "library": "torch", "file": "none", "device": "cuda", "precision": precision, "ours": True}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setattr(process, "jobs_from_stdin", lambda: iter([job]))
    monkeypatch.setattr(process, "open_bare", opened)
    process.main()
    assert seen == [(wanted, precision)]


def test_tf32_where_fp32_was_said_is_noticed() -> None:
    """By 2e-3 weights in TF32 alone move the answers of a network as deep as BERT."""
    right = np.ones((2, 3), np.float32)
    with pytest.raises(MeasurementError):
        check_equal("m", right, right + np.float32(2e-3), Made(NETWORKS["mlp"], "torch", Path("mlp")).tolerance)
    tf32 = Made(NETWORKS["mlp"], "torch", Path("mlp"), "tf32")
    check_equal("m", right, right + np.float32(2e-3), tf32.tolerance)
    told = _sealable(tf32, "cuda").server_settings
    assert (told["gpu.precision"], told["gpu.max_absolute_error"]) == ("tf32", tf32.tolerance)


def test_unknown_networks_are_refused_by_name() -> None:
    assert run.chosen("mlp,bert-base") == ("mlp", "bert-base")
    with pytest.raises(ConfigurationError, match="device: wanted cuda or cpu, got gpu"):
        run.settings_for("gpu", 1)
    with pytest.raises(ConfigurationError, match=r"wanted some of mlp, resnet50, bert-base, got lstm"):
        run.chosen("mlp,lstm")


@pytest.mark.parametrize(
    ("name", "parameters"), [("mlp", 20_752), ("resnet50", 25_557_032), ("bert-base", 108_495_360)]
)
def test_networks_have_the_size_of_their_names(name: str, parameters: int) -> None:
    torch = pytest.importorskip("torch")
    from hermetic.bench.gpu.torch_networks import make

    with torch.device("meta"):
        module = make(name)
    assert sum(one.numel() for one in module.parameters()) == parameters


def test_rows_of_a_network_are_what_it_describes() -> None:
    for network in NETWORKS.values():
        rows = network.inputs(2)
        assert rows.shape == (2, *network.dims)
        assert rows.nbytes == 2 * network.row_bytes
        (spec,) = network.description("torch").inputs
        assert (spec.shape, spec.datatype) == (network.dims, network.datatype)
        assert (network.inputs(2) == rows).all()
