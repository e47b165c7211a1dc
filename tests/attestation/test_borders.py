"""Who may know whom inside attestation/: structures know no trust, verifiers no policy, decisions no I/O."""

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[2] / "attestation"
IO_MODULES = {
    "socket",
    "asyncio",
    "httpx",
    "grpc",
    "ssl",
    "subprocess",
    "os",
    "pathlib",
    "urllib",
    "requests",
    "tempfile",
}
CLOCKS = {"now", "today", "utcnow", "time", "monotonic"}
PURE = [path for folder in ("abi", "verifiers", "policy") for path in sorted((ROOM / folder).glob("*.py"))] + [
    ROOM / f"{name}.py" for name in ("evidence", "checks", "claims", "enrolment")
]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", PURE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_decisions_and_structures_touch_nothing_outside(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path)} & IO_MODULES
    calls = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"open", "print", "exec", "eval", "input"}
    # Time is an argument: nobody here asks a clock.
    assert not {call.attr for call in calls if isinstance(call, ast.Attribute)} & CLOCKS


@pytest.mark.parametrize("path", sorted((ROOM / "verifiers").glob("*.py")), ids=lambda path: path.stem)
def test_genuine_does_not_know_acceptable(path: Path) -> None:
    assert not [name for name in imports(path) if "attestation.policy" in name or "attestation.broker" in name]


@pytest.mark.parametrize("path", sorted((ROOM / "abi").glob("*.py")), ids=lambda path: path.stem)
def test_structures_know_no_trust(path: Path) -> None:
    allowed = ("hermetic.attestation.abi", "hermetic.attestation.evidence", "hermetic.errors")
    assert all(name.startswith(allowed) for name in imports(path) if name.startswith("hermetic"))
    assert "cryptography.exceptions" not in imports(path), "whether a signature is good is a verifier's question"


def test_only_attesters_that_talk_to_a_tpm_know_its_library() -> None:
    users = {path for path in ROOM.rglob("*.py") if any(name.startswith("tpm2_pytss") for name in imports(path))}
    assert users == {ROOM / "attesters" / f"{name}.py" for name in ("azure", "tpm_device", "tpm_quoting")}


@pytest.mark.parametrize("kind", ["snp", "tdx", "tpm"])
def test_every_kind_has_the_same_file_names(kind: str) -> None:
    for folder in ("abi", "attesters", "verifiers"):
        assert (ROOM / folder / f"{kind}.py").is_file()


def test_nothing_that_judges_returns_a_boolean() -> None:
    for path in PURE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith(("verify", "check", "appraise", "validate")):
                assert ast.unparse(node.returns or ast.Constant(None)) != "bool", f"{path.name}: {node.name}"
