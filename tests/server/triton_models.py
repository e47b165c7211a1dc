"""The models of tests/vectors/triton behind a front end: each with a stand-in worker that runs in a thread here.

Their configurations are read as `hermetic seal` reads them, so that what is compared with Triton starts from the same
text.
"""

import hashlib
import json
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.model_description import FrontEndFile, ModelDescription, TensorSpec
from hermetic.enclave.sealed.config_pbtxt import PartialSpec, read_config
from hermetic.server.messages import ModelReady, RepositoryEntry
from tests.server.far_side import FarSide
from tests.server.standin_worker import StandIn
from tests.vectors.triton.models import CONFIGURATIONS, ITERATIVE, LABELS, VERSIONS

SETTINGS = {
    "buffers": 4,
    "batches_in_flight": 2,
    "variable_tensor_bytes": 1 << 16,
    "requests_waiting": 256,
}


def described(name: str, version: int, text: str) -> ModelDescription:
    """Return the description that the sealed file of a model with this configuration would have."""
    config = read_config(text)
    labels = LABELS.encode()
    file = FrontEndFile(name="labels.txt", size=len(labels), sha256=hashlib.sha256(labels).hexdigest())
    return ModelDescription(
        name=name,
        version=version,
        format="ensemble" if config.configuration.ensemble else "onnx",
        publisher="tests",
        manifest_digest="ab" * 32,
        inputs=_specs(config.inputs),
        outputs=_specs(config.outputs),
        max_batch_size=config.max_batch_size,
        shared=False,
        configuration=config.configuration,
        front_end_files=(file,) if config.configuration.files() else (),
    )


def _specs(partial: tuple[PartialSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=s.name, datatype=s.datatype or "", shape=s.dims or ()) for s in partial)


@contextmanager
def serving(side: FarSide, configurations: dict[str, str] = CONFIGURATIONS) -> Iterator[None]:
    """Give the front end the repository that Triton had, and a worker for each of its models that loads."""
    ours = {**configurations, **{name: text for name, text in ITERATIVE.items() if name in configurations}}
    wanted = [(name, version) for name in ours for version in VERSIONS.get(name, (1,))]
    served = [described(*each, ours[each[0]]) for each in wanted if each[0] != "broken"]
    orders = [_serve(side, description) for description in served if description.format != "ensemble"]
    for description in served:
        if description.format == "ensemble":
            side.serve_ensemble(description)
    side.publish(*(_entry(*each) for each in wanted))
    yield
    for end in orders:
        end.close()


def _entry(name: str, version: int) -> RepositoryEntry:
    if name == "broken":
        return RepositoryEntry(name=name, version=version, state="UNAVAILABLE", reason="this model does not load")
    return RepositoryEntry(name=name, version=version, state="READY")


def _serve(side: FarSide, description: ModelDescription) -> socket.socket:
    """Start a stand-in in a thread; returns where its orders go."""
    ready = ModelReady(description=description, instance=0, **SETTINGS)
    place = layout(description, ready.buffers, ready.variable_tensor_bytes)
    memory = shared_memory(place.size)
    with mmap.mmap(memory, place.size) as mapped:
        for file in place.files:
            mapped[file.offset : file.offset + file.file.size] = LABELS.encode()
    ours, theirs = data_channel()
    orders, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    options = {
        "description": json.loads(description.model_dump_json()),
        "buffers": ready.buffers,
        "variable_tensor_bytes": ready.variable_tensor_bytes,
        "function": dict(description.configuration.parameters).get("behaviour", "echo"),
        "report": False,
    }
    stand_in = StandIn(theirs, memory, taken.detach(), options)
    threading.Thread(target=_run, args=[stand_in], daemon=True).start()
    side.channel.send(ready.encode(), (ours, memory))
    os.close(ours)
    os.close(memory)
    return orders


def _run(stand_in: StandIn) -> None:
    with stand_in.data, stand_in.orders:
        stand_in.run()
