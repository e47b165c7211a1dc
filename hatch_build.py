"""Compiles the library that overwrites freed memory (enclave/zero_on_free.c) where a package is built or installed.

An editable install (`make setup`) gets it beside its source, a wheel gets it beside the package's own copy of the
source. Without a C compiler there is none: glibc is then told to overwrite freed memory, which covers a little less
(docs/adr/0161), and every report says so. Nothing of the package is imported here: a build has none of what it needs.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE: Final = "zero_on_free.c"
LIBRARY: Final = "libhermetic-zero-on-free.so.1"
FLAGS: Final = (
    *("-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"),
    # The compiler must not know what free and memset mean: it would leave out what nobody reads.
    "-fno-builtin",
    *("-fvisibility=hidden", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
    # Everything that it needs is looked up when it is loaded: where something is missing, that is noticed then.
    "-Wl,-z,relro,-z,now,-z,noexecstack,-z,nodelete,--no-undefined,--build-id=none",
)


class CompileHook(BuildHookInterface[Any]):
    """What hatchling calls before it makes a wheel; `version` is "editable" for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library, and say where it goes."""
        source = Path(self.root) / "enclave" / SOURCE
        library = source.with_name(LIBRARY)
        if version != "editable":
            self._folder = tempfile.TemporaryDirectory(prefix="hermetic-build-")
            library = Path(self._folder.name) / LIBRARY
        compiler = shutil.which(os.environ.get("CC", "cc"))
        try:
            if compiler is None or not sys.platform.startswith("linux"):
                raise OSError("no C compiler, or not Linux")
            compile_library(compiler, source, library)
        except (OSError, subprocess.CalledProcessError) as error:  # musl, or a compiler without a C library
            self.app.display_warning(f"without the library that overwrites freed memory: {error}")
            return
        if version == "editable":
            return
        build_data["force_include"][str(library)] = f"hermetic/enclave/{LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for a wheel."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compile_library(compiler: str, source: Path, library: Path) -> None:
    """Compile `source` into `library`, which nobody but its owner can write; the same bytes for the same source."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    made = library.with_name(f".{library.name}.{os.getpid()}")
    try:
        subprocess.run([compiler, *FLAGS, f'-DSOURCE_SHA256="{digest}"', "-o", made, source], check=True)
        made.chmod(0o644)
        made.replace(library)  # processes that have the one before keep it
    finally:
        made.unlink(missing_ok=True)
