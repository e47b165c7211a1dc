"""The models that the recorded requests go to: their configurations, and what they do, as a Triton repository.

Every model is served by Triton's Python backend with one small program: it gives its inputs back as its outputs, by
position, and plays what the parameter `behaviour` says.
"""

import shutil
from pathlib import Path
from typing import Final

KINDS: Final = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP32": "FP32",
    "FP64": "FP64",
    "BYTES": "STRING",
}
"""Datatype of the protocol -> its name in a configuration. FP16 has no typed contents, and a model of its own; BF16 is
not there: Triton's Python backend has none."""

PROGRAM: Final = """\
import json
import time

import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"] if tensor["name"].startswith("INPUT")]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.behaviour = config["parameters"].get("behaviour", {}).get("string_value", "echo")
        if self.behaviour == "broken":
            raise triton.TritonModelException("this model does not load")

    def execute(self, requests):
        send = {"decoupled": self.repeat, "generator": self.generate}.get(self.behaviour)
        if send is None:
            return [self.answer(request) for request in requests]
        for request in requests:
            send(request)
        return None

    def answer(self, request):
        if self.behaviour == "slow":
            time.sleep(0.3)
        if self.behaviour == "failing":
            return triton.InferenceResponse(error=triton.TritonError("the model failed"))
        given = [triton.get_input_tensor_by_name(request, name) for name in self.inputs]
        pairs = zip(self.outputs, given)
        return triton.InferenceResponse([triton.Tensor(n, t.as_numpy()) for n, t in pairs if t is not None])

    def repeat(self, request):
        sender = request.get_response_sender()
        values = triton.get_input_tensor_by_name(request, self.inputs[0]).as_numpy()
        for _ in range(int(values.flat[0])):
            sender.send(triton.InferenceResponse([triton.Tensor(self.outputs[0], values)]))
        sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def generate(self, request):
        sender = request.get_response_sender()
        count = int(triton.get_input_tensor_by_name(request, self.inputs[0]).as_numpy().flat[0])
        last = abs(count) - 1
        for step in range(last + 1):
            numbers = triton.np.array([step], triton.np.int32), triton.np.array([step >= last])
            response = triton.InferenceResponse([triton.Tensor(n, a) for n, a in zip(self.outputs, numbers)])
            if count < 0 and step == last:
                response = triton.InferenceResponse(error=triton.TritonError("the model failed"))
            sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if step == last else 0)
"""

SEQUENCE_CONTROLS: Final = """
    control_input [
      { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
      { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }] },
      { name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }] },
      { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
    ]
"""


def _tensors(field: str, *tensors: tuple[str, str, str]) -> str:
    shown = ", ".join(f'{{ name: "{name}" data_type: TYPE_{kind} {rest} }}' for name, kind, rest in tensors)
    return f"{field} [{shown}]\n"


def _same(*tensors: tuple[str, str, str], **outputs: str) -> str:
    """Inputs, and outputs like them; a keyword is what an output has beside its dims."""
    results = [
        (name.replace("INPUT", "OUTPUT"), kind, dims + " " + outputs.get(name.replace("INPUT", "OUTPUT"), ""))
        for name, kind, dims in tensors
    ]
    inputs = _tensors("input", *tensors)
    return inputs + _tensors("output", *((n, k, r.replace("optional: true", "")) for n, k, r in results))


def _behaviour(name: str) -> str:
    return f'parameters {{ key: "behaviour" value {{ string_value: "{name}" }} }}\n'


_FLOATS: Final = ("INPUT0", "FP32", "dims: [4]")
_BATCHING: Final = "max_batch_size: 8\ndynamic_batching {}\n"

