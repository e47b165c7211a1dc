"""An ONNX model written byte by byte: a bare machine has onnxruntime, and not the package that makes models.

Source: onnx/onnx.proto (IR version 8, opset 17) and protobuf's wire format. Only what `relu(x @ w)` needs.
"""

import struct
from typing import Any, Final

import numpy as np

_FLOAT: Final = 1  # TensorProto.DataType


def relu_of_product(weights: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Return the model of y[rows, n] = relu(x[rows, m] @ w[m, n])."""
    m, n = weights.shape
    initializer = (
        _number(1, m) + _number(1, n) + _number(2, _FLOAT) + _text(8, "w") + _bytes(9, weights.astype("<f4").tobytes())
    )
    graph = b"".join(
        (
            _bytes(1, _text(1, "x") + _text(1, "w") + _text(2, "h") + _text(4, "MatMul")),
            _bytes(1, _text(1, "h") + _text(2, "y") + _text(4, "Relu")),
            _text(2, "by-hand"),
            _bytes(5, initializer),
            _bytes(11, _end("x", m)),
            _bytes(12, _end("y", n)),
        )
    )
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))


def _end(name: str, columns: int) -> bytes:
    """An input or output of float32[rows, columns]."""
    shape = _bytes(1, _text(2, "rows")) + _bytes(1, _number(1, columns))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + struct.pack("B", value)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _bytes(field, content.encode())
