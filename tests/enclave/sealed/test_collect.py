"""Collecting a model: exactly its own files, never one that its author does not own, facts as the graph has them."""

import gc
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.collect import CollectedModel, collect, description_beside
from hermetic.enclave.sealed.description import Description
from hermetic.errors import ConfigurationError, ModelFormatError
from tests.descriptors import are_given_back, settled_descriptors
from tests.enclave.sealed import small_models as small

SECRET = b"the sealer's own secret " * 2000


def gathered(source: Path, **said: Any) -> tuple[CollectedModel, dict[str, bytes]]:
    """The model, and its files' contents as a writer reads them."""
    description = Description.load(description_beside(source), said)
    with collect(source, description) as model:
        contents = {}
        for file in model.files:
            buffer = bytearray(file.size)
            file.read_into(memoryview(buffer), 0)
            contents[file.name] = bytes(buffer)
        return model, contents


def refused(source: Path, **said: Any) -> str:
    before = settled_descriptors()
    with pytest.raises(ModelFormatError) as caught:
        gathered(source, **said)
    text = str(caught.value)
    del caught  # its traceback holds mappings
    gc.collect()
    assert are_given_back(before)  # nothing stays open
    return text


# ----------------------------------------------------------------------------------------------------------------- ONNX


def test_a_graph_tells_its_inputs_and_outputs(tmp_path: Path) -> None:
    model, files = gathered(small.write(small.matmul(), tmp_path / "model.onnx"))
    assert (model.format, model.architecture, model.max_batch_size) == ("onnx", None, 0)
    assert model.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    assert model.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 2048)),)
    assert files == {"model.onnx": (tmp_path / "model.onnx").read_bytes()}


def test_batching_leaves_out_the_first_dimension(tmp_path: Path) -> None:
    model, _ = gathered(small.write(small.matmul(), tmp_path / "model.onnx"), max_batch_size=16)
    assert model.inputs[0].shape == (4,)
    assert model.max_batch_size == 16


def test_batching_needs_a_free_first_dimension(tmp_path: Path) -> None:
    path = small.write(small.matmul(rows=1), tmp_path / "model.onnx")
    assert "free first dimension" in refused(path, max_batch_size=16)


def test_external_data_comes_along_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    small.write(small.with_external(small.matmul(), "weights/w.bin"), folder / "model.onnx")
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(small.WEIGHT.tobytes())
    for source in (folder, folder / "model.onnx"):
        model, files = gathered(source)
        assert [file.name for file in model.files] == ["model.onnx", "weights/w.bin"]
        assert files["weights/w.bin"] == small.WEIGHT.tobytes()


def test_external_data_lies_relative_to_the_graph(tmp_path: Path) -> None:
    small.external(tmp_path / "1")
    assert [file.name for file in gathered(tmp_path)[0].files] == ["1/model.onnx", "1/w.bin"]


def outside(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    return secret


HOSTILE: dict[str, Callable[[Path, Path], str]] = {
    "absolute": lambda folder, secret: str(secret),
    "parent": lambda folder, secret: "../secret",
    "parent later": lambda folder, secret: "sub/../../secret",
    "parent of itself": lambda folder, secret: "../m/w.bin",
    "here": lambda folder, secret: "./w.bin",
    "folder": lambda folder, secret: "sub",
    "the folder itself": lambda folder, secret: ".",
    "nothing": lambda folder, secret: "",
    "missing": lambda folder, secret: "none.bin",
    "slash at the end": lambda folder, secret: "w.bin/",
    "two slashes": lambda folder, secret: "sub//x",
    "backslash": lambda folder, secret: "..\\secret",
    "zero byte": lambda folder, secret: "w.bin\x00.png",
    "the graph itself": lambda folder, secret: "model.onnx",
    "reserved": lambda folder, secret: ".hermetic/known-answer",
    "memory tag": lambda folder, secret: "*/_ORT_MEM_ADDR_/*",
    "lifted tag": lambda folder, secret: "\x00lifted",
    "process": lambda folder, secret: "/proc/self/environ",
}


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_locations(tmp_path: Path, what: str, whole: bool) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "sub").mkdir()
    location = HOSTILE[what](folder, outside(tmp_path))
    small.external(folder, location)
    refused(folder if whole else folder / "model.onnx")


def symlink(folder: Path, secret: Path) -> None:
    (folder / "w.bin").symlink_to(secret)


def symlink_inside(folder: Path, secret: Path) -> None:
    (folder / "real.bin").write_bytes(small.WEIGHT.tobytes())
    (folder / "w.bin").symlink_to("real.bin")


