"""The far side of a data channel, for tests: a process that answers batches, honestly or not.

Run as `python standin_worker.py DATA MEMORY ORDERS SETTINGS`: three descriptors and a JSON object with the model's
description and layout. Its outputs are its inputs, region by region; hidden inputs are not among them. `"function"` may
be "double" (FP32 times two), "failing", "slow", or for models of sequences "accumulate", "countdown" and "generator".

Orders come as datagrams: "hold" keeps batches, "go" answers what is kept, any name of `TRICKS` is played on the next
batch, "exit" ends it. An order that was taken is reported as `{"obeyed": order}`, each batch that arrives as
`{"rows": ..., "inputs": [hex, ...]}`.
"""

import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable
from math import prod
from typing import Any

from hermetic.enclave.batch_frames import (
    DATA_FRAME_LIMIT,
    STATUS_FAILED,
    STATUS_REFUSED,
    Batch,
    Tensor,
    decode_batch,
    encode_done,
    encode_not_done,
)
from hermetic.enclave.buffers import BufferLayout, Region, layout
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import ModelDescription

SLOW_S = 0.3  # seconds that a slow model takes for a batch

Trick = Callable[[Any, Batch, list[Tensor]], Any]
Row = dict[str, float]  # the first element of every input, by name

OBSERVED = ("INPUT0", "START", "END", "READY", "CORRID", "STATE_IN")
TYPECODES = {"FP32": "f", "INT32": "i", "UINT32": "I", "INT64": "q", "UINT64": "Q", "BOOL": "b"}


class FailedError(Exception):
    """A function does not like its input."""


def accumulate(row: Row) -> dict[str, list[float]]:
    """Show what came, -1 for what the model does not have; add up."""
    _not_negative(row)
    return {"OUTPUT0": [row.get(name, -1) for name in OBSERVED], "STATE_OUT": [row["STATE_IN"] + row["INPUT0"]]}


def countdown(row: Row) -> dict[str, list[float]]:
    """Show the step; say FINAL when it has reached the input."""
    _not_negative(row)
    step = row["STATE_IN"]
    return {"OUTPUT0": [step], "STATE_OUT": [step + 1], "FINAL": [step + 1 >= row["INPUT0"]]}


def generator(row: Row) -> dict[str, list[float]]:
    """The same; below 0, fail at the last step."""
    step, last = row["STATE_IN"], abs(row["INPUT0"]) - 1
    if row["INPUT0"] < 0 and step >= last:
        raise FailedError
    return {"OUTPUT0": [step], "STATE_OUT": [step + 1], "FINAL": [step >= last]}


def _not_negative(row: Row) -> None:
    if row["INPUT0"] < 0:
        raise FailedError


FUNCTIONS: dict[str, Callable[[Row], dict[str, list[float]]]] = {
    "accumulate": accumulate,
    "countdown": countdown,
    "generator": generator,
}


def unpacked(datatype: str, data: bytes) -> list[float]:
    return list(array(TYPECODES[datatype], data)) if datatype in TYPECODES else []


def packed(datatype: str, values: list[float]) -> bytes:
    return array(TYPECODES[datatype], values if datatype == "FP32" else list(map(int, values))).tobytes()


