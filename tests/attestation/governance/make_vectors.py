"""Write tests/vectors/governance anew: `python -m tests.attestation.governance.make_vectors`; always the same bytes."""

import json
from pathlib import Path

from tests.attestation.governance.people import cases, first

FOLDER = Path(__file__).parents[2] / "vectors" / "governance"


def documents() -> dict[str, str]:
    """File name -> text. `first` is the object, changes are texts of the exact bytes."""
    found = {}
    for name, case in cases().items():
        document = {
            "first": first().to_json(),
            "broker": first().digest,
            "history": [change.dumps().decode() for change in case.history],
            "change": (case.data or case.change.dumps()).decode(),
            "digest": None if "malformed" in case.refused else case.change.statement.digest,
            "time": case.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "refused": list(case.refused),
        }
        found[f"{name}.json"] = json.dumps(document, indent=1, sort_keys=True) + "\n"
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in documents().items():
        (FOLDER / file).write_text(text)
