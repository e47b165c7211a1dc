"""Every field of Triton's model configuration means what it means there, or is refused by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hermetic.enclave.sealed.config_fields import HINTS, REFUSED, SUPPORTED, all_fields, field_name, remarks
from hermetic.enclave.sealed.config_pbtxt import CONFIG_LIMIT, read_config
from hermetic.errors import ModelFormatError
from hermetic.protos.inference import model_config_pb2 as pb

VECTORS = Path(__file__).parents[2] / "vectors" / "model-configuration"
FIELDS = {field_name(field): field for field in all_fields(pb.ModelConfig.DESCRIPTOR)}


@pytest.mark.parametrize("path", sorted((VECTORS / "accepted").glob("*.pbtxt")), ids=lambda path: path.stem)
def test_accepted(path: Path) -> None:
    wanted = json.loads(path.with_suffix(".json").read_text())
    got = read_config(path.read_text())
    assert got.configuration.dump() == wanted["configuration"]
    assert got.max_batch_size == wanted["max_batch_size"]
    for side, specs in (("inputs", got.inputs), ("outputs", got.outputs)):
        assert [[spec.name, spec.datatype, list(spec.dims or ())] for spec in specs] == wanted[side]
    places = [note.removeprefix("config.pbtxt: ").partition(":")[0] for note in got.notes]
    assert sorted(places) == wanted["notes"]


@pytest.mark.parametrize("path", sorted((VECTORS / "refused").glob("*.pbtxt")), ids=lambda path: path.stem)
def test_refused(path: Path) -> None:
    first, _, text = path.read_text().partition("\n")
    with pytest.raises(ModelFormatError) as caught:
        read_config(text)
    assert first.removeprefix("# ") in str(caught.value)


def test_every_accepted_vector_has_its_json() -> None:
    texts = {path.stem for path in (VECTORS / "accepted").glob("*.pbtxt")}
    assert texts == {path.stem for path in (VECTORS / "accepted").glob("*.json")}
    assert texts


def test_the_tables_name_fields_that_exist_each_in_one_table() -> None:
    assert FIELDS.keys() >= SUPPORTED | HINTS.keys() | REFUSED.keys()
    assert not SUPPORTED & HINTS.keys()
    assert not (SUPPORTED | HINTS.keys()) & REFUSED.keys()


def set_somehow(message: Message, field: FieldDescriptor) -> None:
    """Give a field of `message` some value that is not its default."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        if value.message_type is None:
            key_is_text = field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
            getattr(message, field.name)["k" if key_is_text else 1] = "v"
        else:
            getattr(message, field.name)[1 if field.name == "priority_queue_policy" else "k"].SetInParent()
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        (inner.add() if field.is_repeated else inner).SetInParent()
    else:
        text = {FieldDescriptor.TYPE_STRING: '"v"', FieldDescriptor.TYPE_BOOL: "true"}.get(field.type, "1")
        text_format.Merge(f"{field.name}: {text}", message)


def test_every_field_is_supported_or_without_effect_or_refused_by_name() -> None:
    for name, field in sorted(FIELDS.items()):
        kind: Any = pb
        for part in name.split(".")[:-1]:
            kind = getattr(kind, part)
        one = kind()
        set_somehow(one, field)
        said = [remark for remark in remarks(one) if remark.place.startswith(field.name)]
        if name in SUPPORTED:
            assert not [remark for remark in said if remark.place == field.name], name
        else:
            assert [remark.refused for remark in said] == [name not in HINTS], name
            assert said[0].why, name


def test_a_field_that_the_tables_do_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetic.enclave.sealed.config_fields.SUPPORTED", SUPPORTED - {"ModelConfig.metric_tags"})
    with pytest.raises(ModelFormatError, match=r"metric_tags: not supported: this version .* does not know it"):
        read_config('metric_tags { key: "a" value: "b" }')


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(ModelFormatError, match="expected at most"):
        read_config("#" * (CONFIG_LIMIT + 1))


def test_the_specification_names_every_field_that_is_not_supported() -> None:
    page = (Path(__file__).parents[3] / "docs" / "spec" / "model-configuration.md").read_text()
    assert not [name for name in (*HINTS, *REFUSED) if f"`{name}`" not in page]