class StandIn:
    def __init__(self, data: int, memory: int, orders: int, settings: dict[str, Any]) -> None:
        self.data = socket.socket(fileno=data)
        self.orders = socket.socket(fileno=orders)
        description = ModelDescription.model_validate(settings["description"])
        self.place: BufferLayout = layout(description, settings["buffers"], settings["variable_tensor_bytes"])
        self.memory = mmap.mmap(memory, self.place.size)
        self.report = settings.get("report", True)
        self.function = settings.get("function", "echo")
        self.of_rows = FUNCTIONS.get(self.function)
        self.held: list[Batch] = []
        self.holding = False
        self.trick = ""

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.data, select.POLLIN)
        poll.register(self.orders, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self.orders.fileno():
                    order = self.orders.recv(256).decode()
                    if not self.obey(order):
                        return
                    self.orders.send(json.dumps({"obeyed": order}).encode())
                else:
                    frame = self.data.recv(DATA_FRAME_LIMIT)
                    if not frame:
                        return
                    self.take(decode_batch(frame))

    def obey(self, order: str) -> bool:  # noqa: C901, PLR0912 - one branch per order
        if order in ("", "exit"):
            return False
        if order == "hold":
            self.holding = True
        elif order in ("go", "go backwards"):
            self.holding = False
            held, self.held = self.held, []
            for batch in held if order == "go" else reversed(held):
                self.answer(batch)
        elif order == "unasked":
            self.data.send(encode_done(0, 99, [], 0, 0, 0))
        elif order == "garbage":
            self.data.send(os.urandom(64))
        elif order == "empty":
            self.data.send(b"")
        elif order == "other-files":
            for place in self.place.files:
                self.memory[place.offset : place.offset + place.file.size] = b"?" * place.file.size
        elif order == "flood":
            try:
                for _ in range(100_000):
                    self.data.send(b"\x00" * 40)
            except OSError:
                pass
        else:
            self.trick = order
        return True

    def take(self, batch: Batch) -> None:
        if self.report:
            inputs = [
                bytes(self.view(batch, region.offset, tensor.nbytes)).hex()[:256]
                for region, tensor in zip(self.place.inputs, batch.inputs, strict=True)
            ]
            shape = batch.inputs[0].shape if batch.inputs else ()
            self.orders.send(json.dumps({"rows": shape[0] if shape else 0, "inputs": inputs}).encode())
        if self.holding:
            self.held.append(batch)
        else:
            self.answer(batch)

    def view(self, batch: Batch, offset: int, length: int) -> memoryview:
        start = batch.buffer * self.place.stride + offset
        return memoryview(self.memory)[start : start + length]

    def zeros(self, batch: Batch, region: Region) -> Tensor:
        shape = (next(tensor.shape[0] for tensor in batch.inputs if tensor.shape != ABSENT_SHAPE), *region.spec.shape)
        nbytes = prod(shape) * (ELEMENT_BYTES[region.spec.datatype] or 0)
        self.view(batch, region.offset, nbytes)[:] = bytes(nbytes)
        return Tensor(nbytes, shape)

    def run_rows(self, batch: Batch, function: Callable[[dict[str, float]], dict[str, list[float]]]) -> None:
        """Answer a batch of sequences: every tensor has one element per row."""
        columns = {
            region.spec.name: unpacked(region.spec.datatype, bytes(self.view(batch, region.offset, tensor.nbytes)))
            for region, tensor in zip(self.place.inputs, batch.inputs, strict=True)
        }
        rows = len(columns["INPUT0"])
        try:
            results = [function({name: column[at] for name, column in columns.items() if column}) for at in range(rows)]
        except FailedError:
            self.data.send(encode_not_done(batch.buffer, batch.sequence, STATUS_FAILED, "negative"))
            return
        outputs = []
        for region in self.place.outputs:
            values = [value for result in results for value in result[region.spec.name]]
            data = packed(region.spec.datatype, values)
            self.view(batch, region.offset, len(data))[:] = data
            head = batch.inputs[0].shape[:1] if len(batch.inputs[0].shape) > 1 else ()
            outputs.append(Tensor(len(data), (*head, len(values) // rows)))
        self.data.send(encode_done(batch.buffer, batch.sequence, outputs, 1, 1000, 1))

    def answer(self, batch: Batch) -> None:
        if self.function == "slow":
            time.sleep(SLOW_S)
        if self.of_rows is not None and not self.trick:
            self.run_rows(batch, self.of_rows)
            return
        outputs = []
        for region, source, tensor in zip(self.place.outputs, self.place.inputs, batch.inputs, strict=False):
            if tensor.shape == ABSENT_SHAPE:  # zeros come out where nothing went in
                outputs.append(self.zeros(batch, region))
                continue
            data = self.view(batch, source.offset, tensor.nbytes)
            if self.function == "double":
                data = memoryview(array("f", [2 * x for x in array("f", bytes(data))]).tobytes())
            self.view(batch, region.offset, tensor.nbytes)[:] = data
            outputs.append(tensor)
        trick, self.trick = self.trick or ("failed" if self.function == "failing" else ""), ""
        frame = (
            TRICKS[trick](self, batch, outputs)
            if trick
            else encode_done(batch.buffer, batch.sequence, outputs, 1, 1000, 1)
        )
        for one in frame if isinstance(frame, list) else [frame]:
            self.data.send(one)


def _claim(shape: Callable[[tuple[int, ...]], tuple[int, ...]], nbytes: Callable[[int], int]) -> Trick:
    return lambda _worker, batch, outputs: encode_done(
        batch.buffer, batch.sequence, [Tensor(nbytes(t.nbytes), shape(t.shape)) for t in outputs], 1, 1, 1
    )


def _same(value: Any) -> Any:
    return value


def _bad_strings(worker: StandIn, batch: Batch, outputs: list[Tensor]) -> bytes:
    worker.view(batch, worker.place.outputs[0].offset, 4)[:] = struct.pack("<I", 0xFFFFFFF0)
    return encode_done(batch.buffer, batch.sequence, outputs, 1, 1, 1)


TRICKS: dict[str, Trick] = {
    "wrong-sequence": lambda _w, b, o: encode_done(b.buffer, b.sequence + 1, o, 1, 1, 1),
    "wrong-buffer": lambda _w, b, o: encode_done(b.buffer + 1, b.sequence, o, 1, 1, 1),
    "buffer-out-of-range": lambda _w, b, o: encode_done(4_000_000_000, b.sequence, o, 1, 1, 1),
    "no-outputs": lambda _w, b, _o: encode_done(b.buffer, b.sequence, [], 1, 1, 1),
    "too-many-outputs": lambda _w, b, o: encode_done(b.buffer, b.sequence, [*o, *o], 1, 1, 1),
    "more-rows": _claim(lambda s: (s[0] + 1, *s[1:]), _same),
    "negative-rows": _claim(lambda s: (-s[0], *s[1:]), _same),
    "other-rank": _claim(lambda s: (*s, 1), _same),
    "huge-dimensions": _claim(lambda s: (s[0], 2**62, *s[2:]), _same),
    "more-bytes": _claim(_same, lambda n: n + 4),
    "all-bytes": _claim(_same, lambda _n: 2**63),
    "fewer-bytes": _claim(_same, lambda n: max(0, n - 4)),
    "bad-strings": _bad_strings,
    "repeated": lambda _w, b, o: [encode_done(b.buffer, b.sequence, o, 1, 1, 1)] * 2,
    "cut-frame": lambda _w, b, o: encode_done(b.buffer, b.sequence, o, 1, 1, 1)[:-3],
    "long-frame": lambda _w, b, o: encode_done(b.buffer, b.sequence, o, 1, 1, 1) + bytes(DATA_FRAME_LIMIT),
    "huge-times": lambda _w, b, o: encode_done(b.buffer, b.sequence, o, 2**63, 2**63, 2**63),
    "refused": lambda _w, b, _o: encode_not_done(b.buffer, b.sequence, STATUS_REFUSED, "no such token"),
    "failed": lambda _w, b, _o: encode_not_done(b.buffer, b.sequence, STATUS_FAILED, "/secret/path exploded"),
    "die": lambda _w, _b, _o: os._exit(9),
}


if __name__ == "__main__":
    data, memory, orders = map(int, sys.argv[1:4])
    StandIn(data, memory, orders, json.loads(sys.argv[4])).run()
