"""Hostile archives of torch's: name -> (what builds it, how it is refused). Nothing in them is ever run by a test."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from hermetic.enclave.runtimes.archive import read_archive
from tests.enclave.runtimes.test_torch import exported, network, scripted

Build = Callable[[], bytes]
Parts = Mapping[str, bytes]


class Evil:
    """What a pickle can be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('owned')",)


def parts_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(parts: Parts, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as Python's zipfile writes it: plain, and read by torch all the same."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in parts.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return content.getvalue()


def program() -> bytes:
    return packed(parts_of(exported(network())))


def script() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scripted(network())


def with_parts(**more: bytes) -> bytes:
    """A good `.pt2`, with further files; `__` stands for `/`."""
    parts = parts_of(program())
    top = next(iter(parts)).partition("/")[0]
    return packed({**parts, **{f"{top}/{name.replace('__', '/')}": data for name, data in more.items()}})


def with_table(which: str, **member: Any) -> bytes:
    """A good `.pt2` whose table of weights or constants says something else of one."""
    parts = parts_of(program())
    name = next(name for name in parts if name.endswith(f"{which}_config.json"))
    table = json.loads(parts[name])
    first = next(iter(table["config"].values()), {"path_name": "tensor_0", "use_pickle": False})
    table["config"]["evil"] = {**first, **member}
    return packed({**parts, name: json.dumps(table).encode()})


def with_samples(samples: bytes) -> bytes:
    parts = parts_of(program())
    name = next(name for name in parts if "/sample_inputs/" in name)
    return packed({**parts, name: samples})


def saved(what: object) -> bytes:
    content = io.BytesIO()
    torch.save(what, content)
    return content.getvalue()


def samples_with(data: bytes) -> bytes:
    """Sample inputs that are a good archive, but for its pickle."""
    parts = parts_of(saved(((torch.zeros(1),), {})))
    return with_samples(packed({**parts, "archive/data.pkl": data}))


def old_layout() -> bytes:
    """As torch 2.1 to 2.6 wrote it: everything beside the graph is a pickle, under names that say nothing."""
    pickled = pickle.dumps(Evil())
    names = ("state_dict", "constants", "example_inputs")
    files = {f"serialized_{name}.pt": pickled for name in names}
    return packed({"version": b"8.8", "serialized_exported_program.json": b"{}", **files})


def patched(change: Callable[[bytearray, list[Any]], None], base: Build = program) -> bytes:
    """An archive in which some bytes are changed; `change` gets them and the entries."""
    content = base()
    altered = bytearray(content)
    change(altered, list(read_archive(memoryview(content), "good")))
    return bytes(altered)


def lying_local_size(content: bytearray, entries: list[Any]) -> None:
    content[entries[0].header + 22 : entries[0].header + 26] = struct.pack("<I", entries[0].size + 1)


def lying_local_name(content: bytearray, entries: list[Any]) -> None:
    content[entries[0].header + 30] ^= 1


def lying_local_method(content: bytearray, entries: list[Any]) -> None:
    content[entries[0].header + 8] = zipfile.ZIP_DEFLATED


def shared_bytes(content: bytearray, _: list[Any]) -> None:
    """Point the second entry of the directory at the first one's bytes: one file, two names, the directory agrees."""
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = struct.pack("<I", 0)


def other_count(content: bytearray, _: list[Any]) -> None:
    content[-12] -= 1


def within() -> bytes:
    """An entry whose bytes lie inside another one's: what the one reader checks, the other does not see."""
    inner = packed({"a/b": b"good"})
    inner = inner[: inner.index(b"PK\x01\x02")]
    content = bytearray(packed({"a/x": inner, "a/b": b"good"}))
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = struct.pack("<I", content.index(inner))
    return bytes(content)


def bomb(base: Build, name: str) -> bytes:
    parts = parts_of(base())
    top = next(iter(parts)).partition("/")[0]
    return packed({**parts, f"{top}/{name}": bytes(257 << 20)}, zipfile.ZIP_DEFLATED)


def twice() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as file:
        warnings.simplefilter("ignore")
        for name, data in [*parts_of(program()).items(), ("archive/models/model.json", b"{}")]:
            file.writestr(name, data)
    return content.getvalue()


def encrypted(content: bytearray, _: list[Any]) -> None:
    content[content.index(b"PK\x01\x02") + 8] |= 1


PICKLED: Final = pickle.dumps(Evil(), protocol=2)

EXPORTED: Final[Mapping[str, tuple[Build, str]]] = {
    "pt2: a pickle by its name": (lambda: with_parts(data__evil__pkl=PICKLED), "pickle"),
    "pt2: weights as an older layout has them": (lambda: with_parts(**{"data__weights__model.pt": PICKLED}), "pickle"),
    "pt2: constants as an older layout has them": (
        lambda: with_parts(**{"data__constants__model.pt": PICKLED}),
        "pickle",
    ),
    "pt2: a constant that is an object": (lambda: with_parts(data__constants__opaque_obj_0=PICKLED), "pickle"),
    "pt2: a constant that is torch's object": (lambda: with_parts(data__constants__custom_obj_0=PICKLED), "pickle"),
    "pt2: a weight that is pickled": (lambda: with_table("weights", use_pickle=True), "pickle"),
    "pt2: a weight that lies elsewhere": (lambda: with_table("weights", path_name="opaque_obj_0"), "pickle"),
    "pt2: a constant that lies elsewhere": (
        lambda: with_table("constants", path_name="custom_obj_/../tensor_0"),
        "pickle",
    ),
    "pt2: sample inputs that are code": (lambda: with_samples(saved(Evil())), "pickle"),
    "pt2: sample inputs by the old way of saving": (lambda: with_samples(PICKLED), "archive"),
    "pt2: sample inputs that are code, newly put": (lambda: samples_with(pickle.dumps(Evil(), 4)), "pickle"),
    "pt2: sample inputs with something behind": (
        lambda: samples_with(pickle.dumps(((), {}), 2) + PICKLED),
        "pickle",
    ),
    "pt2: sample inputs that are cut": (lambda: samples_with(PICKLED[:-3]), "pickle"),
    "pt2: sample inputs that are a program": (
        lambda: with_samples(packed({"archive/data.pkl": b"N.", "archive/constants.pkl": b"N."})),
        "pickle",
    ),
    "pt2: the layout of older versions": (old_layout, "archive-names"),
    "pt2: a table that is none": (
        lambda: with_parts(**{"data__weights__model_weights_config.json": b"[" * 100_000}),
        "archive",
    ),
    "pt2: native code": (lambda: with_parts(**{"data__aotinductor__model__x.so": b"\x7fELF"}), "native-code"),
    "pt2: no archive": (lambda: PICKLED, "archive"),
    "zip: a name with ..": (lambda: packed({"archive/../../etc/cron.d/x": b""}), "archive-names"),
    "zip: an absolute name": (lambda: packed({"/etc/passwd": b""}), "archive-names"),
    "zip: a name for another system": (lambda: packed({"archive/..\\x": b""}), "archive-names"),
    "zip: two folders": (lambda: packed({**parts_of(program()), "other/models/model.json": b"{}"}), "archive-names"),
    "zip: a name twice": (twice, "archive-names"),
    "zip: a name twice, but for its case": (
        lambda: with_parts(models__MODEL__json=b"", **{"models__Model.json": b"{}", "models__model.json": b"{}"}),
        "archive-names",
    ),
    "zip: local header with another size": (lambda: patched(lying_local_size), "archive"),
    "zip: local header with another name": (lambda: patched(lying_local_name), "archive"),
    "zip: local header with another method": (lambda: patched(lying_local_method), "archive"),
    "zip: two entries, one content": (lambda: patched(shared_bytes), "archive"),
    "zip: an entry within an entry": (within, "archive-overlap"),
    "zip: an entry that the count leaves out": (lambda: patched(other_count), "archive"),
    "zip: another archive before it": (lambda: program() + program(), "archive"),
    "zip: something before it": (lambda: b"#!/bin/sh\n" + program(), "archive"),
    "zip: something behind it": (lambda: program() + b"\n", "archive"),
    "zip: encrypted": (lambda: patched(encrypted), "archive"),
    "zip: packed in another way": (lambda: packed(parts_of(program()), zipfile.ZIP_BZIP2), "archive"),
    "zip: a bomb": (lambda: bomb(program, "extra/zeros"), "archive-size"),
    "zip: too many entries": (lambda: packed({f"archive/extra/{at}": b"" for at in range(65_537)}), "archive-size"),
}  # fmt: skip

SCRIPTED: Final[Mapping[str, tuple[Build, str]]] = {
    "torchscript: a checkpoint": (lambda: saved({"weights": torch.zeros(2)}), "pickle"),
    "torchscript: a bare pickle": (lambda: PICKLED, "archive"),
    "torchscript: a bomb": (lambda: bomb(script, "code/zeros.py"), "archive-size"),
    "torchscript: a name twice": (
        lambda: packed({**parts_of(script()), "archive/CONSTANTS.pkl": b""}),
        "archive-names",
    ),
    "torchscript: native code": (lambda: packed({**parts_of(script()), "archive/extra/x.so": b""}), "native-code"),
}  # fmt: skip
