"""Compiled modules run whole or not at all, and only where they were made of the source that lies here."""

import ast
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hermetic import compiled
from hermetic.enclave.zero_on_free import program

NAMES = [name for part in compiled.PARTS for name in (compiled.FOLDER / part.names).read_text().split()]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture(params=compiled.PARTS, ids=["requests", "broker"])
def part(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> compiled.Part:
    """A part with a record of a library that fits, in a folder that stands for this one."""
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    part: compiled.Part = request.param
    record = {"suffix": SUFFIX, "source_sha256": part.source_digest(compiled.PACKAGE)}
    part.folder.mkdir()
    (part.folder / compiled.RECORD).write_text(json.dumps(record))
    return part


def test_what_fits_is_used(part: compiled.Part) -> None:
    assert part.why_not() == ""


def test_without_a_library_the_source_runs(part: compiled.Part) -> None:
    (part.folder / compiled.RECORD).unlink()
    assert "nothing was compiled" in part.why_not()
    assert not part.use()


def test_what_another_python_loads_is_not_used(part: compiled.Part) -> None:
    record = json.loads((part.folder / compiled.RECORD).read_text())
    (part.folder / compiled.RECORD).write_text(json.dumps({**record, "suffix": ".cpython-399.so"}))
    assert ".cpython-399.so" in part.why_not()


CHANGED = {
    compiled.REQUESTS: ("server/gate.py", "enclave/messages.py", "errors.py", "server/new.py", "compiled/modules.txt"),
    compiled.BROKER: ("attestation/claims.py", "attestation/checks.py", "errors.py", "compiled/broker.txt"),
}


def test_what_was_made_of_another_source_is_not_used(
    part: compiled.Part, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a module changed that is not compiled: others know its types; and where others are to be compiled."""
    package = tmp_path_factory.mktemp("package")
    for source in CHANGED[part]:
        (package / source).parent.mkdir(parents=True, exist_ok=True)
        (package / source).write_bytes(b"" if source == "server/new.py" else (compiled.PACKAGE / source).read_bytes())
    (package / "server" / "new.py").unlink(missing_ok=True)
    monkeypatch.setattr(compiled, "PACKAGE", package)
    for changed in CHANGED[part]:
        record = {"suffix": SUFFIX, "source_sha256": part.source_digest(package)}
        (part.folder / compiled.RECORD).write_text(json.dumps(record))
        assert part.why_not() == ""
        with (package / changed).open("a") as source_file:
            source_file.write("# one line more\n")
        assert part.why_not() == "compiled of another source", changed


def test_every_name_is_a_module_without_pydantic() -> None:
    """What mypyc compiles be classes that a metaclass of another library makes."""
    for part in compiled.PARTS:
        names = (compiled.FOLDER / part.names).read_text().split()
        assert sorted(set(names)) == names
    for name in NAMES:
        source = compiled.PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
        imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
        assert "pydantic" not in imported, name


def test_programs_of_ours_are_started_on_them() -> None:
    """What is compiled is what runs: a program says where its modules come from."""
    run = (
        "from hermetic import compiled; compiled.REQUESTS.use()\n"
        "from hermetic.enclave import channel; from hermetic.server import gate; print(gate.__file__, channel.__file__)"
    )
    said = subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True).stdout.split()
    wanted = ".py" if compiled.REQUESTS.why_not() else SUFFIX
    assert [name.endswith(wanted) for name in said] == [True, True], said
    assert program("hermetic.server.frontend")[-3:] == ["-m", "hermetic.compiled", "hermetic.server.frontend"]


def test_a_program_gets_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    command = [sys.executable, "-m", "hermetic.compiled", "told", "a", "-b"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert said == "__main__ ['a', '-b']\n"


@pytest.mark.parametrize("part", compiled.PARTS, ids=["requests", "broker"])
def test_no_class_of_the_product_inherits_from_a_compiled_one_that_does_not_let_it(part: compiled.Part) -> None:
    """It would fail when an object is made, and only where modules are compiled."""
    found = []
    classes = {}
    for room in part.rooms:
        for file in sorted((compiled.PACKAGE / room).rglob("*.py")):
            module = ".".join(("hermetic", *file.relative_to(compiled.PACKAGE).with_suffix("").parts))
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    classes[module, node.name] = node
    names = {name: module for module, name in classes}
    for (module, name), node in classes.items():
        for base in (ast.unparse(base).partition("[")[0] for base in node.bases):
            of = names.get(base, "")
            parent = classes.get((of, base), node)
            lets = any("allow_interpreted_subclasses=True" in ast.unparse(one) for one in parent.decorator_list)
            if of in NAMES and module not in NAMES and not lets:
                found.append(f"{module}.{name} of {of}.{base}")
    assert found == []


PURE = {"len", "min", "max"}


def calls_within_slices(source: str) -> list[str]:
    """Calls in the bounds of slices of which nobody knows that a second one changes nothing."""
    bounds = [
        bound
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Slice)
        for bound in (node.lower, node.upper, node.step)
        if bound is not None
    ]
    calls = [node for bound in bounds for node in ast.walk(bound) if isinstance(node, ast.Call | ast.NamedExpr)]
    return [ast.unparse(call) for call in calls if not (isinstance(call, ast.Call) and ast.unparse(call.func) in PURE)]


def test_no_compiled_module_has_a_call_with_an_effect_within_a_slice() -> None:
    """Mypyc evaluates such bounds twice."""
    assert calls_within_slices("data[took(data):]") == ["took(data)"]
    assert calls_within_slices("data[: min(len(data), 3)]") == []
    for name in NAMES:
        file = compiled.PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        assert calls_within_slices(file.read_text("utf-8")) == [], name
