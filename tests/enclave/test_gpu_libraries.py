"""Which folders a locked worker on a GPU may load libraries from, and TensorRT where no linker looks."""

import shutil
import sys
from pathlib import Path

import pytest

from hermetic.enclave.gpu_libraries import library_folders, load_tensorrt


def test_folders_are_those_of_loaded_libraries_and_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = ["nvidia/cudnn/lib", "nvidia/cu13/x/lib", "onnxruntime/capi", "tensorrt_libs"]
    for folder in (*wheels, "numpy/lib"):
        (tmp_path / "packages" / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "packages")])
    maps = tmp_path / "maps"
    loaded = [f"{tmp_path}/driver/libcuda.so.1", f"{tmp_path}/torch/lib/libtorch_cuda.so", f"{tmp_path}/z/libz.so.1"]
    maps.write_text("".join(f"7f00-7f01 r-xp 00000000 08:01 1 {path}\n" for path in loaded))
    assert set(library_folders(maps)) == {
        f"{tmp_path}/driver",
        f"{tmp_path}/torch/lib",
        *(str(tmp_path / "packages" / folder) for folder in wheels),
    }


def test_tensorrt_from_wheels_is_loaded_before_a_provider_asks_for_it(tmp_path: Path) -> None:
    """By the very file, in the order in which they need each other; what is no library there is left."""
    import _ctypes

    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    for name in ("libnvonnxparser.so.10", "libnvinfer.so.10", "libother.so.1"):
        shutil.copy(_ctypes.__file__, folder / name)
    (folder / "libnvinfer_plugin.so.10").write_bytes(b"no library")
    loaded = load_tensorrt(["", str(tmp_path / "none"), str(tmp_path)])
    assert loaded == [str(folder / name) for name in ("libnvinfer.so.10", "libnvonnxparser.so.10")]
    assert str(folder / "libnvinfer.so.10") in Path("/proc/self/maps").read_text()
    assert load_tensorrt([str(tmp_path / "none")]) == []
