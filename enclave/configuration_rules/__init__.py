"""What must hold between the parts of a model's configuration, and between it and the model. Pure, one file per part.

    tensors.py    options of inputs and outputs, hidden tensors, batch inputs and outputs
    batching.py   dynamic batching, instances, versions
    sequences.py  controls, states, strategies, decoupled models
    warmup.py     requests that run before a model is ready
    ensembles.py  steps and the tensors between them

`problems` runs when a model is sealed and whenever a manifest is read: a signed manifest that contradicts itself is
refused. Whether a configuration fits a graph is judged where there is a graph (sealed/, runtimes/).
Source: docs/spec/model-configuration.md section 3, which follows Triton's own validation.
"""

import json
from typing import Final

from hermetic.enclave.configuration_rules.batching import batching_problems
from hermetic.enclave.configuration_rules.ensembles import ensemble_problems
from hermetic.enclave.configuration_rules.sequences import sequence_problems
from hermetic.enclave.configuration_rules.subject import Subject
from hermetic.enclave.configuration_rules.tensors import tensor_problems
from hermetic.enclave.configuration_rules.warmup import warmup_problems

__all__ = ["CONFIGURATION_LIMIT", "FRONT_END_FILES_LIMIT", "Subject", "problems"]

CONFIGURATION_LIMIT: Final = 32 * 1024  # bytes of JSON: it travels in one control frame
FRONT_END_FILES_LIMIT: Final = 64 << 20  # bytes of labels and initial states of one model


def problems(subject: Subject) -> list[str]:
    """Return everything that does not fit, each as one clause that begins with the field's place; none: it fits."""
    found = _sizes(subject)
    for rule in (tensor_problems, batching_problems, sequence_problems, warmup_problems, ensemble_problems):
        found += rule(subject)
    return found


def _sizes(subject: Subject) -> list[str]:
    found = []
    size = len(json.dumps(subject.configuration.dump()))
    if size > CONFIGURATION_LIMIT:
        found.append(f"configuration: expected at most {CONFIGURATION_LIMIT} bytes of JSON, got {size}")
    named = subject.configuration.files()
    missing = sorted(name for name in named if name not in subject.files)
    if missing:
        found.append(f"configuration: expected files of the payload, got {missing}")
    held = sum(subject.files.get(name, 0) for name in named)
    if held > FRONT_END_FILES_LIMIT:
        found.append(f"labels and initial states: expected at most {FRONT_END_FILES_LIMIT} bytes in all, got {held}")
    return found
