"""The library that overwrites freed memory, compiled for a test: as it is, or with something taken out."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hermetic.enclave.zero_on_free import TUNABLES, environment
from hermetic.enclave.zero_on_free_library import SOURCE

ROOT = Path(__file__).resolve().parents[2]
CC = shutil.which("cc")
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")


def hook() -> ModuleType:
    """The build's own hook, which lies beside pyproject.toml and in no package."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def built(folder: Path, *replaced: tuple[str, str]) -> Path:
    """Compile the library into `folder`, its source beside it, with each first text replaced by the second."""
    assert CC is not None
    text = SOURCE.read_text()
    for old, new in replaced:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / SOURCE.name
    source.write_text(text)
    library = folder / "libhermetic-zero-on-free.so.1"
    hook().compile_library(CC, source, library)
    return library


def preloading(library: Path | None) -> dict[str, str]:
    """The environment of a process of ours, with this library and nothing else that overwrites freed memory."""
    plain = {name: value for name, value in environment().items() if name not in {"LD_PRELOAD", "GLIBC_TUNABLES"}}
    return plain | ({"LD_PRELOAD": str(library)} if library else {})


def told_glibc() -> dict[str, str]:
    """The environment of a process of ours where there is no library."""
    return preloading(None) | {"GLIBC_TUNABLES": TUNABLES}


def is_root() -> bool:
    """Whether files that are made here belong to root."""
    return os.geteuid() == 0
