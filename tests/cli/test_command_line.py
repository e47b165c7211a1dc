"""The command as people meet it: help, version, errors with their exit codes, missing extras."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hermetic import cli, errors
from hermetic.cli import output
from hermetic.cli.exit_codes import MEANING, ExitCode, exit_code, missing_extra

ROOT = Path(__file__).resolve().parents[2]
RUNNER = CliRunner()


def _present() -> list[str]:
    return [name for name in cli.COMMANDS if (ROOT / "src/hermetic/cli" / f"{name}.py").exists()]


def _paths(group: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command of `group`, subcommands too, as the words that call it."""
    found = [
        (*prefix, str(command.name or getattr(command.callback, "__name__", "")))
        for command in group.registered_commands
    ]
    for nested in group.registered_groups:
        if nested.typer_instance is not None:
            found += _paths(nested.typer_instance, (*prefix, str(nested.name or nested.typer_instance.info.name)))
    return found


def test_every_module_is_a_command_and_the_other_way_round() -> None:
    assert sorted({path[0] for path in _paths(cli.build())}) == sorted(_present())


@pytest.mark.parametrize("path", _paths(cli.build()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = RUNNER.invoke(cli.build(), [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    """`hermetic --help` answers at once, and on a bare install."""
    heavy = ("onnxruntime", "onnx", "torch", "httptools", "uvloop", "tpm2_pytss", "sklearn", "tritonclient", "grpc")
    program = (
        "import sys\n"
        f"for name in {heavy!r}: sys.modules[name] = None\n"
        "from typer.testing import CliRunner\nfrom hermetic import cli\n"
        "result = CliRunner().invoke(cli.build(), ['--help'])\n"
        "sys.exit(repr(result.exception) if result.exception else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version() -> None:
    result = RUNNER.invoke(cli.build(), ["--version"])
    assert (result.exit_code, result.output.split()[0]) == (0, "hermetic")


def test_an_unknown_command_is_a_usage_error() -> None:
    assert RUNNER.invoke(cli.build(), ["unseal-everything"]).exit_code == ExitCode.USAGE


def _application(error: Exception) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail(*, as_json: output.JsonOption = False) -> None:
        _ = as_json
        raise error

    cli._guard_all(app)
    return app


TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HermeticError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_ends_in_its_exit_code_without_a_traceback(kind: type[errors.HermeticError]) -> None:
    checks = [errors.FailedCheck("pcr 14", "aa", "bb"), errors.FailedCheck("nonce", "32 bytes", "31 bytes")]
    error = kind(checks) if issubclass(kind, errors.EvidenceError) else kind("expected this, got that")
    result = RUNNER.invoke(_application(error), [])
    assert result.exit_code == exit_code(error) != ExitCode.OK
    assert isinstance(result.exception, SystemExit)
    assert kind.__name__ in result.stderr
    assert ("pcr 14: wanted aa, got bb" if isinstance(error, errors.EvidenceError) else "got that") in result.stderr
    assert result.stdout == ""


def test_an_error_is_json_when_json_was_asked_for() -> None:
    error = errors.AppraisalError([errors.FailedCheck("profile", "production", "demo")])
    result = RUNNER.invoke(_application(error), ["--json"])
    document = json.loads(result.stderr)
    assert document["error"] == "AppraisalError"
    assert document["failures"] == [{"name": "profile", "wanted": "production", "got": "demo"}]
    assert result.exit_code == ExitCode.POLICY_REFUSED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.KnownAnswerError("no"), 3),
        (errors.SealedModelError("no"), 3),
        (errors.VerificationError([]), 4),
        (errors.AppraisalError([]), 5),
        (errors.BrokerRefusedError("no"), 6),
        (errors.BrokerUnreachableError("no"), 6),
        (errors.IsolationError("no"), 7),
        (errors.NotReadyError("no"), 8),
        (errors.ConfigurationError("no"), 2),
        (errors.BorderError("no"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_promised_codes(error: errors.HermeticError, code: int) -> None:
    assert exit_code(error) == code


def test_a_missing_extra_is_named() -> None:
    result = RUNNER.invoke(_application(ModuleNotFoundError("No module named 'torch'", name="torch")), [])
    assert result.exit_code == ExitCode.USAGE
    assert "hermetic[torch]" in " ".join(result.stderr.split())


def test_a_missing_module_of_nobody_is_a_bug_and_keeps_its_traceback() -> None:
    assert missing_extra(ModuleNotFoundError(name="hermetic.enclave.no_such")) is None
    result = RUNNER.invoke(_application(ModuleNotFoundError(name="no_such")), [])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_the_extras_that_errors_name_are_those_of_the_project() -> None:
    import tomllib

    from hermetic.cli.exit_codes import EXTRA_OF

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    distribution = {"sklearn": "scikit-learn"}
    for package, extra in EXTRA_OF.items():
        name = distribution.get(package, package.replace("_", "-"))
        assert any(entry.startswith(name) for entry in extras[extra]), (package, extra)


def test_the_table_of_exit_codes_is_documented() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | {MEANING[code]} |" in text, code


def test_only_the_command_line_prints_and_exits() -> None:
    """Everything else raises or returns; ruff's T20 sees prints, this sees exits."""
    import ast

    leaving = []
    for room in ("client", "server", "enclave", "attestation", "src/hermetic/provision"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Name) and called.id in ("print", "exit", "quit"):
                    leaving.append(f"{path.relative_to(ROOT)}:{called.lineno}")
    assert leaving == []