def hardlink(folder: Path, secret: Path) -> None:
    (folder / "w.bin").hardlink_to(secret)


def pipe(folder: Path, secret: Path) -> None:
    os.mkfifo(folder / "w.bin")


@pytest.mark.parametrize("place", [symlink, symlink_inside, hardlink, pipe])
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_links_and_pipes(tmp_path: Path, place: Callable[[Path, Path], None], whole: bool) -> None:
    folder = small.external(tmp_path / "m")
    (folder / "w.bin").unlink()
    place(folder, outside(tmp_path))
    assert "'w.bin'" in refused(folder if whole else folder / "model.onnx")


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_link_in_the_middle_of_a_path(tmp_path: Path, whole: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(SECRET)
    folder = tmp_path / "m"
    small.write(small.with_external(small.matmul(), "sub/w.bin"), folder / "model.onnx")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    assert "sub" in refused(folder if whole else folder / "model.onnx")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("./w\\\x00bins-ü "), max_size=12))
def test_no_location_reaches_outside(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir(exist_ok=True)
    (tmp_path / "w").write_bytes(SECRET)
    small.external(folder, location)
    try:
        _, files = gathered(folder / "model.onnx")
    except ModelFormatError:
        return
    assert set(files) == {"model.onnx", "w.bin"}
    assert files["w.bin"] == small.WEIGHT.tobytes()


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 4},
        {"offset": 2**63},
        {"offset": -1},
        {"length": small.WEIGHT.nbytes + 1},
        {"length": 10},
        {"offset": "x"},
    ],
    ids=str,
)
def test_data_that_the_file_does_not_hold(tmp_path: Path, entries: dict[str, Any]) -> None:
    assert "ONNX" in refused(small.external(tmp_path / "m", **entries))


def test_external_data_hidden_in_a_node(tmp_path: Path) -> None:
    model = small.matmul()
    hidden = numpy_helper.from_array(small.WEIGHT, "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=hidden))
    assert "hidden" in refused(small.write(model, tmp_path / "model.onnx"))


def test_operators_that_nobody_knows(tmp_path: Path) -> None:
    path = small.write(small.matmul(domain="evil.example"), tmp_path / "model.onnx")
    assert "evil.example" in refused(path)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x09", b"\xff" * 100], ids=len)
def test_what_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tmp_path)


def test_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    model = small.matmul()
    value = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
    model.graph.output.append(value)
    assert "'s'" in refused(small.write(model, tmp_path / "model.onnx"))


# ------------------------------------------------------------------------------------------------ what is in the folder


def test_a_file_that_nobody_accounts_for(tmp_path: Path) -> None:
    folder = small.external(tmp_path / "m")
    (folder / "id_ed25519").write_bytes(SECRET)
    assert "id_ed25519" in refused(folder)
    assert "id_ed25519" not in gathered(folder, ignored_files=("id_*",))[1]
    assert gathered(folder, extra_files=("id_ed25519",))[1]["id_ed25519"] == SECRET


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link"])
def test_extra_files_are_plain_files_too(tmp_path: Path, name: str) -> None:
    folder = small.external(tmp_path / "m")
    (folder / "link").symlink_to(outside(tmp_path))
    refused(folder, extra_files=(name,))


def test_a_model_that_the_operator_names_may_be_reached_by_links(tmp_path: Path) -> None:
    real = small.external(tmp_path / "real")
    (tmp_path / "link.onnx").symlink_to(real / "model.onnx")
    (real / "again.onnx").hardlink_to(real / "model.onnx")
    assert list(gathered(tmp_path / "link.onnx")[1]) == ["model.onnx", "w.bin"]
    assert list(gathered(real / "again.onnx")[1]) == ["again.onnx", "w.bin"]


def test_a_linked_model_in_a_folder_is_refused(tmp_path: Path) -> None:
    real = small.external(tmp_path / "real")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(real / "model.onnx")
    assert "without links" in refused(folder)


