"""`hermetic demo`, as a user runs it: three real models sealed, served, compared with the plain ones, and forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks for weights in the memory of locked processes")
def test_the_demo_ends_with_every_answer_equal_and_no_weight_in_memory(tmp_path: Path) -> None:
    """The one long test: some 30 s, most of them torch."""
    command = [sys.executable, "-m", "hermetic", "demo", "--tee", "sample", "--json"]
    command += ["--folder", str(tmp_path / "demo"), "--repository", str(REPOSITORY / "docs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {model["name"]: model["format"] for model in report["models"]} == {
        "breast-cancer": "onnx",
        "magika": "onnx",
        "breast-cancer-torch": "pt2",
    }
    for model in report["models"]:
        assert model["verdict"] == "sample: released"
        assert model["answers"] > 0
        assert model["found_loaded"] > 0, "the scanner's positive control"
        assert model["found_unloaded"] == 0
    assert report["proved"]["models"] == len(report["models"])
    assert "demo profile" in report["proved"]["accepted_knowingly"]
    loaded, unloaded = report["scanned"]
    assert loaded["processes"] == unloaded["processes"] + len(report["models"])
    assert report["accuracy"] > 0.9
    assert "NOT SECRET" in done.stderr
