"""The wheel holds what git tracks, and the library compiled from it: a wheel that silently drops a folder was seen."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "hermetic/enclave/libhermetic-zero-on-free.so.1"
ROOMS = ("client", "server", "enclave", "attestation", "bench")


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def _in_wheel(name: str) -> str | None:
    """Where a tracked file lies in the wheel; None for what is not part of the package."""
    if name.startswith("src/hermetic/"):
        inside = name.removeprefix("src/")
        return None if inside.removeprefix("hermetic/") in ROOMS else inside  # a link to a room
    return f"hermetic/{name}" if name.partition("/")[0] in ROOMS else None


def _wheel(source: Path, destination: Path, compiler: str = "cc", compiled: str = "0") -> Path:
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(destination)]
    environ = os.environ | {"CC": compiler, "HERMETIC_BUILD_COMPILED": compiled}
    subprocess.run(command, cwd=source, check=True, capture_output=True, env=environ)
    (wheel,) = destination.glob("*.whl")
    return wheel


def _content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def _build(source: Path, destination: Path) -> set[str]:
    return _content(_wheel(source, destination))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tracked files alone, links kept, as a fresh clone has them."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in _tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    yield copy
    shutil.rmtree(copy)


def test_wheel_holds_the_tracked_files_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    wanted = {inside for name in _tracked() if (inside := _in_wheel(name)) is not None}
    assert _build(checkout, tmp_path) == wanted | ({LIBRARY} if shutil.which("cc") else set())


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_library_in_the_wheel_is_made_of_its_source(checkout: Path, tmp_path: Path) -> None:
    wheel = _wheel(checkout, tmp_path)
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        digest = hashlib.sha256(archive.read("hermetic/enclave/zero_on_free.c")).hexdigest()
        assert digest.encode() in archive.read(LIBRARY)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_an_editable_install_has_it_beside_its_source(checkout: Path, tmp_path: Path) -> None:
    build = "from hatchling.build import build_editable; import sys; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=checkout, check=True, capture_output=True)
    library = checkout / LIBRARY.removeprefix("hermetic/")
    digest = hashlib.sha256((checkout / "enclave/zero_on_free.c").read_bytes()).hexdigest()
    assert digest.encode() in library.read_bytes()
    assert not library.stat().st_mode & 0o022
    library.unlink()


@pytest.mark.parametrize("compiler", ["there-is-no-such-compiler", "false"])
def test_without_a_compiler_there_is_a_wheel_all_the_same(checkout: Path, tmp_path: Path, compiler: str) -> None:
    wheel = _wheel(checkout, tmp_path, compiler=compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert LIBRARY not in _content(wheel)


def test_a_file_more_in_a_room_is_a_file_more_in_the_wheel(checkout: Path, tmp_path: Path) -> None:
    """The comparison above can fail: the wheel follows the folders, not a list."""
    extra = checkout / "enclave" / "not_tracked.py"
    extra.write_text("")
    try:
        assert "hermetic/enclave/not_tracked.py" in _build(checkout, tmp_path)
    finally:
        extra.unlink()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_a_link_to_the_folder_at_the_top(room: str) -> None:
    link = ROOT / "src" / "hermetic" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room


def test_compiled_modules_are_in_the_wheel_and_bind_it_to_this_python(checkout: Path, tmp_path: Path) -> None:
    """One module for all of each part: every one of them takes a minute."""
    modules = {"modules.txt": "hermetic.server.http2.frames\n", "broker.txt": "hermetic.attestation.jcs\n"}
    kept = {name: (checkout / "src/hermetic/compiled" / name).read_text() for name in modules}
    for name, text in modules.items():
        (checkout / "src/hermetic/compiled" / name).write_text(text)
    try:
        wheel = _wheel(checkout, tmp_path, compiled="1")
    finally:
        for name, text in kept.items():
            (checkout / "src/hermetic/compiled" / name).write_text(text)
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.split("-")[2:4] == [python, python]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    run = (
        "from hermetic import compiled; print([part.why_not() for part in compiled.PARTS if part.use()]);"
        "import hermetic.server.http2.frames as f; print(f.__file__);"
        "import hermetic.attestation.jcs as j; print(j.__file__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", run],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path / "installed",
        env={"PYTHONPATH": str(tmp_path / "installed")},
    ).stdout.splitlines()
    assert said[0] == "['', '']"
    assert said[1].startswith(str(tmp_path / "installed/hermetic/compiled/lib/"))
    assert said[2].startswith(str(tmp_path / "installed/hermetic/compiled/lib_broker/"))
