"""What others wrote is shown, and a terminal obeys nothing in it."""

import json

import pytest

from hermetic.cli import output
from hermetic.errors import EvidenceError, FailedCheck, ModelFormatError

HOSTILE = "\x1b]0;yours\x07\x1b[2J\x9b31m\u202eevil\r[bold]x[/] \u00fc"
SHOWN = r"\x1b]0;yours\x07\x1b[2J\x9b31m\u202eevil\r[bold]x[/]"
OBEYED = "\x1b\x07\x9b\u202e\r"


def test_an_error_with_a_workers_words_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that has taken its worker over chooses the text of its refusal, which `hermetic seal` then prints."""
    output.complain(ModelFormatError(HOSTILE), as_json=False)
    output.complain(EvidenceError([FailedCheck(name=HOSTILE, wanted="a", got=HOSTILE)]), as_json=False)
    output.note(HOSTILE)
    output.warn(HOSTILE)
    said = capsys.readouterr().err
    assert not set(OBEYED) & set(said)
    assert said.count(SHOWN) == 5  # the check is named, and what was got


def test_json_means_the_same_and_moves_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({HOSTILE: [HOSTILE]})
    output.complain(ModelFormatError(HOSTILE), as_json=True)
    said = capsys.readouterr()
    assert not set(OBEYED) & set(said.out + said.err)
    assert json.loads(said.out) == {HOSTILE: [HOSTILE]}
    assert json.loads(said.err)["message"] == HOSTILE


def test_tables_show_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    output.stdout().print(output.facts("Facts", {HOSTILE: HOSTILE}))
    assert not set(OBEYED) & set(capsys.readouterr().out)


def test_a_name_is_one_line_and_an_error_may_have_several() -> None:
    assert output.visible("one\ntwo\t") == r"one\ntwo\t"
    assert output.visible("one\ntwo\t\x00", lines=True) == "one\ntwo\t" + r"\x00"


@pytest.mark.parametrize("width", [40, 80])
def test_nothing_is_cut_off_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """What an operator compares before signing ends differently, as a rule, not only begins so."""
    monkeypatch.setenv("COLUMNS", str(width))
    whole = "ab12" * 16
    for shown in (output.facts("what you sign", {"digest": whole}), output.table("t", ["key"], [[whole]])):
        output.stdout().print(shown)
        assert whole in "".join(c for c in capsys.readouterr().out if c.isalnum())
