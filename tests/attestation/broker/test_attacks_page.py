"""The page of attacks on a broker over the network is what the tests show."""

import ast
from functools import cache

import pytest

from tests.attestation.broker.attacks import ATTACKS, PAGE, page
from tests.attestation.governance.attacks import ROOT, Attack


@cache
def functions_in(file: str) -> frozenset[str]:
    """The functions of a file, those of its classes too."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_the_page_is_what_the_tests_show() -> None:
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.test)
def test_every_attack_is_shown_by_a_test_that_exists(one: Attack) -> None:
    assert one.test in functions_in(one.file)
