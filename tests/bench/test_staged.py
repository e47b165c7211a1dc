"""`bench quick` against the whole: broker, TPM or sample, sealed model, locked-down server. A hundred requests."""

import json
from pathlib import Path

from hermetic.bench import quick, report
from hermetic.bench.context import context
from hermetic.bench.load import PythonLoad
from hermetic.bench.staged import staged_server

# An installation, a sealing and a start, on cores that other tests use too.


def test_the_server_answers_the_bench_rightly(tmp_path: Path) -> None:
    settings = quick.Settings(concurrencies=(1, 16), rounds=1, seconds=0.1, calls=100)
    with staged_server("mlp", threads=1) as (target, protections):
        assert len(target.pids) >= 3  # supervisor, front end, worker
        # Every caller asks another question: an answer from somebody else's row would be wrong.
        series = quick.quick(target, quick.mlp_questions("mlp"), PythonLoad(), settings)
    facts = context() | {
        "server": quick.SERVER,
        "load_client": PythonLoad.name,
        "settings": {"rounds": 1},
        "protections": protections,
    }
    document = report.quick_document(series, quick.SERVER, facts)
    report.write_json(document, tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["context"]["rounds"][0]["calls"] == [100]
    assert read["context"]["rounds"][0]["server_cpu_us_per_call"] > 0
    notes = report.quick_notes(document["context"])
    for kind in ("front end", "worker"):
        assert protections[kind]["no-exec"]
        assert any(line.startswith(f"{kind}: ") for line in notes)
