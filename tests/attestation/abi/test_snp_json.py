"""Evidence as JSON: a report's bytes survive the way there and back, and nothing else is taken."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence, byte_list
from hermetic.errors import InvalidRequestError
from tests.attestation import amd
from tests.attestation.abi.test_snp import REAL

GENERATIONS = [Generation.MILAN] * 3 + [Generation.GENOA]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def plain(**certificates: Any) -> Any:
    return json.loads(json.dumps(amd.evidence(amd.report(report_data=b"\7" * 64).pack(), **certificates)))


@pytest.mark.parametrize(("data", "generation"), list(zip(REAL, GENERATIONS, strict=True)))
def test_a_real_report_survives(data: bytes, generation: Generation) -> None:
    evidence = SnpEvidence(data, Certificates((b"a",), (b"b",), (b"c", b"d")))
    assert SnpEvidence.parse(json.loads(json.dumps(evidence.to_json(generation)))) == evidence


def test_a_turin_s_report_has_an_fmc() -> None:
    data = amd.report(Generation.TURIN).pack()
    evidence = amd.evidence(data, Generation.TURIN)
    assert evidence["attestation_report"]["reported_tcb"]["fmc"] == 1
    assert SnpEvidence.parse(evidence).report == data


def test_what_a_version_lacks_is_null_or_missing() -> None:
    evidence = plain()
    assert evidence["cert_chain"] is None
    assert evidence["attestation_report"]["current_mit_vector"] is None
    del evidence["cert_chain"], evidence["attestation_report"]["current_mit_vector"]
    del evidence["attestation_report"]["reported_tcb"]["fmc"]
    assert SnpEvidence.parse(evidence) == SnpEvidence.parse(plain())


def test_authorities_that_come_along_are_not_looked_at() -> None:
    evidence = plain(vceks=(b"x",))
    evidence["cert_chain"] += [{"cert_type": "ARK", "data": "?"}, {"cert_type": "ASK", "data": [1]}]
    assert SnpEvidence.parse(evidence).certificates == Certificates(vceks=(b"x",))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((), [], "evidence: expected a JSON object"),
        (("more",), 1, "expected members out of"),
        (("attestation_report",), None, "attestation_report: expected a JSON object"),
        (("attestation_report", "_reserved"), 0, "expected members out of"),
        (("attestation_report", "version"), -1, "version: expected a number of 32 bits"),
        (("attestation_report", "version"), True, "version: expected a number of 32 bits"),
        (("attestation_report", "version"), 3.0, "version: expected a number of 32 bits"),
        (("attestation_report", "policy"), 1 << 64, "policy: expected a number of 64 bits"),
        (("attestation_report", "chip_id"), [0] * 63, "chip_id: expected 64 bytes, got 63"),
        (("attestation_report", "chip_id"), [0] * 65, "at most 64 numbers"),
        (("attestation_report", "chip_id"), [256] * 64, "numbers from 0 to 255"),
        (("attestation_report", "chip_id"), [True] * 64, "numbers from 0 to 255"),
        (("attestation_report", "chip_id"), "0" * 64, "at most 64 numbers"),
        (("attestation_report", "reported_tcb", "snp"), 256, "reported_tcb.snp: expected a number of 8 bits"),
        (("attestation_report", "reported_tcb", "more"), 0, "reported_tcb: expected members"),
        (("attestation_report", "current", "major"), None, "current.major: expected a number of 8 bits"),
        (("attestation_report", "signature", "r"), [0] * 48, "r: expected 72 bytes"),
        (("attestation_report", "signature", "_reserved"), [0], "signature: expected members"),
        (("cert_chain",), {}, "cert_chain: expected a list"),
        (("cert_chain",), [{"cert_type": "VCEK", "data": [0]}] * 9, "at most 8 entries"),
        (("cert_chain",), [{"cert_type": "OTHER", "data": [0]}], "cert_chain: expected cert_type"),
        (("cert_chain",), [{"cert_type": {"OTHER": "x"}, "data": [0]}], "cert_chain: expected cert_type"),
        (("cert_chain",), [{"cert_type": "VCEK", "data": [0] * 8193}], "at most 8192 numbers"),
        (("cert_chain",), [None], "cert_chain: expected a JSON object"),
    ],
)
def test_other_forms_are_refused_by_name(path: tuple[str, ...], value: Any, words: str) -> None:
    evidence = plain()
    if not path:
        evidence = value
    else:
        *way, last = path
        place = evidence
        for name in way:
            place = place[name]
        place[last] = value
    with pytest.raises(InvalidRequestError, match=words):
        SnpEvidence.parse(evidence)


@given(JSON)
def test_any_json_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidRequestError):
        SnpEvidence.parse(value)


@given(JSON, st.sampled_from(sorted(plain()["attestation_report"])))
def test_any_json_in_place_of_a_field_is_read_or_refused_by_name(value: Any, name: str) -> None:
    evidence = plain()
    evidence["attestation_report"][name] = value
    with contextlib.suppress(InvalidRequestError):
        SnpEvidence.parse(evidence)


@given(st.lists(st.integers(-2, 300), max_size=12))
def test_bytes_are_bytes(values: list[int]) -> None:
    try:
        assert list(byte_list(values, "field", 10)) == values
    except InvalidRequestError:
        assert len(values) > 10 or any(not 0 <= value <= 255 for value in values)