def test_one_model_in_a_folder(tmp_path: Path) -> None:
    assert "none" in refused(tmp_path)
    small.write(small.matmul(), tmp_path / "a.onnx")
    small.write(small.matmul(), tmp_path / "b.onnx")
    assert "a.onnx" in refused(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        gathered(tmp_path / "none" / "model.onnx")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = small.write(small.matmul(), tmp_path / "model.onnx")
    with collect(path, Description()) as model:
        os.truncate(path, 10)
        with pytest.raises(ModelFormatError, match="changed"):
            model.files[0].read_into(memoryview(bytearray(model.files[0].size)), 0)


# ------------------------------------------------------------------------------------------------ torch and safetensors


def described(folder: Path, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(more + small.DESCRIBED)
    return folder


@pytest.mark.parametrize(
    ("name", "entries", "kind"),
    [
        ("model.pt", small.TORCHSCRIPT, "torchscript"),
        ("model.ts", small.TORCHSCRIPT, "torchscript"),
        ("model.pt2", small.TORCH_EXPORT, "torch-export"),
    ],
)
def test_torch_archives(tmp_path: Path, name: str, entries: tuple[str, ...], kind: str) -> None:
    small.archive(described(tmp_path) / name, entries)
    model, files = gathered(tmp_path)
    assert model.format == kind
    assert list(files) == [name]
    assert model.inputs == (TensorSpec(name="x", datatype="FP32", shape=(4,)),)
    assert model.max_batch_size == 8


def test_native_code_is_taken_where_it_is_said_to_be_that_with_its_weights(tmp_path: Path) -> None:
    program = ("m/version", "m/data/aotinductor/model/a.so", "m/data/aotinductor/model/a.wrapper.cpp")
    small.archive(described(tmp_path) / "model.pt2", program)
    safetensors(tmp_path / "weights.safetensors")
    assert "expected one model" in refused(tmp_path)
    described(tmp_path, 'format = "aot-inductor"\n')
    model, files = gathered(tmp_path)
    assert (model.format, model.architecture) == ("aot-inductor", None)
    assert list(files) == ["model.pt2", "weights.safetensors"]
    small.archive(tmp_path / "model.pt2", (*program, "m/data/aotinductor/model/kernel.cubin"))
    assert "archive-names: 'model.pt2': .pt2: wanted the files of one AOTInductor model" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "entries", "why"),
    [
        ("model.pt", small.CHECKPOINT, "pickled checkpoint"),
        ("model.pt2", (*small.TORCH_EXPORT, "m/data/aotinductor/model.so"), "native code"),
        ("model.pt2", (*small.TORCH_EXPORT, "m/data/constants/c.pkl"), "pickle: "),
        ("model.pt2", ("x",), "torch.export"),
    ],
)
def test_torch_archives_that_are_refused(tmp_path: Path, name: str, entries: tuple[str, ...], why: str) -> None:
    small.archive(described(tmp_path) / name, entries)
    assert why in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_a_bare_pickle_is_no_model(tmp_path: Path, name: str) -> None:
    (described(tmp_path) / name).write_bytes(b"\x80\x04cposix\nsystem\n.")
    assert "ZIP" in refused(tmp_path)


def safetensors(path: Path) -> Path:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


def test_safetensors_with_shards_and_configuration(tmp_path: Path) -> None:
    described(tmp_path, 'architecture = "mlp-classifier"')
    for shard in (1, 2):
        safetensors(tmp_path / f"model-0000{shard}-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    model, files = gathered(tmp_path)
    assert model.architecture == "mlp-classifier"
    assert list(files) == ["model-00001-of-00002.safetensors", "config.json", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    "content", [b"x", bytes(8), struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 2) + b"[]"], ids=str
)
def test_what_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    described(tmp_path, 'architecture = "mlp-classifier"')
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "safetensors" in refused(tmp_path)


def test_an_architecture_belongs_to_safetensors(tmp_path: Path) -> None:
    small.archive(described(tmp_path, 'architecture = "mlp-classifier"') / "model.pt", small.TORCHSCRIPT)
    assert "architecture" in refused(tmp_path)


def test_what_does_not_tell_its_inputs_must_be_described(tmp_path: Path) -> None:
    small.archive(tmp_path / "model.pt", small.TORCHSCRIPT)
    assert "[[inputs]]" in refused(tmp_path)


# ---------------------------------------------------------------------------------------------------------- description


@pytest.mark.parametrize(
    "text",
    [
        "max_batch = 8",
        "max_batch_size = -1",
        'format = "pickle"',
        'architecture = "../x"',
        '[[inputs]]\nname = "x"',
        "[known_answer]\nrow = 1",
        "[known_answer]\nrows = 0",
        "= broken",
    ],
)
def test_a_description_with_what_is_not_known_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"model\.toml"):
        Description.load(path, {})


def test_the_command_line_says_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text("max_batch_size = 8\nshared = true\n")
    read = Description.load(path, {"max_batch_size": 2, "shared": None, "format": None})
    assert (read.max_batch_size, read.shared, read.format) == (2, True, None)
