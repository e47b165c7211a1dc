"""The parser agrees with NVIDIA's own on recorded reports, and answers any bytes with a report or an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.attestation.abi.nvgpu import Opaque, Report
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors" / "nvgpu"
NAMED = {
    "OPAQUE_FIELD_ID_DRIVER_VERSION": 3, "OPAQUE_FIELD_ID_VBIOS_VERSION": 6, "OPAQUE_FIELD_ID_NVDEC0_STATUS": 11,
    "OPAQUE_FIELD_ID_MSRSCNT": 12, "OPAQUE_FIELD_ID_CPRINFO": 13, "OPAQUE_FIELD_ID_BOARD_ID": 14,
    "OPAQUE_FIELD_ID_CHIP_SKU": 15, "OPAQUE_FIELD_ID_CHIP_SKU_MOD": 16, "OPAQUE_FIELD_ID_PROJECT": 17,
    "OPAQUE_FIELD_ID_PROJECT_SKU": 18, "OPAQUE_FIELD_ID_PROJECT_SKU_MOD": 19, "OPAQUE_FIELD_ID_FWID": 20,
    "OPAQUE_FIELD_ID_PROTECTED_PCIE_STATUS": 21, "OPAQUE_FIELD_ID_DEVICE_PDI": 22, "OPAQUE_FIELD_ID_GPU_INFO": 4,
    "OPAQUE_FIELD_ID_SWITCH_POSITION_ID": 24, "OPAQUE_FIELD_ID_SWITCH_LOCK_STATUS": 25,
}  # fmt: skip


def recorded(name: str) -> bytes:
    return bytes.fromhex((VECTORS / f"{name}.report.hex").read_text())


@pytest.mark.parametrize("name", ["hopper_580", "switch_ls10"])
def test_a_parse_agrees_with_nvidia_s(name: str) -> None:
    golden: dict[str, Any] = json.loads((VECTORS / f"{name}.parsed.json").read_text())
    read = Report.parse(recorded(name))
    assert f"{read.response_version:#04x}" == golden["SPDMVersion"]
    assert f"{read.response_code:#04x}" == golden["RequestResponseCode"]
    assert read.response_params == (int(golden["Param1"], 16), int(golden["Param2"], 16))
    assert f"0x{read.response_nonce.hex()}" == golden["Nonce"]
    assert read.opaque_size == golden["OpaqueLength"]
    assert f"0x{read.signature.hex()}" == golden["Signature"]
    blocks = golden["MeasurementRecord"]["MeasurementBlocks"]
    assert {str(index): (one.type, len(one.value), f"0x{one.value.hex()}") for index, one in read.blocks.items()} == {
        index: tuple(one[f"DMTFSpecMeasurementValue{part}"] for part in ("Type", "Size", ""))
        for index, one in blocks.items()
    }
    assert len(blocks) == golden["NumberOfBlocks"]
    fields = golden["OpaqueData"]["OpaqueDataField"]
    compared = 0
    for field, value in fields.items():
        if field in NAMED and isinstance(value, str):
            assert f"0x{read.opaque[NAMED[field]].hex()}" == value, field
            compared += 1
    assert compared >= 4
    counts = b"".join(one.to_bytes(4, "little") for one in fields["OPAQUE_FIELD_ID_MSRSCNT"])
    assert read.opaque[NAMED["OPAQUE_FIELD_ID_MSRSCNT"]] == counts


def test_a_switch_names_itself_and_its_gpus() -> None:
    golden = json.loads((VECTORS / "switch_ls10.parsed.json").read_text())["OpaqueData"]["OpaqueDataField"]
    read = Report.parse(recorded("switch_ls10"))
    assert [f"0x{pdi.hex()}" for pdi in read.pdis(Opaque.PDI)] == [golden["OPAQUE_FIELD_ID_DEVICE_PDI"]]
    gpus = [f"0x{pdi.hex()}" for pdi in read.pdis(Opaque.SWITCH_GPU_PDIS)]
    assert gpus == golden["OPAQUE_FIELD_ID_SWITCH_GPU_PDIS"]
    assert (read.driver_version, read.vbios_version, read.feature) == (None, "96.10.55.00.01", None)


def test_a_gpu_names_its_versions() -> None:
    read = Report.parse(recorded("hopper_580"))
    assert (read.driver_version, read.vbios_version, read.feature) == ("580.159.03", "96.00.74.00.20", 0)


def test_any_cut_and_any_more_is_refused() -> None:
    sound = recorded("switch_ls10")
    for size in range(len(sound)):
        with pytest.raises(InvalidRequestError):
            Report.parse(sound[:size])
    with pytest.raises(InvalidRequestError, match="expected the end"):
        Report.parse(sound + b"\0")
    with pytest.raises(InvalidRequestError, match="at most 8192"):
        Report.parse(sound + bytes(8192))


def test_what_stands_twice_is_refused() -> None:
    sound = recorded("switch_ls10")
    twice = bytearray(sound)
    twice[45 + 55] = 1  # the second block's index
    with pytest.raises(InvalidRequestError, match="block 1: expected it once"):
        Report.parse(bytes(twice))
    first = sound.index(b"96.10") - 4  # two opaque fields of one type
    twice = bytearray(sound)
    twice[first + 18 : first + 20] = twice[first : first + 2]
    with pytest.raises(InvalidRequestError, match="expected field 6 once"):
        Report.parse(bytes(twice))


def read_all(data: bytes) -> None:
    """Read a report and everything that is read late."""
    read = Report.parse(data)
    assert read.signed + read.signature == data
    _ = read.driver_version, read.vbios_version, read.feature, read.numbers
    _ = read.pdis(Opaque.PDI), read.pdis(Opaque.SWITCH_GPU_PDIS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_a_report_or_an_error(data: bytes) -> None:
    try:
        read_all(data)
    except InvalidRequestError:
        return


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4129), st.binary(max_size=6)), max_size=8))
def test_a_report_with_any_changes_is_a_report_or_an_error(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(recorded("hopper_580"))
    for at, new in changes:
        data[at : at + len(new)] = new
    try:
        read_all(bytes(data))
    except InvalidRequestError:
        return