CONFIGURATIONS: Final[dict[str, str]] = {
    "echo": _BATCHING + _same(_FLOATS) + "version_policy { all {} }\n",
    "plain": "max_batch_size: 0\n" + _same(("INPUT0", "FP32", "dims: [-1, 2]")),
    "pair": _BATCHING + _same(("INPUT0", "INT32", "dims: [4]"), ("INPUT1", "INT32", "dims: [4]")),
    "strings": _BATCHING + _same(("INPUT0", "STRING", "dims: [2]"), ("INPUT1", "BOOL", "dims: [1]")),
    "kinds": _BATCHING + _same(*((f"INPUT{at}", kind, "dims: [3]") for at, kind in enumerate(KINDS.values()))),
    "halves": _BATCHING + _same(("INPUT0", "FP16", "dims: [4]")),
    "overflowing": "max_batch_size: 0\n" + _same(("INPUT0", "FP32", "dims: [-1, 2]")),
    "labels": _BATCHING + _same(_FLOATS, OUTPUT0='label_filename: "labels.txt"'),
    "labelless": "max_batch_size: 0\n" + _same(_FLOATS),
    "optional": _BATCHING + _same(_FLOATS, ("INPUT1", "FP32", "dims: [4] optional: true")),
    "reshaped": _BATCHING + _same(("INPUT0", "FP32", "dims: [4] reshape { shape: [2, 2] }")),
    "unbatched": "max_batch_size: 8\n" + _same(_FLOATS),
    "priorities": "max_batch_size: 8\n"
    + _same(_FLOATS)
    + """dynamic_batching {
      priority_levels: 2
      default_priority_level: 1
      max_queue_delay_microseconds: 300000
      default_queue_policy {
        timeout_action: REJECT default_timeout_microseconds: 0 allow_timeout_override: true max_queue_size: 100
      }
      priority_queue_policy [{ key: 2 value: { timeout_action: DELAY allow_timeout_override: true } }]
    }
    """,
    "slow": "max_batch_size: 1\n"
    + _same(_FLOATS)
    + """dynamic_batching { default_queue_policy {
      timeout_action: REJECT default_timeout_microseconds: 0 allow_timeout_override: true max_queue_size: 2
    } }
    """
    + _behaviour("slow"),
    "direct": "max_batch_size: 4\n"
    + _same(("INPUT0", "INT32", "dims: [1]"))
    + "sequence_batching { max_sequence_idle_microseconds: 60000000 direct {}"
    + SEQUENCE_CONTROLS
    + "}\n",
    "oldest": "max_batch_size: 4\n"
    + _same(("INPUT0", "INT32", "dims: [1]"))
    + "sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { max_candidate_sequences: 4 }"
    + SEQUENCE_CONTROLS
    + "}\n",
    "decoupled": "max_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n"
    + _same(("INPUT0", "INT32", "dims: [1]"))
    + _behaviour("decoupled"),
    "failing": _BATCHING + _same(_FLOATS) + _behaviour("failing"),
    "broken": _BATCHING + _same(_FLOATS) + _behaviour("broken"),
    "chain": "platform: 'ensemble'\nmax_batch_size: 8\n"
    + _same(_FLOATS)
    + """ensemble_scheduling { step [
      { model_name: "echo" model_version: 1
        input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "between" } },
      { model_name: "echo" model_version: -1
        input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
    ] }
    """,
    "chain-that-fails": "platform: 'ensemble'\nmax_batch_size: 8\n"
    + _same(_FLOATS)
    + """ensemble_scheduling { step [
      { model_name: "echo" model_version: -1
        input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "between" } },
      { model_name: "failing" model_version: -1
        input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
    ] }
    """,
    "chain-that-narrows": "platform: 'ensemble'\nmax_batch_size: 0\n"
    + _tensors("input", ("INPUT0", "FP32", "dims: [-1, -1]"))
    + _tensors("output", ("OUTPUT0", "FP32", "dims: [-1, -1]"))
    + """ensemble_scheduling { step [
      { model_name: "plain" model_version: -1
        input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
    ] }
    """,
}

_GENERATED: Final = (
    "max_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n"
    + _tensors("input", ("INPUT0", "INT32", "dims: [1]"))
    + _tensors("output", ("OUTPUT0", "INT32", "dims: [1]"), ("FINAL", "BOOL", "dims: [1]"))
    + _behaviour("generator")
)

DECOUPLED: Final = {
    "echo": CONFIGURATIONS["echo"],
    "generator": _GENERATED,  # numbers from 0, as many as its input says; below 0 the last one is an error
}
"""The models of the group `decoupled`."""

ITERATIVE: Final = {
    "generator": _GENERATED
    + """parameters { key: "final_output" value { string_value: "FINAL" } }
    sequence_batching {
      iterative_sequence: true
      oldest { max_candidate_sequences: 4 }
      state [ { input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
    }
    """
}
"""What stands for a model here: a graph cannot send, it runs again."""

VERSIONS: Final = {"echo": (1, 3)}
"""Versions of a model, where they are not just 1."""

LABELS: Final = "cat\ndog\nbird\n"
"""Labels of `labels`: fewer than its output has elements."""


def models_of(group: str) -> dict[str, str]:
    """Return the configurations of the models that a group's server has."""
    return DECOUPLED if group == "decoupled" else CONFIGURATIONS


def write_repository(folder: Path, configurations: dict[str, str] = CONFIGURATIONS) -> None:
    """Write these models into `folder` as Triton wants them."""
    for name, configuration in configurations.items():
        model = folder / name
        shutil.rmtree(model, ignore_errors=True)
        ensemble = "platform: 'ensemble'" in configuration
        for version in VERSIONS.get(name, (1,)):
            (model / str(version)).mkdir(parents=True)
            if not ensemble:
                (model / str(version) / "model.py").write_text(PROGRAM)
        text = configuration if ensemble else f"backend: 'python'\n{configuration}"
        (model / "config.pbtxt").write_text(f"name: '{name}'\n{text}")
        if name == "labels":
            (model / "labels.txt").write_text(LABELS)
