"""Real models of sequences: one that adds up, one that writes text; each with the `config.pbtxt` that a Triton has.

The writer is a table of which character follows which three, counted in a text; its answers are known beforehand. It
has no loop: the server runs it again and again, and it says itself when the text is over.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hermetic.demo.stage import Sealable

TEXT = (
    "a sealed model is opened in memory only. a key is given to a locked room only. what is freed is wiped. "
    "the reader of a log can check it alone. "
)
ORDER = 3  # characters that the next one depends on
END = "."
ALPHABET = "".join(sorted(set(TEXT)))

ADDER_CONFIG = """
max_batch_size: 4
sequence_batching {
  direct { }
  control_input [
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } ] }
  ]
  state [ {
    input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [ 2 ]
    initial_state { name: "first" data_type: TYPE_FP32 dims: [ 2 ] data_file: "first" }
  } ]
}
input [ { name: "VALUE" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "TOTAL" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
FIRST = np.array([100, 200], np.float32)

WRITER_CONFIG = """
max_batch_size: 4
model_transaction_policy { decoupled: true }
parameters { key: "final_output" value { string_value: "OVER" } }
parameters { key: "max_iterations" value { string_value: "200" } }
sequence_batching {
  iterative_sequence: true
  oldest { max_candidate_sequences: 16 }
  control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] } ]
  state [ { input_name: "LAST_IN" output_name: "LAST_OUT" data_type: TYPE_INT64 dims: [ 3 ] } ]
}
input [ { name: "PROMPT" data_type: TYPE_INT64 dims: [ 3 ] } ]
output [
  { name: "CHARACTER" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "OVER" data_type: TYPE_BOOL dims: [ 1 ] }
]
"""


def adder(folder: Path, name: str = "adder") -> Sealable:
    """TOTAL = SUM_OUT = SUM_IN + VALUE, from `FIRST` on; rows that are not ready stay out of it."""
    nodes = [
        helper.make_node("Mul", ["VALUE", "READY"], ["counted"]),
        helper.make_node("Mul", ["END", "zero"], ["nothing"]),
        helper.make_node("Add", ["counted", "nothing"], ["step"]),
        helper.make_node("Add", ["SUM_IN", "step"], ["SUM_OUT"]),
        helper.make_node("Identity", ["SUM_OUT"], ["TOTAL"]),
    ]
    inputs = [("VALUE", TensorProto.FLOAT, 2), ("READY", TensorProto.FLOAT, 1), ("END", TensorProto.FLOAT, 1)]
    inputs.append(("SUM_IN", TensorProto.FLOAT, 2))
    outputs = [("TOTAL", TensorProto.FLOAT, 2), ("SUM_OUT", TensorProto.FLOAT, 2)]
    sealable = _write(folder, name, ADDER_CONFIG, nodes, inputs, outputs, {"zero": np.zeros(1, np.float32)})
    (sealable.source / "initial_state").mkdir()
    (sealable.source / "initial_state" / "first").write_bytes(FIRST.tobytes())
    return sealable


def writer(folder: Path, name: str = "writer") -> Sealable:
    """CHARACTER follows PROMPT, or what was written last; OVER when it is the end of a sentence."""
    base = len(ALPHABET)
    constants: dict[str, NDArray[np.int64]] = {
        "table": table(),
        "weights": np.array([[base**2], [base], [1]], np.int64),
        "end": np.array([ALPHABET.index(END)], np.int64),
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "two": np.array([2], np.int64),
        "three": np.array([3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["START"], ["starts"], to=TensorProto.BOOL),
        helper.make_node("Where", ["starts", "PROMPT", "LAST_IN"], ["last"]),
        helper.make_node("MatMul", ["last", "weights"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["CHARACTER"]),
        helper.make_node("Slice", ["last", "one", "three", "one"], ["kept"]),
        helper.make_node("Concat", ["kept", "CHARACTER"], ["LAST_OUT"], axis=1),
        helper.make_node("Equal", ["CHARACTER", "end"], ["OVER"]),
    ]
    inputs = [("PROMPT", TensorProto.INT64, 3), ("START", TensorProto.INT32, 1), ("LAST_IN", TensorProto.INT64, 3)]
    outputs = [("CHARACTER", TensorProto.INT64, 1), ("OVER", TensorProto.BOOL, 1), ("LAST_OUT", TensorProto.INT64, 3)]
    sealable = _write(folder, name, WRITER_CONFIG, nodes, inputs, outputs, constants)
    ranges = f"[known_answer.ranges]\nPROMPT = [0, {base - 1}]\nLAST_IN = [0, {base - 1}]\n"
    (sealable.source / "model.toml").write_text(ranges)
    return sealable


def table() -> NDArray[np.int64]:
    """Train it: for each `ORDER` characters, which one followed most often in the text (of equals, the first)."""
    followers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for at in range(len(TEXT) - ORDER):
        followers[TEXT[at : at + ORDER]][TEXT[at + ORDER]] += 1
    trained = np.full(len(ALPHABET) ** ORDER, ALPHABET.index(END), np.int64)
    for seen, counts in followers.items():
        first, second, third = codes(seen)
        best = min(counts, key=lambda character: (-counts[character], character))
        trained[(first * len(ALPHABET) + second) * len(ALPHABET) + third] = ALPHABET.index(best)
    return trained


def codes(text: str) -> list[int]:
    """Return the numbers of characters."""
    return [ALPHABET.index(character) for character in text]


def written(prompt: str) -> str:
    """What the writer adds to `prompt`, worked out without it."""
    trained, text = table(), prompt
    while not text[len(prompt) :].endswith(END):
        first, second, third = codes(text[-ORDER:])
        text += ALPHABET[trained[(first * len(ALPHABET) + second) * len(ALPHABET) + third]]
    return text[len(prompt) :]


def _write(
    folder: Path,
    name: str,
    config: str,
    nodes: list[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, int]],
    outputs: Sequence[tuple[str, int, int]],
    constants: Mapping[str, NDArray[Any]],
) -> Sealable:
    def values(tensors: Sequence[tuple[str, int, int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(tensor, kind, ["rows", width]) for tensor, kind, width in tensors]

    used = {tensor for node in nodes for tensor in node.input}
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items() if key in used]
    graph = helper.make_graph(nodes, name, values(inputs), values(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    source = folder / name
    (source / "1").mkdir(parents=True)
    (source / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (source / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "onnxruntime"\n{config}')
    return Sealable(source, name, 1)
