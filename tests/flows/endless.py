"""A network that never returns, for those who know how to ask."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.flows.networks import Network, Rows, dense

WORD = 1e9
"""Whoever sends a number larger than this waits for ever."""


def endless(folder: Path, name: str, *, seed: int) -> Network:
    """A dense layer, behind a loop that goes on as long as an input is larger than `WORD`: for ever."""
    network = dense(folder, name, seed=seed)
    model = onnx.load(network.file)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Identity", ["state"], ["next"])],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "word"], ["go-on"]),
        helper.make_node("Loop", ["", "go-on", "x"], ["looped"], body=body),
        *model.graph.node,
    ]
    nodes[3].input[0] = "looped"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(WORD, np.float32), "word"))
    onnx.checker.check_model(model)
    network.file.write_bytes(model.SerializeToString())
    return network


def fatal(network: Network) -> Rows:
    """Rows that make it loop."""
    rows = network.rows(1)
    rows[0, 0] = 2 * WORD
    return rows
