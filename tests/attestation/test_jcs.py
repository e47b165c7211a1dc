"""Our canonical JSON is RFC 8785's, wherever it takes the quick way and wherever it does not."""

from typing import Any

import pytest
import rfc8785

from hermetic.attestation import jcs

SAFE = 2**53 - 1


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1, "a": [True, None, "x", {"z": [], "y": {}}]},
        {"a": SAFE, "b": -SAFE, "c": 0},
        {"text": '\x00\x1f\x7f\u2028\U0001f600"\\/\b\t'},
        {"\u20ac": 1, "\r": 2, "\U0001f600": 3, "\ufb33": 4},
        {"deep": [[{"\u00f6": [{"a": 1.5}]}]]},
        [1.0, 1e21, 0.1, -0.0],
        "alone",
        [],
    ],
)
def test_it_is_the_form_of_rfc_8785(value: Any) -> None:
    assert jcs.dumps(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [{"a": [{"b": SAFE + 1}]}, [{1: "a"}], {"a": float("nan")}, ["\ud800"]])
def test_what_has_no_such_form_is_refused_however_deep(value: Any) -> None:
    with pytest.raises((rfc8785.CanonicalizationError, UnicodeEncodeError)):
        jcs.dumps(value)
